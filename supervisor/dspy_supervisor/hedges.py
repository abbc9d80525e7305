"""Second runs of tasks that take unusually long, where these may run twice: the first of the two that succeeds counts.

A task says so in its envelope, ``"idempotent": true``, and its class by ``hedge``. When it has run for longer than 95 of 100
tasks of its class did, and a worker is idle, that runs it a second time, beside the first: it reads the claim where it lies, and
leaves its record in ``logs/ID/``. The claim stays with its owner all the while. Is the second run first, the owner is killed and
reaped, and only then is the task completed with that record, by the usual commit out of the owner's folder: there is one at
most, whoever dies meanwhile. A second run that fails says nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from .log import log
from .pool_worker import Worker
from .record import Claim

SECOND = "+"  #: what an order for a second run begins with, as no name of a task does
_LEAST_SEEN, _MOST_SEEN = 20, 500  # tasks of a class whose run times are known
_LEAST_S = 0.05  # a run shorter than this is over before a second one begins
_MAX_TRIED = 10_000


def second_order(owner: str, file: str) -> str:
    """Return the order to run a task, claimed by an owner, a second time."""
    return f"{SECOND}{owner}{SECOND}{file}"


def second_of(order: str) -> tuple[str, str]:
    """Return owner and name of the task of such an order."""
    _, owner, file = order.split(SECOND)
    return owner, file


def may_run_twice(task: Claim) -> bool:
    """Whether a task says that it may, and no worker keeps anything for it."""
    spans = {key: task.envelope[start:end] for key, start, end in task.fields.extras}
    return spans.get("idempotent") == b"true" and task.fields.affinity is None


class Hedges:
    """The second runs of one class."""

    def __init__(self) -> None:
        self._runs: deque[float] = deque(maxlen=_MOST_SEEN)  # seconds
        self._pairs: dict[str, tuple[Worker, Worker]] = {}  # file to who runs it first, and second
        self._tried: set[str] = set()  # it was run twice, or may not be
        self.won: set[str] = set()  #: tasks whose second run succeeded, and whose first is being ended
        self.started = self.successes = 0

    def learn(self, run_s: float) -> None:
        """Take in how long a task ran that succeeded."""
        self._runs.append(run_s)

    @property
    def patience_s(self) -> float | None:
        """How long a task runs before it is run a second time; None while too little is known."""
        if len(self._runs) < _LEAST_SEEN:
            return None
        return max(_LEAST_S, sorted(self._runs)[int(0.95 * len(self._runs))])

    def late(self, running: list[tuple[Worker, str, float]], now: float) -> list[tuple[Worker, str]]:
        """Return which of the tasks that run, with their worker and start (monotonic seconds), are late and alone."""
        patience_s = self.patience_s
        if patience_s is None:
            return []
        known = self._tried | self._pairs.keys()
        return [(w, file) for w, file, start in running if now - start > patience_s and file not in known]

    def refuse(self, file: str) -> None:
        """Don't consider a task again."""
        if len(self._tried) >= _MAX_TRIED:
            self._tried.clear()
        self._tried.add(file)

    def begin(self, file: str, first: Worker, second: Worker) -> None:
        """A task runs a second time."""
        self.refuse(file)
        self._pairs[file] = (first, second)
        self.started += 1
        log.info(
            "hedged", task=file.removesuffix(".json"), klass=first.settings.name, first=first.pid, second=second.pid
        )

    def ended(self, file: str) -> Worker | None:
        """The first run of a task ended by itself; return who runs it still, for nothing."""
        self.won.discard(file)
        pair = self._pairs.pop(file, None)
        return pair[1] if pair else None

    def first(self, file: str) -> Worker | None:
        """Return who runs a task first that runs a second time."""
        pair = self._pairs.get(file)
        return pair[0] if pair else None

    def succeeded(self, file: str) -> Worker | None:
        """The second run of a task succeeded; return who runs it still, or None where its end was just reported."""
        pair = self._pairs.pop(file, None)
        if pair is None:
            return None
        self.won.add(file)
        self.successes += 1
        return pair[0]

    def failed(self, file: str) -> None:
        """The second run of a task failed: the first goes on alone."""
        self._pairs.pop(file, None)

    def gone(self, worker: Worker, end: Callable[[Worker], object]) -> None:
        """A worker is gone: what it ran second goes on alone, and what it ran first is not run second any more."""
        for file, (first, second) in list(self._pairs.items()):
            if worker in (first, second):
                del self._pairs[file]
            if worker is first:
                end(second)

    def drop(self) -> list[Worker]:
        """Forget the pairs; return who runs a task second."""
        seconds = [second for _, second in self._pairs.values()]
        self._pairs.clear()
        return seconds

    def second(self, file: str) -> Worker | None:
        """Return who runs a task a second time."""
        pair = self._pairs.get(file)
        return pair[1] if pair else None

    def facts(self) -> dict[str, Any]:
        """Return what `status` shows."""
        patience_s = self.patience_s
        return {
            "after_s": None if patience_s is None else round(patience_s, 6),
            "running": len(self._pairs),
            "started": self.started,
            "won": self.successes,
        }
