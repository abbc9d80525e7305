"""`gpu`, as people and programs run it: with a driver, without one, with one that fails, hangs or needs a reboot."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from dspy_fastpath.counters import Page
from dspy_supervisor.cli.gpu import ordered
from dspy_supervisor.gpu import read

from tests.conftest import clean_environ
from tests.nvml import GIB, H100, LOST, MISMATCH, RTX_4090


@pytest.fixture
def gpu(tmp_path, nvml_script):
    environ = clean_environ(tmp_path) | nvml_script.environ | {"DSPY_RUNTIME_DIR": str(tmp_path / "run")}

    def gpu(*arguments):
        command = [sys.executable, "-m", "dspy_supervisor", "gpu", "--queue-dir", str(tmp_path / "queue"), *arguments]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=100)
        assert done.stderr == ""
        return done

    return gpu


def test_without_a_supervisor_the_command_looks_by_itself(gpu, nvml_script):
    nvml_script.gpu(0, uuid="GPU-a", bus="00000000:01:00.0", **RTX_4090 | {"processes": f"4711:{GIB}"})
    done = gpu("--json")
    document = json.loads(done.stdout)
    assert done.returncode == 0
    assert {name: document[name] for name in ("schema_version", "source", "state", "obstacle")} == {
        "schema_version": 1,
        "source": "here",
        "state": "watching",
        "obstacle": None,
    }
    assert document["versions"] == {"driver": "570.86.10", "nvml": "12.570.86.10", "cuda": "12.8"}
    (one,) = document["gpus"]
    assert (one["uuid"], one["utilization"], one["memory_reserved"], one["power_w"]) == (
        "GPU-a",
        0.37,
        512 << 20,
        213.5,
    )
    assert (one["mig"], one["ecc_corrected"], one["throttle_reasons"]) == (None, None, ["power cap"])
    assert one["process_list"] == [{"pid": 4711, "memory": GIB}]
    assert document["host"]["cpus"] > 0
    assert 0 < document["host"]["memory_free"] <= document["host"]["memory_limit"]


def test_a_person_reads_each_gpu_with_its_slices_and_what_is_not_told(gpu, nvml_script):
    nvml_script.gpu(0, uuid="GPU-h", bus="00000000:0A:00.0", **H100 | {"mig": 1})
    nvml_script.gpu(1, uuid="GPU-b", name="NVIDIA T4", total=16 * GIB, used=4 * GIB)
    nvml_script.gpu(2, uuid="MIG-1", parent=0, name="MIG 3g.40gb", total=40 * GIB)
    nvml_script.fails(0, "nvmlDeviceGetUtilizationRates", 3)
    lines = gpu().stdout.splitlines()
    assert lines[0].split() == ["telemetry", "watching,", "seen", "by", "this", "command"]
    rows = [line for line in lines if "GPU-" in line or "MIG-1" in line]
    assert [row.split()[-1] for row in rows] == ["GPU-h", "MIG-1", "GPU-b"]
    assert "0000:0A:00.0" in rows[0] and "n/a" in rows[0] and "cut in slices" in rows[0]
    assert rows[1].lstrip().startswith("slice") and "0.0 of 40.0 GiB" in rows[1]
    assert "4.0 of 16.0 GiB" in rows[2] and "n/a of n/a W" in rows[2] and "n/a °C" in rows[2]


def test_slices_made_later_are_shown_below_their_gpu_and_orphans_last(tmp_path):
    with Page.create(tmp_path / "page", "q", ["gpu"], 0) as page:
        for place, (uuid, parent) in enumerate(
            [("MIG-0", 60), ("GPU-h", -1), ("GPU-b", -1), ("MIG-1", 1), ("MIG-2", 1)]
        ):
            page.gpu_write(place, uuid.encode(), {}, 1.0, parent=parent)
        page.gpu_write(60, b"GPU-x", {}, 1.0)
        sight = read(page)
        orphan = replace(sight.gpus[0], parent="GPU-forgotten")
    shown = ordered(replace(sight, gpus=(orphan, *sight.gpus[1:])))
    assert [one.uuid for one in shown] == ["GPU-h", "MIG-1", "MIG-2", "GPU-b", "GPU-x", "MIG-0"]


def test_a_host_without_a_gpu_is_no_failure(gpu):
    done = gpu("--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["state"], document["gpus"]) == (0, "no_gpu", [])
    assert document["obstacle"] == "no GPU found: no NVIDIA GPU"


def test_a_driver_of_another_version_says_reboot_needed(gpu, nvml_script):
    nvml_script.fails("*", "nvmlInitWithFlags", MISMATCH)
    done = gpu()
    assert done.returncode == 69
    assert "reboot needed" in done.stdout


def test_a_gpu_that_is_lost_is_named_and_the_other_is_shown(gpu, nvml_script):
    for place in (0, 1):
        nvml_script.gpu(place, uuid=f"GPU-{place}", **RTX_4090)
    nvml_script.fails(0, "nvmlDeviceGetPowerUsage", LOST)
    document = json.loads(gpu("--json").stdout)
    lost, other = document["gpus"]
    assert (lost["uuid"], lost["status"], lost["memory_free"]) == ("GPU-0", "lost", None)
    assert "NVML 15" in lost["obstacle"]
    assert (other["status"], other["obstacle"]) == ("healthy", None)


@pytest.mark.parametrize("function", ["nvmlInitWithFlags", "nvmlDeviceGetTemperature"])
def test_a_driver_that_hangs_is_told_in_words_and_in_time(gpu, nvml_script, function):
    nvml_script.gpu(0, uuid="GPU-a", **RTX_4090).hangs("*", function)
    done = gpu("--json", "--timeout", "1")
    document = json.loads(done.stdout)
    assert (done.returncode, document["state"]) == (69, "troubled")
    assert document["obstacle"] == "the GPU driver's library did not answer within 1 s"
    assert document["host"]["cpus"] > 0
