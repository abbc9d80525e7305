"""AMD's GPUs through the interface that NVIDIA's have."""

import sys

import pytest
from dspy_fastpath.counters import GpuStatus, GpuValue, Telemetry
from dspy_supervisor.services import amd
from dspy_supervisor.services.nvml import Nvml
from dspy_supervisor.services.telemetry import sources
from dspy_supervisor.services.watch import AGAIN_S, Watch

from tests.nvml import MISMATCH, RTX_4090
from tests.nvml import amdsmi as fake

GPU = {"uuid": "74ff-a", "name": "AMD Instinct MI210", "bdf": "0000:c1:00.0", "total": 65520, "used": 1000}
GPU |= {"busy": 40, "power": 90, "heat": 55}


@pytest.fixture
def smi(monkeypatch):
    monkeypatch.setitem(sys.modules, "amdsmi", fake)
    monkeypatch.setattr(fake, "gpus", {})
    monkeypatch.setattr(fake, "faults", {})
    fake.gpus[1] = GPU
    return fake


@pytest.fixture
def watch(smi):
    return Watch([amd.Amd()])


def test_a_gpu_tells_what_it_knows_in_our_units(watch):
    view = watch.look(0.0)
    assert (view.state, view.versions) == (Telemetry.WATCHING, {"amdsmi": "7.0.2"})
    (device,) = view.devices
    assert (device.uuid, device.name, device.bus) == ("74ff-a", "AMD Instinct MI210", "0000:c1:00.0")
    assert device.processes == ((12, 4096),)
    assert {value.name.lower(): told for value, told in device.values.items()} == {
        "memory_total": 65520 << 20,
        "memory_used": 1000 << 20,
        "memory_free": 64520 << 20,
        "utilization": 0.4,
        "power_w": 90,
        "power_cap_w": 300,
        "sm_clock_mhz": 1700,
        "sm_clock_max_mhz": 2100,
        "ecc_corrected": 1,
        "ecc_uncorrected": 0,
        "energy_j": pytest.approx(30.6),
        "temperature_c": 55,
        "slowdown_c": 110,
        "processes": 1,
        "process_memory": 4096,
    }


def test_what_is_not_supported_is_not_told(watch, smi):
    smi.faults |= dict.fromkeys(("vram", "power", "ecc", "processes", "asic"), 2)
    smi.gpus[1] = GPU | {"busy": "N/A"}
    values = watch.look(0.0).devices[0].values
    missing = {GpuValue.MEMORY_FREE, GpuValue.POWER_W, GpuValue.ECC_CORRECTED, GpuValue.PROCESSES, GpuValue.UTILIZATION}
    assert missing.isdisjoint(values)
    assert values[GpuValue.TEMPERATURE_C] == 55


@pytest.mark.parametrize(("code", "words"), [(34, "driver is not loaded"), (10, "no permission")])
def test_no_driver_is_no_gpu_and_is_looked_at_again(watch, smi, code, words):
    smi.faults["init"] = code
    view = watch.look(0.0)
    assert view.state == Telemetry.NO_GPU
    assert words in view.why
    smi.faults.clear()
    assert watch.look(AGAIN_S).state == Telemetry.WATCHING


def test_a_gpu_that_fails_is_unreadable_then_another_process_tries_and_the_other_goes_on(watch, smi):
    smi.gpus[2] = GPU | {"uuid": "74ff-b"}
    watch.look(0.0)
    smi.faults["uuid", 1] = 7
    for second in (1.0, 2.0):
        view = watch.look(second)
        assert [device.status for device in view.devices] == [GpuStatus.UNREADABLE, GpuStatus.HEALTHY]
        assert view.broken == ""
    assert "74ff-a" in watch.look(3.0).broken


def test_a_library_that_forgot_is_initialized_again(watch, smi):
    watch.look(0.0)
    smi.faults["handles"] = 32
    assert watch.look(1.0).state == Telemetry.WATCHING


def test_it_is_asked_only_where_it_is_installed(monkeypatch):
    monkeypatch.setattr(amd, "is_installed", lambda: False)
    assert [source.label for source in sources()] == ["NVIDIA"]
    monkeypatch.setattr(amd, "is_installed", lambda: True)
    assert [source.label for source in sources()] == ["NVIDIA", "AMD"]


def test_an_installation_that_cannot_be_imported_is_no_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "amdsmi", None)  # as where its C library is missing
    view = Watch([amd.Amd()]).look(0.0)
    assert view.state == Telemetry.NO_GPU
    assert "amdsmi cannot be imported" in view.why


def test_gpus_of_both_vendors_stand_side_by_side(nvml, smi):
    nvml.gpu(0, uuid="GPU-a", **RTX_4090)
    watch = Watch([Nvml(), amd.Amd()])
    view = watch.look(0.0)
    assert (view.state, [device.uuid for device in view.devices]) == (Telemetry.WATCHING, ["GPU-a", "74ff-a"])
    nvml.fails("*", "*", 9)  # NVIDIA's driver goes
    view = watch.look(1.0)
    assert view.state == Telemetry.WATCHING
    assert [device.status for device in view.devices] == [GpuStatus.LOST, GpuStatus.HEALTHY]


def test_a_mismatch_of_one_vendor_keeps_work_from_all(nvml, smi):
    nvml.fails("*", "*", MISMATCH)
    view = Watch([Nvml(), amd.Amd()]).look(0.0)
    assert view.state == Telemetry.REBOOT_NEEDED
    assert [device.uuid for device in view.devices] == ["74ff-a"]
