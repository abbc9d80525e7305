"""Distributions of times, as the shared page keeps them: how many fell into each bucket, and their sum.

A quantile is read off within its bucket, half an octave wide, as if times lay evenly in it on a logarithmic scale: it is
right to about 20 %.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Self

from dspy_fastpath.counters import Histogram, Page, bounds

EDGES = tuple(bounds())  #: seconds, upper ends; the last is inf
_HALF_OCTAVE = 2.0**0.5
#: the short names of the histograms, as in documents for people and programs
KINDS: Mapping[str, Histogram] = {"wait": Histogram.WAIT, "run": Histogram.RUN, "total": Histogram.TOTAL}


class Times(NamedTuple):
    """A number of times."""

    counts: tuple[int, ...]  #: by bucket of EDGES
    sum_s: float

    @classmethod
    def of(cls, page: Page, klass: int, which: int) -> Self:
        """Return what the page counted of a class since the supervisor's start."""
        counts, sum_s = page.histogram(klass, which)
        return cls(tuple(counts), sum_s)

    @property
    def number(self) -> int:
        """How many there are."""
        return sum(self.counts)

    @property
    def mean_s(self) -> float | None:
        """Their mean, seconds; None where there is none."""
        return self.sum_s / self.number if self.number else None

    def since(self, before: Self) -> Self:
        """Return those that came after ``before`` was read."""
        counts = tuple(max(0, now - then) for now, then in zip(self.counts, before.counts, strict=True))
        return type(self)(counts, max(0.0, self.sum_s - before.sum_s))

    def quantile(self, share: float) -> float | None:
        """Return the time that this share of them, 0 to 1, did not exceed, seconds; None where there is none."""
        total = self.number
        if not total:
            return None
        wanted, below = share * total, 0
        for place, count in enumerate(self.counts):
            if count and below + count >= wanted:
                upper = EDGES[min(place, len(EDGES) - 2)]
                return float(upper * _HALF_OCTAVE ** ((wanted - below) / count - 1.0))
            below += count
        return EDGES[-2]

    def described(self) -> dict[str, float | None]:
        """Return mean_s, p50_s and p99_s, rounded to what they are good for."""
        values = {"mean_s": self.mean_s, "p50_s": self.quantile(0.5), "p99_s": self.quantile(0.99)}
        return {name: None if value is None else float(f"{value:.4g}") for name, value in values.items()}


NONE = Times((0,) * len(EDGES), 0.0)  #: no times at all


def total(parts: Iterable[Times]) -> Times:
    """Return all of them together."""
    counts, sum_s = [0] * len(EDGES), 0.0
    for part in parts:
        sum_s += part.sum_s
        for place, count in enumerate(part.counts):
            counts[place] += count
    return Times(tuple(counts), sum_s)


def bucket_of(seconds: float) -> int:
    """Return the bucket of a time."""
    return bisect.bisect_left(EDGES, seconds)


def latency(page: Page) -> dict[str, dict[str, float | None]]:
    """Return by class the median and the 99th percentile of waiting, running and both, since the supervisor's start.

    ``{"gpu": {"wait_p50_s": ..., "wait_p99_s": ..., "run_p50_s": ..., ..., "total_p99_s": ...}}``; None: no task yet.
    """
    found: dict[str, dict[str, float | None]] = {}
    for klass, name in enumerate(page.classes):
        found[name] = {
            f"{kind}_{key}": value
            for kind, which in KINDS.items()
            for key, value in Times.of(page, klass, which).described().items()
            if key != "mean_s"
        }
    return found
