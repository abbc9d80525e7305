"""What the gateway tells of tasks: one of them with all that is known, and lists of them, newest first.

A row is ``{id, state, class, kind, attempt, submitted_at, started_at, completed_at, duration_ms, wait_ms, cause, message,
owner}``; times are RFC 3339, null is what is not known or has not happened, ``attempt`` is 0 for the first. Files are read
with their bounds: a record of 64 MB costs a list no more than its reading.
"""

from __future__ import annotations

import base64
import heapq
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import orjson

from ...errors import SupervisorError, TaskNotFound
from ...jobbook import JobBook, is_carried
from ...layout import Layout, list_folder
from ...lookup import Content, Found, files, find_one, name_of, quarantined, read_found
from ...record import timestamp
from ...task import State, TaskName, WorkloadClass, is_task_id
from ...taskqueue import parse_delayed

COLUMNS = (
    *(
        "id",
        "state",
        "class",
        "kind",
        "attempt",
        "submitted_at",
        "started_at",
        "completed_at",
        "duration_ms",
        "wait_ms",
    ),
    *("cause", "message", "owner"),
)
MOST_ROWS = 1000
PAYLOAD_BYTES = 64 << 10  #: a longer payload is shown by its beginning
_PART_BYTES = 256 << 10  # a longer part of a record is left out of it
_TIMED = 10_000  # files whose times are asked for; of more, the order is that of the ids
_READS, _READING_S = 2000, 0.4  # what one page of a filtered list may cost
_TIMES = ("submitted_at", "started_at", "completed_at", "duration_ms", "wait_ms")


class CursorUnknown(SupervisorError):
    """A cursor was not given out by a list."""


class Listed(NamedTuple):
    """One page of a list."""

    tasks: list[dict[str, Any]]
    next: str | None  #: the cursor of the next page


class _Seen(NamedTuple):
    """A file of the queue, in the order of lists."""

    at: int  # nanoseconds of its last writing, 0 where the order is that of the ids
    id: str
    found: Found


def listed(
    layout: Layout,
    *,
    state: State | None = None,
    workload: str | None = None,
    words: str = "",  # that id, kind, cause or message must hold
    limit: int = 100,
    cursor: str | None = None,
) -> Listed:
    """Return a page of tasks, newest first: by the time of writing, by id where there are too many to ask for that.

    A page may hold fewer than ``limit`` where a filter fits few; ``next`` tells whether there is more to look at.
    Raises CursorUnknown for a cursor that is none.
    """
    after = _parse_cursor(cursor) if cursor else None
    seen = _ordered(layout, state, after)
    rows: list[dict[str, Any]] = []
    deadline, needle = time.monotonic() + _READING_S, words.lower()
    for place, one in enumerate(seen):
        if len(rows) >= limit or place >= _READS or (place % 16 == 0 and time.monotonic() > deadline and place):
            last = seen[place - 1]
            return Listed(rows, _cursor(last))
        found = row_of(layout, one.found)
        if found is not None and _fits(found, workload, needle):
            rows.append(found)
    return Listed(rows, None)


def row_of(layout: Layout, found: Found) -> dict[str, Any] | None:
    """Return the row of a task's file, or None where it moved on or is no task."""
    if found.state is not State.DELAYED and TaskName.parse(found.file) is None:
        return None
    got = read_found(layout, found)
    return None if got is None else _row(layout, found, got)


