"""How many tasks wait and are done, as the older programs count: by files, and since the supervisor's start."""

from __future__ import annotations

import time

from dspy_fastpath.counters import Counter, Gauge, Page

from ...layout import Layout, walk_folder

_SHARE = 20  # counting may take this share of the time: 1/20


class Counts:
    """The numbers of files in pending/ and done/, counted anew only as often as that is cheap."""

    def __init__(self) -> None:
        self._found = (0, 0)
        self._again_at = 0.0  # monotonic seconds

    def now(self, layout: Layout) -> tuple[int, int]:
        """Return how many tasks wait and how many are done."""
        began = time.monotonic()
        if began >= self._again_at:
            self._found = _files(layout.pending), _files(layout.done)
            cost_s = time.monotonic() - began
            self._again_at = 0.0 if cost_s < 0.002 else time.monotonic() + _SHARE * cost_s
        return self._found


def totals(page: Page) -> dict[str, int]:
    """Return what was submitted, processed and completed since the supervisor's start."""
    classes = range(len(page.classes))
    completed = sum(page.counter(klass, Counter.DONE) for klass in classes)
    processed = completed + sum(page.counter(klass, Counter.FAILED) for klass in classes)
    waiting = sum(page.gauge(klass, gauge) for klass in classes for gauge in (Gauge.PENDING, Gauge.INFLIGHT))
    return {"submitted": processed + waiting, "processed": processed, "completed": completed}


def _files(folder: int) -> int:
    return sum(not name.startswith(".") and name.endswith(".json") for name in walk_folder(folder))
