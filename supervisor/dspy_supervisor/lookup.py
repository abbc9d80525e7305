"""Where a task is, by its id."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson
from dspy_fastpath.claim import Claimed, Refused, peek
from dspy_fastpath.envelope import EnvelopeError

from .layout import Layout, list_folder, read_json
from .task import State, TaskName
from .taskqueue import exists, parse_delayed, won_file

_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_PROBED_ATTEMPTS, _PROBED_CRASHES = 32, 4  # looked for by name, before a folder of a million files is listed


class Found(NamedTuple):
    """One file that holds the task."""

    state: State
    file: str
    folder: int | None  #: the open folder it lies in; None for a claim: see ``owner``
    owner: str | None = None  #: who runs it
    due: float | None = None  #: epoch seconds, in delayed/


def find(layout: Layout, task_id: str, *, thorough: bool = False) -> Iterator[Found]:
    """Yield where a task is, in the order it travels, so that one on its way is not missed.

    ``thorough`` lists pending/ instead of probing the names of its first attempts.
    """
    yield from _find_waiting(layout, task_id, thorough)
    for file in list_folder(layout.delayed):
        parsed = parse_delayed(file) if task_id in file else None
        if parsed and parsed[1].id == task_id:
            yield Found(State.DELAYED, file, layout.delayed, due=parsed[0])
    for owner in list_folder(layout.claimed):
        for name in _names(layout, task_id, owner):
            yield Found(State.CLAIMED, name.file, None, owner)
    for folder, state in ((layout.done, State.DONE), (layout.failed, State.FAILED)):
        if exists(folder, f"{task_id}.json"):
            yield Found(state, f"{task_id}.json", folder)
    if thorough:
        yield from _find_committed(layout, task_id)


def files(layout: Layout, state: State) -> Iterator[Found]:
    """Yield the files of all tasks in a state, in no order."""
    if state is State.CLAIMED:
        for owner in list_folder(layout.claimed):
            for file in _claims(layout, owner):
                if TaskName.parse(file):
                    yield Found(state, file, None, owner)
        return
    folder: int = getattr(layout, state)
    for file in list_folder(folder):
        if state is State.DELAYED:
            if parsed := parse_delayed(file):
                yield Found(state, file, folder, due=parsed[0])
        elif TaskName.parse(file):
            yield Found(state, file, folder)


def name_of(found: Found) -> TaskName:
    """Return which task a file of the queue is, and which attempt, as far as its name tells."""
    parsed = parse_delayed(found.file) if found.state is State.DELAYED else None
    return (parsed[1] if parsed else TaskName.parse(found.file)) or TaskName(found.file.removesuffix(".json"))


def find_one(layout: Layout, task_id: str) -> Found | None:
    """Return where a task is, or None; a second look catches one that moved backwards during the first."""
    for thorough in (False, True):
        for found in find(layout, task_id, thorough=thorough):
            return found
    return None


def read_found(layout: Layout, found: Found) -> Claimed | None:
    """Read the task's file, an envelope or a record; None where it moved on, or is no task."""
    folder = found.folder
    try:
        if folder is not None:
            return peek(folder, found.file.encode(), 1 << 40, ())
        descriptor = os.open(found.owner or "", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=layout.claimed)
        try:
            return peek(descriptor, found.file.encode(), 1 << 40, ())
        finally:
            os.close(descriptor)
    except (FileNotFoundError, Refused, EnvelopeError):
        return None


def read_record(layout: Layout, task_id: str) -> dict[str, Any] | None:
    """Return the record of an ended task, or None while there is none: what a stranger put there is none."""
    for folder in (layout.done, layout.failed):
        try:
            descriptor = os.open(f"{task_id}.json", _OPEN_FILE, dir_fd=folder)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
                continue
            raise
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                continue
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                record = orjson.loads(file.read())
        except ValueError:
            continue
        finally:
            os.close(descriptor)
        if isinstance(record, dict):
            return record
    return None


def quarantined(layout: Layout, task_id: str) -> str | None:
    """Return why a file of this task's name was refused, or None where none was."""
    for file in sorted(list_folder(layout.quarantine), reverse=True):
        if file.startswith(f"{task_id}.") and file.endswith(".reason"):
            note = read_json(layout.quarantine, file)
            name = TaskName.parse(str(note.get("file"))) if note is not None else None
            if note is not None and name is not None and name.id == task_id:  # of any attempt
                return str(note.get("reason"))
    return None


def _find_waiting(layout: Layout, task_id: str, thorough: bool) -> Iterator[Found]:
    if thorough:
        for file in list_folder(layout.pending):
            name = TaskName.parse(file) if file.startswith(task_id) else None
            if name and name.id == task_id:
                yield Found(State.PENDING, file, layout.pending)
        return
    for attempt in range(_PROBED_ATTEMPTS):
        for crashes in range(min(attempt, _PROBED_CRASHES) + 1):
            file = TaskName(task_id, attempt, crashes).file
            if exists(layout.pending, file):
                yield Found(State.PENDING, file, layout.pending)


def _names(layout: Layout, task_id: str, owner: str) -> Iterator[TaskName]:
    for file in _claims(layout, owner):
        name = TaskName.parse(file) if file.startswith(task_id) else None
        if name and name.id == task_id:
            yield name


def _claims(layout: Layout, owner: str) -> list[str]:
    try:
        descriptor = os.open(owner, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=layout.claimed)
    except (FileNotFoundError, NotADirectoryError):
        return []
    try:
        return list_folder(descriptor)
    finally:
        os.close(descriptor)


def _find_committed(layout: Layout, task_id: str) -> Iterator[Found]:
    """Yield an attempt that has committed and is not published: its worker was killed between these two renames."""
    for result in list_folder(layout.results):
        found_id, tilde, attempt = result.removesuffix(".json").rpartition("~")
        if not tilde or found_id != task_id or not attempt.isdecimal():
            continue
        for folder in (layout.done, layout.failed):
            for crashes in range(int(attempt) + 1):
                if exists(folder, won_file(TaskName(task_id, int(attempt), crashes))):
                    yield Found(State.CLAIMED, result, layout.results)
