"""This project as a player: a real supervisor on a queue of its own, and a producer that uses the public Python API."""

from __future__ import annotations

import sys
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson
from dspy_fastpath.counters import Counter, Page, SlotState
from dspy_supervisor import Queue
from dspy_supervisor.layout import Layout

from bench.player import PAYLOAD, TIMEOUT_S, Call, Player, wait_until

CLASS = "cpu_short"


def make_queue(path: Path, durability: str) -> Queue:
    """Return a new queue of this durability, which is otherwise the supervisor's to choose."""
    Layout.open(path, create=True, durability=durability)
    return Queue(path)


class Ours(Player):
    """One supervisor with workers of one class."""

    handler = "bench.handlers:stamp"
    options: tuple[str, ...] = ()  #: of `start`, beside those that every measurement has

    def __init__(self, folder: Path, sync: bool) -> None:
        super().__init__(folder, sync)
        self.path, self.runtime = folder / "queue", folder / "run"
        self.queue = make_queue(self.path, "full" if sync else "none")
        self.filled = 0

    def start(self, workers: int) -> None:
        self.run(
            *(sys.executable, "-m", "dspy_supervisor", "start", "--mode", "laptop", "--log-level", "info"),
            *("--queue-dir", self.path, "--runtime-dir", self.runtime),
            *("--handler", f"{CLASS}={self.handler}", "--workers", f"{CLASS}={workers}"),
            *(f"--workers={other}=0" for other in ("cpu_long", "gpu")),
            *self.options,
        )

    def call(self) -> Call:
        begun = time.monotonic_ns()
        task = self.queue.submit(PAYLOAD, task_class=CLASS)
        put = time.monotonic_ns()
        start = self.queue.result(task, timeout=TIMEOUT_S)
        return Call(begun, put, start, time.monotonic_ns())

    def fill(self, tasks: int) -> None:
        self.filled = tasks
        self.queue.submit_many([PAYLOAD] * tasks, task_class=CLASS)

    def finish(self) -> list[int]:
        wait_until(lambda: self.done >= self.filled, f"the supervisor did not finish: {self.said}")
        return list(self.results())

    @property
    def pid(self) -> int:
        """The supervisor's process id."""
        return self.children[0].pid

    @cached_property
    def page(self) -> Page:
        """The page that the running supervisor shares."""
        wait_until(lambda: list(self.runtime.glob("*.page")), f"the supervisor did not start: {self.said}")
        return Page.attach(next(self.runtime.glob("*.page")))

    @property
    def done(self) -> int:
        """Tasks done since the start of the supervisor."""
        if self.children and self.children[0].poll() is not None:
            raise RuntimeError(f"the supervisor ended: {self.said}")
        return self.page.counter(self.page.classes.index(CLASS), Counter.DONE)

    @property
    def workers(self) -> list[int]:
        """The process ids of the workers."""
        slots = map(self.page.slot, range(self.page.slots))
        return [slot.pid for slot in slots if slot.state != SlotState.EMPTY]

    @property
    def said(self) -> str:
        """The last of what the supervisor logged."""
        return "\n".join((self.folder / "output.log").read_text(errors="replace").splitlines()[-3:])

    def results(self) -> list[Any]:
        """Return the result of every task in done/."""
        return [orjson.loads(path.read_bytes())["runner_result"] for path in (self.path / "done").glob("*.json")]
