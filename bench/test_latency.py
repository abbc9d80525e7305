"""One task at a time through a real supervisor with an idle worker: what a producer waits for."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench import floor
from bench.ours import CLASS, Ours, make_queue
from bench.player import PAYLOAD, Call

CALLS = 200


@contextmanager
def running(folder: Path, sync: bool) -> Iterator[Ours]:
    """A supervisor that has run its first tasks."""
    with Ours(folder, sync) as ours:
        ours.start(1)
        for _ in range(10):
            ours.call()
        yield ours


@pytest.mark.benchmark(group="put one task")
@pytest.mark.parametrize("durability", ["none", "task", "full"])
def test_put(benchmark: Any, folder: Path, durability: str) -> None:
    queue = make_queue(folder / "queue", durability)
    benchmark.pedantic(queue.submit, args=(PAYLOAD,), kwargs={"task_class": CLASS}, rounds=CALLS)


@pytest.mark.benchmark(group="put to result")
@pytest.mark.parametrize("sync", [False, True], ids=["none", "full"])
def test_call(benchmark: Any, folder: Path, sync: bool, tell: Callable[[str, float, float], None]) -> None:
    beside = folder / "floor"
    beside.mkdir()
    points = floor.latency(beside, CALLS, sync, 0.003)
    calls: list[Call] = []
    with running(folder, sync) as ours:
        benchmark.pedantic(lambda: calls.append(ours.call()), setup=lambda: time.sleep(0.003), rounds=CALLS)
    for point in ("put", "start", "seen"):
        mine = statistics.median(getattr(call, point) - call.begun for call in calls) / 1000
        tell(f"{point}_us_p50", mine, statistics.median(points[point]))
