"""`status --since`: what a queue did in the last hours, from its history."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

import click

from ..config import Config
from ..task import MAX_TIMEOUT_S
from .output import duration, moment, print_table

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_LINES = 12  # of the table of times, about
_STEPS = (60.0, 120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0, 7200.0, 14400.0, 43200.0, 86400.0)


def span(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    """Return a length of time such as 90s, 30m, 1h or 2d in seconds: the callback of an option."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d|)", value.strip().lower())
    if match is None or not float(match[1]):
        raise click.BadParameter(f"{value!r} is no length of time such as 90s, 30m, 1h or 2d")
    if (seconds := float(match[1]) * _UNITS[match[2]]) > MAX_TIMEOUT_S:
        raise click.BadParameter(f"{value!r}: expected {MAX_TIMEOUT_S / 86400:.0f}d at most")
    return seconds


def past(config: Config, since_s: float) -> dict[str, Any]:
    """Return the last ``since_s`` seconds: ``{"since", "until", "step_s", "summary", "rows"}``."""
    from ..history import rows, summary

    now = time.time()
    step_s = next((step for step in _STEPS if since_s / step <= _LINES), _STEPS[-1])
    return {
        "queue_dir": str(config.queue_dir),
        "since": round(now - since_s, 3),
        "until": round(now, 3),
        "step_s": step_s,
        "summary": summary(config.queue_dir, now - since_s),
        "rows": rows(config.queue_dir, now - since_s, step_s=step_s),
    }


def print_past(found: Mapping[str, Any]) -> None:
    """Print the sums by class, and then how it went."""
    whole = found["summary"]
    if whole is None:
        click.echo(
            f"no history of {found['queue_dir']} since {moment(found['since'])}: a supervisor writes it once a minute"
        )
        return
    told = f"{duration(whole['seconds'])} of the last {duration(found['until'] - found['since'])} are on record"
    click.echo(f"{told}, until {moment(whole['at'])}\n")
    head = ["class", "done", "failed", "retried", "per second", "running", "wait", "p99", "run", "p99"]
    print_table(head, [_row(name, one, whole["seconds"]) for name, one in whole["classes"].items() if _is_used(one)])
    click.echo()
    head = ["until", "class", "done", "failed", "waiting", "running", "limit", "why", "wait", "run", "CPUs", "GPUs"]
    lines = [
        [
            moment(row["at"]),
            name,
            one["done"],
            one["failed"],
            round(one["pending"], 1),
            round(one["inflight"], 2),
            round(one["limit"], 1),
            one["limit_reason"] or "",
            duration(one["wait_p50_s"]),
            duration(one["run_p50_s"]),
            _share(row["host"].get("cpu_busy")),
            _share(_mean([gpu["utilization"] for gpu in row["gpus"].values() if "utilization" in gpu])),
        ]
        for row in found["rows"]
        for name, one in row["classes"].items()
        if _is_used(one)
    ]
    print_table(head, lines)


def _row(name: str, one: Mapping[str, Any], seconds: float) -> list[object]:
    times = [duration(one[key]) for key in ("wait_p50_s", "wait_p99_s", "run_p50_s", "run_p99_s")]
    rate = one["done"] / seconds
    return [name, one["done"], one["failed"], one["retried"], round(rate, 3), round(one["inflight"], 2), *times]


def _is_used(one: Mapping[str, Any]) -> bool:
    return any(one[key] for key in ("submitted", "done", "failed", "retried", "inflight", "pending"))


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
