"""What `top` sees of one queue: the supervisor's account of itself, the shared page, and what lies in the folders.

Everything here may block, and is called from a thread. Where no supervisor runs, the tasks are counted in the folders.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from dspy_fastpath.counters import Counter, Page, SlotState

from ..census import count
from ..config import Config
from ..control_client import ask, socket_path
from ..errors import SupervisorError
from ..gpu import described_host, read
from ..layout import Layout
from ..producer import put_again
from ..services.gateway.failures import Failures
from ..services.gateway.jobs import jobs
from ..services.gateway.overview import Latencies, gpus
from ..services.gateway.story import story
from ..services.gateway.views import described
from ..task import TaskName

_ASK_S = 3.0
_RATE_S = 5.0  # a rate is that of so many seconds


class Run(NamedTuple):
    """A task that runs in a worker here."""

    id: str
    attempt: int
    task_class: str
    worker: int
    since_s: float
    left_s: float | None  #: until its time is up; None: it may take any


@dataclass(frozen=True, slots=True)
class View:
    """Everything, at one moment."""

    at: float  #: monotonic seconds
    status: Mapping[str, Any]  #: of the supervisor; where none answers, the tasks by class
    lost: str = ""  #: why no supervisor answers
    rates: Mapping[str, float] = field(default_factory=dict)  #: ended tasks per second, by class
    latency: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    running: Sequence[Run] = ()
    gpus: Sequence[Mapping[str, Any]] = ()
    host: Mapping[str, Any] | None = None


class Sight:
    """Looks at one queue. Raises QueueMissing, QueueUnsafe."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.layout = Layout.open(config.queue_dir, insecure=config.insecure)
        self._socket = socket_path(config.runtime_dir, self.layout.queue_id, config.instance)
        self._page: Page | None = None
        self._latencies: Latencies | None = None
        self._counts: list[tuple[float, dict[str, int]]] = []
        self._failures = Failures()

    @property
    def path(self) -> Path:
        """The queue's folder."""
        return Path(self.layout.path)

    def look(self) -> View:
        """Return how everything is now."""
        now = time.monotonic()
        try:
            status = ask(self._socket, {"do": "status"}, _ASK_S)
        except (SupervisorError, OSError) as error:
            self._let_go()
            return View(now, self._counted(), lost=str(error))
        page = self._attached(int(status["pid"]))
        if page is None or self._latencies is None:
            return View(now, status)
        seen = read(page)
        host = described_host(seen.host) if seen.host is not None else None
        latency = self._latencies.now()
        return View(now, status, "", self._rates(page, now), latency, self._running(page, now), gpus(seen), host)

    def failures(self) -> list[dict[str, Any]]:
        """Return the failures of late, grouped by what went wrong, the latest first."""
        groups: list[dict[str, Any]] = self._failures.groups(self.layout)["groups"]
        return groups

    def jobs(self) -> list[dict[str, Any]]:
        """Return the Slurm jobs that are not settled, newest first."""
        return jobs(self.layout)

    def story(self, task_id: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Return what happened to a task, and all that is known of it. Raises TaskNotFound."""
        return story(self.layout, task_id), described(self.layout, task_id)

    def explain(self, task_id: str) -> str:
        """Return why a task does not run, as the supervisor says; "" where none answers."""
        try:
            return str(self.ask("explain", id=task_id)["explanation"])
        except (SupervisorError, OSError):
            return ""

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Ask the supervisor for something. Raises SupervisorError."""
        return ask(self._socket, {"do": do, **request}, _ASK_S)

    def retry(self, task_id: str) -> None:
        """Let a failed task be tried again. Raises SupervisorError."""
        put_again(self.layout, task_id)

    def close(self) -> None:
        """Give everything back."""
        self._let_go()
        self.layout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _counted(self) -> dict[str, Any]:
        census = count(self.layout, 0.3)
        classes = {
            name: {
                "pending": found["pending"] + found["delayed"],
                "inflight": found["claimed"],
                "done": found["done"],
                "failed": found["failed"],
            }
            for name, found in census.classes.items()
        }
        return {"classes": classes, "services": {}}

    def _attached(self, pid: int) -> Page | None:
        """Return the page of the supervisor that answers: another one has another."""
        if self._page is not None and self._page.pid != pid:
            self._let_go()
        if self._page is None:
            try:
                self._page = Page.attach(self._socket.with_suffix(".page"))
            except (OSError, ValueError):  # of another version of this program
                return None
            self._latencies = Latencies(self._page)
        return self._page

    def _let_go(self) -> None:
        if self._page is not None:
            self._page.close()
        self._page = self._latencies = None
        self._counts.clear()

    def _rates(self, page: Page, now: float) -> dict[str, float]:
        counts = {
            name: page.counter(klass, Counter.DONE) + page.counter(klass, Counter.FAILED)
            for klass, name in enumerate(page.classes)
        }
        self._counts.append((now, counts))
        while len(self._counts) > 2 and now - self._counts[1][0] >= _RATE_S:
            self._counts.pop(0)
        before, then = self._counts[0]
        if now <= before:
            return {}
        return {name: max(0, ended - then.get(name, ended)) / (now - before) for name, ended in counts.items()}

    def _running(self, page: Page, now: float) -> list[Run]:
        found = []
        for number in range(page.slots):
            slot = page.slot(number)
            if slot.state == SlotState.EMPTY or not slot.start_ns:
                continue
            name = TaskName.parse(slot.name.decode(errors="replace"))
            if name is None or slot.klass >= len(page.classes):
                continue
            left_s = slot.deadline_ns / 1e9 - now if slot.deadline_ns else None
            since_s = now - slot.start_ns / 1e9
            found.append(Run(name.id, name.attempt, page.classes[slot.klass], slot.pid, since_s, left_s))
        return sorted(found, key=lambda run: -run.since_s)
