"""Metrics for Prometheus: /metrics, and /prometheus, where the older environment runner has them."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ...metrics import exposition, families
from .context import Context


def routes(context: Context) -> list[BaseRoute]:
    """Return the routes of metrics."""

    async def metrics(_: Request) -> Response:
        services = (await context.status())["services"]
        return Response(exposition(families(context.page, services)), media_type=CONTENT_TYPE_LATEST)

    return [Route("/metrics", metrics, methods=["GET", "POST"])]
