"""Measures one player, rival or ours, in a process of its own and prints what it saw as one JSON document.

::

    python -m bench.play NAME FOLDER latency --tasks N --interval S --seconds S [--sync]
        {"put": [us...], "start": [us...], "seen": [us...]}     since before the producer's first system call
    python -m bench.play NAME FOLDER drain --tasks N --workers W [--sync]
        {"tasks": N, "seconds": S}                              between the first and the last start of a handler
    python -m bench.play NAME FOLDER put --tasks N [--sync]
        {"tasks": N, "seconds": S}                              to hand them all in, no worker running
"""

from __future__ import annotations

import argparse
import json
import os
import time
from importlib import import_module
from pathlib import Path

from bench import rivals
from bench.player import Player

WARM_UP = 10
OURS = {"ours": "bench.ours:Ours"}


def load(name: str) -> type[Player]:
    """Return the class of a player; ImportError where this Python is not the one that has it."""
    module, _, attribute = OURS.get(name, f"bench.rivals.{rivals.MODULES.get(name)}").partition(":")
    player: type[Player] = getattr(import_module(module), attribute)
    return player


def measure_latency(player: Player, tasks: int, interval_s: float, seconds: float) -> dict[str, list[float]]:
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


def measure_drain(player: Player, tasks: int, workers: int) -> dict[str, float]:
    """Return how long a backlog took."""
    player.fill(tasks)
    player.start(workers)
    starts = player.finish()
    if len(starts) != tasks:
        raise AssertionError(f"{len(starts)} results for {tasks} tasks")
    return {"tasks": tasks, "seconds": (max(starts) - min(starts)) / 1e9 * tasks / (tasks - 1)}


def measure_put(player: Player, tasks: int) -> dict[str, float]:
    """Return how long it took to hand in a backlog."""
    begun = time.monotonic()
    player.fill(tasks)
    return {"tasks": tasks, "seconds": time.monotonic() - begun}


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("folder", type=Path)
    parser.add_argument("what", choices=["latency", "drain", "put"])
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--interval", type=float, default=0.003, metavar="S")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--sync", action="store_true")
    options = parser.parse_args()
    answer = os.dup(1)
    os.dup2(2, 1)  # what players print for people is not for our reader
    play = load(options.name)
    found: dict[str, list[float]] | dict[str, float]
    with play(options.folder, options.sync) as player:
        if options.what == "latency":
            found = measure_latency(player, options.tasks, options.interval, options.seconds)
        elif options.what == "drain":
            found = measure_drain(player, options.tasks, options.workers)
        else:
            found = measure_put(player, options.tasks)
    with os.fdopen(answer, "w") as out:
        json.dump(found, out)


if __name__ == "__main__":
    main()
