"""The state of everything in one document: what the supervisor says of itself, and with it GPUs, host and latency."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any

from dspy_fastpath.counters import Histogram, Page, bounds

from ... import __version__
from ...gpu import Gpu, Sight, described, described_host, read

if TYPE_CHECKING:
    from .context import Context

_WINDOW_S = 60.0  #: latency is that of the last minute, where anything ended in it
_STEP_S = 5.0  # between two marks in that window
_NAMES = {Histogram.WAIT: "wait", Histogram.RUN: "run", Histogram.TOTAL: "total"}
_SHARES = {"p50": 0.5, "p99": 0.99}


class Latencies:
    """How long tasks wait, run and take in all, by class, of late."""

    def __init__(self, page: Page) -> None:
        self._page, self._edges = page, bounds()
        self._marks: deque[tuple[float, dict[tuple[int, Histogram], list[int]]]] = deque()

    def now(self) -> dict[str, dict[str, float | None]]:
        """Return the quantiles of each class, seconds; None where nothing ended since the start."""
        now, counts = time.monotonic(), self._counts()
        if not self._marks or now - self._marks[-1][0] >= _STEP_S:
            self._marks.append((now, counts))
        while len(self._marks) > 1 and now - self._marks[1][0] > _WINDOW_S:
            self._marks.popleft()
        before = self._marks[0][1]
        found: dict[str, dict[str, float | None]] = {}
        for klass, name in enumerate(self._page.classes):
            found[name] = {}
            for which, told in _NAMES.items():
                whole = counts[klass, which]
                late = [one - other for one, other in zip(whole, before[klass, which], strict=True)]
                for word, share in _SHARES.items():
                    found[name][f"{told}_{word}_s"] = quantile(late if any(late) else whole, self._edges, share)
        return found

    def _counts(self) -> dict[tuple[int, Histogram], list[int]]:
        page = self._page
        return {
            (klass, which): page.histogram(klass, which)[0] for klass in range(len(page.classes)) for which in _NAMES
        }


def quantile(counts: list[int], edges: list[float], share: float) -> float | None:
    """Return the value below which a share of the counted lie, by the middle of a bucket; None where nothing is counted."""
    total = sum(counts)
    if not total:
        return None
    left = share * total
    for place, count in enumerate(counts):
        left -= count
        if count and left <= 0:
            low = edges[place - 1] if place else 0.0
            high = edges[place] if place < len(edges) else 2 * low
            return round(low + (high - low) * (1 + left / count), 9)
    return None


async def overview(context: Context) -> dict[str, Any]:
    """Return the document of /v1/status, without what differs from caller to caller. Raises what `Context.status` raises."""
    status = await context.status()
    sight = read(context.page)
    return {
        **{key: value for key, value in status.items() if key != "ok"},
        "gateway": {"version": __version__, "uptime_s": round(time.time() - context.started_at, 3)},
        "gpus": gpus(sight),
        "host": described_host(sight.host) if sight.host is not None else None,
        "latency": context.latencies.now(),
    }


def gpus(sight: Sight) -> list[dict[str, Any]]:
    """Return what telemetry last saw of each GPU; null is what a GPU does not tell."""
    now = time.monotonic()
    return [_gpu(gpu, now) for gpu in sight.gpus]


def _gpu(gpu: Gpu, now: float) -> dict[str, Any]:
    return described(gpu) | {"usable": gpu.usable, "age_s": round(now - gpu.at, 3)}
