"""Whether a task can end before its supervisor has to: by the end of the allocation, and by how long such tasks took.

Run times are learned as TCP learns round trips (Jacobson, "Congestion Avoidance and Control", 1988): a mean and a mean
deviation, and a task is expected to take the mean and four deviations. They are kept beside the queue's jobs, so that the
next allocation knows them; a task of a kind nobody has seen end is started, and what it took until it was ended is learned.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

from .jobbook import FOLDER
from .layout import Layout, read_json, replace_json

FILE = "run_times.json"
MAX_KINDS = 256  #: they are text from outside
_SAVE_S = 10.0  # between two writes of what was learned
_MARGIN_S = 2.0  # for the record, and the next look at the clock


class RunTimes:
    """How long tasks take, by class and kind; a hint that may be lost."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._known: dict[str, tuple[float, float]] = {}
        self._saved_at = -_SAVE_S
        with contextlib.suppress(OSError), _folder(layout) as folder:
            self._read(read_json(folder, FILE) or {})

    def expected_s(self, task_class: str, kind: str | None) -> float:
        """Return how long a task may be expected to run, in seconds; 0 where none of its kind has ended yet."""
        mean, deviation = self._known.get(_key(task_class, kind), (0.0, 0.0))
        return mean + 4 * deviation

    def learn(self, task_class: str, kind: str | None, run_s: float) -> None:
        """Take in how long a task ran."""
        key = _key(task_class, kind)
        before = self._known.pop(key, None)
        if before is None:
            self._known[key] = (run_s, run_s / 2)
        else:
            mean, deviation = before
            self._known[key] = (mean + (run_s - mean) / 8, deviation + (abs(run_s - mean) - deviation) / 4)
        while len(self._known) > MAX_KINDS:
            del self._known[next(iter(self._known))]  # that was not seen for longest
        if time.monotonic() - self._saved_at > _SAVE_S:
            self.save()

    def save(self) -> None:
        """Keep what was learned. Best effort."""
        self._saved_at = time.monotonic()
        with contextlib.suppress(OSError):
            with contextlib.suppress(FileExistsError):
                os.mkdir(FOLDER, 0o700, dir_fd=self._layout.root)
            with _folder(self._layout) as folder:
                replace_json(folder, FILE, {key: list(pair) for key, pair in self._known.items()}, durable=False)

    def _read(self, document: dict[str, Any]) -> None:
        for key, pair in list(document.items())[-MAX_KINDS:]:
            if isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, int | float) for part in pair):
                self._known[key] = (max(0.0, float(pair[0])), max(0.0, float(pair[1])))


class Walltime:
    """The time that is left to one worker of an allocation."""

    def __init__(self, ends_at: float, reserve_s: float, times: RunTimes) -> None:
        self._ends_at = ends_at  # epoch seconds
        self._reserve_s = reserve_s  # kept for the drain
        self._times = times

    def refusal(self, task_class: str, kind: str | None) -> str:
        """Return why a task can't be started any more, or nothing."""
        left_s = self._ends_at - self._reserve_s - _MARGIN_S - time.time()
        expected_s = self._times.expected_s(task_class, kind)
        if left_s > expected_s and left_s > 0:
            return ""
        return f"it is expected to run for {expected_s:.0f} s, and this allocation has {max(0.0, left_s):.0f} s left"

    def ended(self, task_class: str, kind: str | None, run_s: float) -> None:
        """Learn from a task that ended by itself, or was ended with the allocation."""
        self._times.learn(task_class, kind, run_s)

    def save(self) -> None:
        """Keep what was learned."""
        self._times.save()


def _key(task_class: str, kind: str | None) -> str:
    return f"{task_class}/{kind or ''}"


@contextlib.contextmanager
def _folder(layout: Layout) -> Any:
    descriptor = os.open(FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=layout.root)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
