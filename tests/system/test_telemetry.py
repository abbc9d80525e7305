"""Telemetry under a real supervisor, on the stand-in driver: killed, hung, and with a driver of another version."""

import json
import signal
import subprocess
import sys
import time

import pytest
from dspy_fastpath.counters import GpuStatus, Page, Telemetry
from dspy_supervisor.client import Queue
from dspy_supervisor.gpu import read

from tests.conftest import clean_environ, until
from tests.nvml import LOST, MISMATCH, RTX_4090


@pytest.fixture
def start(supervisor, nvml_script, tmp_path):
    """A function that starts a supervisor on a host with two GPUs, and returns it and its page."""
    pages = []

    def start():
        for place in (0, 1):
            nvml_script.gpu(place, uuid=f"GPU-{place}", **RTX_4090)
        settings = {"enable_gpu": "true", "telemetry_interval_s": 0.1, "policy": "fixed"}
        one = supervisor(settings=settings, environ=nvml_script.environ)
        pages.append(Page.attach(one.socket.with_suffix(".page")))
        until(lambda: telemetry(one).get("gpus") == 2, "both GPUs, on the page and in `status`")
        return one, pages[0]

    yield start
    for page in pages:
        page.close()


def telemetry(one):
    return one.status()["services"]["telemetry"]


def runs_a_task(one):
    with Queue(one.queue) as queue:
        return queue.result(queue.submit({"n": 1}), 30) == {"n": 1}


def test_telemetry_that_is_killed_is_replaced_and_gpus_keep_their_places(start, nvml_script, tmp_path):
    one, page = start()
    before = {gpu.uuid: gpu.place for gpu in read(page).gpus}
    first = telemetry(one)
    assert (first["telemetry"], first["gpus"], first["driver"]) == ("watching", 2, "570.86.10")
    nvml_script.fails(0, "*", LOST)  # which a kill must not make anyone forget
    until(lambda: "GPU-0" in telemetry(one)["fenced"], "the fence in `status`")
    next(child for child in one.children() if child.pid == first["pid"]).send_signal(signal.SIGKILL)
    nvml_script.gpu(1, utilization=88)
    until(lambda: read(page).gpus[1].values[0] == 0.88, "a sample of its successor")
    assert {gpu.uuid: gpu.place for gpu in read(page).gpus} == before
    assert read(page).gpus[0].status == GpuStatus.LOST
    until(lambda: telemetry(one)["pid"] not in (None, first["pid"]), "it is shown")
    until(lambda: one.log.count('"gpu_lost"') == 2, "both told of it")
    command = [sys.executable, "-m", "dspy_supervisor", "gpu", "--json", "--queue-dir", one.queue]
    environ = clean_environ(tmp_path) | {"DSPY_RUNTIME_DIR": str(one.runtime)}  # without the driver: it asks nobody
    shown = json.loads(subprocess.run(command, env=environ, check=True, capture_output=True).stdout)
    assert (shown["source"], shown["state"]) == ("supervisor", "watching")
    assert [gpu["status"] for gpu in shown["gpus"]] == ["lost", "healthy"]
    assert "lost" in shown["gpus"][0]["obstacle"]


def test_a_driver_that_hangs_costs_the_telemetry_process_and_nothing_else(start, nvml_script):
    one, page = start()
    first = telemetry(one)["pid"]
    nvml_script.hangs(1, "nvmlDeviceGetPowerUsage")
    assert runs_a_task(one)
    until(lambda: "service_hung" in one.log, "it is found out", 60)
    assert "GPU telemetry is silent" in (read(page).obstacle(time.monotonic(), 0.1) or "")
    nvml_script.lines.pop()
    nvml_script.gpu(0, utilization=77)
    until(lambda: read(page).gpus[0].values[0] == 0.77, "a sample of its successor", 60)
    assert telemetry(one)["pid"] != first
    assert runs_a_task(one)


def test_a_driver_updated_under_us_means_reboot_needed_and_the_rest_goes_on(start, nvml_script):
    one, page = start()
    nvml_script.fails("*", "*", MISMATCH)
    until(lambda: telemetry(one)["restarts"] >= 1, "a process with the library of now")
    until(lambda: telemetry(one).get("telemetry") == "reboot_needed" and telemetry(one)["pid"], "its verdict")
    assert "reboot needed" in telemetry(one)["why"]
    assert read(page).state == Telemetry.REBOOT_NEEDED
    assert runs_a_task(one)
