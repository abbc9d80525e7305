"""Task spooler (Debian's tsp): a server forked by its first client, a new process for each task."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from bench.player import Call, Player, wait_until

FLOOR = Path(__file__).parents[1] / "floor"


class TaskSpooler(Player):
    """tsp with as many slots as workers; a first task holds the backlog back until workers are asked for."""

    def __init__(self, folder: Path, sync: bool) -> None:
        super().__init__(folder, sync)
        self.stamps, self.gate = folder / "stamps", folder / "gate"
        self.stamps.touch()
        os.mkfifo(self.gate)
        self.environment = {**os.environ, "TS_SOCKET": str(folder / "tsp.sock"), "TMPDIR": str(folder)}
        self.filled = 0

    def tsp(self, *words: str) -> str:
        ran = subprocess.run(["tsp", *words], env=self.environment, capture_output=True, text=True, check=True)
        return ran.stdout.strip()

    def start(self, workers: int) -> None:
        self.tsp("-S", str(workers))
        if self.filled:
            self.gate.write_text("go\n")

    def call(self) -> Call:
        begun = time.monotonic_ns()
        task = self.tsp("-n", str(FLOOR), "stamp", str(self.stamps))
        put = time.monotonic_ns()
        self.tsp("-w", task)
        seen = time.monotonic_ns()
        return Call(begun, put, int(self.stamps.read_text().splitlines()[-1]), seen)

    def fill(self, tasks: int) -> None:
        self.filled = tasks
        self.tsp("-n", "sh", "-c", f"read go < {self.gate}")
        for _ in range(tasks):
            self.tsp("-n", str(FLOOR), "stamp", str(self.stamps))

    def finish(self) -> list[int]:
        wait_until(lambda: self.stamps.read_bytes().count(b"\n") >= self.filled, "tsp did not finish")
        return [int(line) for line in self.stamps.read_text().splitlines()]

    def stop(self) -> None:
        self.tsp("-K")
