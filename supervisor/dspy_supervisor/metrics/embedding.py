"""The rows of the process that batches texts for embedding servers: what it counted, and how the servers do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from .view import PREFIX, Metric, Sample, View, counter, gauge, one

_STATES = ("closed", "half_open", "open")
_P = PREFIX + "embed_"


def _counts(view: View) -> Mapping[str, Any]:
    found: Mapping[str, Any] = view.service("embed").get("counts", {})
    return found


def _count(key: str) -> Any:
    def read(view: View) -> float | None:
        value = _counts(view).get(key)
        return float(value) if isinstance(value, int | float) else None

    return one(read)


def _servers(view: View) -> Iterable[Sample]:
    states = Counter(server.get("breaker") for server in _counts(view).get("endpoints", ()))
    return [((state,), states[state]) for state in _STATES] if states else []


EMBEDDING: tuple[Metric, ...] = (
    counter(_P + "texts_total", "Texts that got their vector.", _count("texts")),
    counter(_P + "texts_refused_total", "Texts that an embedding server won't take.", _count("refused")),
    counter(_P + "requests_total", "Requests for vectors.", _count("requests")),
    counter(_P + "request_failures_total", "Requests for vectors that failed.", _count("failed")),
    counter(_P + "retries_total", "Requests for vectors that were tried again.", _count("retried")),
    counter(_P + "halvings_total", "Batches that were too large, or held a text that was refused.", _count("halved")),
    counter(_P + "sent_bytes_total", "Bodies of requests for vectors.", _count("bytes_sent")),
    counter(_P + "received_bytes_total", "Bodies of their answers.", _count("bytes_received")),
    counter(_P + "cache_hits_total", "Texts whose vector was cached.", _count("cache_hits")),
    counter(_P + "cache_misses_total", "Texts that were asked for, beside a cache.", _count("cache_misses")),
    gauge(_P + "texts_waiting", "Texts that wait for a request.", _count("waiting")),
    gauge(_P + "requests_under_way", "Requests for vectors that are not answered yet.", _count("under_way")),
    gauge(_P + "round_trip_p50_seconds", "Half of the newest requests took less.", _count("round_trip_p50_s")),
    gauge(_P + "round_trip_p99_seconds", "99 of 100 of the newest requests took less.", _count("round_trip_p99_s")),
    gauge(_P + "servers", "Embedding servers by the state of their breaker; open: left alone.", _servers, "state"),
)
