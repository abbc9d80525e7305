"""What the commands of `task` find in the folders."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from ..errors import TaskNotFound
from ..task import State, TaskName, WorkloadClass
from .output import duration, moment, printable

if TYPE_CHECKING:
    from ..layout import Layout
    from ..lookup import Found


def described(layout: Layout, task_id: str) -> dict[str, Any]:
    """Return the document of `task show`: where it is, and its envelope or record. Raises TaskNotFound."""
    import orjson

    from ..lookup import find_one, quarantined, read_found

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
    name = _name(found)
    document = {
        "id": task_id,
        "state": str(found.state),
        "file": found.file,
        "attempt": int(content.get("attempt", 0)) if ended and content else name.attempt,
        "crashes": name.crashes,
        "owner": found.owner,
        "due": found.due,
    }
    return document | {"record" if ended else "envelope": content}


def _name(found: Found) -> TaskName:
    from ..taskqueue import parse_delayed

    parsed = parse_delayed(found.file)
    return (parsed[1] if parsed else None) or TaskName.parse(found.file) or TaskName(found.file.removesuffix(".json"))


def listed(layout: Layout, state: State, task_class: str | None, limit: int) -> tuple[list[dict[str, Any]], int]:
    """Return the last ``limit`` tasks of a state, and how many more there are."""
    from ..lookup import read_found

    files = [found for found in _files(layout, state) if _name(found).id]
    files.sort(key=lambda found: _name(found).id)
    rows: list[dict[str, Any]] = []
    for place in reversed(range(len(files))):
        if len(rows) >= limit:
            return rows[::-1], place + 1
        found: Found = files[place]
        name, got = _name(found), read_found(layout, found)
        workload = str(WorkloadClass.parse(got.fields.task_class)) if got is not None else None
        if task_class is not None and workload != task_class.lower():
            continue
        row: dict[str, Any] = {"id": name.id, "state": str(state), "class": workload}
        row |= {"kind": got.fields.kind if got is not None else None, "attempt": name.attempt, "owner": found.owner}
        row |= {"due": found.due, "detail": _detail(found, got.data if got is not None else b"")}
        rows.append(row)
    return rows[::-1], 0


def _files(layout: Layout, state: State) -> Iterator[Found]:
    from ..layout import list_folder
    from ..lookup import Found
    from ..taskqueue import parse_delayed

    if state is State.CLAIMED:
        for owner in list_folder(layout.claimed):
            try:
                folder = os.open(
                    owner, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=layout.claimed
                )
            except (FileNotFoundError, NotADirectoryError):
                continue
            try:
                yield from (Found(state, file, None, owner) for file in list_folder(folder) if TaskName.parse(file))
            finally:
                os.close(folder)
        return
    folder = {
        State.PENDING: layout.pending,
        State.DELAYED: layout.delayed,
        State.DONE: layout.done,
        State.FAILED: layout.failed,
    }[state]
    for file in list_folder(folder):
        if file.startswith(".") or not file.endswith(".json"):
            continue
        parsed = parse_delayed(file) if state is State.DELAYED else None
        yield Found(state, file, folder, due=parsed[0] if parsed else None)


def _detail(found: Found, data: bytes) -> str:
    """Return what a person would ask next, by state."""
    import orjson

    if found.state is State.DELAYED and found.due is not None:
        return f"starts {moment(found.due)}"
    if found.state is State.CLAIMED:
        return f"with {found.owner}"
    if found.state not in (State.DONE, State.FAILED) or not data:
        return ""
    record = orjson.loads(data)
    if found.state is State.DONE:
        return f"in {duration(record.get('duration_ms', 0) / 1000)}"
    error = record.get("error") or {}
    return f"{error.get('cause')}: {error.get('message')}"


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
