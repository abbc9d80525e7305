"""The routes of the older orchestrator and of its dashboard, with their keys, words and status codes.

Their producers know of no token and no /v1; what they put is what a file in pending/ could be. Answers are compact JSON with a
newline at the end, errors plain text.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ...client.envelopes import Prepared
from ...errors import EnvelopeInvalid
from ...jobbook import is_job
from ...layout import Layout
from ...lookup import find_one
from ...task import State, WorkloadClass, is_task_id
from . import asking
from .answers import by_method, json
from .context import Context
from .counts import Counts, totals
from .incoming import accept, fields_of, is_malformed, lenient
from .jobs import job_of
from .problems import Problem
from .slurm_status import job_status
from .views import newest

_ANY = ["GET", "POST", "PUT", "PATCH", "DELETE"]
_ITEMS = 20  # of each kind in stats
_JOB_S, _LOOK_S = 10.0, 0.05  # that a submission waits for its job's id, and between two looks for it


def routes(context: Context) -> list[BaseRoute]:
    """Return the orchestrator's routes."""
    access, counts = context.sync_queue.access, Counts()

    async def submit(request: Request) -> Response:
        data = await request.body()
        task = _task(data, context)
        await accept(context, task)
        if WorkloadClass.parse(fields_of(task.document, context).task_class) is WorkloadClass.GPU_SLURM:
            return await _job(context, task)
        return json({"id": task.id, "ok": True})

    async def status(_: Request) -> Response:
        pending, done = await context.apart(lambda: counts.now(access.now()))
        return json({"pending": pending, "done": done, **totals(context.page)})

    async def slurm_status(request: Request) -> Response:
        task_id = str(request.path_params["task_id"])
        found = await context.apart(lambda: job_status(access.now(), task_id)) if is_task_id(task_id) else None
        if found is None:
            raise Problem(404, "Job not found")
        return json(found)

    async def stats(_: Request) -> Response:
        layout = await context.apart(access.now)
        pending, done = await context.apart(counts.now, layout)
        items = await context.apart(_items, layout)
        return json({"pending": pending, "done": done, "items": items, "timestamp": time.time()})

    async def submit_item(request: Request) -> Response:
        task = _task(await request.body(), context)
        await accept(context, task)
        return json({"ok": True, "id": task.id, "file": f"{task.id}.json"})

    async def show_limits(_: Request) -> Response:
        return json({"config": await _limits(context)})

    async def set_limits(request: Request) -> Response:
        document = await asking.body(request)
        wanted = document["config"] if isinstance(document.get("config"), dict) else document
        await _set_limits(context, wanted)
        return json({"config": await _limits(context, fresh=True)})

    return [
        Route("/queue/submit", submit, methods=["POST"]),
        Route("/queue/status", status, methods=_ANY),
        Route("/slurm/status/{task_id:path}", slurm_status, methods=_ANY),
        Route("/api/env-queue/stats", stats),
        Route("/api/env-queue/submit", submit_item, methods=["POST"]),
        Route("/api/env-queue/config", by_method(GET=show_limits, POST=set_limits), methods=["GET", "POST"]),
    ]


def _task(data: bytes, context: Context) -> Prepared:
    """Return the task in a body, as these routes refuse what is none."""
    try:
        task = lenient(data, context)
        context.sync_queue.access.check([task])
        return task
    except EnvelopeInvalid as error:
        raise Problem(400, str(error)) from None
    except Problem as problem:
        if problem.status == 413:
            raise
        if is_malformed(data) or data.lstrip()[:1] != b"{":
            raise Problem(400, "invalid JSON") from None
        raise Problem(400, problem.detail) from None


async def _job(context: Context, task: Prepared) -> Response:
    """Answer the submission of a task that becomes a job: with the job's id, as soon as Slurm gave one."""
    answer = {"ok": True, "slurm_job_id": "", "status": "queued"}
    if not context.config.enable_slurm:
        return json(answer)
    deadline = time.monotonic() + _JOB_S
    while time.monotonic() < deadline and not context.stopping.is_set():
        found = await context.apart(_submitted, context.sync_queue.access.now(), task.id)
        if found is not None:
            return json(answer | {"slurm_job_id": found, "status": "submitted"})
        await asyncio.sleep(_LOOK_S)
    return json(answer)


def _submitted(layout: Layout, task_id: str) -> str | None:
    """Return the id of a task's job, None while it has none. Raises Problem where it will never have one."""
    found = find_one(layout, task_id)
    if found is None or found.state in (State.DONE, State.FAILED):
        status = job_status(layout, task_id) or {}
        if status.get("status") == "failed" and not status.get("id"):
            raise Problem(500, f"Slurm submission failed: {status.get('error')}")
        return str(status.get("id") or "") or None
    if found.state is State.CLAIMED and found.owner and is_job(found.owner):
        job = job_of(layout, found.file)
        return (job.submission.job_id or None) if job is not None else None
    return None


def _items(layout: Layout) -> list[dict[str, Any]]:
    """Return the newest tasks that wait and that are done, as the dashboard lists them."""
    found = []
    for state in (State.PENDING, State.DONE):
        found += [
            {"id": task_id, "status": str(state), "file": f"{task_id}.json"}
            for task_id in newest(layout, state, _ITEMS)
        ]
    return found


async def _limits(context: Context, *, fresh: bool = False) -> dict[str, int]:
    """Return the limits of short tasks under the names of the older controller; a step of ours is one task."""
    status = await (context.ask("status") if fresh else context.status())
    settings = context.config.classes[WorkloadClass.CPU_SHORT]
    now = status["classes"][WorkloadClass.CPU_SHORT]
    return {
        "BaseLimit": now["limit"],
        "MinLimit": settings.limit_min,
        "MaxLimit": max(now["limit_max"], now["limit"]),
        "IncreaseStep": 1,
        "DecreaseStep": 1,
        "AdaptationIntervalMs": int(context.config.controller_interval_s * 1000),
    }


async def _set_limits(context: Context, wanted: Mapping[str, Any]) -> None:
    """Set the limit of short tasks where one is asked for; the answer tells what holds, so also what could not be changed."""
    number = wanted.get("BaseLimit")
    if number is None:
        return
    if (
        isinstance(number, bool)
        or not isinstance(number, int | float)
        or number != int(number)
        or not 0 < number <= 1024
    ):
        raise Problem(400, "BaseLimit: expected a whole number from 1 to 1024")
    if int(number) != (await context.ask("status"))["classes"][WorkloadClass.CPU_SHORT]["limit"]:
        order: dict[str, Any] = {"class": str(WorkloadClass.CPU_SHORT), "limit": int(number)}
        await context.ask("limit", **order)
