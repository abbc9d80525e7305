"""The tracing service: spans of what workers tell of their attempts, sent to an OpenTelemetry collector over OTLP/HTTP.

A task is one span from its arrival to its end; below it each attempt has ``wait``, ``claim``, ``run`` and ``finish``. It hangs
on the span that the envelope's ``traceparent`` names, or begins a trace of its own. What can't be sent is kept up to a bound;
then the oldest is dropped, and counted. Needs the extra [otel].
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson

from .. import __version__
from ..layout import Layout
from ..lookup import read_record
from ..parts import ServicePost
from ..traceparent import Traceparent, of_task, run_span
from ..traces import Attempt

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

MAX_SPANS = 20_000  #: that wait to be sent
_BATCH, _EVERY_S = 512, 0.5
_TIMEOUT_S, _FLUSH_S = 3.0, 3.0  # of one request; of what is left at the end
_AGAIN_S = 2.0
_REMEMBERED = 10_000  # tasks whose last attempt's end tells when the next one's wait began
_NICE = 10
MISSING = "OpenTelemetry is not installed: pip install 'dspy-supervisor[otel]', then restart"


def run(post: ServicePost) -> int:
    """Send spans until told to end."""
    try:
        exporter = Exporter(post)
    except ModuleNotFoundError:
        return _idle(post)
    os.nice(
        _NICE
    )  # it gives way to tasks, and drops spans where that takes long; not before, since imports take long enough
    layout = Layout.open(post.queue_dir, insecure=True)  # only records are read
    spans = Spans(exporter, post.queue_id, post.config.otel_sample_share)
    reader = _Lines(post.traces)
    poll = select.poll()
    poll.register(post.link, select.POLLIN)
    poll.register(post.traces, select.POLLIN)
    told: dict[str, Any] = {}
    stopping = False
    while not stopping:
        poll.poll(_EVERY_S * 1000)
        stopping = any(message["op"] == "stop" for message in post.link.receive(0.0))
        for line in reader.lines():
            exporter.put(spans.of(line, layout))
        if (facts := exporter.facts()) != told:
            told = facts
            post.link.send({"op": "state", **facts})
        post.link.alive()
    exporter.close(time.monotonic() + _FLUSH_S)
    layout.close()
    return 0


def _idle(post: ServicePost) -> int:
    post.link.send({"op": "state", "problem": MISSING})
    while not any(message["op"] == "stop" for message in post.link.receive(_EVERY_S)):
        post.link.alive()
    return 0


class _Lines:
    """The lines of the pipe."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._rest = descriptor, b""

    def lines(self) -> list[bytes]:
        """Return what is there now."""
        try:
            *lines, self._rest = (self._rest + os.read(self._descriptor, 1 << 20)).split(b"\n")
        except BlockingIOError:
            return []
        return lines


class Spans:
    """Makes the spans of attempts."""

    def __init__(self, exporter: Exporter, queue_id: str, share: float) -> None:
        self._exporter, self._queue_id, self._share = exporter, queue_id, share
        self._last: OrderedDict[str, float] = OrderedDict()  # tasks that will be tried again, and since when they wait

    def of(self, line: bytes, layout: Layout) -> list[ReadableSpan]:
        """Return the spans that follow from one line of the pipe."""
        told = orjson.loads(line)
        if "ended" in told:
            record = read_record(layout, str(told["ended"]))
            return [] if record is None else self.of_attempt(_of_record(record))
        return self.of_attempt(Attempt(**told))

    def of_attempt(self, one: Attempt) -> list[ReadableSpan]:
        """Return the spans of an attempt, and that of the task where it has ended."""
        root, given = of_task(one.traceparent, self._queue_id, one.id, one.submitted_at, self._share)
        waits_since = self._last.pop(one.id, one.submitted_at if not one.attempt else None)
        if not one.final:
            self._last[one.id] = one.ended_at
            while len(self._last) > _REMEMBERED:
                self._last.popitem(last=False)
        if not root.sampled:
            return []
        return list(self._made(one, root, root if given else None, waits_since))

    def _made(
        self, one: Attempt, root: Traceparent, parent: Traceparent | None, waits_since: float | None
    ) -> Iterator[ReadableSpan]:
        span = self._exporter.span
        task = root.child(one.id, "task")
        facts = {"dspy.task.id": one.id, "dspy.task.class": one.task_class, "dspy.task.attempt": one.attempt}
        if one.kind:
            facts["dspy.task.kind"] = one.kind

        def step(name: str) -> Traceparent:
            return root.child(one.id, one.attempt, name)

        claimed_at = one.started_at if one.claimed_at is None else one.claimed_at
        if waits_since is not None:
            yield span("wait", step("wait"), task, waits_since, claimed_at or one.ended_at, facts)
        if one.started_at is not None:
            if one.claimed_at is not None:
                yield span("claim", step("claim"), task, one.claimed_at, one.started_at, facts)
            ran = facts | {"process.pid": one.worker}
            own = run_span(root, one.id, one.attempt)
            yield span("run", own, task, one.started_at, one.ended_at, ran, one.cause, one.message)
        recorded_at = one.ended_at if one.recorded_at is None else one.recorded_at
        if one.recorded_at is not None:
            yield span("finish", step("finish"), task, one.ended_at, one.recorded_at, facts)
        if one.final:
            yield span(
                f"task {one.task_class}", task, parent, one.submitted_at, recorded_at, facts, one.cause, one.message
            )