def described(layout: Layout, task_id: str) -> dict[str, Any]:
    """Return all that is known of a task: its row, its payload, of an ended one its record. Raises TaskNotFound.

    Parts that are too long are left out; ``truncated`` names them.
    """
    found, got = _content(layout, task_id)
    if found is None:
        if reason := quarantined(layout, task_id):
            empty = dict.fromkeys(COLUMNS) | {"id": task_id, "state": "quarantined"}
            return empty | {"attempt": 0, "cause": "refused", "message": reason}
        raise TaskNotFound(task_id, layout.path)
    if got is None:
        name = name_of(found)
        return dict.fromkeys(COLUMNS) | {"id": name.id, "state": found.state, "attempt": name.attempt}
    document = _row(layout, found, got)
    if found.due is not None:
        document["due"] = _moment(found.due)
    if found.owner and is_carried(found.owner):
        document["job"] = JobBook(layout).describe(found.file, found.owner)
    start, end = got.fields.payload
    payload = got.data[start:end]
    left_out = []
    if len(payload) <= PAYLOAD_BYTES:
        document["payload"] = orjson.Fragment(payload)
    else:
        document |= {"payload": None, "payload_head": payload[:PAYLOAD_BYTES].decode("utf-8", "replace")}
        document["payload_bytes"] = len(payload)
        left_out.append("payload")
    if found.state in (State.DONE, State.FAILED):
        record: dict[str, Any] = {"id": got.fields.id, "class": got.fields.task_class}
        for key, begin, stop in got.fields.extras:
            if stop - begin <= _PART_BYTES:
                record[key] = orjson.Fragment(got.data[begin:stop])
            else:
                record[key] = None
                left_out.append(f"record.{key}")
        document["record"] = record
    if left_out:
        document["truncated"] = left_out
    return document


def part(got: Content, key: str) -> bytes | None:
    """Return the JSON of one member of a task's file, of those that an envelope has no word for."""
    for name, start, end in got.fields.extras:
        if name == key:
            return got.data[start:end]
    return None


def members(got: Content, *keys: str) -> dict[str, Any]:
    """Return some members of a task's file, parsed; those that are too long to be what they should are left out."""
    found: dict[str, Any] = {}
    for name, start, end in got.fields.extras:
        if name in keys and end - start <= _PART_BYTES:
            found[name] = orjson.loads(got.data[start:end])
    return found


def ended(layout: Layout, task_id: str) -> tuple[State, Content] | None:
    """Return the record of an ended task as it lies there, or None while it has none."""
    if not is_task_id(task_id):
        return None
    for state, folder in ((State.DONE, layout.done), (State.FAILED, layout.failed)):
        try:
            got = read_found(layout, Found(state, f"{task_id}.json", folder))
        except OSError:
            continue
        if got is not None:
            return state, got
    return None


def claimed_at(layout: Layout, found: Found) -> float | None:
    """Return when a claimed task was claimed (epoch seconds): its file's last rename."""
    try:
        return os.stat(f"{found.owner}/{found.file}", dir_fd=layout.claimed, follow_symlinks=False).st_ctime
    except OSError:
        return None


def written_at(layout: Layout, found: Found) -> float | None:
    """Return when a task's file was written (epoch seconds): of one that has not ended, when it was put."""
    path, folder = (f"{found.owner}/{found.file}", layout.claimed) if found.owner else (found.file, found.folder)
    try:
        return os.stat(path, dir_fd=folder, follow_symlinks=False).st_mtime
    except OSError:
        return None


def _content(layout: Layout, task_id: str) -> tuple[Found | None, Content | None]:
    """Return where a task is and what its file holds; one that moves is looked for again."""
    found, got = find_one(layout, task_id), None
    for _ in range(3):
        if found is None or (got := read_found(layout, found)) is not None:
            break
        found = find_one(layout, task_id)
    return found, got


