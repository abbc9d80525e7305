"""What the queue asks of a filesystem, tried in a folder of it: rename, links, sync, locks, events.

A trial returns a Finding: ok, warn (it works, but less well, or with a risk that is named) or fail, and then a remedy.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from .filesystem import Filesystem

_EVENT_WITHIN_S = 2.0
_RENAME_NOREPLACE = 1


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Finding(NamedTuple):
    """The answer to one question; ``remedy`` is empty where nothing needs to be done."""

    check: str
    level: Level
    message: str
    remedy: str = ""


def try_all(scratch: Path, kind: Filesystem) -> Iterator[Finding]:
    """Yield what each call of the queue's does in this folder; it leaves files there."""
    for name, trial in _TRIALS.items():
        try:
            yield trial(scratch, kind)
        except OSError as error:
            yield Finding(name, Level.FAIL, f"did not work here: {error}", "name a folder on a local disk: --queue-dir")


def _rename(scratch: Path, kind: Filesystem) -> Finding:
    (scratch / "from").mkdir()
    (scratch / "to").mkdir()
    (scratch / "from/a").write_bytes(b"one")
    (scratch / "to/a").write_bytes(b"two")
    inode = (scratch / "from/a").stat().st_ino
    (scratch / "from/a").rename(scratch / "to/a")
    moved = scratch / "to/a"
    if moved.stat().st_ino != inode or moved.read_bytes() != b"one" or (scratch / "from/a").exists():
        return Finding(
            "rename", Level.FAIL, "a rename made another file of it", "a claim is a rename: use a local disk"
        )
    return Finding("rename", Level.OK, "moves the same file between folders, and replaces what was there")


def _rename_new(scratch: Path, kind: Filesystem) -> Finding:
    (scratch / "new").write_bytes(b"one")
    (scratch / "taken").write_bytes(b"two")
    libc = ctypes.CDLL(None, use_errno=True)
    here = -100  # AT_FDCWD
    failed = libc.renameat2(here, bytes(scratch / "new"), here, bytes(scratch / "taken"), _RENAME_NOREPLACE)
    why = ctypes.get_errno()
    if not failed:
        return Finding("RENAME_NOREPLACE", Level.FAIL, "replaced a file all the same", "use a local disk")
    if why == errno.EEXIST:
        return Finding("RENAME_NOREPLACE", Level.OK, "refuses to replace a file")
    message = f"not on {kind.name} ({os.strerror(why)}): a hard link is made in its place"
    return Finding("RENAME_NOREPLACE", Level.WARN if kind.network else Level.OK, message)


def _link(scratch: Path, kind: Filesystem) -> Finding:
    (scratch / "linked").write_bytes(b"x")
    try:
        os.link(scratch / "linked", scratch / "second")
    except OSError as error:
        level = Level.FAIL if kind.network else Level.WARN
        return Finding("hard link", level, f"{error.strerror}: only RENAME_NOREPLACE keeps tasks apart here")
    if (scratch / "linked").stat().st_nlink != 2:
        return Finding("hard link", Level.WARN, "the link count is wrong")
    return Finding("hard link", Level.OK, "the second way to publish without replacing works")


def _fsync(scratch: Path, kind: Filesystem) -> Finding:
    took = []
    folder = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for number in range(5):
            fd = os.open(f"synced{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
            try:
                os.write(fd, b"x" * 1024)
                began = time.perf_counter()
                os.fsync(fd)
            finally:
                os.close(fd)
            os.fsync(folder)
            took.append(time.perf_counter() - began)
    finally:
        os.close(folder)
    median = sorted(took)[2] * 1000
    message = f"a file and its folder in {median:.2f} ms: about {1000 / median:.0f} single submits a second"
    if median > 100:
        return Finding("fsync", Level.WARN, message, "submit many tasks at once (--jsonl), or --durability none")
    return Finding("fsync", Level.OK, message)


def _flock(scratch: Path, kind: Filesystem) -> Finding:
    with (scratch / "lock").open("wb") as first, (scratch / "lock").open("wb") as second:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return Finding("flock", Level.OK, "a second lock is refused while the first is held")
    level = Level.WARN if kind.network else Level.FAIL
    return Finding(
        "flock", level, "two locks on one file at once", "the supervisor locks in --runtime-dir: keep that local"
    )


def _inotify(scratch: Path, kind: Filesystem) -> Finding:
    from dspy_fastpath.inotify import Watcher

    (scratch / "watched").mkdir()
    (scratch / "task").write_bytes(b"{}")
    try:
        watcher = Watcher()
    except OSError as error:
        remedy = "sysctl fs.inotify.max_user_instances=512, or end what uses them"
        return Finding("inotify", Level.FAIL, f"no instance: {error.strerror}", remedy)
    with watcher:
        watcher.add(scratch / "watched")
        began = time.monotonic()
        (scratch / "task").rename(scratch / "watched/task.json")
        while (left := began + _EVENT_WITHIN_S - time.monotonic()) > 0 and watcher.wait(left):
            if any(name == b"task.json" for _, name, _ in watcher.take()[0]):
                took = (time.monotonic() - began) * 1000
                return Finding("inotify", Level.OK, f"an event of this very folder arrived in {took:.2f} ms")
    message = f"no event of this folder in {_EVENT_WITHIN_S:.0f} s: it is looked at each second instead"
    return Finding("inotify", Level.WARN, message, "a folder on ext4, xfs or btrfs wakes workers at once")


_TRIALS: dict[str, Callable[[Path, Filesystem], Finding]] = {
    "rename": _rename,
    "RENAME_NOREPLACE": _rename_new,
    "hard link": _link,
    "fsync": _fsync,
    "flock": _flock,
    "inotify": _inotify,
}


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """Make a hidden private folder, which no reader of the queue looks into, and remove it with all that is in it."""
    path = folder / f".doctor-{os.getpid()}-{time.monotonic_ns()}.tmp"
    path.mkdir(mode=0o700)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
