"""Putting tasks into a queue: complete, durable and once, or not at all.

A task is written to a hidden file beside its target, synced, moved without replacing anything, and the folder synced; only
then is it acknowledged. put_many does this for all its tasks with a constant number of syncs.

An id names one task for as long as the queue remembers it. Putting the same content again is answered as accepted, so a
producer that doesn't know whether it got through may simply repeat; other content raises DuplicateTask.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson
from dspy_fastpath.claim import Refused, move_new, sync, sync_filesystem, write_new
from dspy_fastpath.envelope import EnvelopeError, Fields, scan
from dspy_fastpath.ids import uuid7

from .errors import DuplicateTask, EnvelopeInvalid, QueueFull, SupervisorError, TaskNotFound
from .layout import Layout, list_folder, walk_folder
from .lookup import Found, find, find_all, find_one, read_content, read_record
from .record import same_task
from .task import State, TaskName, is_task_id
from .taskqueue import UNKNOWN, delayed_file, exists

_RESERVE_BYTES, _RESERVE_INODES = 64 << 20, 1000  # kept free so that what runs can still write its result
_RESERVE_SHARE = 20  # but no more than a 20th of a small filesystem
_TRIES, _MOVING_S = 20, 0.002  # looks at a task that moves, and between two of them


def envelope(
    payload: Any = None,
    *,
    raw_payload: bytes | None = None,  # JSON, in place of payload
    task_id: str,
    **options: Any,  # the envelope's other keys; None: absent
) -> bytes:
    """Return the JSON of a task. Raises EnvelopeInvalid where the payload is no JSON."""
    document: dict[str, Any] = {"id": task_id}
    document.update((key, value) for key, value in options.items() if value is not None)
    try:
        # Written by the encoder that reads it: what can't be carried is refused here, by name, not in a worker.
        document["payload"] = orjson.Fragment(raw_payload if raw_payload is not None else _payload(payload))
        return orjson.dumps(document)
    except (TypeError, ValueError, RecursionError) as error:
        raise EnvelopeInvalid(
            "payload", f"{error}; a payload is JSON: dict, list, str, int, float, bool or None"
        ) from None


def id_of_key(key: str) -> str:
    """Return the id of the one task that an idempotency key stands for, in every program that puts tasks."""
    from hashlib import blake2s  # only for those that use keys: it loads OpenSSL

    return f"k-{blake2s(key.encode()).hexdigest()}"


def put_again(layout: Layout, task_id: str) -> None:
    """Let a failed task be tried again, with all its attempts: its record becomes its envelope, by one rename.

    Raises TaskNotFound, and SupervisorError where it has not failed.
    """
    found = find_one(layout, task_id)
    if found is None:
        raise TaskNotFound(task_id, layout.path)
    record = read_record(layout, task_id) if found.state is State.FAILED else None
    if record is None:
        raise SupervisorError(f"task {task_id} is {found.state}: only a failed one can be tried again")
    attempt = record.get("attempt")
    name = TaskName(task_id, (attempt if isinstance(attempt, int) else 0) + 1)
    # Notes first: a budget that begins anew for a task that then stays failed does no harm, the reverse would.
    _forget_attempts(layout, task_id)
    if not move_new(layout.failed, f"{task_id}.json".encode(), layout.pending, name.file.encode()):
        raise SupervisorError(f"task {task_id} is moving; try again")
    if layout.syncs:
        sync(layout.pending)
        sync(layout.failed)


def _forget_attempts(layout: Layout, task_id: str) -> None:
    try:
        folder = os.open(task_id, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=layout.logs)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        for note in list_folder(folder):
            if note.startswith("attempt.") and note.endswith(".json"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(note, dir_fd=folder)
    finally:
        os.close(folder)


def _payload(value: Any) -> bytes:
    document = orjson.dumps(value)  # first: it refuses what contains itself
    if b"null" in document:  # which is what it writes for NaN, too
        _refuse_not_finite(value)
    return document


def _refuse_not_finite(value: Any) -> None:
    """Raise ValueError for NaN and infinity, which orjson would write as null."""
    stack = [value]
    while stack:
        part = stack.pop()
        if isinstance(part, float) and not math.isfinite(part):
            raise ValueError(f"{part} is not a JSON number")
        if isinstance(part, dict):
            stack.extend(part.values())
        elif isinstance(part, list | tuple):
            stack.extend(part)
        elif fields := getattr(part, "__dataclass_fields__", None):
            stack.extend(getattr(part, name) for name in fields)


class Producer:
    """Puts tasks into the queue of a layout, within its bounds."""

    def __init__(self, layout: Layout, *, max_bytes: int = 64 << 20) -> None:
        self.layout = layout
        self.max_bytes = max_bytes  #: largest task, bytes
        self._depth = Depth(layout)

    def check(self, task_id: str, document: bytes) -> Fields:
        """Raise EnvelopeInvalid, naming the place, where a task can't be accepted."""
        if not is_task_id(task_id):
            raise EnvelopeInvalid(
                f"id {task_id!r}",
                "an id is 1 to 100 of letters, digits, '.', '_', '-', and begins with a letter or digit",
            )
        if len(document) > self.max_bytes:
            raise EnvelopeInvalid(f"task {task_id}", f"{len(document)} bytes, more than the bound of {self.max_bytes}")
        try:
            return scan(document)
        except EnvelopeError as error:
            raise EnvelopeInvalid(f"task {task_id}", str(error)) from None

    def put(self, task_id: str, document: bytes, *, due: float | None = None, fresh: bool = False) -> None:
        """Accept one task; when this returns it is in the queue, as durably as the queue promises.

        ``due``: not before this time (epoch seconds). ``fresh``: the id was just made and can't be in use.
        Raises EnvelopeInvalid, DuplicateTask, QueueFull, OSError; then nothing was accepted.
        """
        fields = self.check(task_id, document)
        if not fresh and self._is_there(task_id, document, fields):
            self._sync_all()
            return
        self._depth.admit(1, len(document))
        if not self._put(self._write(task_id, document, self.layout.syncs), task_id, document, fields, due, fresh):
            self._sync_all()
        elif self.layout.syncs:
            sync(self.layout.pending if due is None else self.layout.delayed)
            if due is not None:
                sync(self.layout.pending)

    def put_many(self, tasks: Sequence[tuple[str, bytes]], *, due: float | None = None, fresh: bool = False) -> None:
        """Accept many tasks with a constant number of syncs; when this returns all are in the queue.

        Nothing is moved into the queue before all of it is valid, within the bounds, written and synced. Where moving
        fails half-way some are accepted: putting the same again completes the rest.
        """
        checked = [(task_id, document, self.check(task_id, document)) for task_id, document in tasks]
        if len({task_id for task_id, _ in tasks}) != len(tasks):
            raise EnvelopeInvalid("put_many", "an id is there twice")
        known: Mapping[str, Sequence[Found]] = {} if fresh else find_all(self.layout, [i for i, _, _ in checked])
        new = [
            (i, document, fields)
            for i, document, fields in checked
            if not known.get(i) or not self._is_there(i, document, fields)
        ]
        there = len(checked) - len(new)
        if new:
            self._depth.admit(len(new), sum(len(document) for _, document, _ in new))
            there += self._put_all(new, due, fresh)
        if there:
            self._sync_all()
        elif self.layout.syncs:
            sync(self.layout.pending)
            if due is not None:
                sync(self.layout.delayed)

    def _put_all(self, new: Sequence[tuple[str, bytes, Fields]], due: float | None, fresh: bool) -> int:
        """Write all, sync once, move all; return how many turned out to be there already."""
        layout, there = self.layout, 0
        network = layout.filesystem.network
        written: list[str] = []
        published = 0
        try:
            for task_id, document, _ in new:
                # A file server commits by file; a local disk takes all of them with one call.
                written.append(self._write(task_id, document, layout.syncs and network))
            if layout.syncs and not network:
                sync_filesystem(layout.pending)
            for (task_id, document, fields), temporary in zip(new, written, strict=True):
                published += 1
                there += not self._put(temporary, task_id, document, fields, due, fresh=True)
        except BaseException:
            for temporary in written[published:]:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=layout.pending)
            raise
        if fresh:
            return there
        # Whether an id appeared elsewhere meanwhile is asked once for all of them.
        known = find_all(layout, [task_id for task_id, _, _ in new])
        for task_id, document, fields in new:
            folder, target = self._target(task_id, due)
            if any((found.folder, found.file) != (folder, target) for found in known[task_id]) and not self._stays(
                task_id, folder, target, document, fields
            ):
                there += not self._put(
                    self._write(task_id, document, layout.syncs), task_id, document, fields, due, fresh=False
                )
        return there

    def _write(self, task_id: str, document: bytes, durable: bool) -> str:
        temporary = f".{task_id}.{uuid7()}.tmp"
        try:
            write_new(self.layout.pending, temporary.encode(), document, durable)
        except OSError as error:
            error.filename = str(self.layout.path / "pending")  # what somebody can do something about
            raise
        return temporary

    def _target(self, task_id: str, due: float | None) -> tuple[int, str]:
        """Return folder and name under which a new task waits."""
        name = TaskName(task_id)
        return (self.layout.pending, name.file) if due is None else (self.layout.delayed, delayed_file(due, name))

    def _put(
        self, temporary: str, task_id: str, document: bytes, fields: Fields, due: float | None, fresh: bool
    ) -> bool:
        """Move a written task to where it waits; False where the very same task is in the queue without us.

        Raises DuplicateTask where another of its id is.
        """
        folder, target = self._target(task_id, due)
        for _ in range(_TRIES):
            if self._publish(temporary, folder, target) and (
                fresh or self._stays(task_id, folder, target, document, fields)
            ):
                return True
            if self._is_there(task_id, document, fields):
                return False
            # It was taken out between our two looks, by a producer that gave way to us, or with the temporary file.
            temporary = self._write(task_id, document, self.layout.syncs)
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=self.layout.pending)
        raise SupervisorError(f"task {task_id} can't be put: somebody removes it again and again")

    def _publish(self, temporary: str, folder: int, target: str) -> bool:
        """Move a written file to its name; False where something has that name, or the file is gone."""
        layout = self.layout
        for tries_left in reversed(range(3)):
            try:
                moved = move_new(layout.pending, temporary.encode(), folder, target.encode())
                # Gone: over a network that is the answer to a move whose first answer was lost, and the source is ours alone.
                return moved or layout.filesystem.network
            except OSError as error:
                if error.errno in UNKNOWN and not exists(layout.pending, temporary):
                    return True
                if error.errno in UNKNOWN and tries_left:
                    continue
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=layout.pending)
                if error.errno == errno.EEXIST:
                    return False
                raise
        raise AssertionError("unreachable: the last try returns or raises")

    def _stays(self, task_id: str, folder: int, target: str, document: bytes, fields: Fields) -> bool:
        """Whether the task just put may stay, which it does not where its id appeared elsewhere meanwhile.

        Of two that wait, the one whose name sorts first waits for the other to give way, so that not both do. One that is
        out again must be looked for by its producer: only when the other is there, it is accepted.
        """
        mine = Found(State.PENDING if folder == self.layout.pending else State.DELAYED, target, folder)
        for looks_left in reversed(range(_TRIES)):
            others = [found for found in find(self.layout, task_id) if (found.folder, found.file) != (folder, target)]
            if not others or not exists(folder, target):  # gone on, and so it is what was seen
                return True
            waits = others[0].state in (State.PENDING, State.DELAYED)
            same = self._is_same(others[0], document, fields)
            if same is None or (looks_left and waits and (mine.state, target) > (others[0].state, others[0].file)):
                time.sleep(_MOVING_S)
                continue
            try:
                os.unlink(target, dir_fd=folder)
            except FileNotFoundError:  # claimed at this moment: it runs
                return True
            if not same:
                raise DuplicateTask(task_id, others[0].state)
            return False
        return True

    def _is_there(self, task_id: str, document: bytes, fields: Fields) -> bool:
        """Whether this very task is in the queue already. Raises DuplicateTask for another one of its id."""
        for _ in range(_TRIES):
            found = next(find(self.layout, task_id), None)
            if found is None:
                return False
            same = self._is_same(found, document, fields)
            if same:
                return True
            if same is not None:
                raise DuplicateTask(task_id, found.state)
            time.sleep(_MOVING_S)
        raise SupervisorError(f"task {task_id} is moving; try again")

    def _is_same(self, found: Found, document: bytes, fields: Fields) -> bool | None:
        """Whether a file holds this very task; None where it moved on before it was read."""
        try:
            got = read_content(self.layout, found)
        except Refused as error:
            return None if error.links > 1 else False  # a put by link and unlink shows two names for a moment
        except EnvelopeError:
            return False
        return None if got is None else same_task(document, fields, got.data, got.fields)

    def _sync_all(self) -> None:
        """Put on the disk what another producer may have put, and died before it was synced: only then is it accepted."""
        if self.layout.syncs:
            (sync if self.layout.filesystem.network else sync_filesystem)(self.layout.pending)


