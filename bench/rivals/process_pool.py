"""concurrent.futures.ProcessPoolExecutor: nothing on disk, nothing survives."""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor

from bench.handlers import stamp
from bench.player import PAYLOAD, TIMEOUT_S, Call, Player


class ProcessPool(Player):
    """The standard library's pool of forked workers."""

    def start(self, workers: int) -> None:
        self.pool = ProcessPoolExecutor(workers)

    def call(self) -> Call:
        begun = time.monotonic_ns()
        future = self.pool.submit(stamp, PAYLOAD)
        put = time.monotonic_ns()
        start = future.result(TIMEOUT_S)
        return Call(begun, put, start, time.monotonic_ns())

    def fill(self, tasks: int) -> None:
        self.tasks = tasks  # it cannot hold tasks before its workers run

    def finish(self) -> list[int]:
        futures = [self.pool.submit(stamp, PAYLOAD) for _ in range(self.tasks)]
        return [future.result(TIMEOUT_S) for future in futures]

    def stop(self) -> None:
        self.pool.shutdown()
