"""The handlers that bench runs: in our workers and, as plain functions of any one argument, in those of the rivals."""

from __future__ import annotations

import os
import signal
import time
from typing import Any


def stamp(_task: Any = None) -> int:
    """Return when the handler started, in ns of CLOCK_MONOTONIC, which all processes of a host share."""
    return time.monotonic_ns()


def burn(_task: Any = None) -> list[int]:
    """Use 10 ms of CPU; return start and end, in ns of CLOCK_MONOTONIC."""
    begun, used = time.monotonic_ns(), time.thread_time_ns()
    while time.thread_time_ns() - used < 10_000_000:
        sum(range(2000))
    return [begun, time.monotonic_ns()]


def until_killed(task: Any) -> int:
    """At the first attempt, write this process's id to the FIFO in the payload and wait for ever; else return the time."""
    if task.attempt == 0:
        with open(task.payload, "w") as pipe:  # a name, not worth a Path
            pipe.write(str(os.getpid()))
        while True:
            signal.pause()
    return time.monotonic_ns()