class Depth:
    """How full the queue is, for a producer: counted anew only as often as it can matter."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._tasks = self._bytes = 0
        self._counted_at = float("-inf")  # monotonic seconds
        self._cost_s = 0.0

    def admit(self, tasks: int, size: int) -> None:
        """Raise QueueFull where so much more would be over a bound, or into the reserve of the disk."""
        layout = self._layout
        disk = os.fstatvfs(layout.root)
        reserve = min(_RESERVE_BYTES, disk.f_blocks * disk.f_frsize // _RESERVE_SHARE)
        free = disk.f_bavail * disk.f_frsize
        if free - size < reserve:
            raise QueueFull(f"what would be left free on the disk of {layout.path}, in bytes,", free - size, reserve)
        if disk.f_files and disk.f_favail - tasks < min(_RESERVE_INODES, disk.f_files // _RESERVE_SHARE):
            raise QueueFull(
                f"what would be left of inodes on the disk of {layout.path}", disk.f_favail - tasks, _RESERVE_INODES
            )
        if not layout.max_pending and not layout.max_pending_bytes:
            return
        now = time.monotonic()
        near = layout.max_pending and self._tasks + tasks > layout.max_pending * 0.95
        near = near or (layout.max_pending_bytes and self._bytes + size > layout.max_pending_bytes * 0.95)
        # Near a bound the count must be fresh; a folder that takes long to count is still not counted for every task.
        if now - self._counted_at > (4 * self._cost_s if near else max(1.0, 20 * self._cost_s)):
            self._count()
        if layout.max_pending and self._tasks + tasks > layout.max_pending:
            raise QueueFull("the number of waiting tasks", self._tasks, layout.max_pending)
        if layout.max_pending_bytes and self._bytes + size > layout.max_pending_bytes:
            raise QueueFull("the size of all waiting tasks, in bytes,", self._bytes, layout.max_pending_bytes)
        self._tasks += tasks
        self._bytes += size

    def _count(self) -> None:
        began = time.monotonic()
        self._tasks = self._bytes = 0
        for folder in (self._layout.pending, self._layout.delayed):
            for name in walk_folder(folder):
                if name.startswith("."):
                    continue
                self._tasks += 1
                if self._layout.max_pending_bytes:
                    with contextlib.suppress(FileNotFoundError):
                        self._bytes += os.stat(name, dir_fd=folder, follow_symlinks=False).st_size
        self._counted_at = time.monotonic()
        self._cost_s = self._counted_at - began


def read_jsonl(lines: Iterable[bytes]) -> Iterable[tuple[int, bytes]]:
    """Yield (line number, JSON) of each line that isn't blank."""
    for number, line in enumerate(lines, 1):
        if stripped := line.strip():
            yield number, stripped
