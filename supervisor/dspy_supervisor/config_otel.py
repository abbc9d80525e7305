"""The settings of OpenTelemetry: where spans go, and how many."""

from __future__ import annotations

from dataclasses import dataclass

from .setting import number, optional, setting, text


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)  # Config has these
class OtelSettings:
    """The part of Config that is about traces."""

    otel_endpoint: str | None = setting(
        optional(text(r"https?://\S+", "an http or https address, as http://127.0.0.1:4318")),
        "send a span of each task, its wait, claim, run and finish to this OTLP/HTTP collector; none: send none. The "
        "other OTEL_EXPORTER_OTLP_* variables, and OTEL_RESOURCE_ATTRIBUTES, mean what OpenTelemetry says",
        None,
        variable="OTEL_EXPORTER_OTLP_ENDPOINT",
    )
    otel_sample_share: float = setting(
        number(0, 1), "share of the traces that begin with a task that is sent; others are their producer's choice", 1.0
    )
