"""Whether this works: /livez (the supervisor's loop turns), /readyz (it takes tasks and runs them), /health, /version."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ... import __version__
from ...errors import SupervisorError
from .answers import json
from .context import Context

_SWEEPS = 3  # of the supervisor, each of which it notes on the page, that may fail to come
_LEAST_S = 10.0


def routes(context: Context) -> list[BaseRoute]:
    """Return the routes of health."""
    born = time.monotonic()
    bound_s = _LEAST_S + _SWEEPS * max(context.config.sweep_s, context.config.sweep_network_s)

    async def livez(_: Request) -> Response:
        silent_s = time.monotonic() - max(context.page.heartbeat_ns / 1e9, born)
        alive = silent_s < bound_s
        return json({"alive": alive, "silent_s": round(silent_s, 3)}, 200 if alive else 503)

    async def readyz(_: Request) -> Response:
        reasons = [reason async for reason in _obstacles(context)]
        return json({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)

    async def health(_: Request) -> Response:
        return json({"status": "ok"})

    async def version(_: Request) -> Response:
        return json({"name": "dspy-supervisor", "version": __version__})

    return [
        Route("/livez", livez),
        Route("/readyz", readyz),
        Route("/health", health, methods=["GET", "POST"]),
        Route("/version", version),
    ]


async def _obstacles(context: Context) -> AsyncIterator[str]:
    """Yield what keeps tasks from being taken or run now, in words."""
    stopping = context.stopping.is_set()
    if stopping:
        yield "the gateway is stopping"
    try:
        layout = await context.apart(context.sync_queue.access.now)
        if not os.access(layout.path / "pending", os.W_OK | os.X_OK):
            yield f"nothing can be put into {layout.path}"
    except (SupervisorError, OSError) as error:
        yield str(error)
    try:
        status = await context.status(fresh=stopping)
    except (SupervisorError, OSError) as error:
        yield str(error)
        return
    if status["stopping"]:
        yield "the supervisor is stopping: what runs may end, nothing new starts"
    if status["problem"]:
        yield str(status["problem"])
    classes = status["classes"].values()
    if not any(one["workers"] and one["state"] == "running" for one in classes):
        troubles = [f"class {name}: {one['reason']}" for name, one in status["classes"].items() if one["reason"]]
        yield "no class has a worker that runs" + (f" ({'; '.join(troubles)})" if troubles else "")
