"""The record of an ended task: what lies in done/ID.json and failed/ID.json.

::

    {"id": ..., "class": ..., "payload": ..., <what else the producer wrote>,
     "status": "done" | "failed",
     "runner_result": ...,                                                              done only
     "error": {"cause": ..., "message": ..., "type"?, "traceback"?, "stacks"?, ...},    failed only
     "task_id": the file's name without .json, "attempt": 0-based, "history": [earlier attempts],
     "submitted_at", "started_at"?, "completed_at": RFC 3339, "duration_ms": float, "wait_ms": float, "worker": pid, "owner"}

The producer's ``id`` is kept as it was written; ``task_id`` is the identity. Producer's keys that a record needs for
itself are kept under ``producer``. The payload's bytes are put in as they came, never parsed and written anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
from dspy_fastpath.envelope import Fields

from .task import TaskName, WorkloadClass

# fmt: off
_OWN_KEYS = frozenset({
    "id", "class", "payload", "status", "runner_result", "error", "task_id", "attempt", "history", "submitted_at",
    "started_at", "completed_at", "duration_ms", "wait_ms", "worker", "owner", "producer",
})
# fmt: on
_OPTIONAL = ("kind", "not_before", "timeout_s", "max_attempts", "idempotency_key", "affinity", "traceparent")
MAX_HISTORY = 20  #: earlier attempts that a record tells of


@dataclass(frozen=True, slots=True)
class Claim:
    """The right of one owner to run one task, for as long as its file lies in the owner's folder."""

    name: TaskName
    envelope: bytes
    fields: Fields
    submitted_at: float  #: epoch seconds, when the file was last written

    @property
    def file(self) -> str:
        """The name in claimed/OWNER/."""
        return self.name.file

    @property
    def workload(self) -> WorkloadClass:
        """The class that runs it."""
        return WorkloadClass.parse(self.fields.task_class)

    @property
    def payload(self) -> bytes:
        """The payload's JSON, as the producer wrote it."""
        start, end = self.fields.payload
        return self.envelope[start:end]


@dataclass(frozen=True, slots=True)
class Run:
    """When and where an attempt ran."""

    started_at: float | None  #: epoch seconds; None where it never started
    ended_at: float  #: epoch seconds
    duration_s: float  #: by the monotonic clock
    worker: int  #: process id
    owner: str


def done_record(claim: Claim, result: bytes, run: Run, history: Sequence[Mapping[str, Any]] = ()) -> bytes:
    """Return the record of a task that succeeded; ``result`` is JSON."""
    record = _head(claim)
    record["status"] = "done"
    record["runner_result"] = orjson.Fragment(result)
    return _finish(record, claim, run, history)


def failed_record(claim: Claim, error: Mapping[str, Any], run: Run, history: Sequence[Mapping[str, Any]] = ()) -> bytes:
    """Return the record of a task that is given up; ``error`` holds at least cause and message."""
    record = _head(claim)
    record["status"] = "failed"
    record["error"] = error
    return _finish(record, claim, run, history)


def timestamp(epoch_s: float) -> datetime:
    """Return a time that orjson writes as RFC 3339 in UTC (with OPT_UTC_Z)."""
    return datetime.fromtimestamp(epoch_s, UTC)


def same_task(a: bytes, a_fields: Fields, b: bytes, b_fields: Fields) -> bool:
    """Whether two envelopes, or an envelope and a record, ask for the same: equal payload bytes and equal options."""

    def facts(document: bytes, fields: Fields) -> tuple[object, ...]:
        start, end = fields.payload
        resources = fields.resources and document[slice(*fields.resources)]
        options = tuple(getattr(fields, key) for key in _OPTIONAL)
        return document[start:end], WorkloadClass.parse(fields.task_class), fields.priority, resources, options

    return facts(a, a_fields) == facts(b, b_fields)


def _head(claim: Claim) -> dict[str, Any]:
    fields = claim.fields
    record: dict[str, Any] = {
        "id": fields.id if fields.id is not None else claim.name.id,
        "class": claim.workload.value,
        "payload": orjson.Fragment(claim.payload),
    }
    if not fields.has_payload:  # the whole object is the payload: its other keys are in there
        return record
    for key in _OPTIONAL:
        if (value := getattr(fields, key)) is not None:
            record[key] = value
    if fields.priority:
        record["priority"] = fields.priority
    if fields.resources is not None:
        record["resources"] = orjson.Fragment(claim.envelope[slice(*fields.resources)])
    shadowed: dict[str, Any] = {}
    for key, start, end in fields.extras:
        target = shadowed if key in _OWN_KEYS else record
        target[key] = orjson.Fragment(claim.envelope[start:end])
    if "task_id" in shadowed and "status" in shadowed:
        # A record that was put back to be tried again: what it said of the past is not the producer's.
        if "producer" in shadowed:
            record["producer"] = shadowed["producer"]
    elif shadowed:
        record["producer"] = shadowed
    return record


def _finish(record: dict[str, Any], claim: Claim, run: Run, history: Sequence[Mapping[str, Any]]) -> bytes:
    record["task_id"] = claim.name.id
    record["attempt"] = claim.name.attempt
    if history:
        record["history"] = history
    record["submitted_at"] = timestamp(claim.submitted_at)
    if run.started_at is not None:
        record["started_at"] = timestamp(run.started_at)
        record["wait_ms"] = round(max(0.0, run.started_at - claim.submitted_at) * 1e3, 3)
    record["completed_at"] = timestamp(run.ended_at)
    record["duration_ms"] = round(run.duration_s * 1e3, 3)
    record["worker"] = run.worker
    record["owner"] = run.owner
    return orjson.dumps(record, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE)
