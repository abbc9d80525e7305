"""What a worker and all that its task starts may use of this host: which CPUs, how much of their time, and memory.

Which CPUs and how politely is the worker's own affair, before its first task. Memory and CPU time are looked at from
outside, over the whole tree of processes, since limits of the kernel (setrlimit(2)) hold for each process alone, count
memory that is only reserved, and can't be told for one task of many.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

from . import proctree
from .config import ClassConfig
from .errors import ConfigError
from .setting import cpu_numbers
from .task import Cause

LOOK_S = 0.25  #: least time between two looks
_SHARE = 0.02  # of our time that looking may take
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


def enter(settings: ClassConfig) -> None:
    """Take up the CPUs and the politeness of a class. Raises ConfigError where none of its CPUs is to be had."""
    if settings.cpus:
        here = os.sched_getaffinity(0)
        if not (wanted := cpu_numbers(settings.cpus) & here):
            raise ConfigError(f"class.{settings.name}.cpus", settings.cpus, f"CPUs that are here: {_ranges(here)}")
        os.sched_setaffinity(0, wanted)
    if settings.nice:
        os.nice(settings.nice)


class Running(NamedTuple):
    """A worker that has a task in hand."""

    pid: int
    start_ns: int  #: monotonic, when the task began
    settings: ClassConfig
    grouped: bool = False  #: the kernel holds it to its memory and its number of processes


class Excess(NamedTuple):
    """A worker whose task used more than it may."""

    pid: int
    cause: Cause
    message: str


class Watch:
    """Looks at the workers of one class."""

    def __init__(self) -> None:
        self._next_at = 0.0  # monotonic seconds
        self._cpu_before: dict[tuple[int, int], float] = {}  # seconds of a worker's tree when its task was first seen

    def look(self, running: Iterable[Running], now: float) -> list[Excess]:
        """Return which workers use more than they may; nothing where it was looked a moment ago."""
        if now < self._next_at:
            return []
        bound = [one for one in running if _is_bound(one)]
        if not bound:
            return []
        began = time.monotonic()
        trees = proctree.trees([one.pid for one in bound])
        self._cpu_before = {
            (one.pid, one.start_ns): before
            for one in bound
            if (before := self._cpu_before.get((one.pid, one.start_ns))) is not None
        }
        found = [excess for one in bound if (excess := self._judge(one, trees.get(one.pid, ())))]
        self._next_at = now + max(LOOK_S, (time.monotonic() - began) / _SHARE)
        return found

    def _judge(self, one: Running, tree: Sequence[int]) -> Excess | None:
        memory_bytes = 0 if one.grouped else one.settings.memory_bytes
        max_processes = 0 if one.grouped else one.settings.max_processes
        cpu_time_s = one.settings.cpu_time_s
        # Resident memory counts what processes share once for each, so it is an upper bound, and quick to read.
        if memory_bytes and sum(map(resident_bytes, tree)) > memory_bytes and (used := own_bytes(tree)) > memory_bytes:
            message = f"the task used {_gib(used)} GiB of memory, {_gib(memory_bytes)} GiB are allowed (memory_bytes)"
            return Excess(one.pid, Cause.HOST_OOM, message)
        if max_processes and len(tree) > max_processes:
            message = f"the task ran {len(tree)} processes, {max_processes} are allowed (max_processes)"
            return Excess(one.pid, Cause.RAISED, message)
        if cpu_time_s:
            total = sum(map(_cpu_s, tree))
            used_s = total - self._cpu_before.setdefault((one.pid, one.start_ns), total)
            if used_s > cpu_time_s:
                message = f"the task used {used_s:.1f} s of CPU time, {cpu_time_s:g} s are allowed (cpu_time_s)"
                return Excess(one.pid, Cause.TIMEOUT, message)
        return None


def _is_bound(one: Running) -> bool:
    settings = one.settings
    return bool(settings.cpu_time_s or (not one.grouped and (settings.memory_bytes or settings.max_processes)))


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process, or 0 where it is gone."""
    with suppress(OSError), open(f"/proc/{pid}/statm", "rb") as file:
        return int(file.read().split()[1]) * _PAGE
    return 0


def own_bytes(pids: Iterable[int]) -> int:
    """Return the memory of these processes, what n processes share counted as an n-th for each (PSS, proc(5))."""
    return sum(map(_proportional_bytes, pids))


def _proportional_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except PermissionError:  # a program with other rights
        return resident_bytes(pid)
    except OSError:
        pass
    return 0


def _cpu_s(pid: int) -> float:
    """Return the CPU time of a process and of its children that were waited for, or 0 where it is gone."""
    with suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
        line = file.read()
        return sum(map(int, line[line.rindex(b")") + 2 :].split()[11:15])) / _TICKS
    return 0.0


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.2f}"


def _ranges(numbers: Iterable[int]) -> str:
    """Return numbers as the kernel lists CPUs, as in 0-3,8."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)
