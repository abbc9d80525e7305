"""Metrics for Prometheus at /metrics: as text or OpenMetrics, compressed where the scraper takes that."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ...errors import SupervisorError
from ...host import Host
from ...metrics import Exposition, View
from .context import Context


def routes(context: Context) -> list[BaseRoute]:
    """Return the routes of metrics."""
    exposition, host = Exposition(), Host()
    host.sample(time.monotonic())

    async def metrics(request: Request) -> Response:
        status: Mapping[str, Any] = {}
        with contextlib.suppress(SupervisorError):  # it is busy, or ends: the page tells the most of it
            status = await context.status()
        sample = None if context.page.host_read() else host.sample(time.monotonic())
        headers = request.headers
        answer = exposition.text(
            View(context.page, status, sample), headers.get("accept", ""), headers.get("accept-encoding", "")
        )
        more = {"Content-Type": answer.content_type, "Vary": "Accept, Accept-Encoding"}
        if answer.encoding:
            more["Content-Encoding"] = answer.encoding
        return Response(answer.body, headers=more)

    return [Route("/metrics", metrics, methods=["GET", "POST", "PUT", "PATCH", "DELETE"])]
