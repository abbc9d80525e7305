"""The routes of the older environment runner, on a port of its own."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from .answers import json
from .context import Context


def routes(_: Context) -> list[BaseRoute]:
    """Return the runner's routes."""

    async def health(_: Request) -> Response:
        return json({"status": "healthy"})

    return [Route("/health", health)]
