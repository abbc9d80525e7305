"""A backlog through a real supervisor, from its start to the last task done, beside the same in C."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from bench import floor
from bench.ours import Ours

TASKS = 4000
ROUNDS = 3


@pytest.mark.benchmark(group=f"work off {TASKS} tasks")
@pytest.mark.parametrize("workers", [1, 2])
def test_drain(benchmark: Any, folder: Path, workers: int, tell: Callable[[str, float, float], None]) -> None:
    numbers = count()
    opened: list[Ours] = []
    beside = folder / "floor"
    beside.mkdir()
    least = floor.drain(beside, TASKS, workers, "files", "none")

    def fill() -> tuple[tuple[Ours], dict[str, object]]:
        place = folder / str(next(numbers))
        place.mkdir()
        ours = Ours(place, sync=False)
        opened.append(ours)
        ours.fill(TASKS)
        ours.start(workers)
        return (ours,), {}

    try:
        starts = benchmark.pedantic(Ours.finish, setup=fill, rounds=ROUNDS)
    finally:
        for ours in opened:
            ours.stop()
    tell("tasks_per_s", TASKS / (max(starts) - min(starts)) * 1e9, least["tasks"] / least["seconds"])


@pytest.mark.benchmark(group=f"put {TASKS} tasks")
@pytest.mark.parametrize("sync", [False, True], ids=["none", "full"])
def test_put_many(benchmark: Any, folder: Path, sync: bool, tell: Callable[[str, float, float], None]) -> None:
    numbers = count()

    def make() -> tuple[tuple[Ours, int], dict[str, object]]:
        place = folder / str(next(numbers))
        place.mkdir()
        return (Ours(place, sync), TASKS), {}

    benchmark.pedantic(Ours.fill, setup=make, rounds=ROUNDS)
    beside = folder / "floor"
    beside.mkdir()
    least = floor.put(beside, TASKS, "none")
    tell("tasks_per_s", TASKS / benchmark.stats.stats.median, least["tasks"] / least["seconds"])
