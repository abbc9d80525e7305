"""Bounds on memory and CPU time: what counts, and when a task is over them."""

import os
import signal
import subprocess
import sys

import pytest
from dspy_supervisor import bounds
from dspy_supervisor.bounds import LOOK_S, Running, Watch, own_bytes, resident_bytes
from dspy_supervisor.config import ClassConfig
from dspy_supervisor.task import Cause

from tests.conftest import until

MIB = 1 << 20
SHARE = """
import os, sys
block = b"x" * (int(sys.argv[1]) << 20)
for _ in range(4):
    if os.fork() == 0:
        break
else:
    print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def python():
    """A function that runs Python code in a session of its own, as a worker has it."""
    started = []

    def start(code, *arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout.readline() == b"ready\n"
        return process.pid

    yield start
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def running(pid, start_ns=1, **settings):
    return Running(pid, start_ns, ClassConfig(name="cpu_short", **settings))


def test_memory_that_processes_share_counts_once(python):
    pid = python(SHARE, 64)
    tree = [pid, *(child for child in bounds.proctree.descendants(pid))]
    assert len(tree) == 5
    assert sum(map(resident_bytes, tree)) > 5 * 64 * MIB
    assert 64 * MIB < own_bytes(tree) < 3 * 64 * MIB
    assert Watch().look([running(pid, memory_bytes=4 * 64 * MIB)], 0.0) == []
    (excess,) = Watch().look([running(pid, memory_bytes=64 * MIB)], 0.0)
    assert (excess.pid, excess.cause) == (pid, Cause.HOST_OOM)
    assert excess.message.endswith("0.06 GiB are allowed (memory_bytes)")


def test_cpu_time_counts_from_the_beginning_of_the_task_and_of_all_below(python):
    code = "import os; print('ready', flush=True) if os.fork() else None\nwhile True: pass"
    pid = python(code)
    watch, now = Watch(), 0.0

    def used_s():
        return sum(map(bounds._cpu_s, bounds.proctree.trees([pid])[pid]))

    until(lambda: used_s() > 0.2, "two processes work")
    assert watch.look([running(pid, cpu_time_s=0.2)], now) == []  # what was before is not this task's
    begun = used_s()
    until(lambda: used_s() > begun + 0.3, "they work on")
    (excess,) = watch.look([running(pid, cpu_time_s=0.2)], now + 10)
    assert (excess.cause, excess.message.partition(" are ")[2]) == (Cause.TIMEOUT, "allowed (cpu_time_s)")
    assert watch.look([running(pid, start_ns=2, cpu_time_s=0.2)], now + 20) == []  # the next task


def test_it_looks_only_so_often_and_only_where_there_is_a_bound(monkeypatch):
    looked = []
    monkeypatch.setattr(bounds.proctree, "trees", lambda pids: looked.append(pids) or {})
    watch = Watch()
    assert watch.look([running(1)], 0.0) == []
    assert not looked
    for now in (1.0, 1.0 + LOOK_S / 2, 2.0):
        watch.look([running(1), running(2, memory_bytes=1)], now)
    assert looked == [[2], [2]]


def test_a_process_that_is_gone_uses_nothing():
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert (resident_bytes(gone.pid), own_bytes([gone.pid]), bounds._cpu_s(gone.pid)) == (0, 0, 0.0)
    assert Watch().look([running(gone.pid, memory_bytes=1, cpu_time_s=1.0)], 0.0) == []


def test_cpus_are_told_as_the_kernel_lists_them():
    assert bounds._ranges({0, 1, 2, 5, 7, 8}) == "0-2,5,7-8"
    assert bounds._ranges([3]) == "3"
