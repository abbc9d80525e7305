"""RQ with SimpleWorker, which runs tasks in the worker's own process; callers block on the result's stream."""

from __future__ import annotations

import time

from rq import Queue

from bench.handlers import stamp
from bench.player import PAYLOAD, TIMEOUT_S, Call, wait_until
from bench.rivals.redis_server import RedisRival


class RqRedis(RedisRival):
    """RQ, Redis, SimpleWorker."""

    def connect(self) -> None:
        self.queue = Queue(connection=self.redis)

    def start(self, workers: int) -> None:
        for _ in range(workers):
            self.run(
                *(self.script("rq"), "worker", "-w", "rq.worker.SimpleWorker", "-q", "-u", f"unix://{self.socket}"),
            )

    def call(self) -> Call:
        begun = time.monotonic_ns()
        job = self.queue.enqueue(stamp, PAYLOAD)
        put = time.monotonic_ns()
        start = job.latest_result(timeout=int(TIMEOUT_S)).return_value
        return Call(begun, put, start, time.monotonic_ns())

    def fill(self, tasks: int) -> None:
        self.jobs = self.queue.enqueue_many([Queue.prepare_data(stamp, (PAYLOAD,)) for _ in range(tasks)])

    def finish(self) -> list[int]:
        finished = self.queue.finished_job_registry
        wait_until(lambda: finished.get_job_count(cleanup=False) >= len(self.jobs), "rq did not finish")
        return [job.return_value() for job in self.jobs]
