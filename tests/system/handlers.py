"""What the tasks of the system tests do: the payload says it. Each real run leaves a line in a log."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dspy_supervisor import Queue
from dspy_supervisor.parts import JSON, Retry, Task, TaskRefused


def play(task: Task) -> JSON:
    """Do what ``payload["do"]`` names, after noting the run in the file ``payload["log"]``."""
    wanted: dict[str, Any] = task.payload
    if path := wanted.get("log"):
        note(path, f"{task.id} {task.attempt} {os.getpid()}\n")
    return ACTIONS[wanted.get("do", "echo")](task, wanted)


def note(path: str, line: str) -> None:
    """Append a line, in one write."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def wait_for(path: str) -> None:
    """Return when the file is there."""
    while not Path(path).exists():
        time.sleep(0.005)


def _echo(task: Task, wanted: dict[str, Any]) -> JSON:
    return {"n": wanted.get("n"), "attempt": task.attempt, "crashes": task.crashes}


def _gate(task: Task, wanted: dict[str, Any]) -> JSON:
    Path(wanted["begun"]).touch()
    wait_for(wanted["gate"])
    return _echo(task, wanted)


def _log(task: Task, wanted: dict[str, Any]) -> JSON:
    """Write lines with Python's logging, one before and one after the log may have been rotated."""
    logging.getLogger("mine").info("begins", extra={"step": 1})
    if "gate" in wanted:
        _gate(task, wanted)
    logging.getLogger("mine").warning("ends")
    return None


def _put(task: Task, wanted: dict[str, Any]) -> JSON:
    """Put a task, and return its id."""
    with Queue(wanted["queue"]) as queue:
        return queue.submit({"do": "echo"})


def _gate_stubborn(task: Task, wanted: dict[str, Any]) -> JSON:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return _gate(task, wanted)


def _gate_then_die(task: Task, wanted: dict[str, Any]) -> JSON:
    _gate(task, wanted)
    os.kill(os.getpid(), signal.SIGKILL)
    return None


def _raise(task: Task, wanted: dict[str, Any]) -> JSON:
    raise ValueError(wanted.get("message", "this task raises"))


def _raise_until(task: Task, wanted: dict[str, Any]) -> JSON:
    if task.attempt < wanted["until"]:
        raise ValueError(f"attempt {task.attempt} raises")
    return _echo(task, wanted)


def _refuse(task: Task, wanted: dict[str, Any]) -> JSON:
    raise TaskRefused("never")


def _later(task: Task, wanted: dict[str, Any]) -> JSON:
    if not task.attempt:
        raise Retry("not yet", wanted["delay_s"])
    return _echo(task, wanted)


def _segfault(task: Task, wanted: dict[str, Any]) -> JSON:
    ctypes.string_at(0)
    return None


def _exit(task: Task, wanted: dict[str, Any]) -> JSON:
    os._exit(wanted.get("code", 7))


def _signal(task: Task, wanted: dict[str, Any]) -> JSON:
    os.kill(os.getpid(), wanted["signal"])
    time.sleep(60)
    return None


def _spin_in_c(task: Task, wanted: dict[str, Any]) -> JSON:
    return re.match(r"(a+)+$", "a" * 40 + "b") is None  # 2**40 steps, in one call


def _ignore_term(task: Task, wanted: dict[str, Any]) -> JSON:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stubborn_loop()
    return None


def stubborn_loop() -> None:
    """A name to be found in the stacks."""
    while True:
        time.sleep(0.1)


def _swallow_everything(task: Task, wanted: dict[str, Any]) -> JSON:
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(0.1)


def _daemon(task: Task, wanted: dict[str, Any]) -> JSON:
    """Leave a grandchild in a session of its own, that ignores TERM, and then never end, or end at once."""
    code = (
        "import os, signal, sys, time\n"
        "if os.fork(): os._exit(0)\n"
        "os.setsid()\n"
        "if os.fork(): os._exit(0)\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "open(sys.argv[1] + '.new', 'w').write(str(os.getpid()))\n"
        "os.rename(sys.argv[1] + '.new', sys.argv[1])\n"
        "time.sleep(600)\n"
    )
    subprocess.run([sys.executable, "-c", code, wanted["pid_file"]], check=True)
    wait_for(wanted["pid_file"])
    if wanted.get("hang"):
        time.sleep(600)
    return "left"


def _spoil(task: Task, wanted: dict[str, Any]) -> JSON:
    """Change what a process shares with the task after it."""
    os.chdir("/")
    os.umask(0)
    os.environ["SPOILT"] = "1"
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.alarm(1)
    sys.stdout.close()
    return None


def _look(task: Task, wanted: dict[str, Any]) -> JSON:
    mask = os.umask(0)
    os.umask(mask)
    return {
        "cwd": os.getcwd(),
        "umask": mask,
        "spoilt": os.environ.get("SPOILT"),
        "term": str(signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN),
        "alarm": signal.alarm(0),
    }


def _close_all(task: Task, wanted: dict[str, Any]) -> JSON:
    os.closerange(3, 1024)
    if gate := wanted.get("gate"):
        wait_for(gate)
    return "closed"


def _close_folders(task: Task, wanted: dict[str, Any]) -> JSON:
    """Close what leads to the queue, but not the channel to the supervisor."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith(wanted["queue"]):
                os.close(int(name))
        except OSError:
            pass
    return "closed"


def _cut(task: Task, wanted: dict[str, Any]) -> JSON:
    """Close the channel to the supervisor, and nothing else."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                os.close(int(name))
        except OSError:
            pass
    return _gate(task, wanted)


def _grow(task: Task, wanted: dict[str, Any]) -> JSON:
    _HOARD.append(bytearray(b"x") * wanted["bytes"])
    return os.getpid()


def _hog(task: Task, wanted: dict[str, Any]) -> JSON:
    _HOARD.append(bytearray(b"x") * wanted["bytes"])
    time.sleep(600)
    return None


def _place(task: Task, wanted: dict[str, Any]) -> JSON:
    """Say where, how politely and in what surroundings this runs."""
    return {
        "cpus": sorted(os.sched_getaffinity(0)),
        "nice": os.nice(0),
        "variables": {name: os.environ.get(name) for name in wanted["names"]},
    }


def _pid(task: Task, wanted: dict[str, Any]) -> JSON:
    return os.getpid()


def _sleep(task: Task, wanted: dict[str, Any]) -> JSON:
    time.sleep(wanted["s"])
    return os.getpid()


def _big(task: Task, wanted: dict[str, Any]) -> JSON:
    Path(wanted["begun"]).touch()
    wait_for(wanted["gate"])
    return "x" * wanted["bytes"]


def _nan(task: Task, wanted: dict[str, Any]) -> JSON:
    return {"a": [1.0, float("nan")]}


class _Hostile(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


def _hostile(task: Task, wanted: dict[str, Any]) -> JSON:
    raise _Hostile


def _system_exit(task: Task, wanted: dict[str, Any]) -> JSON:
    sys.exit(3)


_HOARD: list[bytearray] = []

ACTIONS = {
    name.removeprefix("_"): value
    for name, value in dict(globals()).items()
    if callable(value) and name.startswith("_") and name[1].isalpha() and name != "_Hostile"
}


def other(task: Task) -> JSON:
    """Another handler than play."""
    return "other"
