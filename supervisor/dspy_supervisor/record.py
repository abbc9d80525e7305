"""The record of an ended task: what lies in done/ID.json and failed/ID.json.

::

    {"id": ..., "class": ..., "payload": ..., <what else the producer wrote>,
     "status": "done" | "failed",
     "runner_result": ...,                                                              done only
     "error": {"cause": ..., "message": ..., "type"?, "traceback"?, "stacks"?, ...},    failed only
     "slurm": {"job", "slurm_state", "exit_code", "nodes", "max_rss_bytes", "elapsed_s"},     of a task that was a job
     "task_id": the file's name without .json, "attempt": 0-based, "history": [earlier attempts],
     "submitted_at", "started_at"?, "completed_at": RFC 3339, "duration_ms": float, "wait_ms": float, "worker": pid, "owner"}

The producer's ``id`` is kept as it was written; ``task_id`` is the identity. Producer's keys that a record needs for
itself are kept under ``producer``. The payload's bytes are put in as they came, never parsed and written anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

import orjson
from dspy_fastpath.envelope import Fields

from .task import TaskName, WorkloadClass

# fmt: off
_OWN_KEYS = frozenset({
    "id", "class", "payload", "status", "runner_result", "error", "task_id", "attempt", "history", "submitted_at",
    "started_at", "completed_at", "duration_ms", "wait_ms", "worker", "owner", "producer", "slurm",
})
# fmt: on
_OPTIONAL = ("kind", "not_before", "timeout_s", "max_attempts", "idempotency_key", "affinity", "traceparent")
_LAST_SECOND = 253402300799.0  # of the year 9999
MAX_HISTORY = 20  #: earlier attempts that a record tells of


@dataclass(slots=True)  # frozen would cost a microsecond for each task
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


class Run(NamedTuple):
    """When and where an attempt ran."""

    started_at: float | None  #: epoch seconds; None where it never started
    ended_at: float  #: epoch seconds
    duration_s: float  #: by the monotonic clock
    worker: int  #: process id
    owner: str
    job: Mapping[str, Any] | None = None  #: of a cluster that ran it


def done_record(claim: Claim, result: bytes, run: Run, history: Sequence[Mapping[str, Any]] = ()) -> bytes:
    """Return the record of a task that succeeded; ``result`` is JSON."""
    return _record(claim, b'"status":"done","runner_result":' + result, run, history)


def failed_record(claim: Claim, error: Mapping[str, Any], run: Run, history: Sequence[Mapping[str, Any]] = ()) -> bytes:
    """Return the record of a task that is given up; ``error`` holds at least cause and message."""
    return _record(claim, b'"status":"failed","error":' + orjson.dumps(error), run, history)


def timestamp(epoch_s: float) -> bytes:
    """Return a time as JSON: RFC 3339 in UTC, with microseconds; the nearest of 1970 to 9999, whatever a file's mtime says."""
    epoch_s = min(max(epoch_s, 0.0), _LAST_SECOND)
    whole = int(epoch_s)
    text = _seconds(whole)
    return b'"%b.%06dZ"' % (text, int((epoch_s - whole) * 1e6))


@lru_cache(maxsize=64)  # the tasks of one second share all but the microseconds
def _seconds(whole: int) -> bytes:
    return datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S").encode()


def same_task(a: bytes, a_fields: Fields, b: bytes, b_fields: Fields) -> bool:
    """Whether two envelopes, or an envelope and a record, ask for the same: equal payload bytes, and all else equal."""

    def facts(document: bytes, fields: Fields) -> tuple[object, ...]:
        start, end = fields.payload
        resources = fields.resources and document[slice(*fields.resources)]
        options = tuple(getattr(fields, key) for key in _OPTIONAL if key != "traceparent")  # it says who asks, not what
        workload, others = WorkloadClass.parse(fields.task_class), _others(document, fields)
        return document[start:end], workload, fields.priority, resources, options, others

    return facts(a, a_fields) == facts(b, b_fields)


def _others(document: bytes, fields: Fields) -> dict[str, Any]:
    """Return what a producer wrote beside the known keys, from its envelope or from the record of it."""
    spans = {key: slice(start, end) for key, start, end in fields.extras}
    if not {"task_id", "status"} <= spans.keys():
        return {key: orjson.loads(document[span]) for key, span in spans.items()}
    others = {key: orjson.loads(document[span]) for key, span in spans.items() if key not in _OWN_KEYS}
    shadowed = orjson.loads(document[spans["producer"]]) if "producer" in spans else {}
    return others | (shadowed if isinstance(shadowed, dict) else {})


def _record(claim: Claim, end: bytes, run: Run, history: Sequence[Mapping[str, Any]]) -> bytes:
    """Put a record together from JSON that exists already: bytes that are copied can't be changed by a second encoder."""
    fields, name = claim.fields, claim.name
    task_id = b'"%b"' % name.id.encode()
    parts = [
        b'{"id":%b,"class":"%b","payload":%b'
        % (
            task_id if fields.id is None or fields.id == name.id else orjson.dumps(fields.id),
            claim.workload.value.encode(),
            claim.payload,
        )
    ]
    if fields.has_payload:  # else the whole object is the payload, and its other keys are in there
        parts += _options(claim)
    parts.append(end)
    parts.append(b'"task_id":%b,"attempt":%d' % (task_id, name.attempt))
    if run.job is not None:
        parts.append(b'"slurm":' + orjson.dumps(run.job))
    if history:
        parts.append(b'"history":' + orjson.dumps(history))
    parts.append(b'"submitted_at":' + timestamp(claim.submitted_at))
    if run.started_at is not None:
        wait_ms = max(0.0, run.started_at - claim.submitted_at) * 1e3
        parts.append(b'"started_at":%b,"wait_ms":%.3f' % (timestamp(run.started_at), wait_ms))
    parts.append(
        b'"completed_at":%b,"duration_ms":%.3f,"worker":%d,"owner":"%b"}\n'
        % (timestamp(run.ended_at), run.duration_s * 1e3, run.worker, run.owner.encode())
    )
    return b",".join(parts)


def _options(claim: Claim) -> list[bytes]:
    """Return what else the producer wrote, as members of the record."""
    fields, parts = claim.fields, []
    for key in _OPTIONAL:
        if (value := getattr(fields, key)) is not None:
            parts.append(b'"%b":%b' % (key.encode(), orjson.dumps(value)))
    if fields.priority:
        parts.append(b'"priority":%d' % fields.priority)
    if fields.resources is not None:
        parts.append(b'"resources":' + claim.envelope[slice(*fields.resources)])
    shadowed: dict[str, bytes] = {}
    for key, start, end in fields.extras:
        if key in _OWN_KEYS:
            shadowed[key] = claim.envelope[start:end]
        else:
            parts.append(orjson.dumps(key) + b":" + claim.envelope[start:end])
    if "task_id" in shadowed and "status" in shadowed:
        # A record that was put back to be tried again: what it said of the past is not the producer's.
        if "producer" in shadowed:
            parts.append(b'"producer":' + shadowed["producer"])
    elif shadowed:
        members = b",".join(orjson.dumps(key) + b":" + value for key, value in shadowed.items())
        parts.append(b'"producer":{%b}' % members)
    return parts
