"""A backlog through a real supervisor, from its start to the last task done, and the same in C."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import pytest

from bench import floor
from bench.ours import Ours

TASKS = 4000
ROUNDS = 3


@pytest.mark.benchmark(group=f"hand in and work off {TASKS} tasks")
@pytest.mark.parametrize("workers", [1, 2])
def test_drain(benchmark: Any, folder: Path, workers: int) -> None:
    numbers = count()
    opened: list[Ours] = []

    def fill() -> tuple[tuple[Ours], dict[str, object]]:
        place = folder / str(next(numbers))
        place.mkdir()
        ours = Ours(place, sync=False)
        opened.append(ours)
        ours.fill(TASKS)
        ours.start(workers)
        return (ours,), {}

    def drain(ours: Ours) -> list[int]:
        return ours.finish()

    try:
        starts = benchmark.pedantic(drain, setup=fill, rounds=ROUNDS)
    finally:
        for ours in opened:
            ours.stop()
    benchmark.extra_info["tasks_per_s"] = TASKS / (max(starts) - min(starts)) * 1e9


@pytest.mark.benchmark(group=f"hand in and work off {TASKS} tasks")
@pytest.mark.parametrize("workers", [1, 2])
def test_floor(benchmark: Any, folder: Path, workers: int) -> None:
    found = benchmark.pedantic(floor.drain, args=(folder, TASKS, workers, "files", "none"), rounds=1)
    benchmark.extra_info["tasks_per_s"] = found["tasks"] / found["seconds"]


@pytest.mark.benchmark(group=f"put {TASKS} tasks")
@pytest.mark.parametrize("sync", [False, True], ids=["none", "full"])
def test_put_many(benchmark: Any, folder: Path, sync: bool) -> None:
    numbers = count()

    def make() -> tuple[tuple[Ours, int], dict[str, object]]:
        place = folder / str(next(numbers))
        place.mkdir()
        return (Ours(place, sync), TASKS), {}

    benchmark.pedantic(Ours.fill, setup=make, rounds=ROUNDS)
