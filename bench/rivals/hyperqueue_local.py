"""HyperQueue, through its Python binding: a server and a worker in this process, a new process for each task."""

from __future__ import annotations

import time
from pathlib import Path

from hyperqueue import Client, Job
from hyperqueue.cluster import LocalCluster, WorkerConfig

from bench.player import Call, Player, wait_until

FLOOR = Path(__file__).parents[1] / "floor"


class HyperQueue(Player):
    """HyperQueue with tasks that are programs."""

    def __init__(self, folder: Path, sync: bool) -> None:
        super().__init__(folder, sync)
        self.stamps = folder / "stamps"
        self.stamps.touch()
        self.cluster = LocalCluster(str(folder / "hq"))
        self.client: Client = self.cluster.client()

    def start(self, workers: int) -> None:
        self.cluster.start_worker(WorkerConfig(cores=workers))

    def submit(self, tasks: int) -> object:
        job = Job()
        for _ in range(tasks):
            job.program([str(FLOOR), "stamp", str(self.stamps)], stdout=None, stderr=None)
        return self.client.submit(job)

    def call(self) -> Call:
        begun = time.monotonic_ns()
        job = self.submit(1)
        put = time.monotonic_ns()
        self.client.wait_for_jobs([job])
        seen = time.monotonic_ns()
        return Call(begun, put, int(self.stamps.read_text().splitlines()[-1]), seen)

    def fill(self, tasks: int) -> None:
        self.tasks = tasks
        self.submit(tasks)

    def finish(self) -> list[int]:
        wait_until(lambda: self.stamps.read_bytes().count(b"\n") >= self.tasks, "hyperqueue did not finish")
        return [int(line) for line in self.stamps.read_text().splitlines()]

    def stop(self) -> None:
        self.cluster.stop()
