"""The handlers that bench runs: in our workers and, as plain functions of any one argument, in those of the rivals."""

from __future__ import annotations

import time
from typing import Any


def stamp(_task: Any = None) -> int:
    """Return when the handler started, in ns of CLOCK_MONOTONIC, which all processes of a host share."""
    return time.monotonic_ns()


def burn(_task: Any = None) -> int:
    """Use 10 ms of CPU; return the ns of CPU used."""
    begun = time.thread_time_ns()
    while (used := time.thread_time_ns() - begun) < 10_000_000:
        sum(range(2000))
    return used


def pid(_task: Any = None) -> int:
    """Return the worker's process id, then wait to be killed."""
    import os

    return os.getpid()
