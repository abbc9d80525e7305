"""Tasks: /v1/tasks to put and to list them, /v1/tasks/ID to look at one, cancel it or try it again."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ...producer import put_again
from ...task import State
from . import asking
from .answers import by_method, json
from .context import Context
from .incoming import LONGEST_TEXT, accept, strict
from .problems import Problem
from .story import story
from .views import MOST_ROWS, CursorUnknown, described, listed

_STATES = tuple(str(state) for state in State)


def routes(context: Context) -> list[BaseRoute]:
    """Return the routes of tasks."""
    access = context.sync_queue.access

    async def submit(request: Request) -> Response:
        task = strict(await request.body(), context, _key(request), request.headers.get("traceparent"))
        new = await accept(context, task)
        headers = {"Location": f"/v1/tasks/{task.id}"}
        return json({"id": task.id, "state": "pending"}, 201 if new else 200, headers)

    async def list_tasks(request: Request) -> Response:
        state = asking.word(request, "state", _STATES)
        options: dict[str, Any] = {
            "state": State(state) if state else None,
            "workload": asking.word(request, "class", asking.CLASSES),
            "words": asking.text(request, "q"),
            "limit": asking.whole(request, "limit", 100, 1, MOST_ROWS),
            "cursor": asking.text(request, "cursor") or None,
        }
        try:
            page = await context.apart(lambda: listed(access.now(), **options))
        except CursorUnknown as error:
            raise Problem(404, str(error)) from None
        return json({"tasks": page.tasks, "next": page.next})

    async def show(request: Request) -> Response:
        task_id = asking.task_id(request)
        return json(await context.apart(lambda: described(access.now(), task_id)))

    async def tell(request: Request) -> Response:
        task_id = asking.task_id(request)
        return json({"id": task_id, "story": await context.apart(lambda: story(access.now(), task_id))})

    async def explain(request: Request) -> Response:
        task_id = asking.task_id(request)
        answer = await context.ask("explain", id=task_id)
        return json({"id": task_id, "explanation": answer["explanation"]})

    async def cancel(request: Request) -> Response:
        task_id = asking.task_id(request)
        return json({"id": task_id, "was": await context.queue.cancel(task_id)})

    async def retry(request: Request) -> Response:
        task_id = asking.task_id(request)
        await context.apart(lambda: put_again(access.now(), task_id))
        return json({"id": task_id, "state": "pending"})

    return [
        Route("/v1/tasks", by_method(GET=list_tasks, POST=submit), methods=["GET", "POST"]),
        Route("/v1/tasks/{task_id}", show),
        Route("/v1/tasks/{task_id}/story", tell),
        Route("/v1/tasks/{task_id}/explain", explain),
        Route("/v1/tasks/{task_id}/cancel", cancel, methods=["POST"]),
        Route("/v1/tasks/{task_id}/retry", retry, methods=["POST"]),
    ]


def _key(request: Request) -> str | None:
    keys = request.headers.getlist("idempotency-key")
    if len(keys) > 1 or (keys and not 0 < len(keys[0]) <= LONGEST_TEXT):
        raise Problem(422, f"Idempotency-Key: expected one key of 1 to {LONGEST_TEXT} characters")
    return keys[0] if keys else None
