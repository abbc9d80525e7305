"""What the API is, for programs: /v1/openapi.json."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ... import __version__
from .answers import json
from .context import Context


def routes(_: Context) -> list[BaseRoute]:
    """Return the route of the document."""

    async def document(_: Request) -> Response:
        return json({"openapi": "3.1.0", "info": {"title": "dspy-supervisor", "version": __version__}, "paths": {}})

    return [Route("/v1/openapi.json", document)]
