"""Tasks: /v1/tasks and /v1/tasks/ID."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from .answers import json
from .context import Context


def routes(context: Context) -> list[BaseRoute]:
    """Return the routes of tasks."""

    async def show(request: Request) -> Response:
        task_id = request.path_params["task_id"]
        return json({"id": task_id, "state": str(await context.queue.state(task_id))})

    return [Route("/v1/tasks/{task_id}", show)]
