"""What a caller says of a task, checked and written as its envelope."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypedDict

import orjson
from dspy_fastpath.ids import uuid7

from .. import current
from ..errors import EnvelopeInvalid
from ..producer import envelope, id_of_key
from ..task import MAX_TIMEOUT_S, WorkloadClass

_CLASSES = {str(name): str(name) for name in WorkloadClass}


class TaskOptions(TypedDict, total=False):
    """What can be said of a task beside its class; None says nothing."""

    id: str | None  #: None: a new one
    kind: str | None  #: what runs it, where that is not the class's handler: echo, call, command, ...
    priority: int | None  #: -100 to 100; more comes first
    delay: float | None  #: seconds before it may start
    timeout: float | None  #: seconds that one attempt may take
    max_attempts: int | None  #: None: as the supervisor is configured
    idempotency_key: str | None  #: tasks of one key are one task
    affinity: str | None
    idempotent: bool
    traceparent: str | None  #: W3C trace context; None: that of the task that puts it, where one does
    resources: Mapping[str, Any] | None


class Options(TaskOptions, total=False):
    """What can be said of a task."""

    task_class: str  #: cpu_short, cpu_long, gpu, gpu_slurm


class Prepared(NamedTuple):
    """A task that is ready to be put."""

    id: str
    document: bytes
    fresh: bool  #: the id was made just now and can't be in use
    delay_s: float


def _check_finite(name: str, value: object) -> None:
    """Raise EnvelopeInvalid for NaN and infinity: they would be written as null, which says nothing."""
    if isinstance(value, float) and not math.isfinite(value):
        raise EnvelopeInvalid(f"{name} {value!r}", "a number that is finite")


def check_resources(workload: str, resources: object) -> None:
    """Raise EnvelopeInvalid for what no worker of a class will take, in its words; a job's are the bridge's to judge."""
    from ..devices import Need, NeedError, read_need

    for name, value in resources.items() if isinstance(resources, Mapping) else ():
        _check_finite(f"resources.{name}", value)
    if workload == WorkloadClass.GPU_SLURM:
        return
    try:
        read_need(orjson.dumps(resources), Need())
    except NeedError as error:
        where, _, reason = str(error).rpartition(": ")
        raise EnvelopeInvalid(where, reason) from None
    except (TypeError, ValueError) as error:
        raise EnvelopeInvalid("resources", f"{error}; resources are JSON") from None


def prepare(
    payload: Any,
    task_class: str = "cpu_short",
    *,
    id: str | None = None,  # the word of the envelope
    kind: str | None = None,
    priority: int | None = None,
    delay: float | None = None,
    timeout: float | None = None,
    max_attempts: int | None = None,
    idempotency_key: str | None = None,
    affinity: str | None = None,
    idempotent: bool = False,
    traceparent: str | None = None,
    resources: Mapping[str, Any] | None = None,
) -> Prepared:
    """Return the task that these options describe. Raises EnvelopeInvalid, naming the option."""
    known = _CLASSES.get(task_class) if isinstance(task_class, str) else None
    if known is None:  # an unknown class in a file means cpu_short; in a program it is a slip
        raise EnvelopeInvalid(f"task_class {task_class!r}", "the classes are " + ", ".join(WorkloadClass))
    task_id, fresh = id, False
    if task_id is None:
        if idempotency_key is None:
            task_id, fresh = uuid7(), True
        elif isinstance(idempotency_key, str) and idempotency_key:
            task_id = id_of_key(idempotency_key)
        else:
            raise EnvelopeInvalid(f"idempotency_key {idempotency_key!r}", "a key is text that is not empty")
    elif not isinstance(task_id, str):
        raise EnvelopeInvalid(f"id {task_id!r}", "an id is text")
    delay_s = 0.0
    if delay is not None:
        if not isinstance(delay, int | float) or not (math.isfinite(delay) and 0 <= delay <= MAX_TIMEOUT_S):
            raise EnvelopeInvalid(f"delay {delay!r}", f"seconds from 0 to {MAX_TIMEOUT_S:.0f}")
        delay_s = float(delay)
    for name, number in (("priority", priority), ("timeout", timeout), ("max_attempts", max_attempts)):
        _check_finite(name, number)
    if resources is not None:
        check_resources(known, resources)
    options: dict[str, Any] = {
        "class": known,
        "kind": kind,
        "priority": priority,
        "timeout_s": timeout,
        "max_attempts": max_attempts,
    }
    options |= {"idempotency_key": idempotency_key, "affinity": affinity, "resources": resources}
    options["idempotent"] = idempotent or None
    options["traceparent"] = traceparent or current.traceparent()
    return Prepared(task_id, envelope(payload, task_id=task_id, **options), fresh, delay_s)


def prepare_item(item: Any, options: Options) -> Prepared:
    """Return the task of an item of submit_many: a payload, or a tuple (payload, its own options)."""
    if not isinstance(item, tuple):
        return prepare(item, **options)
    if len(item) != 2 or not isinstance(item[1], dict):
        raise EnvelopeInvalid(
            "submit_many", f"a tuple is (payload, options), not {item!r:.200}; a payload that is a list is given as one"
        )
    return prepare(item[0], **{**options, **item[1]})
