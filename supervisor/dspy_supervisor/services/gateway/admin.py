"""The supervisor and its classes: /v1/status."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from .answers import json
from .context import Context


def routes(context: Context) -> list[BaseRoute]:
    """Return the routes of the supervisor."""

    async def status(_: Request) -> Response:
        return json(await context.status())

    return [Route("/v1/status", status)]
