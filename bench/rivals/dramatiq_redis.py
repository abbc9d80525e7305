"""Dramatiq with Redis as broker and result store, one thread a process so that a worker runs one task at a time."""

from __future__ import annotations

import time

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from bench.handlers import stamp
from bench.player import PAYLOAD, TIMEOUT_S, Call
from bench.rivals.redis_server import SOCKET, RedisRival


def make(socket: str) -> dramatiq.Actor:
    """Return the actor, on a broker of its own."""
    url = f"unix://{socket}"
    broker = RedisBroker(url=url)
    broker.add_middleware(Results(backend=RedisBackend(url=url)))
    dramatiq.set_broker(broker)
    return dramatiq.actor(stamp, actor_name="stamp", store_results=True)


if SOCKET:
    actor = make(SOCKET)


class DramatiqRedis(RedisRival):
    """Dramatiq, Redis."""

    def connect(self) -> None:
        self.actor = make(self.socket)

    def start(self, workers: int) -> None:
        self.run(
            *(self.script("dramatiq"), "bench.rivals.dramatiq_redis", "-p", str(workers), "-t", "1"),
            env={"BENCH_REDIS": self.socket},
        )

    def call(self) -> Call:
        begun = time.monotonic_ns()
        message = self.actor.send(PAYLOAD)
        put = time.monotonic_ns()
        start = message.get_result(block=True, timeout=int(TIMEOUT_S * 1000))
        return Call(begun, put, start, time.monotonic_ns())

    def fill(self, tasks: int) -> None:
        self.messages = [self.actor.send(PAYLOAD) for _ in range(tasks)]

    def finish(self) -> list[int]:
        return [message.get_result(block=True, timeout=int(TIMEOUT_S * 1000)) for message in self.messages]
