"""litequeue: a queue in an SQLite file without a way to wait, so both sides look every millisecond."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from litequeue import LiteQueue, Message

from bench.handlers import stamp
from bench.player import PAYLOAD, TIMEOUT_S, Call, Player, wait_until

PERIOD_S = 0.001


def pop(queue: LiteQueue, timeout_s: float) -> Message | None:
    """Return the next message, or None at the deadline."""
    deadline = time.monotonic() + timeout_s
    while (message := queue.pop()) is None and time.monotonic() < deadline:
        time.sleep(PERIOD_S)
    return message


class LiteQueueLoop(Player):
    """Two litequeue files: tasks and results."""

    def __init__(self, folder: Path, sync: bool) -> None:
        super().__init__(folder, sync)
        self.tasks, self.results = LiteQueue(folder / "tasks.db"), LiteQueue(folder / "results.db")

    def start(self, workers: int) -> None:
        for _ in range(workers):
            self.run(sys.executable, "-m", __name__, self.folder)

    def call(self) -> Call:
        begun = time.monotonic_ns()
        self.tasks.put(PAYLOAD)
        put = time.monotonic_ns()
        message = pop(self.results, TIMEOUT_S)
        if message is None:
            raise TimeoutError("litequeue: no result")
        return Call(begun, put, int(message.data), time.monotonic_ns())

    def fill(self, tasks: int) -> None:
        self.filled = tasks
        with self.tasks.conn:
            for _ in range(tasks):
                self.tasks.put(PAYLOAD)

    def finish(self) -> list[int]:
        wait_until(lambda: self.results.qsize() >= self.filled, "litequeue did not finish")
        return [int(row["data"]) for row in self.results.conn.execute(f"SELECT data FROM {self.results.table}")]


def work(folder: Path) -> None:
    """The life of one worker."""
    tasks, results = LiteQueue(folder / "tasks.db"), LiteQueue(folder / "results.db")
    while True:
        if (message := pop(tasks, TIMEOUT_S)) is not None:
            results.put(str(stamp(message.data)))
            tasks.done(message.message_id)


if __name__ == "__main__":
    work(Path(sys.argv[1]))
