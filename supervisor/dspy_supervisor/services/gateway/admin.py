"""The supervisor and its classes: /v1/status and what belongs to it, and the orders that change how it works."""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ...gpu import read
from ...history import DAYS, rows
from . import asking
from .answers import json
from .context import Context
from .jobs import jobs
from .overview import gpus, overview
from .problems import Problem

_MOST_LIMIT = 1024
_LONGEST_REASON = 500
_MOST_ROWS = 2000  # of a history: longer steps make fewer
_YEAR = 366 * 86400.0


def routes(context: Context) -> list[BaseRoute]:
    """Return the routes of the supervisor."""

    async def status(request: Request) -> Response:
        document = await overview(context)
        document["gateway"]["writable"] = bool(request.scope.get("may_write"))
        return json(document)

    async def failures(request: Request) -> Response:
        since_s = asking.seconds(request, "since_s", None, _YEAR)
        async with context.looking:  # one look at a time: they share what they learn
            return json(await context.apart(lambda: context.failures.groups(context.sync_queue.access.now(), since_s)))

    async def history(request: Request) -> Response:
        since_s = asking.seconds(request, "since_s", 3600.0, DAYS * 86400.0) or 0.0
        step_s = max(60.0, asking.seconds(request, "step_s", 60.0, 86400.0) or 0.0, since_s / _MOST_ROWS)
        found = await context.apart(lambda: rows(context.post.queue_dir, time.time() - since_s, step_s=step_s))
        return json({"rows": found, "step_s": step_s})

    async def show_gpus(_: Request) -> Response:
        return json({"gpus": gpus(read(context.page))})

    async def slurm_jobs(_: Request) -> Response:
        return json({"jobs": await context.apart(lambda: jobs(context.sync_queue.access.now()))})

    async def pause(request: Request) -> Response:
        document = await asking.body(request)
        classes, reason = asking.classes(document), document.get("reason", "")
        if not isinstance(reason, str) or len(reason) > _LONGEST_REASON:
            raise Problem(422, f"reason: expected text of at most {_LONGEST_REASON} characters")
        await context.ask("pause", classes=classes, reason=reason)
        return json({"paused": classes or list(asking.CLASSES)})

    async def resume(request: Request) -> Response:
        classes = asking.classes(await asking.body(request))
        await context.ask("resume", classes=classes)
        return json({"resumed": classes or list(asking.CLASSES)})

    async def drain(request: Request) -> Response:
        await asking.body(request)
        await context.ask("stop")
        return json({"draining": True}, 202)

    async def limit(request: Request) -> Response:
        name = str(request.path_params["workload"])
        if name not in asking.CLASSES:
            raise Problem(404, f"no class {name[:100]!r}: the classes are {', '.join(asking.CLASSES)}")
        number: Any = (await asking.body(request)).get("limit")
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= _MOST_LIMIT:
            raise Problem(422, f"limit: expected a whole number from 0 to {_MOST_LIMIT}")
        order: dict[str, Any] = {"class": name, "limit": number}
        await context.ask("limit", **order)
        return json(order)

    return [
        Route("/v1/status", status),
        Route("/v1/failures", failures),
        Route("/v1/history", history),
        Route("/v1/gpus", show_gpus),
        Route("/v1/slurm/jobs", slurm_jobs),
        Route("/v1/queue/pause", pause, methods=["POST"]),
        Route("/v1/queue/resume", resume, methods=["POST"]),
        Route("/v1/queue/drain", drain, methods=["POST"]),
        Route("/v1/classes/{workload}/limit", limit, methods=["PUT"]),
    ]
