"""The history of a queue: what each minute was, kept for two weeks in ``history/`` of the queue's folder.

A file a day and supervisor, ``history/2026-11-23T1405.HOST.INSTANCE.jsonl`` (UTC, when it was begun); a line a minute::

    {"at": 1700000040.0, "s": 60.0,
     "classes": {"gpu": {"pending": 7, "inflight": 2.93, "limit": 4, "workers": 4, "reason": "vram",
                         "submitted": 9, "done": 11, "failed": 1, "retried": 1, "timeouts": 1, "ooms": 1,
                         "wait": [12.5, 31, 10, 32, 1], "run": [...], "total": [...]}},
     "host": {"cpu_busy": 0.41, "memory_free": 3.1e9, ...}, "gpus": {"GPU-...": {"utilization": 0.93, ...}}}

``at`` is the end of the minute in seconds since the epoch, ``s`` its length. pending, limit, workers and reason are as
they were at the end, inflight is the mean, what follows happened in it; wait, run and total are the sum in seconds and
then pairs of a bucket (of `times.EDGES`) and its count. What is 0, or not known, is left out. A line that is torn, as the
last of a host that lost its power, is passed over. Files are for reading only: nothing depends on them.
"""

from __future__ import annotations

import calendar
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from .times import KINDS, NONE, Times, total

FOLDER = "history"
SUFFIX = ".jsonl"
DAYS = 14  #: that are kept
MAX_BYTES = 8 << 20  #: of all files together
MAX_FILE_BYTES = 1 << 20
SUMS = ("submitted", "done", "failed", "retried", "timeouts", "ooms")
GAUGES = ("pending", "inflight", "limit", "workers")
_DAY_S = 86400.0
_NAME = "%Y-%m-%dT%H%M"

Row = dict[str, Any]


def rows(queue_dir: Path, since: float, *, until: float = math.inf, step_s: float = 60.0) -> list[Row]:
    """Return what lies between two moments (epoch seconds), oldest first, one row for each step in which there was any.

    ``{"at", "seconds", "classes": {CLASS: {the keys of a line, and "wait_mean_s", "wait_p50_s", "wait_p99_s", "run_...",
    "total_..."}}, "host": {...}, "gpus": {UUID: {...}}}``. Supervisors that serve the queue together are added up.
    """
    return [_described(span) for span in _spans(queue_dir, since, until, step_s)]


def summary(queue_dir: Path, since: float, *, until: float = math.inf) -> Row | None:
    """Return a time as one row: sums, means, and the quantiles of all; None where there is nothing of it."""
    spans = _spans(queue_dir, since, until, 60.0)
    return _described(_one_after_the_other(spans)) if spans else None


def minutes(queue_dir: Path, since: float = 0.0) -> Iterator[tuple[float, float, str, Row]]:
    """Yield (at, seconds, class, its part of a line with `Times`, host and gpus) of each minute and supervisor."""
    for _, parts in _lines(queue_dir / FOLDER, since, math.inf):
        for name, one in parts["classes"].items():
            yield parts["at"], parts["s"], name, one | {"host": parts["host"], "gpus": parts["gpus"]}


