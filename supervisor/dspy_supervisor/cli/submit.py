"""`submit`: one task from the command line, or many from lines of JSON."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import click

from ..config import CLASSES, Loaded
from ..environment import trace_context
from ..errors import EnvelopeInvalid, SupervisorError
from ..task import WorkloadClass
from .number import ATTEMPT_S, DELAY_S, WAIT_S
from .options import open_queue, read_input, with_config
from .output import json_option, print_json
from .words import classes

if TYPE_CHECKING:
    from ..layout import Layout
    from ..producer import Producer

_BATCH = 10_000  # tasks that share their syncs


@click.command()
@click.argument("payload", required=False, metavar="PAYLOAD|-|@FILE")
@click.option("--jsonl", metavar="FILE|-", help="Submit each line of a file: a task with its own id, class, payload...")
@click.option(
    "--class",
    "task_class",
    metavar="CLASS",
    shell_complete=classes,
    help=f"One of {', '.join(CLASSES)}; default: cpu_short.",
)
@click.option(
    "--id", "task_id", metavar="ID", help="A name of your own; the same task under the same id is taken once."
)
@click.option(
    "--kind", metavar="KIND", help="What runs it, where that is not the class's handler: echo, call, command..."
)
@click.option("--priority", type=click.IntRange(-100, 100), metavar="N", help="-100 to 100; more comes first.")
@click.option("--delay", type=DELAY_S, metavar="S", help="Start no sooner than in so many seconds.")
@click.option("--timeout", "timeout_s", type=ATTEMPT_S, metavar="S", help="Limit of an attempt.")
@click.option("--max-attempts", type=click.IntRange(1, 1000), metavar="N", help="Attempts before it is failed.")
@click.option(
    "--resource", "resources", multiple=True, metavar="NAME=VALUE",
    help="What it needs: gpus=2, gpu_share=0.25, gpu_memory=8G; may be given several times.",
)  # fmt: skip
@click.option("--idempotency-key", metavar="KEY", help="Take a task of this key once, however often it is submitted.")
@click.option("--affinity", metavar="KEY", help="Run the tasks of this key one after another, on one worker.")
@click.option(
    "--idempotent", is_flag=True, default=None, help="It may run twice: where its class has hedge, a straggler does."
)
@click.option("--traceparent", metavar="TRACE", help="W3C trace context it belongs to; default: that of TRACEPARENT.")
@click.option("--wait", is_flag=True, help="Wait for the result, and print it.")
@click.option("--timeout-wait", type=WAIT_S, metavar="S", help="Wait so long at most; then 5.")
@json_option
@with_config
def submit(
    loaded: Loaded,
    payload: str | None,
    jsonl: str | None,
    task_id: str | None,
    delay: float | None,
    idempotency_key: str | None,
    wait: bool,
    timeout_wait: float | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Put tasks into a queue.

    PAYLOAD is JSON; - reads it from standard input, @FILE from a file. When this ends with 0 the task is in the queue, as
    durably as the queue promises. Prints the id, and with --wait the result.

    Exit codes: 2 no valid task; 4 no queue here; 75 the queue is full, try again; with --wait 1 where a task failed, 5
    where the time was up.
    """
    if (payload is None) == (jsonl is None):
        raise click.UsageError("give either PAYLOAD or --jsonl FILE")
    if jsonl is not None and (task_id or idempotency_key):
        raise click.UsageError("--id and --idempotency-key name one task: with --jsonl they stand in the lines")
    if options["task_class"] is not None:
        options["task_class"] = _class(options["task_class"])
    options["resources"] = dict(map(_resource, options["resources"])) or None
    for name, value in (options["resources"] or {}).items():
        _check_name(name, value, CLASSES if jsonl is not None else [options["task_class"]])
    options["traceparent"] = options["traceparent"] or trace_context()
    due = time.time() + delay if delay else None
    with open_queue(loaded) as layout:
        producer = _producer(layout, loaded)
        if payload is not None:
            raw = read_input(payload)
            ids = [_submit_one(producer, raw, task_id, idempotency_key, due, options)]
        else:
            assert jsonl is not None
            with _opened(jsonl) as lines:
                ids = _submit_lines(producer, lines, jsonl, due, options)
    if wait:
        from .task import report_wait

        return report_wait(loaded, ids, timeout_wait, as_json=as_json)
    if as_json:
        print_json({"ids": ids, "submitted": len(ids)} | ({"id": ids[0]} if payload is not None else {}))
    elif ids:
        click.echo("\n".join(ids))
    return 0


def _class(name: str) -> str:
    if name.lower() not in CLASSES:  # a producer's unknown class means cpu_short; a person's is a slip
        raise click.BadParameter(f"{name!r} is no class; the classes are {', '.join(CLASSES)}", param_hint="--class")
    return name.lower()


def _resource(written: str) -> tuple[str, Any]:
    import orjson

    name, sign, value = written.partition("=")
    if not sign or not name.isidentifier():
        raise click.BadParameter(f"{written!r}: expected NAME=VALUE, as gpus=2", param_hint="--resource")
    try:
        return name, orjson.loads(value)
    except orjson.JSONDecodeError:
        return name, value


def _check_name(name: str, value: object, workloads: Collection[str | None]) -> None:
    """Raise EnvelopeInvalid for a resource that none of these classes knows: in a file it is ignored, here it is a slip."""
    known = ["gpus", "gpu_share", "gpu_memory"]
    if name in known:
        return
    if WorkloadClass.GPU_SLURM in workloads:
        from ..services.slurm.options import LOCAL_RESOURCES, OPTIONS

        if name in LOCAL_RESOURCES:
            return
        known += OPTIONS.keys() - {*known}
    if name not in known:
        near = "" if WorkloadClass.GPU_SLURM in workloads else "; what a job asks for goes with --class gpu_slurm"
        raise EnvelopeInvalid(f"resources.{name}={value!r}", f"expected one of {', '.join(known)}{near}")


