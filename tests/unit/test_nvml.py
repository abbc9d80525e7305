"""The real pynvml against the stand-in driver: what NVIDIA's GPUs tell, and every way in which they fail to."""

import subprocess
import sys

import pytest
from dspy_fastpath.counters import GpuStatus, GpuValue, Telemetry
from dspy_supervisor.services import nvml as nvml_module
from dspy_supervisor.services.nvml import Nvml
from dspy_supervisor.services.source import Absent, Broken, Device, Mismatch
from dspy_supervisor.services.watch import AGAIN_S, Watch

from tests.conftest import ROOT, clean_environ
from tests.nvml import (
    ANEW,
    FORBIDDEN,
    GIB,
    H100,
    LOST,
    MISMATCH,
    NEEDS_RESET,
    RTX_4090,
    TIMEOUT,
    UNKNOWN,
    UNSUPPORTED,
    compile_library,
)


@pytest.fixture
def source():
    source = Nvml()
    yield source
    source.close()


@pytest.fixture
def watch(source):
    return Watch([source])


@pytest.fixture
def two(nvml):
    nvml.gpu(0, uuid="GPU-a", bus="00000000:01:00.0", **RTX_4090)
    return nvml.gpu(1, uuid="GPU-b", bus="00000000:02:00.0", **RTX_4090)


def by_uuid(view):
    return {device.uuid: device for device in view.devices}


def test_a_gpu_tells_all_it_knows_in_our_units(nvml, source):
    nvml.gpu(0, uuid="GPU-h", bus="00000000:0A:00.0", **H100 | {"processes": f"41:{GIB},42:-", "graphics": "7:1024"})
    assert source.open() == {"driver": "570.86.10", "nvml": "12.570.86.10", "cuda": "12.8"}
    (device,) = source.devices()
    assert (device.uuid, device.name, device.bus) == ("GPU-h", "NVIDIA H100 80GB HBM3", "00000000:0A:00.0")
    assert (device.status, device.parent) == (GpuStatus.HEALTHY, None)
    assert {value.name.lower(): told for value, told in device.values.items()} == {
        "utilization": 0.37,
        "memory_utilization": 0.12,
        "memory_total": 81559 << 20,
        "memory_free": (81559 << 20) - 2 * GIB - (512 << 20),
        "memory_used": 2 * GIB,
        "memory_reserved": 512 << 20,
        "power_w": 213.5,
        "power_cap_w": 700,
        "energy_j": 5000,
        "temperature_c": 61,
        "slowdown_c": 98,
        "sm_clock_mhz": 2520,
        "sm_clock_max_mhz": 3105,
        "memory_clock_mhz": 10501,
        "throttle": 4,
        "processes": 3,
        "process_memory": GIB + 1024,
        "mig": 0,
        "ecc_corrected": 3,
        "ecc_uncorrected": 0,
        "fan": 0.3,
        "compute_mode": 0,
        "compute_capability": 9.0,
    }
    assert device.processes == ((41, GIB), (7, 1024), (42, -1))


def test_what_a_gpu_does_not_support_or_permit_is_not_told(nvml, source):
    nvml.gpu(0, uuid="GPU-bare", total=GIB)  # everything else: not supported
    nvml.gpu(1, uuid="GPU-b", **RTX_4090)
    nvml.fails(1, "nvmlDeviceGetTemperature", UNSUPPORTED).fails(1, "nvmlDeviceGetPowerUsage", FORBIDDEN)
    source.open()
    bare, other = source.devices()
    assert set(bare.values) == {
        *(GpuValue.MEMORY_TOTAL, GpuValue.MEMORY_FREE, GpuValue.MEMORY_USED, GpuValue.MEMORY_RESERVED),
        *(GpuValue.PROCESSES, GpuValue.PROCESS_MEMORY),
    }
    assert GpuValue.TEMPERATURE_C not in other.values
    assert GpuValue.POWER_W not in other.values
    assert other.values[GpuValue.POWER_CAP_W] == 450
    assert source.errors == 0


def test_a_number_that_stands_for_none_is_nan(nvml, source):
    nvml.gpu(0, uuid="GPU-a", **RTX_4090 | {"power": 0xFFFFFFFF / 1000, "sm_clock": 0xFFFFFFFF})
    source.open()
    values = source.devices()[0].values
    assert values[GpuValue.POWER_W] != values[GpuValue.POWER_W]
    assert values[GpuValue.SM_CLOCK_MHZ] != values[GpuValue.SM_CLOCK_MHZ]


