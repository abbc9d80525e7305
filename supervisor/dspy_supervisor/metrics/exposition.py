"""The table as Prometheus reads it: a collector that is registered once, and its text in either format, compressed or not.

prometheus_client chooses the format; the text is written here, byte for byte what it would write, in a third of the time.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from .table import METRICS
from .view import View

_LARGE: Any = floatToGoString  # how Go, and so Prometheus, writes a float


class Answer(NamedTuple):
    """A scrape."""

    body: bytes
    content_type: str
    encoding: str | None  #: gzip, or None


class Exposition:
    """Turns views into text."""

    def __init__(self) -> None:
        self.collector = Table()
        self.registry = CollectorRegistry()
        self.registry.register(self.collector)

    def text(self, view: View, accept: str = "", accept_encoding: str = "") -> Answer:
        """Return a scrape: OpenMetrics where the ``Accept`` header asks for it, and gzip where the other allows it."""
        self.collector.view = view
        _, content_type = exposition.choose_encoder(accept)
        body = render(self.registry.collect(), modern=content_type.startswith("application/openmetrics-text"))
        if _takes_gzip(accept_encoding):
            return Answer(gzip.compress(body, 1), content_type, "gzip")
        return Answer(body, content_type, None)


class Table(Collector):
    """The one collector: it reads a view, and keeps nothing of the one before."""

    view: View | None = None

    def describe(self) -> list[Metric]:
        return []  # nothing is collected at registration

    def collect(self) -> Iterator[Metric]:
        if self.view is None:
            return
        for metric in METRICS:
            made: Any
            if metric.kind == "histogram":
                made = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
                for labels, (buckets, total) in metric.read(self.view):
                    made.add_metric(labels, buckets, total)
            else:
                kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
                made = kind(metric.name, metric.help, labels=metric.labels)
                for labels, number in metric.read(self.view):
                    made.add_metric(labels, number)
            yield made


def render(families: Iterable[Metric], *, modern: bool) -> bytes:
    """Return metrics as text: as OpenMetrics 1.0 where that is asked for, else in Prometheus' own format 0.0.4."""
    lines = []
    for family in families:
        name = family.name if modern or family.type != "counter" else family.name + "_total"
        words = family.documentation.replace("\\", r"\\").replace("\n", r"\n")
        lines.append(f"# HELP {name} {words}\n# TYPE {name} {family.type}\n")
        for sample in family.samples:
            lines.append(f"{sample.name}{_labels(*sample.labels.items())} {_number(sample.value)}\n")
    if modern:
        lines.append("# EOF\n")
    return "".join(lines).encode()


@lru_cache(4096)
def _labels(*labels: tuple[str, str]) -> str:
    if not labels:
        return ""
    escaped = (
        (name, value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")) for name, value in sorted(labels)
    )
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped) + "}"


def _number(value: float) -> str:
    number = float(value)
    if -1e6 < number < 1e6:
        return repr(number)
    return str(_LARGE(number))


def _takes_gzip(header: str) -> bool:
    """Whether an ``Accept-Encoding`` header allows gzip (RFC 9110, 12.5.3)."""
    for part in header.split(","):
        name, _, weight = part.partition(";")
        if name.strip().lower() in ("gzip", "*"):
            return weight.replace(" ", "").lower() not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
