"""start, status and stop with a real supervisor, as a user runs them."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from dspy_supervisor.config import CLASSES


@pytest.fixture
def command(tmp_path):
    """Run a command line in a place of its own."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("DSPY_", "ENV_", "XDG_"))}
    environ |= {"HOME": str(tmp_path), "DSPY_RUNTIME_DIR": str(tmp_path / "run"), "DSPY_DURABILITY": "none"}
    environ |= {"ENV_QUEUE_DIR": str(tmp_path / "queue")}

    def command(*arguments, start=False):
        whole = [sys.executable, "-m", "dspy_supervisor", *arguments]
        if start:
            return subprocess.Popen(whole, stderr=subprocess.PIPE, env=environ, cwd=tmp_path)
        return subprocess.run(whole, capture_output=True, text=True, env=environ, cwd=tmp_path, timeout=60)

    return command


@pytest.fixture
def supervisor(command):
    """A supervisor that listens."""
    process = command("start", "--handler", "cpu_short=echo", start=True)
    assert b"starting" in process.stderr.readline()  # written after the socket is there
    yield process
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)
        process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)


def test_a_task_is_submitted_run_and_answered_and_the_supervisor_ended(command, supervisor):
    done = command("submit", '{"x": [1]}', "--wait", "--timeout-wait", "30")
    assert (done.returncode, done.stdout, done.stderr) == (0, '{"x":[1]}\n', "")
    status = json.loads(command("status", "--json").stdout)
    assert (status["schema_version"], status["running"], status["pid"], status["mode"]) == (
        1,
        True,
        supervisor.pid,
        "laptop",
    )
    assert tuple(status["classes"]) == CLASSES
    for one in status["classes"].values():
        assert all(type(one[name]) is int for name in ("pending", "inflight", "limit", "workers", "done", "failed"))
    assert status["classes"]["cpu_short"]["done"] == 1
    assert command("status").returncode == 0
    ended = command("stop", "--json")
    assert (ended.returncode, json.loads(ended.stdout)) == (
        0,
        {"schema_version": 1, "stopped": True, "pid": supervisor.pid},
    )
    assert supervisor.wait(10) == 0
    assert command("stop").returncode == command("status").returncode == 3


def test_a_second_supervisor_of_the_same_queue_is_refused(command, supervisor):
    second = command("start")
    assert second.returncode == 75
    assert str(supervisor.pid) in second.stderr


@pytest.mark.slow
def test_a_supervisor_that_does_not_answer_is_5_and_not_3(command, supervisor):
    supervisor.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, supervisor.pid, os.WSTOPPED | os.WNOWAIT)
    began = time.monotonic()
    assert command("status").returncode == 5
    assert time.monotonic() - began < 30
    supervisor.send_signal(signal.SIGCONT)
    assert command("status").returncode == 0


def test_a_queue_that_was_removed_can_still_be_stopped(command, supervisor, tmp_path):
    (tmp_path / "queue").rename(tmp_path / "elsewhere")
    stopped = command("stop")
    assert (stopped.returncode, str(supervisor.pid) in stopped.stdout) == (0, True)


def test_an_unsafe_queue_is_refused_at_start_with_78(command, tmp_path):
    (tmp_path / "queue").mkdir()
    (tmp_path / "queue").chmod(0o777)
    refused = command("start")
    assert (refused.returncode, "o+w" in refused.stderr) == (78, True)


def test_burst_ends_with_0_when_all_is_done(command, supervisor):
    command("stop")
    for n in range(3):
        assert command("submit", str(n), "--id", f"b{n}").returncode == 0
    assert command("start", "--burst", "--handler", "cpu_short=echo").returncode == 0
    assert json.loads(command("task", "wait", "b0", "b1", "b2", "--json").stdout)["done"] == 3
