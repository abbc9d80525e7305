"""huey on Redis: blocking pops, results by notify_result, worker processes."""

from __future__ import annotations

import time

from huey import RedisHuey

from bench.handlers import stamp
from bench.player import PAYLOAD, TIMEOUT_S, Call, wait_until
from bench.rivals.redis_server import SOCKET, RedisRival


def make(socket: str) -> tuple[RedisHuey, object]:
    """Return the queue and its task."""
    huey = RedisHuey("bench", url=f"unix://{socket}", notify_result=True)
    return huey, huey.task()(stamp)


if SOCKET:
    huey, task = make(SOCKET)


class HueyRedis(RedisRival):
    """huey with its Redis storage."""

    def connect(self) -> None:
        self.huey, self.task = make(self.socket)

    def start(self, workers: int) -> None:
        self.run(
            self.script("huey_consumer"),
            "bench.rivals.huey_redis.huey",
            *("-w", str(workers), "-k", "process", "-q"),
            env={"BENCH_REDIS": self.socket},
        )

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
