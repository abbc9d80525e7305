"""The machine under the figures: what it is, and what others did on it meanwhile."""

from __future__ import annotations

import os
import platform
import resource
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Load:
    """How busy others kept the CPUs while we measured."""

    others: float = 0.0  #: share of all CPU time, 0 to 1


def _busy_s() -> float:
    """Return CPU seconds used on this machine since boot, idle and waiting for the disk excepted."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / _TICKS


def _own_s() -> float:
    """Return CPU seconds used by this process and those of its children that were waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


@contextmanager
def watch() -> Iterator[Load]:
    """Fill in the load when the block ends. What is ours is known only of children that were waited for."""
    load = Load()
    busy, own, begun = _busy_s(), _own_s(), time.monotonic()
    yield load
    elapsed = (time.monotonic() - begun) * (os.cpu_count() or 1)
    load.others = max(0.0, (_busy_s() - busy) - (_own_s() - own)) / elapsed


def filesystem(folder: Path) -> str:
    """Return the type of the filesystem a folder lies on, as the kernel's mount table says it."""
    device = folder.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if left.split()[2] == wanted:
            return right.split()[0]
    return "unknown"


def describe(disk: Path) -> str:
    """Return one line about CPUs, kernel, Python and disk."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    cpus = len(os.sched_getaffinity(0))
    # a Python built without profile-guided optimization, as pyenv does by default, is a third slower
    build = (
        "" if "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "") else " (built without PGO)"
    )
    python = f"Python {platform.python_version()}{build}"
    return f"{cpus} CPUs ({model}), Linux {platform.release()}, {python}, {filesystem(disk)}"
