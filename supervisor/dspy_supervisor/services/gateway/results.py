"""What came of a task: /v1/tasks/ID/result, which waits for it, and /v1/tasks/ID/logs, which can follow it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import time

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from ...errors import TaskNotFound
from ...task import State
from . import asking
from .answers import json
from .context import Context
from .outputs import MOST_LINES, STREAMS, follow, tail
from .views import ended, part

_LONGEST_WAIT_S = 300.0
_QUICK_BYTES = 64 << 10


def routes(context: Context) -> list[BaseRoute]:
    """Return the routes of results."""
    access = context.sync_queue.access

    async def result(request: Request) -> Response:
        task_id = asking.task_id(request)
        wait_s = asking.seconds(request, "wait_s", 0.0, _LONGEST_WAIT_S) or 0.0
        began = time.monotonic()
        while True:
            if _is_quick(context, task_id):
                found = _result(context, task_id)
            else:
                found = await context.apart(_result, context, task_id)
            if found is not None:
                return found
            left_s = wait_s - (time.monotonic() - began)
            if left_s <= 0 or context.stopping.is_set():
                # Raises where it is nowhere, or was refused
                return json({"id": task_id, "state": str(await context.queue.state(task_id))}, 202)
            await _wait(context, task_id, left_s)

    async def logs(request: Request) -> Response:
        task_id = asking.task_id(request)
        stream = asking.word(request, "stream", STREAMS) or STREAMS[0]
        lines = asking.whole(request, "tail", MOST_LINES, 0, MOST_LINES)
        attempt = asking.whole(request, "attempt", -1, 0, 10**9)
        output = await context.apart(
            lambda: tail(access.now(), task_id, stream, lines, None if attempt < 0 else attempt)
        )
        if output is None:
            raise TaskNotFound(task_id, access.path)
        if not asking.truth(request, "follow"):
            return Response(output.data, media_type="text/plain", headers={"X-Attempt": str(output.attempt)})
        return StreamingResponse(
            follow(access, task_id, stream, output, context.stopping.is_set), media_type="text/plain"
        )

    return [Route("/v1/tasks/{task_id}/result", result), Route("/v1/tasks/{task_id}/logs", logs)]


def _is_quick(context: Context, task_id: str) -> bool:
    """Whether the answer is here sooner than another thread would be: no record, or a short one on a disk of this host."""
    layout = context.sync_queue.access.now()
    if layout.filesystem.network:
        return False
    for folder in (layout.done, layout.failed):
        with contextlib.suppress(OSError):
            return os.stat(f"{task_id}.json", dir_fd=folder, follow_symlinks=False).st_size < _QUICK_BYTES
    return True


def _result(context: Context, task_id: str) -> Response | None:
    """Return the answer for a task that has ended, its result as it lies in its record; None while it has not."""
    found = ended(context.sync_queue.access.now(), task_id)
    if found is None:
        return None
    state, got = found
    told = part(got, "runner_result") if state is State.DONE else part(got, "error")
    key = "result" if state is State.DONE else "error"
    return json({"id": task_id, "status": str(state), key: orjson.Fragment(told or b"null")})


async def _wait(context: Context, task_id: str, left_s: float) -> None:
    """Return when a task has ended, after ``left_s`` seconds, or when the gateway is to end."""
    waits = [
        asyncio.ensure_future(context.queue.wait([task_id], left_s if math.isfinite(left_s) else None)),
        asyncio.ensure_future(context.stopping.wait()),
    ]
    try:
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for one in done:
            one.result()
    finally:
        for one in waits:
            if not one.done():
                one.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await one
