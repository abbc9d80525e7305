"""Celery with Redis as broker and result store: prefork workers, no gossip, prefetch raised for short tasks."""

from __future__ import annotations

import time

from celery import Celery

from bench.handlers import stamp
from bench.player import PAYLOAD, TIMEOUT_S, Call, wait_until
from bench.rivals.redis_server import SOCKET, RedisRival


def make(socket: str) -> tuple[Celery, object]:
    """Return the application and its task."""
    app = Celery("bench", broker=f"redis+socket://{socket}", backend=f"redis+socket://{socket}")
    app.conf.update(
        worker_prefetch_multiplier=64,  # "many short tasks" in its guide to optimizing
        broker_connection_retry_on_startup=True,
        worker_send_task_events=False,
    )
    return app, app.task(name="stamp")(stamp)


if SOCKET:
    app, task = make(SOCKET)


class CeleryRedis(RedisRival):
    """Celery, Redis, prefork."""

    def connect(self) -> None:
        self.app, self.task = make(self.socket)

    def start(self, workers: int) -> None:
        self.run(
            *(self.script("celery"), "-A", "bench.rivals.celery_redis:app", "worker", "-P", "prefork"),
            *("-c", str(workers), "-l", "ERROR", "--without-gossip", "--without-mingle", "--without-heartbeat"),
            env={"BENCH_REDIS": self.socket},
        )

    def call(self) -> Call:
        begun = time.monotonic_ns()
        result = self.task.delay(PAYLOAD)
        put = time.monotonic_ns()
        start = result.get(timeout=TIMEOUT_S)
        return Call(begun, put, start, time.monotonic_ns())

    def fill(self, tasks: int) -> None:
        self.ids = [self.task.delay(PAYLOAD).id for _ in range(tasks)]

    def finish(self) -> list[int]:
        backend = self.app.backend
        keys = [backend.get_key_for_task(task) for task in self.ids]
        wait_until(
            lambda: self.redis.exists(keys[-1]) and self.redis.exists(*keys) == len(keys), "celery did not finish"
        )
        return [backend.decode_result(found)["result"] for found in self.redis.mget(keys)]