@pytest.mark.parametrize(
    ("code", "words"),
    [(9, "driver is not loaded"), (12, "no NVIDIA driver library"), (28, "no NVIDIA GPU"), (4, "no perm")],
)
def test_a_host_without_a_gpu_says_so_and_is_looked_at_again_each_minute(two, watch, code, words):
    two.fails("*", "nvmlInitWithFlags", code)
    two.fails("*", "nvmlInitWithFlags", 0, at=30)
    view = watch.look(0.0)
    assert (view.state, view.devices, view.broken) == (Telemetry.NO_GPU, (), "")
    assert words in view.why
    two.set_clock(30)
    assert watch.look(AGAIN_S - 0.1).state == Telemetry.NO_GPU
    view = watch.look(AGAIN_S)
    assert (view.state, view.why, len(view.devices)) == (Telemetry.WATCHING, "", 2)


def test_a_driver_that_lists_no_gpu_is_no_gpu(nvml, watch):
    view = watch.look(0.0)
    assert (view.state, view.why) == (Telemetry.NO_GPU, "no NVIDIA GPU")


def test_driver_and_library_of_two_versions_need_a_reboot(two, watch):
    two.fails("*", "nvmlInitWithFlags", MISMATCH)
    view = watch.look(0.0)
    assert (view.state, view.devices, view.broken) == (Telemetry.REBOOT_NEEDED, (), "")
    assert "the library installed is another" in view.why
    two.fails("*", "nvmlInitWithFlags", 0)  # the modules were loaded anew
    assert watch.look(AGAIN_S).state == Telemetry.WATCHING


def test_a_mismatch_in_a_session_that_worked_asks_for_a_process_with_the_new_library(two, watch):
    assert watch.look(0.0).broken == ""
    two.fails("*", "*", MISMATCH)
    view = watch.look(1.0)
    assert view.state == Telemetry.REBOOT_NEEDED
    assert "library" in view.broken
    assert [device.status for device in view.devices] == [GpuStatus.HEALTHY] * 2  # what runs there goes on
    assert view.news == ()


@pytest.mark.parametrize(("code", "status"), [(LOST, GpuStatus.LOST), (NEEDS_RESET, GpuStatus.NEEDS_RESET)])
@pytest.mark.parametrize("function", ["*", "nvmlDeviceGetUtilizationRates"])
def test_a_gpu_that_is_lost_is_fenced_and_the_others_go_on(two, watch, code, status, function):
    watch.look(0.0)
    two.fails(0, function, code)
    two.gpu(1, utilization=90)
    view = watch.look(1.0)
    assert view.state == Telemetry.WATCHING
    assert [device.uuid for device in view.fenced] == ["GPU-a"]
    lost, other = by_uuid(view)["GPU-a"], by_uuid(view)["GPU-b"]
    assert (lost.status, lost.values, lost.name) == (status, {}, RTX_4090["name"])
    assert f"NVML {code}" in lost.why
    assert (other.status, other.values[GpuValue.UTILIZATION]) == (GpuStatus.HEALTHY, 0.9)
    assert watch.look(2.0).fenced == ()  # it is told once


def test_a_fence_opens_only_for_who_initializes_anew(two, watch):
    watch.look(0.0)
    two.fails(0, "*", LOST)
    watch.look(1.0)
    two.fails(0, "*", 0)
    assert by_uuid(watch.look(2.0))["GPU-a"].status == GpuStatus.LOST
    view = watch.look(AGAIN_S)
    assert (view.back, by_uuid(view)["GPU-a"].status) == (("GPU-a",), GpuStatus.HEALTHY)
    assert watch.look(AGAIN_S + 1).back == ()


def test_a_fence_stays_while_the_gpu_stays_lost(two, watch):
    watch.look(0.0)
    two.fails(0, "*", LOST)
    for minute in range(4):
        view = watch.look(1.0 + minute * AGAIN_S)
        assert by_uuid(view)["GPU-a"].status == GpuStatus.LOST
        assert by_uuid(view)["GPU-b"].status == GpuStatus.HEALTHY
        assert len(view.fenced) == (minute == 0)


def test_a_lost_gpu_that_fails_in_another_way_to_who_initializes_anew_stays_fenced(two, watch):
    watch.look(0.0)
    two.fails(0, "*", LOST)
    watch.look(1.0)
    two.fails(0, "*", UNKNOWN)
    view = watch.look(AGAIN_S + 1)
    assert (view.back, by_uuid(view)["GPU-a"].status) == ((), GpuStatus.LOST)


def test_a_gpu_that_was_lost_before_this_process_began_is_fenced_by_its_page(two, source):
    two.fails(0, "*", LOST)
    view = Watch([source], [Device("GPU-a", "old"), Device("GPU-b")]).look(0.0)
    assert [device.uuid for device in view.fenced] == ["GPU-a"]