class Exporter:
    """Sends spans from a thread of its own. Raises ModuleNotFoundError where OpenTelemetry is missing."""

    def __init__(self, post: ServicePost) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        endpoint = str(post.config.otel_endpoint).rstrip("/")
        self._exporter = OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces", timeout=_TIMEOUT_S)
        self._endpoint = endpoint
        queue = {
            "service.instance.id": post.node,
            "dspy.queue.id": post.queue_id,
            "dspy.queue.path": str(post.queue_dir),
        }
        found = Resource.create(queue)
        if str(found.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
            found = found.merge(Resource({SERVICE_NAME: "dspy-supervisor", "service.version": __version__}))
        self._resource, self._scope = found, InstrumentationScope("dspy_supervisor", __version__)
        self._waiting: deque[ReadableSpan] = deque()
        self._changed = threading.Condition()
        self._sent = self._dropped = 0
        self._problem: str | None = None
        self._ending = 0.0  # monotonic seconds; 0: not yet
        self._reason = _Reason()
        logger = logging.getLogger("opentelemetry")
        logger.addHandler(self._reason)
        logger.propagate = False  # what it complains about is our `problem`
        self._thread = threading.Thread(target=self._send, name="export", daemon=True)
        self._thread.start()

    def span(
        self,
        name: str,
        place: Traceparent,
        parent: Traceparent | None,
        start: float,
        end: float,
        facts: dict[str, Any],
        cause: str | None = None,
        message: str = "",
    ) -> ReadableSpan:
        """Return a span that is over; times are epoch seconds."""
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanKind, Status, StatusCode

        status = Status(StatusCode.OK) if cause is None else Status(StatusCode.ERROR, f"{cause}: {message}")
        return ReadableSpan(
            name,
            _context(place),
            None if parent is None else _context(parent),
            self._resource,
            facts if cause is None else facts | {"error.type": cause},
            kind=SpanKind.CONSUMER if name.startswith("task ") else SpanKind.INTERNAL,
            status=status,
            start_time=int(min(start, end) * 1e9),  # the clock of a file's times is coarser
            end_time=int(end * 1e9),
            instrumentation_scope=self._scope,
        )

    def put(self, spans: list[ReadableSpan]) -> None:
        """Let these be sent."""
        with self._changed:
            self._waiting.extend(spans)
            while len(self._waiting) > MAX_SPANS:
                self._waiting.popleft()
                self._dropped += 1
            if len(self._waiting) >= _BATCH:
                self._changed.notify()

    def facts(self) -> dict[str, Any]:
        """Return what `status` shows."""
        with self._changed:
            facts = {"sent": self._sent, "dropped": self._dropped, "problem": self._problem}
            return facts | ({"waiting": len(self._waiting)} if self._problem else {})

    def close(self, deadline: float) -> None:
        """Send what is left, until the deadline."""
        with self._changed:
            self._ending = deadline
            self._changed.notify()
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def _send(self) -> None:
        while True:
            with self._changed:
                if not self._ending:
                    self._changed.wait_for(lambda: self._ending or len(self._waiting) >= _BATCH, _EVERY_S)
                batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
                if not batch and self._ending:
                    return
            if batch:
                self._send_batch(batch)

    def _send_batch(self, batch: list[ReadableSpan]) -> None:
        from opentelemetry.sdk.trace.export import SpanExportResult

        sent = self._exporter.export(batch) is SpanExportResult.SUCCESS
        with self._changed:
            if sent:
                self._sent += len(batch)
                self._problem = None
                return
            self._problem = f"{self._endpoint} takes no spans: {self._reason.text or 'no reason given'}"
            self._waiting.extendleft(reversed(batch))
            self._changed.wait_for(lambda: self._ending, _AGAIN_S)
            if self._ending:
                self._waiting.clear()


class _Reason(logging.Handler):
    """Keeps the last thing that the library complained about."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()[:300]


def _context(place: Traceparent) -> Any:
    from opentelemetry.trace import SpanContext, TraceFlags

    return SpanContext(int(place.trace_id, 16), int(place.span_id, 16), False, TraceFlags(TraceFlags.SAMPLED))


def _of_record(record: dict[str, Any]) -> Attempt:
    """Return the last attempt of a task that has ended, as its record tells it."""
    error = record.get("error") or {}
    started = record.get("started_at")
    return Attempt(
        id=str(record["task_id"]),
        attempt=int(record["attempt"]),
        task_class=str(record["class"]),
        kind=record.get("kind"),
        traceparent=record.get("traceparent"),
        submitted_at=_epoch(record["submitted_at"]),
        claimed_at=None,
        started_at=None if started is None else _epoch(started),
        ended_at=_epoch(record["completed_at"]),
        recorded_at=None,
        final=True,
        cause=error.get("cause"),
        message=str(error.get("message", "")),
        worker=int(record["worker"]),
    )


def _epoch(written: str) -> float:
    return datetime.fromisoformat(written).timestamp()
