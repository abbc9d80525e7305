"""Putting tasks into a queue: complete, durable and once, or not at all.

A task is written to a hidden file beside its target, synced, moved without replacing anything, and the folder synced; only
then is it acknowledged. put_many does this for all its tasks with a constant number of syncs.

An id names one task for as long as the queue remembers it. Putting the same content again is answered as accepted, so a
producer that doesn't know whether it got through may simply repeat; other content raises DuplicateTask.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterable, Sequence
from typing import Any

import orjson
from dspy_fastpath.claim import move_new, sync, sync_filesystem, write_new
from dspy_fastpath.envelope import EnvelopeError, Fields, scan
from dspy_fastpath.ids import uuid7

from .errors import DuplicateTask, EnvelopeInvalid, QueueFull, SupervisorError, TaskNotFound
from .layout import Layout, list_folder
from .lookup import find, find_one, read_found, read_record
from .record import same_task
from .task import State, TaskName, is_task_id
from .taskqueue import UNKNOWN, delayed_file, exists

_RESERVE_BYTES, _RESERVE_INODES = 64 << 20, 1000  # kept free so that what runs can still write its result
_RESERVE_SHARE = 20  # but no more than a 20th of a small filesystem


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
    _refuse_not_finite(value)
    return orjson.dumps(value)


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
        if len(stack) > 50_000_000:
            raise ValueError("it contains itself, or more than 50 million values")


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
            return
        self._depth.admit(1, len(document))
        temporary = self._write(task_id, document, self.layout.syncs)
        if not self._publish(temporary, task_id, document, fields, due, fresh):
            return
        if self.layout.syncs:
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
        if not fresh:
            checked = [
                (i, document, fields) for i, document, fields in checked if not self._is_there(i, document, fields)
            ]
        if not checked:
            return
        self._depth.admit(len(checked), sum(len(document) for _, document, _ in checked))
        network = self.layout.filesystem.network
        written: list[str] = []
        published = 0
        try:
            for task_id, document, _ in checked:
                # A file server commits by file; a local disk takes all of them with one call.
                written.append(self._write(task_id, document, self.layout.syncs and network))
            if self.layout.syncs and not network:
                sync_filesystem(self.layout.pending)
            for (task_id, document, fields), temporary in zip(checked, written, strict=True):
                self._publish(temporary, task_id, document, fields, due, fresh)
                published += 1
        except BaseException:
            for temporary in written[published:]:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=self.layout.pending)
            raise
        if self.layout.syncs:
            sync(self.layout.pending)
            if due is not None:
                sync(self.layout.delayed)

    def _write(self, task_id: str, document: bytes, durable: bool) -> str:
        temporary = f".{task_id}.{uuid7()}.tmp"
        write_new(self.layout.pending, temporary.encode(), document, durable)
        return temporary

    def _publish(
        self, temporary: str, task_id: str, document: bytes, fields: Fields, due: float | None, fresh: bool
    ) -> bool:
        """Move a written task to where it waits; False where the very same task was there before."""
        layout = self.layout
        name = TaskName(task_id)
        folder, target = (layout.pending, name.file) if due is None else (layout.delayed, delayed_file(due, name))
        for tries_left in reversed(range(3)):
            try:
                move_new(layout.pending, temporary.encode(), folder, target.encode())
                break
            except FileExistsError:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=layout.pending)
                if self._is_there(task_id, document, fields):
                    return False
                raise DuplicateTask(task_id, "pending") from None
            except OSError as error:
                # Unknown: the source is ours alone, so its being gone says that it was moved.
                if error.errno in UNKNOWN and not exists(layout.pending, temporary):
                    break
                if error.errno in UNKNOWN and tries_left:
                    continue
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=layout.pending)
                raise
        if not fresh:
            self._withdraw_second(task_id, folder, target, document, fields)
        return True

    def _withdraw_second(self, task_id: str, folder: int, target: str, document: bytes, fields: Fields) -> None:
        """Undo a put whose id appeared elsewhere between the look and the move."""
        for found in find(self.layout, task_id):
            if (found.folder, found.file) == (folder, target):
                continue
            same = self._is_same(found, document, fields)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(target, dir_fd=folder)
            if not same:
                raise DuplicateTask(task_id, found.state)
            return

    def _is_there(self, task_id: str, document: bytes, fields: Fields) -> bool:
        """Whether this very task is in the queue already. Raises DuplicateTask for another one of its id."""
        for found in find(self.layout, task_id):
            if self._is_same(found, document, fields):
                return True
            raise DuplicateTask(task_id, found.state)
        return False

    def _is_same(self, found: Any, document: bytes, fields: Fields) -> bool:
        got = read_found(self.layout, found)
        return got is not None and same_task(document, fields, got.data, got.fields)


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
        if near or now - self._counted_at > max(1.0, 20 * self._cost_s):
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
            names = [name for name in list_folder(folder) if not name.startswith(".")]
            self._tasks += len(names)
            if self._layout.max_pending_bytes:
                for name in names:
                    with contextlib.suppress(FileNotFoundError):
                        self._bytes += os.stat(name, dir_fd=folder, follow_symlinks=False).st_size
        self._counted_at = time.monotonic()
        self._cost_s = self._counted_at - began


def read_jsonl(lines: Iterable[bytes]) -> Iterable[tuple[int, bytes]]:
    """Yield (line number, JSON) of each line that isn't blank."""
    for number, line in enumerate(lines, 1):
        if stripped := line.strip():
            yield number, stripped
