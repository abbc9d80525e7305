"""From a body to a task in the queue: what a caller wrote becomes an envelope, and is accepted once.

The payload's bytes stay as they came. Below /v1 a class must be known and a payload be there; the older routes take what a
file in pending/ may hold, in which an unknown class means cpu_short, and an object without a payload is one.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import orjson
from dspy_fastpath.envelope import EnvelopeError, Fields, scan
from dspy_fastpath.ids import uuid7

from ...client.envelopes import Prepared
from ...errors import EnvelopeInvalid
from ...lookup import find_one
from ...producer import id_of_key
from ...task import WorkloadClass
from ...traceparent import Traceparent
from .context import Context
from .problems import Problem

_OPTIONS = ("kind", "not_before", "timeout_s", "max_attempts", "affinity", "traceparent")
_CLASSES = frozenset(WorkloadClass)
LONGEST_TEXT = 250  #: characters of what names something: whatever they are, the envelope has room for them
KIND = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}"  #: what a kind looks like
_KIND = re.compile(KIND)
_WHOLE = re.compile(rb"(-?[0-9]{1,9})\.0+(?=[\s,}])")


def strict(data: bytes, context: Context, key: str | None = None, traceparent: str | None = None) -> Prepared:
    """Return the task that a caller of /v1 describes. Raises Problem.

    ``key``: the request's Idempotency-Key. ``traceparent``: its header, where the task itself names no trace.
    """
    data, fields = _scanned(data, context)
    if not fields.has_payload:
        raise Problem(422, 'payload: it is missing; the smallest task is {"payload": null}')
    if fields.task_class is not None and fields.task_class not in _CLASSES:
        raise Problem(422, f"class={fields.task_class!r}: expected one of {', '.join(WorkloadClass)}")
    if fields.kind is not None and not _KIND.fullmatch(fields.kind):
        raise Problem(422, f"kind={fields.kind!r}: expected a name of letters, digits, '.', '_' and '-'")
    for name in ("idempotency_key", "affinity", "traceparent"):
        if len(getattr(fields, name) or "") > LONGEST_TEXT:
            raise Problem(422, f"{name}: expected at most {LONGEST_TEXT} characters")
    if key is not None and fields.idempotency_key not in (None, key):
        raise Problem(409, "the header Idempotency-Key and idempotency_key in the body differ")
    caller = Traceparent.parse(traceparent) if fields.traceparent is None else None
    more = {} if caller is None else {"traceparent": str(caller)}
    return _prepared(data, fields, key or fields.idempotency_key, **more)


def lenient(data: bytes, context: Context, **more: Any) -> Prepared:
    """Return the task that a caller of an older route describes; ``more``: members that are put in. Raises Problem."""
    return _prepared(*_scanned(data, context), None, **more)


def fields_of(data: bytes, context: Context) -> Fields:
    """Return what an envelope says. Raises Problem."""
    return _scanned(data, context)[1]


async def accept(context: Context, task: Prepared) -> bool:
    """Put a task; False where this very task was in the queue before. Raises what `Queue.submit` raises."""
    if task.fresh:
        await context.disk.put(task)
        return True
    while (other := context.accepting.get(task.id)) is not None:
        await asyncio.wait([other])  # the same task is put at this moment: see what comes of it
    done = context.accepting[task.id] = asyncio.get_running_loop().create_future()
    try:
        there = await context.apart(lambda: find_one(context.sync_queue.access.now(), task.id))
        await context.disk.put(task)
    finally:
        del context.accepting[task.id]
        done.set_result(None)
    return there is None


def _scanned(data: bytes, context: Context) -> tuple[bytes, Fields]:
    """Return an envelope, and what it says; a whole number may be written as 3.0, as JSON Schema has it."""
    if len(data) > context.config.max_task_bytes:
        raise Problem(413, f"a task of {len(data)} bytes, the bound is {context.config.max_task_bytes}: max_task_bytes")
    try:
        return data, scan(data, context.config.max_depth)
    except EnvelopeError as error:
        if (whole := _WHOLE.match(data, error.offset)) is not None:
            return _scanned(data[: whole.end(1)] + data[whole.end() :], context)
        if is_malformed(data):
            raise Problem(400, f"invalid JSON: {error}") from None
        raise Problem(422, str(error)) from None


def is_malformed(data: bytes) -> bool:
    """Whether a body is no JSON at all, and not only no task."""
    try:
        orjson.loads(data)
    except ValueError:
        return True
    return False


def _prepared(data: bytes, fields: Fields, key: str | None, **more: Any) -> Prepared:
    fresh = fields.id is None and key is None
    task_id = fields.id or (id_of_key(key) if key else uuid7())
    if not fields.has_payload or (fields.id is not None and fields.idempotency_key == key and not more):
        return Prepared(task_id, data, fresh, 0.0)
    document: dict[str, Any] = {"id": task_id}
    if fields.task_class is not None:
        document["class"] = fields.task_class
    document |= {name: value for name in _OPTIONS if (value := getattr(fields, name)) is not None}
    if fields.priority:
        document["priority"] = fields.priority
    if key is not None:
        document["idempotency_key"] = key
    if fields.resources is not None:
        document["resources"] = orjson.Fragment(data[slice(*fields.resources)])
    document |= {name: orjson.Fragment(data[start:end]) for name, start, end in fields.extras}
    document |= more
    document["payload"] = orjson.Fragment(data[slice(*fields.payload)])
    try:
        return Prepared(task_id, orjson.dumps(document), fresh, 0.0)
    except (TypeError, ValueError) as error:
        raise EnvelopeInvalid("envelope", str(error)) from None
