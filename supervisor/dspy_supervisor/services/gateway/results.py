"""Results: /v1/tasks/ID/result, which waits for a while."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from .answers import json
from .context import Context


def routes(context: Context) -> list[BaseRoute]:
    """Return the routes of results."""

    async def result(request: Request) -> Response:
        task_id = request.path_params["task_id"]
        record = await context.queue.record(task_id)
        if record is None:
            return json({"id": task_id, "state": str(await context.queue.state(task_id))}, 202)
        return json({"id": task_id, "status": record["status"], "result": record.get("runner_result")})

    return [Route("/v1/tasks/{task_id}/result", result)]
