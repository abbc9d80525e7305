"""Memory of GPUs: what each kind of task turned out to need, and what is really free for one more."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

SETTLE_S = 10.0  #: a task has what it needs so long after its start, where nobody can tell what it has
GUESS = 0.5  #: of its share of a GPU: what a task is taken to need that says nothing, until something is known
FADE_S = 60.0  #: a need that nobody is in the way of is waited for so long, before less is tried
MOST_KINDS = 1000
_MORE = 1.5  # after a task ran out, and nothing tells what would have been enough
_MARGIN = 1.1  # above the highest that was measured: no two runs are alike
_FADED = 0.8  # what is left of a need that was waited for so long
_TRIED = 0.99  # after a run that nobody measured
_FADE = 0.05  # of the way down, after a run that needed less


class Learned:
    """How many bytes of each GPU tasks of a kind need, as their runs have shown."""

    def __init__(self) -> None:
        self._bytes: dict[str, int] = {}
        self._told: dict[str, int] = {}  # what would have been enough, by messages
        self._waited: dict[str, float] = {}  # since when, monotonic seconds

    def need(self, kind: str) -> int:
        """Return what is known of a kind; 0: nothing."""
        return self._bytes.get(kind, 0)

    def ran_out(self, kind: str, had: int, enough: int, most: int) -> int:
        """Raise the need of a kind of which a task ran out, and return it.

        had: what it was admitted with. enough: what would have done, 0 where nobody can tell. most: what a GPU has to give.
        """
        if enough:
            self._told[kind] = int(enough * _MARGIN)
        need = max(self.need(kind), int(enough * _MARGIN) or int(had * _MORE))
        if enough and need <= had:  # it was not alone: what is free was overestimated
            need = int(had * _MARGIN)
        return self._put(kind, min(need, most))

    def measured(self, kind: str, peak: int) -> None:
        """Take the highest use of a run that succeeded: up at once, down slowly, so that one bad minute does not last.

        peak: 0 where nobody measured; then a little less is tried from run to run, but for what a message told was needed.
        """
        known = self.need(kind)
        if peak <= 0:
            if known > (told := self._told.get(kind, 0)):
                self._put(kind, max(told, int(known * _TRIED)))
            return
        target = peak * _MARGIN
        self._put(kind, int(target if target >= known else known + _FADE * (target - known)))

    def fade(self, kind: str, had: int, now: float) -> None:
        """Believe less in a need that keeps a GPU idle; called as often as one likes, ``now`` in monotonic seconds.

        A need that was raised in one bad minute, or only guessed, is not waited for for ever: after minutes less is tried.
        """
        if len(self._waited) > MOST_KINDS:
            self._waited.clear()
        if now - self._waited.setdefault(kind, now) >= FADE_S:
            self._put(kind, int(had * _FADED))

    def facts(self) -> dict[str, int]:
        """Return all that is known, in bytes."""
        return dict(self._bytes)

    def _put(self, kind: str, need: int) -> int:
        if kind not in self._bytes and len(self._bytes) >= MOST_KINDS:  # kinds are text from outside
            oldest = next(iter(self._bytes))
            del self._bytes[oldest]
            self._told.pop(oldest, None)
        self._bytes[kind] = need
        self._waited.pop(kind, None)
        return need


class Promise(NamedTuple):
    """What somebody was given of a GPU, and may not have taken yet."""

    need_bytes: int
    used_bytes: int | None  #: that its processes have now; None: nobody can tell
    started: float  #: monotonic seconds; 0: it has not begun


def really_free(
    free_bytes: float,  # as the driver said, foreign processes subtracted; nan: it does not say
    at: float,  # monotonic seconds, when it said so
    promises: Iterable[Promise],
) -> float:
    """Return the bytes that one more task can count on; inf where the driver does not say what is free."""
    if math.isnan(free_bytes):
        return math.inf
    for need, used, started in promises:
        if used is not None:
            free_bytes -= max(0, need - used)
        elif not started or at < started + SETTLE_S:
            free_bytes -= need
    return free_bytes
