"""What happens, as it happens: /v1/events tells of tasks, /v1/live of the supervisor, once a second."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from . import asking
from .context import Context
from .streams import event_stream


def routes(context: Context) -> list[BaseRoute]:
    """Return the routes of events."""

    async def events(request: Request) -> Response:
        # A browser sends the header; the parameter is for programs that can't.
        last = request.headers.get("last-event-id") or asking.text(request, "last_event_id", longest=64) or None
        return event_stream(context.lookout.listen(last))

    async def live(request: Request) -> Response:
        return event_stream(context.live.listen(may_write=bool(request.scope.get("may_write"))))

    return [Route("/v1/events", events), Route("/v1/live", live)]
