"""The dashboard: the page at /, and its files below /static/."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from .context import Context

_POLICY = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; frame-ancestors 'none'"
_PAGE = "<!doctype html><title>dspy-supervisor</title><p>dspy-supervisor works here."


def routes(_: Context) -> list[BaseRoute]:
    """Return the routes of the dashboard."""

    async def page(_: Request) -> Response:
        return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _POLICY})

    return [Route("/", page)]
