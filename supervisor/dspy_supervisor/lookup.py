"""Where a task is, by its id."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import orjson
from dspy_fastpath.claim import Refused, read
from dspy_fastpath.envelope import EnvelopeError, Fields, scan

from .layout import Layout, list_folder, read_json, walk_folder
from .task import State, TaskName, is_task_id
from .taskqueue import DEEPEST, LARGEST_RECORD, MOST_EXTRAS, exists, parse_delayed, won_file

_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_PROBED = 4  # attempts looked for by name where no note of an earlier one was written, as on a full disk


class Found(NamedTuple):
    """One file that holds the task."""

    state: State
    file: str
    folder: int | None  #: the open folder it lies in; None for a claim: see ``owner``
    owner: str | None = None  #: who runs it
    due: float | None = None  #: epoch seconds, in delayed/


def find(layout: Layout, task_id: str, *, thorough: bool = False) -> Iterator[Found]:
    """Yield where a task is, in the order it travels, so that one on its way is not missed.

    ``thorough`` lists pending/ even where nothing tells of an earlier attempt, instead of probing the first names.
    """
    if not is_task_id(task_id):
        return
    thorough = thorough or exists(layout.logs, task_id)  # it was tried before: its name may be of any attempt
    yield from _find_waiting(layout, task_id, thorough)
    for file in list_folder(layout.delayed):
        parsed = parse_delayed(file) if task_id in file else None
        if parsed and parsed[1].id == task_id:
            yield Found(State.DELAYED, file, layout.delayed, due=parsed[0])
    for owner in list_folder(layout.claimed):
        for name in _names(layout, task_id, owner):
            yield Found(State.CLAIMED, name.file, None, owner)
    if thorough or exists(layout.results, TaskName(task_id).result_file):
        yield from _find_committed(layout, task_id)
    for folder, state in ((layout.done, State.DONE), (layout.failed, State.FAILED)):
        if exists(folder, f"{task_id}.json"):
            yield Found(state, f"{task_id}.json", folder)


def find_all(layout: Layout, ids: Collection[str]) -> dict[str, list[Found]]:
    """Return where each of many tasks is, as `find`, but listing each folder once for all of them."""
    known: dict[str, list[Found]] = {task_id: [] for task_id in ids}
    tried = {task_id for task_id in ids if exists(layout.logs, task_id)}
    for task_id in known.keys() - tried:
        known[task_id] += _find_waiting(layout, task_id, False)
    states = (State.PENDING, State.DELAYED, State.CLAIMED) if tried else (State.DELAYED, State.CLAIMED)
    for state in states:
        for found in files(layout, state):
            task_id = name_of(found).id
            if task_id in (tried if state is State.PENDING else known):
                known[task_id].append(found)
    results = {file.rpartition("~")[0] for file in walk_folder(layout.results)}
    for task_id in known.keys() & results:
        known[task_id] += _find_committed(layout, task_id)
    for task_id, places in known.items():
        for folder, state in ((layout.done, State.DONE), (layout.failed, State.FAILED)):
            if exists(folder, f"{task_id}.json"):
                places.append(Found(state, f"{task_id}.json", folder))
    return known


def files(layout: Layout, state: State, *, part: str = "") -> Iterator[Found]:
    """Yield the files of all tasks in a state, in no order; ``part``: only those that have it in their name."""
    if state is State.CLAIMED:
        for owner in list_folder(layout.claimed):
            for file in _claims(layout, owner):
                if part in file and TaskName.parse(file):
                    yield Found(state, file, None, owner)
        return
    folder: int = getattr(layout, state)
    for file in walk_folder(folder):
        if part not in file:
            continue
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


class Content(NamedTuple):
    """What a task's file holds."""

    data: bytes
    fields: Fields


def read_found(layout: Layout, found: Found) -> Content | None:
    """Read the task's file, an envelope or a record; None where it moved on, or is no task."""
    try:
        return read_content(layout, found)
    except (Refused, EnvelopeError):
        return None


def read_content(layout: Layout, found: Found, most_bytes: int = LARGEST_RECORD) -> Content | None:
    """Read the task's file; None where it moved on. Raises Refused or EnvelopeError for what is no task, and OSError."""
    try:
        with folder_of(layout, found) as folder:
            data = read(folder, found.file.encode(), most_bytes, ()).data
    except FileNotFoundError:
        return None
    return Content(data, scan(data, DEEPEST, MOST_EXTRAS))


@contextlib.contextmanager
def folder_of(layout: Layout, found: Found) -> Iterator[int]:
    """Yield the open folder that holds the file. Raises OSError."""
    if found.folder is not None:
        yield found.folder
        return
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(found.owner or "", flags, dir_fd=layout.claimed)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_record(layout: Layout, task_id: str) -> dict[str, Any] | None:
    """Return the record of an ended task, or None while there is none: what a stranger put there is none."""
    if not is_task_id(task_id):  # nor may it lead anywhere else
        return None
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
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                continue
            record = orjson.loads(_read_all(descriptor, status.st_size))
        except ValueError:
            continue
        finally:
            os.close(descriptor)
        if isinstance(record, dict):
            return record
    return None


def _read_all(descriptor: int, size: int) -> bytes:
    """Return what a file of this size holds: one call, where a file object would make six."""
    data = os.read(descriptor, size)
    while 0 < len(data) < size:
        more = os.read(descriptor, size - len(data))
        if not more:
            break
        data += more
    return data


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
        for file in walk_folder(layout.pending):
            name = TaskName.parse(file) if file.startswith(task_id) else None
            if name and name.id == task_id:
                yield Found(State.PENDING, file, layout.pending)
        return
    for attempt in range(_PROBED):
        for crashes in range(attempt + 1):
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
    except (FileNotFoundError, NotADirectoryError, PermissionError):  # a stranger's
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
