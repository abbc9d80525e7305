"""The folder of one task that is a job of a cluster: what the job writes there, and how it takes the attempt.

``slurm/NAME/INDEX/`` of the queue; jobbook tells all its files. Both sides use this: the job's runner, and the bridge.
Of two copies of a job, and of a job and the bridge, only one can make ``start.R.json``: who can't has nothing to do.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from dspy_fastpath.claim import move_new, sync, write_new
from dspy_fastpath.ids import uuid7

from .layout import list_folder, read_json, replace_json

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Sentinel:
    """What the job of one task wrote itself."""

    started: int = -1  #: restarts before the latest start; -1: it did not start
    start: Mapping[str, Any] = field(default_factory=dict)
    exit: Mapping[str, Any] | None = None  #: of the latest start, and no other: an older copy's result is refused
    void: bool = False  #: we took the attempt ourselves: no copy of this job will run
    twice: bool = False  #: Slurm launched the latest start a second time, and that copy left the attempt to the first


@contextlib.contextmanager
def opened_folder(path: str | os.PathLike[str], base: int | None = None) -> Iterator[int]:
    """Open a folder, and no link to one, for as long as it is used. Raises OSError."""
    descriptor = os.open(path, _OPEN, dir_fd=base)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def take(folder: int, restart: int, facts: Mapping[str, Any]) -> bool:
    """Make start.R.json in an open folder; False where somebody else has made it. Raises OSError."""
    token, name = uuid7(), f"start.{restart}.json"
    temporary = f".start.{token}.tmp".encode()
    write_new(folder, temporary, orjson.dumps({"token": token, **facts}, option=orjson.OPT_APPEND_NEWLINE), True)
    try:
        taken = move_new(folder, temporary, folder, name.encode())
    except FileExistsError:
        taken = False
    if not taken and (read_json(folder, name) or {}).get("token") != token:  # NFS may have done it and say it had not
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
        return False
    sync(folder)
    return True


def read_sentinel(folder: int) -> Sentinel:
    """Return what the job whose folder is open wrote itself. Raises OSError for what can't be read at the moment."""
    names = list_folder(folder)
    starts = sorted(number for name in names if (number := _restart(name, "start")) is not None)
    if not starts:
        return Sentinel()
    last = starts[-1]
    start = read_json(folder, f"start.{last}.json") or {}
    void = bool(start.get("void"))
    ended = None if void else read_json(folder, f"exit.{last}.json")
    return Sentinel(last, start, ended, void, f"twice.{last}.json" in names)


def take_start(folder: Path, restart: int, facts: Mapping[str, Any]) -> bool:
    """Take an attempt for this job; False where another copy, or the bridge, has it: then end at once, with success.

    ``folder``: the task's; ``restart``: how often Slurm restarted the job. Raises OSError.
    """
    try:
        with opened_folder(folder) as opened:
            now = read_sentinel(opened)
            if now.void or now.started > restart:
                return False
            if take(opened, restart, facts):
                return True
            # A node that lost power in the midst of a launch gets the same launch again: the bridge must know why this
            # job ends with success and without a word.
            replace_json(opened, f"twice.{restart}.json", facts, durable=True)
            return False
    except (FileNotFoundError, NotADirectoryError):
        return False


def write_beat(folder: Path, restart: int, counter: int) -> None:
    """Show that the job lives. Raises OSError."""
    with opened_folder(folder) as opened:
        replace_json(opened, f"beat.{restart}.json", {"counter": counter}, durable=False)


def write_result(folder: Path, restart: int, result: bytes) -> None:
    """Write the result of the attempt, JSON, before its exit. Raises OSError."""
    with opened_folder(folder) as opened:
        temporary = f".result.{uuid7()}.tmp".encode()
        write_new(opened, temporary, result, True)
        os.rename(temporary, f"result.{restart}.json", src_dir_fd=opened, dst_dir_fd=opened)
        sync(opened)


def write_exit(folder: Path, restart: int, facts: Mapping[str, Any]) -> None:
    """Write how the attempt ended: the last thing a job does. Raises OSError."""
    with opened_folder(folder) as opened:
        replace_json(opened, f"exit.{restart}.json", facts, durable=True)


def _restart(name: str, kind: str) -> int | None:
    head, _, rest = name.partition(".")
    number, _, tail = rest.partition(".")
    return int(number) if head == kind and tail == "json" and number.isdecimal() and len(number) < 10 else None
