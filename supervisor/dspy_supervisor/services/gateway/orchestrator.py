"""The routes of the older orchestrator."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from .answers import json
from .context import Context


def routes(context: Context) -> list[BaseRoute]:
    """Return the orchestrator's routes."""

    async def status(_: Request) -> Response:
        classes = (await context.status())["classes"].values()
        return json({"pending": sum(one["pending"] for one in classes), "done": sum(one["done"] for one in classes)})

    return [Route("/queue/status", status, methods=["GET", "POST"])]
