"""One task at a time through a real supervisor with an idle worker: what a producer waits for."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
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
def test_call(benchmark: Any, folder: Path, sync: bool) -> None:
    calls: list[Call] = []
    with running(folder, sync) as ours:
        benchmark.pedantic(lambda: calls.append(ours.call()), setup=lambda: time.sleep(0.003), rounds=CALLS)
    # the benchmark's own figure is put to result; put to the first line of the handler lies within it
    benchmark.extra_info["start_us_p50"] = statistics.median(call.start - call.begun for call in calls) / 1000
    benchmark.extra_info["put_us_p50"] = statistics.median(call.put - call.begun for call in calls) / 1000


@pytest.mark.benchmark(group="put to result")
@pytest.mark.parametrize("sync", [False, True], ids=["none", "full"])
def test_floor(benchmark: Any, folder: Path, sync: bool) -> None:
    """The same in C: its own clock says how long each took, so the benchmark's figure is that of the whole program."""
    points = benchmark.pedantic(floor.latency, args=(folder, CALLS, sync, 0.003), rounds=1)
    for point in ("put", "start", "seen"):
        benchmark.extra_info[f"{point}_us_p50"] = statistics.median(points[point])
