"""How often the cluster is asked: soon when something is due, seldom when nothing happens, ever less while it does not answer."""

from __future__ import annotations

from dataclasses import dataclass

_FIRST_S = 1.0  # after a submission, a cancel, a job that just ended
_GROWTH = 1.5
_DUE_S = 5.0
_SHARE = 5.0  # a call that took so long is not made more often than so many times its length
_BACKOFF_S, _LONGEST_BACKOFF_S = 2.0, 300.0


@dataclass(slots=True)
class Pace:
    """Gives the time to the next look. All times in seconds."""

    longest_s: float  #: between two looks while nothing is due
    chance: float = 0.5  #: uniform in [0, 1), drawn for each bridge: many of them don't knock at once
    interval_s: float = _FIRST_S
    failures: int = 0  #: in a row

    def bound(self, longest_s: float, min_job_age_s: float, accounting: bool) -> None:
        """Take the configured bound; without accounting a job must be seen ended before the controller forgets it."""
        self.longest_s = longest_s if accounting else min(longest_s, max(0.5, min_job_age_s / 2))

    def answered(self, took_s: float, *, changed: bool, due: bool) -> float:
        """Return the time to the next look after one that succeeded.

        ``changed``: jobs moved; ``due``: something is about to be known, as how a job ended that is over.
        """
        self.failures = 0
        self.interval_s = _FIRST_S if changed else self.interval_s * _GROWTH
        longest_s = min(self.longest_s, _DUE_S) if due else self.longest_s
        self.interval_s = max(min(self.interval_s, longest_s), min(took_s * _SHARE, _LONGEST_BACKOFF_S))
        return self.interval_s * (0.9 + 0.2 * self.chance)

    def failed(self) -> float:
        """Return the time to the next look after one that failed."""
        backoff = min(_BACKOFF_S * 2.0 ** min(self.failures, 20), _LONGEST_BACKOFF_S)
        self.failures += 1
        self.interval_s = _FIRST_S
        return backoff * (0.75 + 0.5 * self.chance)

    def hasten(self) -> float:
        """Return the time to the next look after something was begun."""
        self.interval_s = _FIRST_S
        return min(_FIRST_S, self.longest_s)
