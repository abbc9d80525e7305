"""The Grafana dashboard: a row of what matters, then every metric of the table in its group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .table import GROUPS
from .view import PREFIX, Metric

_P = PREFIX
_SOURCE = {"type": "prometheus", "uid": "${source}"}
_ONLY = 'instance=~"$instance"'
_LEFT_OUT = "Older names"  # each is there under another name
_UNITS = {"seconds": "s", "bytes": "bytes", "ratio": "percentunit", "watts": "watt", "celsius": "celsius"}

#: what the first row shows: title, unit, expression, legend, width
_FIRST = (
    ("Waiting", "short", f"sum(env_queue_depth{{{_ONLY}}})", "", 4),
    ("Running", "short", f"sum({_P}tasks_inflight{{{_ONLY}}})", "", 4),
    ("Done per second", "ops", f'sum(rate({_P}tasks_total{{{_ONLY},outcome="done"}}[$__rate_interval]))', "", 4),
    ("Failed in an hour", "short", f'sum(increase({_P}tasks_total{{{_ONLY},outcome="failed"}}[1h]))', "", 4),
    ("Oldest task", "s", f"max({_P}oldest_task_age_seconds{{{_ONLY}}})", "", 4),
    ("GPUs busy", "percentunit", f"avg({_P}gpu_utilization_ratio{{{_ONLY}}})", "", 4),
)


def dashboard() -> dict[str, Any]:
    """Return the dashboard, as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    x = y = 0
    for title, unit, expression, legend, width in _FIRST:
        panels.append(_panel("stat", title, "", unit, [(expression, legend)], (x, y, width, 4)))
        x += width
    y = 4
    for group, metrics in GROUPS.items():
        if group == _LEFT_OUT:
            continue
        panels.append(
            {"type": "row", "title": group, "collapsed": False, "gridPos": _grid((0, y, 24, 1)), "panels": []}
        )
        y += 1
        for number, metric in enumerate(metrics):
            place = (number % 3 * 8, y + number // 3 * 7, 8, 7)
            panels.append(_of(metric, place))
        y += (len(metrics) + 2) // 3 * 7
    for number, panel in enumerate(panels, 1):
        panel["id"] = number
    return {
        "uid": "dspy-supervisor",
        "title": "dspy-supervisor",
        "tags": ["dspy-supervisor"],
        "timezone": "browser",
        "editable": True,
        "schemaVersion": 39,
        "version": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
                {
                    "name": "instance",
                    "type": "query",
                    "datasource": _SOURCE,
                    "query": {"query": f"label_values({_P}start_time_seconds, instance)", "refId": "instance"},
                    "includeAll": True,
                    "multi": True,
                    "refresh": 2,
                    "current": {"text": "All", "value": "$__all"},
                },
            ]
        },
        "panels": panels,
    }


def expressions(metric: Metric) -> list[tuple[str, str]]:
    """Return what shows a metric, each with its legend."""
    legend = " ".join(f"{{{{{label}}}}}" for label in metric.labels) or "{{instance}}"
    if metric.kind == "counter":
        by = f" by ({', '.join(metric.labels or ('instance',))})"
        return [(f"sum{by} (rate({metric.name}{{{_ONLY}}}[$__rate_interval]))", legend)]
    if metric.kind == "histogram":
        by = f"sum by (le, {', '.join(metric.labels)}) (rate({metric.name}_bucket{{{_ONLY}}}[$__rate_interval]))"
        return [(f"histogram_quantile({share}, {by})", f"{legend} p{share * 100:.0f}") for share in (0.5, 0.99)]
    return [(f"{metric.name}{{{_ONLY}}}", legend)]


def _of(metric: Metric, place: tuple[int, int, int, int]) -> dict[str, Any]:
    stem = metric.name.removeprefix(_P).removesuffix("_total")
    words = stem.split("_")
    unit = _UNITS.get(words[-1], "short")
    if metric.kind == "counter":
        unit = "percentunit" if unit == "s" else "ops"
    title = stem.replace("_", " ")
    return _panel("timeseries", title[0].upper() + title[1:], metric.help, unit, expressions(metric), place)


def _panel(
    kind: str, title: str, text: str, unit: str, queries: Sequence[tuple[str, str]], place: tuple[int, int, int, int]
) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + number), "datasource": _SOURCE, "expr": expression, "legendFormat": legend}
        for number, (expression, legend) in enumerate(queries)
    ]
    found: dict[str, Any] = {
        "type": kind,
        "title": title,
        "description": text,
        "datasource": _SOURCE,
        "gridPos": _grid(place),
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": targets,
    }
    if kind == "stat":
        found["options"] = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "none", "graphMode": "area"}
    else:
        found["options"] = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
    return found


def _grid(place: tuple[int, int, int, int]) -> dict[str, int]:
    return dict(zip(("x", "y", "w", "h"), place, strict=True))
