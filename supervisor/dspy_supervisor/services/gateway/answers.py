"""JSON as this program answers it: compact, with a newline at its end, since scripts read lines and grep ``"ok":true``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import orjson
from starlette.requests import Request
from starlette.responses import Response

Answerer: TypeAlias = Callable[[Request], Awaitable[Response]]

_OPTIONS = orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS


def dumps(document: Any) -> bytes:
    """Return JSON; what it does not know, as a path, is written as text."""
    return orjson.dumps(document, default=str, option=_OPTIONS)


def json(document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer in JSON."""
    return Response(dumps(document), status, headers, "application/json")


def by_method(**answerers: Answerer) -> Answerer:
    """Return what answers a path by the request's method: one route a path, so that it knows all its methods."""

    async def answer(request: Request) -> Response:
        return await answerers["GET" if request.method == "HEAD" else request.method](request)

    return answer
