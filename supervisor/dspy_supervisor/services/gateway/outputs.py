"""What a task wrote, from the files in logs/ID/: the last lines of it, and then what comes until the task has ended.

``stdout.ATTEMPT.txt`` and ``stderr.ATTEMPT.txt`` are of the command handler, ``job.ATTEMPT.out`` of a Slurm job.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

from ...client.access import Access
from ...errors import SupervisorError
from ...layout import Layout, list_folder
from ...lookup import find_one
from ...task import State

STREAMS = ("stdout", "stderr", "job")
MOST_LINES = 10_000
_MOST_BYTES = 1 << 20  # of which the last lines are taken
_LOOK_S = 0.25  # a file that grows raises no event that we listen to
_FILE = re.compile(r"(?:(stdout|stderr)\.([0-9]{1,9})\.txt|(job)\.([0-9]{1,9})\.out)")
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Output(NamedTuple):
    """The end of what one attempt wrote."""

    attempt: int
    data: bytes
    end: int  #: where in the file the next byte will be


def tail(layout: Layout, task_id: str, stream: str, lines: int, attempt: int | None = None) -> Output | None:
    """Return the last lines that an attempt wrote, the last one that wrote any by default; None where no such task is."""
    written = _attempts(layout, task_id, stream)
    if attempt is None and written:
        attempt = max(written)
    if attempt in written:
        data, end = _read(
            layout, task_id, written[attempt], max(0, _size(layout, task_id, written[attempt]) - _MOST_BYTES)
        )
        return Output(attempt, _last_lines(data, lines), end)
    return None if find_one(layout, task_id) is None else Output(attempt or 0, b"", 0)


async def follow(
    access: Access, task_id: str, stream: str, output: Output, is_over: Callable[[], bool]
) -> AsyncIterator[bytes]:
    """Yield what a task wrote and writes, over its attempts, until it has ended."""
    loop = asyncio.get_running_loop()
    attempt, end = output.attempt, output.end
    if output.data:
        yield output.data
    while not is_over():
        try:
            found = await loop.run_in_executor(None, _more, access.now(), task_id, stream, attempt, end)
        except (SupervisorError, OSError):
            return  # the queue went away under it
        data, attempt, end, over = found
        if data:
            yield data
        elif over:
            return
        else:
            await asyncio.sleep(_LOOK_S)


def _more(layout: Layout, task_id: str, stream: str, attempt: int, end: int) -> tuple[bytes, int, int, bool]:
    """Return what comes next, of which attempt, where that ends, and whether the task has ended."""
    found = find_one(layout, task_id)  # before reading: what is written before the end must not be missed
    over = found is None or found.state in (State.DONE, State.FAILED)
    written = _attempts(layout, task_id, stream)
    data = b""
    if attempt in written:
        data, end = _read(layout, task_id, written[attempt], end)
    if not data and (later := sorted(number for number in written if number > attempt)):
        attempt = later[0]
        data, end = _read(layout, task_id, written[attempt], 0)
    return data, attempt, end, over


def _attempts(layout: Layout, task_id: str, stream: str) -> dict[int, str]:
    """Return the file of each attempt that wrote something."""
    try:
        folder = os.open(task_id, _OPEN_FOLDER, dir_fd=layout.logs)
    except OSError:
        return {}
    try:
        names = list_folder(folder)
    finally:
        os.close(folder)
    found = [match for name in names if (match := _FILE.fullmatch(name)) and stream in (match[1], match[3])]
    return {int(match[2] or match[4]): match[0] for match in found}


def _size(layout: Layout, task_id: str, file: str) -> int:
    try:
        return os.stat(f"{task_id}/{file}", dir_fd=layout.logs, follow_symlinks=False).st_size
    except OSError:
        return 0


def _read(layout: Layout, task_id: str, file: str, start: int) -> tuple[bytes, int]:
    """Return what a file holds from a place on, at most so much, and where that ends; nothing of what is no plain file."""
    try:
        folder = os.open(task_id, _OPEN_FOLDER, dir_fd=layout.logs)
        try:
            descriptor = os.open(file, _OPEN_FILE, dir_fd=folder)
        finally:
            os.close(folder)
    except OSError:
        return b"", start
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return b"", start
        data = os.pread(descriptor, _MOST_BYTES, start)
        return data, start + len(data)
    finally:
        os.close(descriptor)


def _last_lines(data: bytes, lines: int) -> bytes:
    place = len(data)
    for _ in range(lines):
        place = data.rfind(b"\n", 0, max(0, place - 1)) + 1
        if not place:
            return data
    return data[place:]