def _check_resources(workload: str | None, resources: object) -> None:
    """Raise EnvelopeInvalid for a value that the supervisor, or its bridge to a cluster, will refuse."""
    if resources is None:
        return
    if workload == WorkloadClass.GPU_SLURM:
        from ..services.slurm.options import of_task

        of_task(None, resources)
    else:
        from ..client.envelopes import check_resources

        check_resources(workload or WorkloadClass.CPU_SHORT, resources)


def _producer(layout: Layout, loaded: Loaded) -> Producer:
    from ..producer import Producer

    return Producer(layout, max_bytes=loaded.config.max_task_bytes)


def _submit_one(
    producer: Producer,
    raw: bytes,
    task_id: str | None,
    key: str | None,
    due: float | None,
    options: Mapping[str, Any],
) -> str:
    from ..producer import envelope

    name, fresh = _name(task_id, key)
    _check_resources(options["task_class"], options["resources"])
    document = envelope(
        raw_payload=checked(raw),
        task_id=name,
        idempotency_key=key,
        **{_KEYS.get(option, option): value for option, value in options.items()},
    )
    producer.put(name, document, due=due, fresh=fresh)
    return name


_KEYS = {"task_class": "class"}


def checked(raw: bytes) -> bytes:
    """Return a payload that is JSON, as it was written. Raises EnvelopeInvalid with the place."""
    import orjson

    try:
        orjson.loads(raw)
    except ValueError as error:
        shown = raw[:60].decode("utf-8", "replace") + ("..." if len(raw) > 60 else "")
        hint = "" if not shown.isidentifier() else f"; text is written with quotes: '\"{shown}\"'"
        raise EnvelopeInvalid("payload", f"{error}: {shown!r} is not JSON{hint}") from None
    return raw.strip()


def _name(task_id: str | None, key: str | None) -> tuple[str, bool]:
    """Return the id of a new task, and whether it was made just now and so can't be in use."""
    if task_id is not None:
        return task_id, False
    if key is not None:
        from ..producer import id_of_key

        return id_of_key(key), False
    from dspy_fastpath.ids import uuid7

    return uuid7(), True


def _submit_lines(
    producer: Producer, lines: IO[bytes], source: str, due: float | None, options: Mapping[str, Any]
) -> list[str]:
    """Submit each line, in batches that share their syncs; an error says what was accepted before it."""
    from ..producer import read_jsonl

    accepted: list[str] = []
    batch: list[tuple[str, bytes]] = []
    fresh = True

    def flush() -> None:
        producer.put_many(batch, due=due, fresh=fresh)
        accepted.extend(name for name, _ in batch)
        batch.clear()

    place = ""
    try:
        for number, line in read_jsonl(lines):
            place = f", line {number}"
            name, document, made = _from_line(line, options)
            producer.check(name, document)
            batch.append((name, document))
            fresh = fresh and made
            if len(batch) >= _BATCH:
                flush()
                fresh = True
        if batch:
            flush()
    except EnvelopeInvalid as error:
        raise EnvelopeInvalid(f"{source}{place}", f"{error}; {_before(accepted)}") from None
    except SupervisorError as error:
        error.args = (f"{error}; {_before(accepted)}",)
        raise
    return accepted


def _before(accepted: list[str]) -> str:
    return f"the {len(accepted)} tasks before were accepted" if accepted else "nothing was accepted"


def _from_line(line: bytes, options: Mapping[str, Any]) -> tuple[str, bytes, bool]:
    """Return id, envelope, and whether the id is new: what the line says, and the options where it says nothing."""
    import orjson
    from dspy_fastpath.envelope import EnvelopeError, scan

    try:
        fields = scan(line)
    except EnvelopeError as error:
        raise EnvelopeInvalid("task", str(error)) from None
    name, made = _name(fields.id, fields.idempotency_key)
    document: dict[str, Any] = {"id": name, "class": fields.task_class or options["task_class"]}
    workload = WorkloadClass.parse(document["class"])
    if fields.has_payload:
        for key in (
            "kind",
            "priority",
            "not_before",
            "timeout_s",
            "max_attempts",
            "idempotency_key",
            "affinity",
            "traceparent",
        ):
            document[key] = getattr(fields, key) or options.get(key)
        resources = options.get("resources")
        if fields.resources:
            resources = orjson.Fragment(line[slice(*fields.resources)])
            _check_resources(workload, orjson.loads(line[slice(*fields.resources)]))
        else:
            _check_resources(workload, resources)
        document["resources"] = resources
        for key, start, end in fields.extras:
            document[key] = orjson.Fragment(line[start:end])
        document.setdefault("idempotent", options.get("idempotent"))
    else:
        _check_resources(workload, options.get("resources"))
        known = ("kind", "priority", "timeout_s", "max_attempts", "affinity", "idempotent", "resources", "traceparent")
        document |= {key: options.get(key) for key in known}
    document = {key: value for key, value in document.items() if value is not None}
    document["payload"] = orjson.Fragment(line[slice(*fields.payload)])
    return name, orjson.dumps(document), made


@contextmanager
def _opened(source: str) -> Iterator[IO[bytes]]:
    if source == "-":
        yield sys.stdin.buffer
        return
    try:
        file = open(source, "rb")  # noqa: SIM115  # closed below; opened here so that its error is about usage
    except OSError as error:
        raise click.BadParameter(f"{source}: {error.strerror}", param_hint="--jsonl") from None
    with file:
        yield file
