"""What a backlog of a million files costs beside one of ten thousand.

::

    python -m bench.million [--many 1000000] [--few 10000] [--drained 9000]

Both are worked off for a while by one worker: the time until the first task starts, the cost of a task, and the memory of
the supervisor are compared. The files are written by the C floor, as a producer that knows only the folder.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from bench import floor, script
from bench.idle import fields, used_ns
from bench.ours import Ours
from bench.player import wait_until


def work_off(folder: Path, pending: int, drained: int) -> dict[str, float]:
    """Return what the first tasks of a backlog cost."""
    folder.mkdir()
    with Ours(folder, sync=False) as ours:
        floor.put(ours.path, pending, "none")
        launched = time.monotonic_ns()
        ours.start(1)
        wait_until(lambda: ours.done >= drained, f"the supervisor did not get on: {ours.said}", 300)
        status = fields(Path(f"/proc/{ours.pid}/status"))
        cpu = used_ns(ours.pid)
        ours.stop()
        starts = sorted(ours.results())[:drained]
    return {
        "first_start_s": (starts[0] - launched) / 1e9,
        "task_us": (starts[-1] - starts[0]) / 1e3 / (len(starts) - 1),
        "supervisor_cpu_s": cpu / 1e9,
        "rss_mb": status["VmRSS"] / 1024,
        "rss_peak_mb": status["VmHWM"] / 1024,
    }


def measure(folder: Path, options: argparse.Namespace) -> script.Facts:
    """Return the facts of both, and how they compare."""
    few = work_off(folder / "few", options.few, options.drained)
    many = work_off(folder / "many", options.many, options.drained)
    facts = {f"few_{name}": value for name, value in few.items()} | {
        f"many_{name}": value for name, value in many.items()
    }
    return facts | {
        "first_start_s": many["first_start_s"],
        "cost_ratio": many["task_us"] / few["task_us"],
        "rss_growth_mb": many["rss_peak_mb"] - few["rss_peak_mb"],
    }


if __name__ == "__main__":
    script.main(__doc__, measure, many=1_000_000, few=10_000, drained=9000)
