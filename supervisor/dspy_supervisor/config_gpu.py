"""The settings of GPUs: whether there are any to use, how much of their memory, and how often they are looked at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .setting import seconds, setting, size, truth

_TASK_BYTES = 8 * 10**9  # what a task on a workstation is taken to need of its GPU
_MOST_TASKS = 4


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)  # Config has these
class GpuSettings:
    """The part of Config that is about GPUs."""

    enable_gpu: bool = setting(
        truth(),
        "this host has GPUs to use",
        False,
        modes=dict.fromkeys(("workstation", "cluster", "cloud"), True),
        live=True,
    )
    gpu_memory_limit: int = setting(
        size(1 << 20, 1 << 50, "all there is"),
        "memory of each GPU that tasks may use together",
        0,
        modes={"workstation": 20 << 30},
        live=True,
    )
    telemetry_interval_s: float = setting(seconds(0.1, 60), "time between two looks at GPUs and host", 1.0, live=True)


def workstation_limit(gpu_memory_bytes: Iterable[int]) -> int:
    """Return how many tasks a workstation with these GPUs runs at once: one for each 8 GB, from 1 to 4."""
    return max(1, min(_MOST_TASKS, sum(gpu_memory_bytes) // _TASK_BYTES))
