"""Other ways to hand a task to another process, each set up as its manual recommends, behind one interface.

A rival lives in .venvs/rivals (bench/rivals/setup makes it), so nothing here but this file and names may be imported by
the rest of bench. Servers are started in the measurement's own folder, on unix sockets, and ended by process id.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, Self

PAYLOAD = "x" * 200
TIMEOUT_S = 60.0


class Call(NamedTuple):
    """One task from an idle producer through an idle worker; ns of CLOCK_MONOTONIC."""

    begun: int  #: before the producer's first system call
    put: int  #: the producer was told that the task is accepted
    start: int  #: first line of the handler
    seen: int  #: the producer has the result


class Rival(ABC):
    """One way to hand tasks to workers: ``start``, ``call`` for latency; ``fill``, ``start``, ``finish`` for rate."""

    backlog = 5000  #: tasks that one worker drains in about a second

    def __init__(self, folder: Path, sync: bool) -> None:
        self.folder, self.sync = folder, sync
        self.children: list[subprocess.Popen[bytes]] = []

    @abstractmethod
    def start(self, workers: int) -> None:
        """Start the worker processes; they may still be on their way up on return."""

    @abstractmethod
    def call(self) -> Call:
        """Hand in one task and wait for its result."""

    @abstractmethod
    def fill(self, tasks: int) -> None:
        """Hand in many tasks before any worker runs."""

    @abstractmethod
    def finish(self) -> list[int]:
        """Wait until all that was filled in is done; return when each handler started."""

    def stop(self) -> None:
        """End everything that was started."""
        for child in reversed(self.children):
            end(child)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(self, *command: str | Path, env: Mapping[str, str] | None = None) -> None:
        """Start a program with its output in the measurement's folder; it is in this process's group."""
        with (self.folder / "output.log").open("ab") as log:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(env or {})},
            )
        self.children.append(child)

    @staticmethod
    def script(name: str) -> Path:
        """Return a program of the rivals' environment."""
        return Path(sys.executable).with_name(name)


def end(child: subprocess.Popen[bytes]) -> None:
    """End a process: asked first, then killed."""
    child.terminate()
    try:
        child.wait(5)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def wait_until(fact: Callable[[], object], what: str, timeout_s: float = TIMEOUT_S) -> None:
    """Return when fact() is true; for rivals that have nothing to wait on."""
    deadline = time.monotonic() + timeout_s
    while not fact():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.005)


NAMES: Mapping[str, str] = {
    "python-loop": "folder_loop:InotifySimple",
    "pyinotify-loop": "folder_loop:Pyinotify",
    "process-pool": "process_pool:ProcessPool",
    "huey-redis": "huey_redis:HueyRedis",
    "huey-sqlite": "huey_sqlite:HueySqlite",
    "celery": "celery_redis:CeleryRedis",
    "rq": "rq_redis:RqRedis",
    "dramatiq": "dramatiq_redis:DramatiqRedis",
    "hyperqueue": "hyperqueue_local:HyperQueue",
    "task-spooler": "task_spooler:TaskSpooler",
    "litequeue": "litequeue_loop:LiteQueueLoop",
}
QUICK = ("python-loop", "process-pool", "huey-redis", "celery", "rq")  #: those that a goal names
DURABLE = ("python-loop", "huey-redis", "huey-sqlite", "celery")  #: those that can sync each task
WITHOUT_FOLDER = ("process-pool",)  #: those that keep nothing on disk, so that one filesystem is enough


def load(name: str) -> type[Rival]:
    """Return the class that plays this rival; ImportError where setup has not run."""
    module, _, attribute = NAMES[name].partition(":")
    rival: type[Rival] = getattr(import_module(f"{__name__}.{module}"), attribute)
    return rival