def test_a_library_that_forgot_is_initialized_again_in_the_same_look(two, watch):
    watch.look(0.0)
    two.add("uninitialize 1")
    view = watch.look(1.0)
    assert (view.state, len(view.news), view.broken) == (Telemetry.WATCHING, 2, "")


@pytest.mark.parametrize(("device", "function"), [("*", "nvmlDeviceGetCount_v2"), (0, "nvmlDeviceGetFanSpeed")])
def test_a_library_that_forgets_at_every_call_is_given_to_another_process(two, watch, device, function):
    two.fails(device, function, ANEW)
    views = [watch.look(float(second)) for second in range(3)]
    assert {view.state for view in views} == {Telemetry.TROUBLED}
    assert [bool(view.broken) for view in views] == [False, False, True]


@pytest.mark.parametrize("code", [UNKNOWN, TIMEOUT])
def test_a_number_that_fails_three_times_after_it_worked_asks_for_another_process(two, watch, code):
    watch.look(0.0)
    two.fails(0, "nvmlDeviceGetPowerUsage", code)
    for second in (1.0, 2.0):
        view = watch.look(second)
        assert (view.state, view.broken) == (Telemetry.WATCHING, "")
        assert GpuValue.POWER_W not in by_uuid(view)["GPU-a"].values
        assert by_uuid(view)["GPU-a"].values[GpuValue.UTILIZATION] == 0.37
    view = watch.look(3.0)
    assert "GPU-a: power" in view.broken
    assert f"NVML {code}" in view.broken
    assert watch.errors == 3


def test_the_next_process_goes_on_without_a_number_that_never_worked(two, watch):
    two.fails(0, "nvmlDeviceGetPowerUsage", UNKNOWN)
    for second in range(10):
        view = watch.look(float(second))
        assert (view.state, view.broken) == (Telemetry.WATCHING, "")
        assert GpuValue.POWER_W not in by_uuid(view)["GPU-a"].values


def test_a_failure_now_and_then_is_no_reason(two, watch):
    for second in range(12):
        two.fails(0, "nvmlDeviceGetPowerUsage", UNKNOWN if second % 3 else 0)
        assert watch.look(float(second)).broken == ""


def test_a_gpu_that_cannot_be_opened_is_unreadable_then_replaced_then_fenced(two, watch, source):
    watch.look(0.0)
    two.fails(0, "nvmlDeviceGetHandleByIndex_v2", UNKNOWN)
    for second in (1.0, 2.0):
        view = watch.look(second)
        assert by_uuid(view)["GPU-a"].status == GpuStatus.UNREADABLE
        assert by_uuid(view)["GPU-b"].status == GpuStatus.HEALTHY
        assert view.fenced == ()
    assert watch.look(3.0).broken
    later = Watch([Nvml()], view.devices)
    view = later.look(4.0)
    assert [device.uuid for device in view.fenced] == ["GPU-a"]
    assert all(later.look(float(second)).broken == "" for second in range(5, 15))


def test_an_init_that_fails_unknown_is_troubled_and_given_to_another_process(two, watch):
    two.fails("*", "nvmlInitWithFlags", UNKNOWN)
    views = [watch.look(float(second)) for second in range(3)]
    assert {view.state for view in views} == {Telemetry.TROUBLED}
    assert "NVML 999" in views[0].why
    assert [bool(view.broken) for view in views] == [False, False, True]


def test_a_gpu_that_is_no_longer_listed_is_lost_and_a_new_one_is_seen(two, watch):
    watch.look(0.0)
    two.gpu(0, gone=1).gpu(2, uuid="GPU-c", **RTX_4090)
    view = watch.look(1.0)
    assert {uuid: device.status for uuid, device in by_uuid(view).items()} == {
        "GPU-a": GpuStatus.LOST,
        "GPU-b": GpuStatus.HEALTHY,
        "GPU-c": GpuStatus.HEALTHY,
    }
    assert [device.uuid for device in view.fenced] == ["GPU-a"]


def test_a_driver_that_goes_takes_its_gpus_with_it(two, watch):
    watch.look(0.0)
    two.fails("*", "*", 9)
    view = watch.look(1.0)
    assert view.state == Telemetry.NO_GPU
    assert [device.uuid for device in view.fenced] == ["GPU-a", "GPU-b"]