def _row(layout: Layout, found: Found, got: Content) -> dict[str, Any]:
    name, fields = name_of(found), got.fields
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row |= {"id": name.id, "state": str(found.state), "class": str(WorkloadClass.parse(fields.task_class))}
    row |= {"kind": fields.kind, "attempt": name.attempt, "owner": found.owner}
    if found.state in (State.DONE, State.FAILED):
        told = members(got, "error", "attempt", "owner", *_TIMES)
        row |= {key: told[key] for key in ("attempt", "owner", *_TIMES) if isinstance(told.get(key), str | int | float)}
        error = told.get("error")
        if isinstance(error, Mapping):
            row |= {"cause": _text(error.get("cause")), "message": _text(error.get("message"))}
        return row
    submitted = written_at(layout, found)
    row["submitted_at"] = _moment(submitted)
    if found.state is State.CLAIMED and found.owner and not is_carried(found.owner):
        started = claimed_at(layout, found)
        row["started_at"] = _moment(started)
        if started is not None and submitted is not None:
            row["wait_ms"] = round(max(0.0, started - submitted) * 1e3, 3)
    return row


def _fits(row: Mapping[str, Any], workload: str | None, needle: str) -> bool:
    if workload is not None and row["class"] != workload:
        return False
    return not needle or any(needle in str(row[key] or "").lower() for key in ("id", "kind", "cause", "message"))


def _ordered(layout: Layout, state: State | None, after: tuple[int, str] | None) -> list[_Seen]:
    """Return the files of a state, or of all, newest first, from a place on; no more than a page looks at."""
    names = [name for each in ([state] if state else State) for name in _names(layout, each)]
    timed = after[0] > 0 if after is not None else len(names) <= _TIMED and not layout.filesystem.network
    if not timed:  # so many that only those of this page are looked at any closer
        names = heapq.nlargest(_READS + 1, (one for one in names if after is None or one[0] < after[1]))
    latest: dict[str, _Seen] = {}  # a task that moves meanwhile is seen where it got to
    for task_id, each, file, owner in names:
        seen = _Seen(
            0, task_id, Found(State(each), file, None if owner else getattr(layout, each), owner, _due(each, file))
        )
        if timed:
            if not (at := _time(layout, seen.found)) or (after is not None and (at, task_id) >= after):
                continue
            seen = seen._replace(at=at)
        latest[task_id] = seen
    return sorted(latest.values(), key=lambda seen: (seen.at, seen.id), reverse=True)


def _names(layout: Layout, state: State) -> Iterator[tuple[str, str, str, str | None]]:
    """Yield (id, state, file, owner) of what may be a task, at little cost: whether it is one its reading tells."""
    if state is State.CLAIMED or state is State.DELAYED:
        for found in files(layout, state):
            yield name_of(found).id, state, found.file, found.owner
        return
    for file in list_folder(getattr(layout, state)):
        if file.endswith(".json") and not file.startswith("."):
            yield file[:-5].partition("~")[0], state, file, None


def _due(state: str, file: str) -> float | None:
    parsed = parse_delayed(file) if state == State.DELAYED else None
    return parsed[0] if parsed else None


def _time(layout: Layout, found: Found) -> int:
    """Return when a file was last written, in nanoseconds; 0 where it moved on."""
    path, folder = (f"{found.owner}/{found.file}", layout.claimed) if found.owner else (found.file, found.folder)
    try:
        return os.stat(path, dir_fd=folder, follow_symlinks=False).st_mtime_ns
    except OSError:
        return 0


def _cursor(last: _Seen) -> str:
    return base64.urlsafe_b64encode(f"{last.at:x}.{last.id}".encode()).decode().rstrip("=")


def _parse_cursor(cursor: str) -> tuple[int, str]:
    try:
        at, dot, task_id = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode().partition(".")
        if dot and is_task_id(task_id):
            return int(at, 16), task_id
    except ValueError:
        pass
    raise CursorUnknown(f"no list gave out the cursor {cursor[:80]!r}")


def _moment(epoch_s: float | None) -> str | None:
    return None if epoch_s is None else timestamp(epoch_s)[1:-1].decode()


def _text(value: object) -> str | None:
    return None if value is None else str(value)[:4096]


def newest(layout: Layout, state: State, most: int) -> list[str]:
    """Return the ids of the ``most`` newest tasks of a state, newest first."""
    return [one.id for one in _ordered(layout, state, None)[:most] if is_task_id(one.id)]
