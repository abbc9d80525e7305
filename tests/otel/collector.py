"""A collector that keeps what it is sent: OTLP over HTTP, on a loopback port of its own."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Span(NamedTuple):
    """One span, as it came."""

    name: str
    trace_id: str
    span_id: str
    parent: str  #: span id, or ""
    start: float  #: epoch seconds
    end: float
    error: str  #: the status' message, where it is an error
    facts: dict[str, Any]
    resource: dict[str, Any]


class Collector(ThreadingHTTPServer):
    """The server. ``refuses``: answer 503 to all."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.spans: list[Span] = []
        self.paths: set[str] = set()
        self.refuses = False
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        """What OTEL_EXPORTER_OTLP_ENDPOINT is to be."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def of(self, task_id: str) -> list[Span]:
        """Return the spans of a task, in the order of their starts."""
        with self.lock:
            found = [span for span in self.spans if span.facts.get("dspy.task.id") == task_id]
        return sorted(found, key=lambda span: (span.start, span.end))

    def take(self, request: ExportTraceServiceRequest) -> None:
        """Keep what a request holds."""
        with self.lock:
            for group in request.resource_spans:
                resource = _facts(group.resource.attributes)
                for scope in group.scope_spans:
                    self.spans += [
                        Span(
                            one.name,
                            one.trace_id.hex(),
                            one.span_id.hex(),
                            one.parent_span_id.hex(),
                            one.start_time_unix_nano / 1e9,
                            one.end_time_unix_nano / 1e9,
                            one.status.message if one.status.code == one.status.STATUS_CODE_ERROR else "",
                            _facts(one.attributes),
                            resource,
                        )
                        for one in scope.spans
                    ]


@contextmanager
def collectors(port: int = 0) -> Iterator[Collector]:
    """A collector that listens until the end."""
    with Collector(port) as collector:
        thread = threading.Thread(target=collector.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield collector
        finally:
            collector.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.paths.add(self.path)
        if self.server.refuses:
            self.send_response(503)
        else:
            request = ExportTraceServiceRequest()
            request.ParseFromString(body)
            self.server.take(request)
            self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _facts(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
