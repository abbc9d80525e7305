"""What a client counts of its work."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_KEPT = 1024  # the newest round trips, of which quantiles are told


@dataclass(slots=True)
class Counts:
    """Sums since the client was made; a request is one HTTP request for vectors."""

    texts: int = 0  #: that vectors were returned for
    refused: int = 0  #: texts that the server won't take
    requests: int = 0
    failed: int = 0  #: requests
    retried: int = 0
    halved: int = 0  #: batches that were too large, or held a text that the server won't take
    bytes_sent: int = 0  #: of bodies
    bytes_received: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    round_trips: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))  #: seconds, the newest last

    def told(self) -> dict[str, Any]:
        """Return all as JSON."""
        trips = sorted(self.round_trips)
        return {
            **{name: getattr(self, name) for name in self.__slots__ if name != "round_trips"},
            "texts_a_request": round(self.texts / self.requests, 2) if self.requests else None,
            "round_trip_p50_s": quantile(trips, 0.5),
            "round_trip_p99_s": quantile(trips, 0.99),
        }


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """Return the value below which that share lies; None of nothing."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None