def files(folder: Path) -> list[tuple[float, str, int]]:
    """Return (begun at, name, bytes) of each file of a history, oldest first; nothing where there is none."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                begun = begun_at(entry.name)
                if begun is not None and entry.is_file(follow_symlinks=False):
                    found.append((begun, entry.name, entry.stat(follow_symlinks=False).st_size))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found)


def file_name(begun: float, writer: str) -> str:
    """Return the name of a file that is begun now; writer: letters, digits, ``-``, ``_`` and one dot."""
    return f"{time.strftime(_NAME, time.gmtime(begun))}.{writer}{SUFFIX}"


def begun_at(name: str) -> float | None:
    """Return when a file was begun, epoch seconds, by its name; None where it is none of a history."""
    if not name.endswith(SUFFIX):
        return None
    try:
        return float(calendar.timegm(time.strptime(name.partition(".")[0], _NAME)))
    except ValueError:
        return None


def _lines(folder: Path, since: float, until: float) -> Iterator[tuple[str, Row]]:
    """Yield the writer and each line of a time, its times unpacked."""
    for begun, name, _ in files(folder):
        if begun > until or begun + _DAY_S + 120 < since:
            continue
        try:
            content = (folder / name).read_bytes()
        except OSError:  # cleared away this moment
            continue
        writer = name.partition(".")[2].removesuffix(SUFFIX)
        for raw in content.splitlines():
            try:
                line = orjson.loads(raw)
                if not (since < float(line["at"]) <= until and float(line["s"]) > 0):
                    continue
                parts = _parts(line)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
            yield writer, parts


def pack(times: Times) -> list[float]:
    """Return times as a line has them."""
    found: list[float] = [round(times.sum_s, 6)]
    for place, count in enumerate(times.counts):
        if count:
            found += [place, count]
    return found


def unpack(packed: object) -> Times:
    """Return what `pack` wrote; no times at all where that is damaged."""
    if not isinstance(packed, list) or not packed:
        return NONE
    counts = [0] * len(NONE.counts)
    try:
        for place, count in zip(packed[1::2], packed[2::2], strict=True):
            counts[int(place)] += int(count)
        return Times(tuple(counts), float(packed[0]))
    except (ValueError, IndexError, TypeError):
        return NONE


def _spans(queue_dir: Path, since: float, until: float, step_s: float) -> list[Row]:
    steps: dict[int, dict[str, list[Row]]] = {}
    for writer, line in _lines(queue_dir / FOLDER, since, until):
        # A minute belongs to the step in which it lies for the most part.
        steps.setdefault(int((line["at"] - line["s"] / 2) // step_s), {}).setdefault(writer, []).append(line)
    return [_together([_one_after_the_other(parts) for parts in steps[step].values()]) for step in sorted(steps)]


def _parts(line: Row) -> Row:
    """Return a line with its times unpacked. Raises ValueError, TypeError or AttributeError for what is no line."""
    classes = {}
    for name, one in line["classes"].items():
        row: Row = {key: int(one.get(key, 0)) for key in SUMS} | {key: float(one.get(key, 0)) for key in GAUGES}
        reason = one.get("reason")
        row["reason"] = reason if isinstance(reason, str) else None
        classes[str(name)] = row | {kind: unpack(one.get(kind)) for kind in KINDS}
    gpus = {str(uuid): dict(values) for uuid, values in line.get("gpus", {}).items()}
    found = {"at": float(line["at"]), "s": float(line["s"]), "classes": classes}
    return found | {"host": dict(line.get("host", {})), "gpus": gpus}


def _one_after_the_other(parts: Sequence[Row]) -> Row:
    """Return spans of one place as one: what happened is added, what was is averaged over time."""
    last = max(parts, key=lambda part: part["at"])
    classes = {}
    for name in {name for part in parts for name in part["classes"]}:
        spans = [(part["s"], part["classes"][name]) for part in parts if name in part["classes"]]
        merged: Row = {key: sum(one[key] for _, one in spans) for key in SUMS}
        for key in GAUGES:
            merged[key] = sum(s * one[key] for s, one in spans) / sum(s for s, _ in spans)
        merged |= {kind: total(one[kind] for _, one in spans) for kind in KINDS}
        merged["reason"] = last["classes"].get(name, {}).get("reason")
        classes[name] = merged
    return {
        "at": last["at"],
        "s": sum(part["s"] for part in parts),
        "classes": classes,
        "host": _means([part["host"] for part in parts]),
        "gpus": {
            uuid: _means([part["gpus"][uuid] for part in parts if uuid in part["gpus"]])
            for uuid in sorted({uuid for part in parts for uuid in part["gpus"]})
        },
    }


def _together(parts: Sequence[Row]) -> Row:
    """Return spans of several supervisors at one time as one: their tasks, limits and GPUs are added up."""
    if len(parts) == 1:
        return parts[0]
    classes: Row = {}
    for name in {name for part in parts for name in part["classes"]}:
        those = [part["classes"][name] for part in parts if name in part["classes"]]
        classes[name] = {key: sum(one[key] for one in those) for key in (*SUMS, *GAUGES)}
        classes[name]["pending"] = max(one["pending"] for one in those)  # each sees what all share
        classes[name] |= {kind: total(one[kind] for one in those) for kind in KINDS}
        classes[name]["reason"] = next((one["reason"] for one in those if one["reason"]), None)
    return {
        "at": max(part["at"] for part in parts),
        "s": max(part["s"] for part in parts),
        "classes": classes,
        "host": _means([part["host"] for part in parts]),
        "gpus": {uuid: values for part in parts for uuid, values in part["gpus"].items()},
    }


def _described(part: Row) -> Row:
    classes = {}
    for name, one in sorted(part["classes"].items()):
        row = {key: round(one[key], 3) for key in GAUGES} | {key: one[key] for key in SUMS}
        row["limit_reason"] = one["reason"]
        for kind in KINDS:
            row |= {f"{kind}_{key}": value for key, value in one[kind].described().items()}
        classes[name] = row
    return {
        "at": round(part["at"], 3),
        "seconds": round(part["s"], 3),
        "classes": classes,
        "host": part["host"],
        "gpus": part["gpus"],
    }


def _means(those: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for one in those:
        for key, value in one.items():
            if isinstance(value, int | float):
                found.setdefault(key, []).append(float(value))
    return {key: float(f"{math.fsum(values) / len(values):.5g}") for key, values in found.items()}
