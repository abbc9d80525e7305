"""What the older orchestrator told of a Slurm job, by its task: from the job book while it lives, from the record after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from ...jobbook import is_job
from ...layout import Layout
from ...lookup import Content, Found, find_one, read_found
from ...record import timestamp
from ...task import State, WorkloadClass
from .jobs import job_of
from .views import ended, members, written_at

#: the words that older clients know, by the beginning of Slurm's
_RUNNING = ("RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED", "SUSPENDED", "RESIZING")


def job_status(layout: Layout, task_id: str) -> dict[str, Any] | None:
    """Return the job of a task, None where the task is none of a cluster."""
    if (over := ended(layout, task_id)) is not None:
        return _over(task_id, *over)
    found = find_one(layout, task_id)
    got = read_found(layout, found) if found is not None else None
    if found is None or got is None:
        if (over := ended(layout, task_id)) is not None:  # it ended at this moment
            return _over(task_id, *over)
        return None
    return _live(layout, task_id, found, got)


def _live(layout: Layout, task_id: str, found: Found, got: Content) -> dict[str, Any] | None:
    carried = found.owner is not None and is_job(found.owner)
    if not carried and WorkloadClass.parse(got.fields.task_class) is not WorkloadClass.GPU_SLURM:
        return None
    job = job_of(layout, found.file) if carried else None
    submitted = job.submission.at if job is not None else written_at(layout, found)
    state = str(job.seen.get("state") or "") if job is not None else ""
    answer = {
        "id": job.submission.job_id if job is not None else "",
        "task_id": task_id,
        "status": "running" if state.upper().startswith(_RUNNING) else "pending",
        "submit_time": timestamp(submitted or 0.0)[1:-1].decode(),
    }
    return _with_payload(answer, got)


def _over(task_id: str, state: State, got: Content) -> dict[str, Any] | None:
    told = members(got, "slurm", "error", "submitted_at", "started_at", "completed_at")
    slurm = told.get("slurm")
    facts: Mapping[str, Any] = slurm if isinstance(slurm, Mapping) else {}
    if not facts and WorkloadClass.parse(got.fields.task_class) is not WorkloadClass.GPU_SLURM:
        return None
    answer: dict[str, Any] = {
        "id": str(facts.get("job") or "").partition("_")[0],
        "task_id": task_id,
        "status": "completed" if state is State.DONE else "failed",
        "submit_time": told.get("submitted_at"),
    }
    for key, name in (("start_time", "started_at"), ("end_time", "completed_at")):
        if told.get(name):
            answer[key] = told[name]
    if isinstance(facts.get("exit_code"), int):
        answer["exit_code"] = facts["exit_code"]
    error = told.get("error")
    if isinstance(error, Mapping):
        answer["error"] = str(error.get("message") or error.get("cause"))
    return _with_payload(answer, got)


def _with_payload(answer: dict[str, Any], got: Content) -> dict[str, Any]:
    payload = got.data[slice(*got.fields.payload)]
    return answer | ({"payload": orjson.Fragment(payload)} if payload != b"null" else {})
