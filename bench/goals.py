"""The goals, each a ratio within one run of bench/compare.py or a fact that one of the other scripts finds."""

from __future__ import annotations

from typing import NamedTuple


class Measurement(NamedTuple):
    """One player doing one thing in one place."""

    who: str  #: floor, floor-protocol (all our steps, in C), floor-log, ours, or a name of rivals.MODULES
    what: str  #: latency, drain or put
    where: str  #: ext4 or tmpfs
    sync: bool = False  #: durable: each task, or for floor-log groups of 256
    workers: int = 1

    @property
    def title(self) -> str:
        """Who and where, for a table about one thing."""
        return f"{self.who}, {self.where}{', fsync' if self.sync else ''}"

    def __str__(self) -> str:
        workers = f" {self.workers} workers" if self.what == "drain" and self.workers > 1 else ""
        return f"{self.title}: {self.what}{workers}"


class Figure(NamedTuple):
    """One number of a measurement: start_p50, start_p99, seen_p50 ... in us, or rate."""

    of: Measurement
    metric: str


class Ratio(NamedTuple):
    """ours / yardstick, and its bound."""

    text: str
    ours: Figure
    yardstick: Figure
    wanted: str  #: "<=" or ">="
    bound: float


class Fact(NamedTuple):
    """What a script finds by itself, and its bound."""

    text: str
    script: str
    key: str
    wanted: str
    bound: float


SCRIPTS = ("idle", "recovery", "busy", "million")


def _latency(text: str, metric: str, who: str, where: str, bound: float, *, sync: bool = False) -> Ratio:
    place = where if who in ("floor", "python-loop") else "ext4"  # the others keep nothing in the folder
    return Ratio(
        f"{text}, {where}{' fsync' if sync else ''}: x {who}",
        Figure(Measurement("ours", "latency", where, sync), metric),
        Figure(Measurement(who, "latency", place, sync), metric),
        "<=",
        bound,
    )


def _rate(text: str, ours: Measurement, yardstick: Measurement, bound: float) -> Ratio:
    return Ratio(text, Figure(ours, "rate"), Figure(yardstick, "rate"), ">=", bound)


_DRAIN = Measurement("ours", "drain", "ext4")
_DRAIN_TMPFS = Measurement("ours", "drain", "tmpfs")

RATIOS: tuple[Ratio, ...] = (
    *(
        _latency(text, metric, who, where, bound)
        for where in ("ext4", "tmpfs")
        for text, metric, who, bound in (
            ("put to start, p50", "start_p50", "floor", 1.5),
            ("put to start, p99", "start_p99", "floor", 2.0),
            ("put to start, p50", "start_p50", "python-loop", 1.0),
            ("put to start, p50", "start_p50", "celery", 1 / 15),
            ("put to start, p50", "start_p50", "rq", 1 / 15),
            ("put to result, p50", "seen_p50", "floor", 1.6),
            ("put to result, p50", "seen_p50", "process-pool", 1.0),
        )
    ),
    _latency("put to result, p50", "seen_p50", "floor", "ext4", 1.3, sync=True),
    _rate("drain, files, ext4, 1 worker: x floor", _DRAIN, _DRAIN._replace(who="floor"), 0.8),
    _rate("drain, files, tmpfs, 1 worker: x floor", _DRAIN_TMPFS, _DRAIN_TMPFS._replace(who="floor"), 0.8),
    _rate("drain, files, ext4: 2 workers x 1", _DRAIN._replace(workers=2), _DRAIN, 1.3),
    _rate("drain, files, tmpfs: 2 workers x 1", _DRAIN_TMPFS._replace(workers=2), _DRAIN_TMPFS, 1.3),
    _rate(
        "put_many, durability full: x floor without fsync",
        Measurement("ours", "put", "ext4", sync=True),
        Measurement("floor", "put", "ext4"),
        0.5,
    ),
)

FACTS: tuple[Fact, ...] = (
    Fact("1,000,000 pending: cost of a task x that at 10,000", "million", "cost_ratio", "<=", 1.3),
    Fact("1,000,000 pending: RSS of the supervisor above that at 10,000, MB", "million", "rss_growth_mb", "<=", 50),
    Fact("1,000,000 pending: first task starts after, s", "million", "first_start_s", "<=", 1.0),
    Fact("idle: CPU of the whole tree, %", "idle", "cpu_percent", "<=", 0.1),
    Fact("idle: a worker's own memory, MB PSS", "idle", "worker_pss_mb", "<=", 10),
    Fact("idle: supervisor + 4 workers, MB PSS", "idle", "tree_pss_mb", "<=", 250),
    Fact("a killed worker's task is back, p99, ms", "recovery", "p99_ms", "<=", 100),
    Fact("2 workers on tasks of 10 ms CPU: share of 2 cores busy with tasks", "busy", "share", ">=", 0.95),
)

NOT_BUILT = (
    "drain, results in a log with group sync",
    "put to result through HTTP",
)
