"""huey on SQLite in WAL mode: consumers and callers poll, from 0.1 s on, which is its default."""

from __future__ import annotations

import os
import time
from pathlib import Path

from huey import SqliteHuey

from bench.handlers import stamp
from bench.player import PAYLOAD, TIMEOUT_S, Call, Player, wait_until


def make(file: str, sync: bool) -> tuple[SqliteHuey, object]:
    """Return the queue and its task."""
    huey = SqliteHuey("bench", filename=file, fsync=sync)
    return huey, huey.task()(stamp)


if os.environ.get("BENCH_SQLITE"):
    huey, task = make(os.environ["BENCH_SQLITE"], os.environ["BENCH_SYNC"] == "1")


class HueySqlite(Player):
    """huey with its SQLite storage."""

    def __init__(self, folder: Path, sync: bool) -> None:
        super().__init__(folder, sync)
        self.file = str(folder / "huey.db")
        self.huey, self.task = make(self.file, sync)

    def start(self, workers: int) -> None:
        environment = {"BENCH_SQLITE": self.file, "BENCH_SYNC": str(int(self.sync))}
        consumer = ("bench.rivals.huey_sqlite.huey", "-w", str(workers), "-k", "process", "-q")
        self.run(self.script("huey_consumer"), *consumer, env=environment)

    def call(self) -> Call:
        begun = time.monotonic_ns()
        result = self.task(PAYLOAD)
        put = time.monotonic_ns()
        start = result.get(blocking=True, timeout=TIMEOUT_S)
        return Call(begun, put, start, time.monotonic_ns())

    def fill(self, tasks: int) -> None:
        self.results = [self.task(PAYLOAD) for _ in range(tasks)]

    def finish(self) -> list[int]:
        wait_until(lambda: self.huey.result_count() >= len(self.results), "huey did not finish")
        return [result.get() for result in self.results]
