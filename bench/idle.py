"""What a supervisor with idle workers costs: CPU and wake-ups of the whole tree, and memory.

::

    python -m bench.idle [--seconds 20] [--workers 4]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

from bench import script
from bench.ours import Ours

SETTLE_S = 3.0  # what follows a start and a first task is not idleness


def tree(pid: int) -> Iterator[int]:
    """Yield a process and all below it."""
    yield pid
    for line in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        yield from tree(int(line))


def used_ns(pid: int) -> int:
    """Return the CPU time of a process, all threads; finer than the ticks of /proc/PID/stat."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))


def fields(path: Path) -> dict[str, int]:
    """Return the numbers of a file of `Name: number` lines."""
    found = {}
    for line in path.read_text().splitlines():
        name, _, rest = line.partition(":")
        if (words := rest.split()) and words[0].isdigit():
            found[name] = int(words[0])
    return found


def wakes(pid: int) -> int:
    """Return how often the threads of a process went to sleep."""
    return sum(fields(path)["voluntary_ctxt_switches"] for path in Path(f"/proc/{pid}/task").glob("*/status"))


def measure(folder: Path, options: argparse.Namespace) -> script.Facts:
    """Return the facts."""
    with Ours(folder, sync=False) as ours:
        ours.start(options.workers)
        for _ in range(20 * options.workers):
            ours.call()
        time.sleep(SETTLE_S)
        pids = list(tree(ours.pid))
        before = {pid: (used_ns(pid), wakes(pid)) for pid in pids}
        begun = time.monotonic()
        time.sleep(options.seconds)
        elapsed = time.monotonic() - begun
        cpu = {pid: used_ns(pid) - before[pid][0] for pid in pids}
        woken = {pid: wakes(pid) - before[pid][1] for pid in pids}
        memory = {pid: fields(Path(f"/proc/{pid}/smaps_rollup")) for pid in pids}
        private = [memory[pid]["Private_Clean"] + memory[pid]["Private_Dirty"] for pid in ours.workers]
        return {
            "cpu_percent": sum(cpu.values()) / 1e9 / elapsed * 100,
            "supervisor_wakes_per_s": woken[ours.pid] / elapsed,
            "children_wakes_per_s": sum(woken[pid] for pid in pids[1:]) / elapsed,
            "processes": len(pids),
            "supervisor_pss_mb": memory[ours.pid]["Pss"] / 1024,
            "supervisor_rss_mb": memory[ours.pid]["Rss"] / 1024,
            "worker_pss_mb": max(private) / 1024,  # its private pages: what one more worker adds
            "tree_pss_mb": sum(found["Pss"] for found in memory.values()) / 1024,
        }


if __name__ == "__main__":
    script.main(__doc__, measure, seconds=20, workers=4)
