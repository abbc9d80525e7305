"""Measures one player, rival or ours, in a process of its own and prints what it saw as one JSON document.

::

    python -m bench.play NAME FOLDER latency --tasks N --interval S --seconds S [--sync]
        {"put": [us...], "start": [us...], "seen": [us...]}     since before the producer's first system call
    python -m bench.play NAME FOLDER drain --tasks N --workers W [--sync]
        {"tasks": N, "seconds": S}                              between the first and the last start of a handler
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

from bench import rivals

WARM_UP = 10


def measure_latency(player: rivals.Rival, tasks: int, interval_s: float, seconds: float) -> dict[str, list[float]]:
    """Return the latency in us of up to so many tasks, one at a time, in so many seconds."""
    player.start(1)
    begun = time.monotonic()
    for _ in range(WARM_UP):
        player.call()
        if time.monotonic() - begun > seconds / 4:
            break
    calls = []
    deadline = time.monotonic() + seconds
    while len(calls) < tasks and time.monotonic() < deadline:
        time.sleep(interval_s)
        calls.append(player.call())
    return {
        name: [round((getattr(call, name) - call.begun) / 1000, 1) for call in calls]
        for name in ("put", "start", "seen")
    }


def measure_drain(player: rivals.Rival, tasks: int, workers: int) -> dict[str, float]:
    """Return how long a backlog took."""
    player.fill(tasks)
    player.start(workers)
    starts = player.finish()
    if len(starts) != tasks:
        raise AssertionError(f"{len(starts)} results for {tasks} tasks")
    return {"tasks": tasks, "seconds": (max(starts) - min(starts)) / 1e9 * tasks / (tasks - 1)}


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("folder", type=Path)
    parser.add_argument("what", choices=["latency", "drain"])
    parser.add_argument("--tasks", type=int, default=0, help="0: as many as take about a second")
    parser.add_argument("--interval", type=float, default=0.003, metavar="S")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--sync", action="store_true")
    options = parser.parse_args()
    answer = os.dup(1)
    os.dup2(2, 1)  # what players print for people is not for our reader
    play = rivals.load(options.name)
    with play(options.folder, options.sync) as player:
        if options.what == "latency":
            found = measure_latency(player, options.tasks or 200, options.interval, options.seconds)
        else:
            found = measure_drain(player, options.tasks or play.backlog, options.workers)
    with os.fdopen(answer, "w") as out:
        json.dump(found, out)


if __name__ == "__main__":
    main()
