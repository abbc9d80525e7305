"""A mode takes the host as it finds it: its limit follows the GPUs, and what is missing holds up nobody else."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from dspy_supervisor.client import Queue
from dspy_supervisor.task import State

from ..conftest import Start, Supervised, until
from ..nvml import RTX_4090, Script
from .rig import events

FIXED = {"policy": "fixed", "telemetry_interval_s": 0.2}


@pytest.fixture
def workstation(supervisor: Start, nvml_script: Script, tmp_path: Path):
    """A function that starts one with a GPU of so many bytes."""

    def start(total: int, **more: str) -> Supervised:
        nvml_script.gpu(0, uuid="GPU-1", **RTX_4090 | {"total": total})
        environ = nvml_script.environ | more
        return supervisor("--mode", "workstation", settings=FIXED, environ=environ, plain=True)

    return start


def limits(one: Supervised) -> dict[str, int]:
    return {name: found["limit"] for name, found in one.status()["classes"].items()}


def test_a_workstations_limit_follows_the_memory_of_its_gpu_and_a_reload_keeps_it(workstation) -> None:
    one = workstation(16 << 30)
    until(lambda: limits(one)["cpu_short"] == 2, "two tasks, one for each 8 GB")
    assert limits(one) == {"cpu_short": 2, "cpu_long": 2, "gpu": 2, "gpu_slurm": 0}
    assert "mode workstation with 17 GB of GPU memory" in str(events(one, "limit"))
    one.signal(signal.SIGHUP)
    until(lambda: events(one, "reloaded"), "it was reloaded")
    assert limits(one)["cpu_short"] == 2


def test_a_limit_that_somebody_set_stays_whatever_the_gpu_is(workstation) -> None:
    one = workstation(16 << 30, DSPY_MAX_CONCURRENCY="5")
    until(lambda: one.status()["services"]["telemetry"].get("gpus") == 1, "the GPU is found")
    assert limits(one)["cpu_short"] == 5


def test_a_cluster_without_slurm_says_so_and_runs_what_it_can(supervisor: Start) -> None:
    nowhere = {"PATH": "/nonexistent"}
    one = supervisor("--mode", "cluster", settings=FIXED | {"enable_gpu": False}, environ=nowhere, plain=True)
    with Queue(one.queue) as queue:
        job = queue.submit({"script": "true"}, task_class="gpu_slurm")
        assert queue.result(queue.submit({"n": 1}), 30) == {"n": 1}
        until(lambda: "not found on PATH" in one.ask("explain", id=job)["explanation"], "the job's task says why")
        assert "not found on PATH" in one.status()["services"]["slurm"]["problem"]
        assert events(one, "service_waits")
        assert queue.state(job) is State.CLAIMED


def test_a_workstation_without_a_gpu_says_so_and_runs_what_it_can(supervisor: Start, nvml_script: Script) -> None:
    both = {"cpu_short": "echo", "gpu": "echo"}
    one = supervisor("--mode", "workstation", settings=FIXED, handlers=both, environ=nvml_script.environ, plain=True)
    with Queue(one.queue) as queue:
        held = queue.submit({"n": 1}, task_class="gpu")
        assert queue.result(queue.submit({"n": 1}), 30) == {"n": 1}
        until(lambda: "no GPU found" in one.ask("explain", id=held)["explanation"], "the gpu task says why it waits")
        found = one.status()
        assert "no GPU found" in found["classes"]["gpu"]["reason"]
        assert limits(one)["cpu_short"] == 4  # there is no memory to derive another from
        assert "no GPU found" in one.log
