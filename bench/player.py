"""What bench measures, ours or a rival, behind one interface."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Self

ROOT = Path(__file__).parents[1]
PAYLOAD = "x" * 200
TIMEOUT_S = 60.0
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1


class Call(NamedTuple):
    """One task from an idle producer through an idle worker; ns of CLOCK_MONOTONIC."""

    begun: int  #: before the producer's first system call
    put: int  #: the producer was told that the task is accepted
    start: int  #: first line of the handler
    seen: int  #: the producer has the result


class Player(ABC):
    """One way to hand tasks to workers: ``start``, ``call`` for latency; ``fill``, ``start``, ``finish`` for rate."""

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
        """Start a program with its output in the measurement's folder; it ends with this process at the latest."""
        with (self.folder / "output.log").open("ab") as log:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,  # noqa: PLW1509  # before any thread of a library starts
                env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
            )
        self.children.append(child)

    @staticmethod
    def script(name: str) -> Path:
        """Return a program of the rivals' environment."""
        return Path(sys.executable).with_name(name)


def die_with_parent() -> None:
    """Have the kernel end this process when the one that started it is gone, however that ended."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


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
