"""What the commands of `task` find in the folders."""

from __future__ import annotations

import itertools
import math
import os
import stat
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from ..errors import TaskNotFound, WaitTimeout, message_of
from ..task import State, TaskName, WorkloadClass
from .output import duration, moment, printable

if TYPE_CHECKING:
    from ..config import Loaded
    from ..layout import Layout
    from ..lookup import Found


def described(layout: Layout, task_id: str) -> dict[str, Any]:
    """Return the document of `task show`: where it is, and its envelope or record. Raises TaskNotFound."""
    import orjson

    from ..jobbook import JobBook, is_carried
    from ..lookup import find_one, name_of, quarantined, read_found

    found = find_one(layout, task_id)
    if found is None:
        if reason := quarantined(layout, task_id):
            return {"id": task_id, "state": "quarantine", "attempt": 0, "crashes": 0, "reason": reason}
        raise TaskNotFound(task_id, layout.path)
    got = read_found(layout, found)
    if got is None and (moved := find_one(layout, task_id)) is not None:  # on, between the look and the reading
        found, got = moved, read_found(layout, moved)
    ended = found.state in (State.DONE, State.FAILED)
    content = orjson.loads(got.data) if got is not None else None
    name = name_of(found)
    document = {
        "id": task_id,
        "state": str(found.state),
        "file": found.file,
        "attempt": _attempt(name, content) if ended and content else name.attempt,
        "crashes": name.crashes,
        "owner": found.owner,
        "due": found.due,
    }
    if found.owner and is_carried(found.owner):
        document["job"] = JobBook(layout).describe(found.file, found.owner)
    return document | {"record" if ended else "envelope": content}


def listed(layout: Layout, state: State, task_class: str | None, limit: int) -> tuple[list[dict[str, Any]], int]:
    """Return the last ``limit`` tasks of a state, and how many more there are."""
    import orjson

    from ..lookup import files, name_of, read_found

    there = sorted(files(layout, state), key=lambda found: name_of(found).id)
    rows: list[dict[str, Any]] = []
    for place in reversed(range(len(there))):
        if len(rows) >= limit:
            return rows[::-1], place + 1
        found = there[place]
        name, got = name_of(found), read_found(layout, found)
        workload = str(WorkloadClass.parse(got.fields.task_class)) if got is not None else None
        if task_class is not None and workload != task_class.lower():
            continue
        row: dict[str, Any] = {"id": name.id, "state": str(state), "class": workload}
        record = orjson.loads(got.data) if got is not None and state in (State.DONE, State.FAILED) else {}
        row |= {"kind": got.fields.kind if got is not None else None, "attempt": _attempt(name, record)}
        row |= {"owner": found.owner, "due": found.due, "detail": _detail(found, record)}
        rows.append(row)
    return rows[::-1], 0


def ended(loaded: Loaded, ids: Sequence[str], timeout_s: float | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (id, record) of each task as it ends; of one that was refused, a record that says why.

    Raises TaskNotFound for a task that is nowhere, and WaitTimeout where some have not ended after ``timeout_s`` seconds.
    """
    from ..client.access import Access
    from ..client.endings import Ending, Endings, Wait
    from ..lookup import quarantined, read_record

    deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
    access = Access(loaded.config.queue_dir, insecure=loaded.config.insecure)
    with closing(access), closing(Endings(access)) as endings:
        wait = Wait(ids)
        endings.expect(wait, ids)
        told = 0
        while True:
            news = list(itertools.islice(wait.ended.items(), told, None))
            told += len(news)
            for task_id, ending in news:
                record = read_record(access.layout, task_id)
                if ending is Ending.MISSING or (record is None and ending is not Ending.QUARANTINED):
                    raise TaskNotFound(task_id, access.path)
                reason = None if record is not None else quarantined(access.layout, task_id)
                yield task_id, record or {"status": "refused", "error": {"cause": "refused", "message": reason}}
            if not wait.open:
                return
            if (left := deadline - time.monotonic()) <= 0:
                first = f"task {min(wait.open)}" + (f" and {len(wait.open) - 1} more" if len(wait.open) > 1 else "")
                raise WaitTimeout(f"{first} did not end in {timeout_s:g} s, and goes on in the queue")
            endings.sleep(left)
            endings.take()


def _attempt(name: TaskName, record: Mapping[str, Any]) -> int:
    """Return which attempt it is, 0 the first: a record says it, and the name of what has not ended."""
    attempt = record.get("attempt")
    return attempt if isinstance(attempt, int) else name.attempt


def counted(attempt: int, task: Mapping[str, Any], loaded: Loaded) -> str:
    """Return an attempt as people count, "2 of 3"; without its bound where there were more, as after a retry.

    task: an envelope, or a record.
    """
    workload, most = task.get("class", task.get("Class")), task.get("max_attempts")
    if not isinstance(most, int):
        most = loaded.config.classes[WorkloadClass.parse(workload if isinstance(workload, str) else None)].max_attempts
    return f"{attempt + 1} of {most}" if attempt < most else f"{attempt + 1}"


def _detail(found: Found, record: Mapping[str, Any]) -> str:
    """Return what a person would ask next, by state."""
    if found.state is State.DELAYED and found.due is not None:
        return f"starts {moment(found.due)}"
    if found.state is State.CLAIMED:
        return f"with {found.owner}"
    if not record:
        return ""
    if found.state is State.DONE:
        return f"in {duration(record.get('duration_ms', 0) / 1000)}"
    error = record.get("error") or {}
    return f"{error.get('cause')}: {message_of(error)}"


def log_files(layout: Layout, task_id: str) -> Iterator[tuple[str, int]]:
    """Yield the names and sizes of the regular files in logs/ID; what else lies there is not ours to read."""
    from ..layout import list_folder
    from ..task import is_task_id

    if not is_task_id(task_id):
        return
    try:
        folder = os.open(task_id, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=layout.logs)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        for name in sorted(list_folder(folder)):
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISREG(status.st_mode) and not name.startswith("."):
                yield name, status.st_size
    finally:
        os.close(folder)


def copy(layout: Layout, task_id: str, name: str) -> None:
    """Copy a file to standard output: byte by byte into a pipe, without control characters onto a terminal."""
    folder = os.open(task_id, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=layout.logs)
    try:
        file = os.fdopen(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder), "rb")
    finally:
        os.close(folder)
    with file:
        if sys.stdout.isatty():
            for line in file:
                click.echo(printable(line.decode("utf-8", "replace").rstrip("\r\n").expandtabs()))
            return
        sys.stdout.flush()
        while chunk := file.read(1 << 16):
            sys.stdout.buffer.write(chunk)


def short(value: object, length: int = 300) -> str:
    """Return JSON for a person, cut where it is long."""
    import orjson

    text = orjson.dumps(value).decode()
    return text if len(text) <= length else f"{text[:length]}... ({len(text)} characters; --json shows all)"
