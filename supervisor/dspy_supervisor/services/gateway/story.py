"""The story of one task from its put to its end, in plain words, as its file, its record and its notes tell it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from ...errors import TaskNotFound
from ...jobbook import JobBook, is_carried
from ...layout import Layout
from ...lookup import Content, Found, name_of, quarantined
from ...task import State, WorkloadClass
from ...taskqueue import TaskQueue
from .views import _content, claimed_at, members, written_at

_LONGEST = 16 << 10  # characters of a traceback

Step = dict[str, Any]


def story(layout: Layout, task_id: str) -> list[Step]:
    """Return what happened to a task, oldest first. Raises TaskNotFound.

    A step is ``{"at": epoch seconds or None, "what": word, "text": plain words}`` with the facts it is made of; the words
    are submitted, attempt_failed, delayed, waiting, started, job, ended and refused.
    """
    found, got = _content(layout, task_id)
    if found is None:
        if reason := quarantined(layout, task_id):
            return [{"at": None, "what": "refused", "text": f"refused, and kept in quarantine/: {reason}"}]
        raise TaskNotFound(task_id, layout.path)
    told = members(got, "status", "error", "attempt", "worker", "owner", "history", "slurm", *_TIMES) if got else {}
    over = found.state in (State.DONE, State.FAILED)
    steps = [_submitted(layout, found, got, told, over)]
    steps += _attempts(layout, found, told, over)
    if over:
        return steps + _end(told, found.state)
    return steps + _now(layout, found)


_TIMES = ("submitted_at", "started_at", "completed_at", "duration_ms", "wait_ms")


def _submitted(layout: Layout, found: Found, got: Content | None, told: Mapping[str, Any], over: bool) -> Step:
    at = _epoch(told.get("submitted_at")) if over else written_at(layout, found)
    text = "submitted"
    if got is not None:
        text += f" to class {WorkloadClass.parse(got.fields.task_class)}"
        text += f" as {got.fields.kind}" if got.fields.kind else ""
        text += f", priority {got.fields.priority}" if got.fields.priority else ""
    return {"at": at, "what": "submitted", "text": text}


def _attempts(layout: Layout, found: Found, told: Mapping[str, Any], over: bool) -> list[Step]:
    """Return how the earlier attempts ended: from the record, or from the notes of a task that goes on."""
    name = name_of(found)
    notes = told.get("history") if over else TaskQueue(layout).history(name)
    steps = []
    for note in notes if isinstance(notes, list) else []:
        number = note.get("attempt") if isinstance(note, Mapping) else None
        if not isinstance(number, int):
            continue
        cause, message = note.get("cause"), note.get("message")
        step: Step = {"at": _noted_at(layout, name.id, number), "what": "attempt_failed", "attempt": number}
        step |= {"text": f"attempt {number + 1} failed ({cause}): {message}", "cause": cause}
        for key in ("type", "traceback", "stacks"):
            if note.get(key):
                step[key] = str(note[key])[-_LONGEST:]
        steps.append(step)
    return steps


def _end(told: Mapping[str, Any], state: State) -> list[Step]:
    steps: list[Step] = []
    attempt = told.get("attempt")
    number = f"attempt {attempt + 1}" if isinstance(attempt, int) and attempt else "it"
    if told.get("started_at"):
        wait = f" after {_span(told['wait_ms'])} in the queue" if isinstance(told.get("wait_ms"), int | float) else ""
        where = f" in worker {told['worker']}" if told.get("worker") else ""
        steps.append({"at": _epoch(told["started_at"]), "what": "started", "text": f"{number} started{where}{wait}"})
    slurm = told.get("slurm")
    if isinstance(slurm, Mapping) and slurm.get("job"):
        text = f"it was job {slurm['job']} of a Slurm cluster"
        text += f", {slurm['slurm_state']}" if slurm.get("slurm_state") else ""
        text += f" on {slurm['nodes']}" if slurm.get("nodes") else ""
        steps.append({"at": None, "what": "job", "text": text})
    took = f" in {_span(told['duration_ms'])}" if isinstance(told.get("duration_ms"), int | float) else ""
    step: Step = {"at": _epoch(told.get("completed_at")), "what": "ended", "state": str(state)}
    error = told.get("error")
    if state is State.FAILED and isinstance(error, Mapping):
        step |= {"text": f"failed ({error.get('cause')}){took}: {error.get('message')}", "cause": error.get("cause")}
        for key in ("type", "traceback", "stacks"):
            if error.get(key):
                step[key] = str(error[key])[-_LONGEST:]
    else:
        step["text"] = f"{state}{took}"
    return [*steps, step]


def _now(layout: Layout, found: Found) -> list[Step]:
    name = name_of(found)
    number = f"attempt {name.attempt + 1}" if name.attempt else "its start"
    if found.state is State.DELAYED and found.due is not None:
        left = max(0.0, found.due - time.time())
        return [{"at": found.due, "what": "delayed", "text": f"waits {_span(left * 1e3)} more for {number}"}]
    if found.state is State.CLAIMED and found.owner:
        if is_carried(found.owner):
            return [
                {
                    "at": claimed_at(layout, found),
                    "what": "job",
                    "text": JobBook(layout).describe(found.file, found.owner),
                }
            ]
        what = f"attempt {name.attempt + 1}" if name.attempt else "it"
        return [{"at": claimed_at(layout, found), "what": "started", "text": f"{what} started, and runs"}]
    return [{"at": None, "what": "waiting", "text": f"waits for {number}"}]


def _noted_at(layout: Layout, task_id: str, attempt: int) -> float | None:
    with contextlib.suppress(OSError):
        path = f"{task_id}/attempt.{attempt}.json"
        return os.stat(path, dir_fd=layout.logs, follow_symlinks=False).st_mtime
    return None


def _epoch(written: object) -> float | None:
    with contextlib.suppress(ValueError):
        return datetime.fromisoformat(written).timestamp() if isinstance(written, str) else None
    return None


def _span(milliseconds: float) -> str:
    """Return a length of time for a person."""
    seconds = milliseconds / 1e3
    if seconds < 1:
        return f"{milliseconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