def test_slices_come_and_go_with_mig(nvml, watch):
    nvml.gpu(0, uuid="GPU-h", **H100)
    assert [device.uuid for device in watch.look(0.0).devices] == ["GPU-h"]
    nvml.gpu(0, mig=1).fails(0, "nvmlDeviceGetUtilizationRates", UNSUPPORTED)
    for place in (1, 2):
        nvml.gpu(place, uuid=f"MIG-{place}", parent=0, name="NVIDIA H100 MIG 3g.40gb", total=40 * GIB, used=GIB)
    found = by_uuid(watch.look(1.0))
    assert found["GPU-h"].values[GpuValue.MIG] == 1
    assert GpuValue.UTILIZATION not in found["GPU-h"].values  # NVML has none under MIG
    assert (found["MIG-1"].parent, found["MIG-1"].values[GpuValue.MEMORY_FREE]) == ("GPU-h", 39 * GIB)
    nvml.gpu(0, mig=0).fails(0, "nvmlDeviceGetUtilizationRates", 0)
    view = watch.look(2.0)
    assert [device.uuid for device in view.fenced] == ["MIG-1", "MIG-2"]
    assert by_uuid(view)["GPU-h"].values[GpuValue.UTILIZATION] == 0.37


def test_slices_that_are_cut_anew_for_ever_are_forgotten_and_live_ones_never(nvml, watch, monkeypatch):
    monkeypatch.setattr(nvml_module, "_MOST_WORKED", 0)
    nvml.gpu(0, uuid="GPU-h", **H100 | {"mig": 1}).gpu(1, uuid="MIG-live", parent=0, total=GIB)
    for number in range(100):
        nvml.gpu(2, uuid=f"MIG-{number}", parent=0, total=GIB)
        view = watch.look(float(number))
        assert len(view.devices) <= 64
        assert {"GPU-h", "MIG-live", f"MIG-{number}"} <= by_uuid(view).keys()
        assert len(view.fenced) == (number > 0)
    nvml.fails(1, "nvmlDeviceGetMemoryInfo_v2", UNKNOWN)
    assert [bool(watch.look(100.0 + second).broken) for second in range(3)] == [False, False, True]


def test_an_hour_of_looks_is_as_the_script_says(two, watch):
    for minute in range(60):
        two.lines += [f"@{60 * minute} gpu 0 utilization {minute}"]
    two.fails(0, "nvmlDeviceGetUtilizationRates", UNSUPPORTED, at=1800)
    for second in range(0, 3600, 20):
        two.set_clock(second)
        told = by_uuid(watch.look(float(second)))["GPU-a"].values.get(GpuValue.UTILIZATION)
        assert told == (None if second >= 1800 else second // 60 / 100)


def run(script, code, **environ):
    """Return what a program of its own prints, that meets the driver of a script."""
    environ = clean_environ(script.path.parent) | script.environ | environ
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


TELL = """
from dspy_supervisor.services.nvml import Nvml
source = Nvml()
source.open()
for device in source.devices():
    print(device.uuid, {value.name: int(told) for value, told in device.values.items()})
"""


def test_an_old_driver_tells_what_it_can(nvml_script, tmp_path):
    """Before 510 there is no memory v2, no list v3 and no event reasons: the functions are not in the library."""
    nvml_script.library = compile_library(tmp_path / "old", "-DOLD")
    nvml_script.gpu(0, uuid="GPU-k", total=12 * GIB, used=GIB, reserved=GIB, throttle=0x20, processes=f"5:{GIB}")
    told = run(nvml_script, TELL)
    assert told.startswith("GPU-k")
    assert f"'MEMORY_FREE': {10 * GIB}" in told
    assert f"'MEMORY_USED': {2 * GIB}" in told  # with the driver's share
    assert "'THROTTLE': 32" in told
    assert f"'PROCESS_MEMORY': {GIB}" in told
    assert "RESERVED" not in told


def test_a_host_without_the_library_has_no_gpu(nvml_script, tmp_path):
    if "libnvidia-ml.so.1" in subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout:
        pytest.skip("this host has NVIDIA's library")
    code = "from dspy_supervisor.services.nvml import Nvml\ntry: Nvml().open()\nexcept Exception as e: print(repr(e))"
    told = run(nvml_script, code, LD_LIBRARY_PATH=str(tmp_path))
    assert told == "Absent('no NVIDIA driver library (libnvidia-ml.so.1)')"


def test_the_errors_of_a_source_are_its_own(two, source):
    two.fails("*", "nvmlInitWithFlags", MISMATCH)
    with pytest.raises(Mismatch):
        source.open()
    two.fails("*", "nvmlInitWithFlags", UNKNOWN)
    with pytest.raises(Broken):
        source.open()
    two.fails("*", "nvmlInitWithFlags", 9)
    with pytest.raises(Absent):
        source.open()
