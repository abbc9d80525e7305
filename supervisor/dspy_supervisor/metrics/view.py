"""What the rows of the table read: the shared page and the supervisor's own account, at one moment."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

from dspy_fastpath.counters import Counter, Gauge, Global, GpuValue, HostValue, Page

from ..gpu import Sight, read
from ..times import EDGES, Times

PREFIX = "dspy_supervisor_"
_EVERY = 4  # of the page's bounds, half octaves, one in so many becomes a bucket: a factor of four
_UPPERS = tuple((place, f"{EDGES[place]:.6g}") for place in range(_EVERY - 1, len(EDGES) - 1, _EVERY))

#: label values and a number, or for a histogram (buckets, sum)
Sample = tuple[tuple[str, ...], Any]


class View:
    """A supervisor at one moment."""

    def __init__(self, page: Page, status: Mapping[str, Any], host: Mapping[HostValue, float] | None = None) -> None:
        """``status``: as the control socket tells it, nothing where it doesn't; ``host``: where telemetry looks at none."""
        self.page, self.status, self._host = page, status, host
        self.now = time.monotonic()
        self.classes = tuple(enumerate(page.classes))

    @property
    def services(self) -> Mapping[str, Mapping[str, Any]]:
        """What the supervisor says of its services."""
        found: Mapping[str, Mapping[str, Any]] = self.status.get("services", {})
        return found

    def service(self, name: str) -> Mapping[str, Any]:
        """Return what a service says of itself, nothing where it isn't there."""
        return self.services.get(name, {})

    @cached_property
    def sight(self) -> Sight:
        """GPUs and host as telemetry left them."""
        return read(self.page)

    def host(self, value: HostValue) -> float:
        """Return one number of the host, nan where it is not known."""
        if self.sight.host is not None:
            return self.sight.host[value]
        return (self._host or {}).get(value, math.nan)

    def total(self, counter: Counter) -> int:
        """Return a counter over all classes."""
        return sum(self.page.counter(klass, counter) for klass, _ in self.classes)

    def sum_of(self, gauge: Gauge) -> int:
        """Return a gauge summed over all classes."""
        return sum(self.page.gauge(klass, gauge) for klass, _ in self.classes)


class Metric(NamedTuple):
    """One row of the table."""

    name: str
    kind: str  #: gauge, counter or histogram
    help: str
    read: Callable[[View], Iterable[Sample]]
    labels: tuple[str, ...] = ()


def gauge(name: str, text: str, read: Callable[[View], Iterable[Sample]], *labels: str) -> Metric:
    """Return a row of what goes up and down."""
    return Metric(name, "gauge", text, read, labels)


def counter(name: str, text: str, read: Callable[[View], Iterable[Sample]], *labels: str) -> Metric:
    """Return a row of what only grows, until the supervisor starts anew."""
    return Metric(name, "counter", text, read, labels)


def one(read: Callable[[View], float | None]) -> Callable[[View], Iterable[Sample]]:
    """Return a reader of a single number; None and nan are no sample."""

    def samples(view: View) -> Iterable[Sample]:
        value = read(view)
        return [] if value is None or math.isnan(value) else [((), value)]

    return samples


def place(number: Global) -> Callable[[View], Iterable[Sample]]:
    """Return a reader of a number of the page that belongs to no class."""
    return lambda view: [((), view.page.get_global(number))]


def by_class(which: Counter | Gauge) -> Callable[[View], Iterable[Sample]]:
    """Return a reader of a counter or gauge of each class."""
    if isinstance(which, Counter):
        return lambda view: [((name,), view.page.counter(klass, which)) for klass, name in view.classes]
    return lambda view: [((name,), view.page.gauge(klass, which)) for klass, name in view.classes]


def by_gpu(value: GpuValue) -> Callable[[View], Iterable[Sample]]:
    """Return a reader of a number of each GPU that tells it."""
    return lambda view: [((gpu.uuid,), gpu[value]) for gpu in view.sight.gpus if not math.isnan(gpu[value])]


def of_host(value: HostValue) -> Callable[[View], Iterable[Sample]]:
    """Return a reader of a number of the host."""
    return one(lambda view: view.host(value))


def histogram(name: str, text: str, which: int) -> Metric:
    """Return a row of the times of each class."""

    def samples(view: View) -> Iterable[Sample]:
        for klass, label in view.classes:
            times = Times.of(view.page, klass, which)
            yield (label,), (buckets(times.counts), times.sum_s)

    return Metric(name, "histogram", text, samples, ("class",))


def buckets(counts: tuple[int, ...]) -> list[tuple[str, float]]:
    """Return cumulative counts by upper bound, seconds, the last of which is infinite."""
    found, total, begin = [], 0, 0
    for upper, text in _UPPERS:
        total += sum(counts[begin : upper + 1])
        begin = upper + 1
        found.append((text, float(total)))
    return [*found, ("+Inf", float(total + sum(counts[begin:])))]
