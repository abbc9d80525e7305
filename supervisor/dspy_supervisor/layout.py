"""The folders of one queue: made, checked, and held open as descriptors.

::

    queue.json     identity: {"format": 1, "queue_id": ..., "durability": ..., "max_pending": ..., "max_pending_bytes": ...}
    paused.json    there while the queue, or some of its classes, are paused
    pending/       what nobody has claimed: the public drop box      claimed/OWNER/   what one worker runs
    delayed/       what waits for its time                           results/         records before their commit
    done/ failed/  records: exactly one .json a task                 quarantine/      what was refused, with the reason
    nodes/         heartbeats of supervisors                         logs/ID/         output and past attempts of a task

All moves are renames between these descriptors, so the folder may itself be moved, and a folder that was removed and made
again is noticed (`Layout.is_current`) instead of being written into by its old name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

import orjson
from dspy_fastpath.claim import Refused, move_new, read, sync, write_new
from dspy_fastpath.ids import uuid7

from .errors import ConfigError, QueueFormat, QueueMissing, QueueUnsafe
from .filesystem import Filesystem, filesystem

FORMAT = 1  #: of all that lies in the folder; another number needs a step in migration.py
FOLDERS = ("pending", "delayed", "claimed", "results", "done", "failed", "quarantine", "nodes", "logs")
IDENTITY = "queue.json"
PAUSED = "paused.json"
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Durability(StrEnum):
    """What a power cut may take. Every level is atomic against the death of processes."""

    NONE = "none"  #: the last seconds of what was accepted may be lost or empty
    TASK = "task"  #: what was acknowledged survives; a completion of the last seconds may run again
    FULL = "full"  #: a completion that was reported survives too


class Layout:
    """The open folders of one queue."""

    def __init__(
        self, path: Path, identity: Mapping[str, Any], descriptors: Mapping[str, int], kind: Filesystem
    ) -> None:
        self.path = path
        self.queue_id = str(identity["queue_id"])
        self.durability = Durability(identity["durability"])
        self.max_pending = int(identity.get("max_pending", 0))  #: tasks; 0: no bound
        self.max_pending_bytes = int(identity.get("max_pending_bytes", 0))  #: 0: no bound
        self.filesystem = kind
        self._descriptors = dict(descriptors)
        self.root = descriptors["."]
        self.pending = descriptors["pending"]
        self.delayed = descriptors["delayed"]
        self.claimed = descriptors["claimed"]
        self.results = descriptors["results"]
        self.done = descriptors["done"]
        self.failed = descriptors["failed"]
        self.quarantine = descriptors["quarantine"]
        self.nodes = descriptors["nodes"]
        self.logs = descriptors["logs"]
        status = os.fstat(self.root)
        self.device = status.st_dev
        #: owners of files that may be run; () where the folder's group was let in on purpose, so anybody who can write
        self.owners: tuple[int, ...] = (
            () if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else tuple({os.geteuid(), status.st_uid, 0})
        )

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        create: bool = False,
        insecure: bool = False,
        durability: str | None = None,
        bounds: tuple[int, int] | None = None,  # tasks, bytes
        queue_id: str | None = None,  # of a queue that is made; None: a new one
        usual: str | None = None,  # durability of a queue that is made, where none is asked for; None: the filesystem's
        accept: object = FORMAT,
    ) -> Self:
        """Open the queue in a folder, and with ``create`` make what is missing.

        ``durability`` and ``bounds`` are written to the identity, so that every producer keeps to them. ``accept``: the
        format that it may have. Raises QueueMissing where there is no queue, QueueUnsafe where others could put code into
        it, QueueFormat where it is of another version.
        """
        folder = Path(path).absolute()
        if create and queue_id is None:
            _make_folder(folder)
        try:
            root = os.open(folder, _OPEN_FOLDER & ~os.O_NOFOLLOW)
        except FileNotFoundError:
            raise QueueMissing(
                f"no queue at {folder}: 'dspy-supervisor start --queue-dir {folder}' makes one"
            ) from None
        except NotADirectoryError:
            raise QueueMissing(f"{folder} is not a folder") from None
        descriptors = {".": root}
        try:
            if not insecure:
                check_safe(folder)
            kind = filesystem(folder)
            identity = _identity(root, folder, create, durability, bounds, queue_id, usual, kind, accept)
            for name in FOLDERS:
                descriptors[name] = _open_folder(root, name, folder, create)
                if not insecure:
                    _check_mode(folder / name, os.fstat(descriptors[name]))
            return cls(folder, identity, descriptors, kind)
        except BaseException:
            for descriptor in descriptors.values():
                os.close(descriptor)
            raise

    def descriptors(self) -> frozenset[int]:
        """The open folders, for a child that closes everything else."""
        return frozenset(self._descriptors.values())

    @property
    def syncs(self) -> bool:
        """Whether what is accepted must reach the disk before it is acknowledged."""
        return self.durability is not Durability.NONE

    @property
    def syncs_results(self) -> bool:
        """Whether a completion must reach the disk before it is reported."""
        return self.durability is Durability.FULL

    def is_current(self) -> bool:
        """Whether the path still leads to the folders that are open."""
        try:
            for name, descriptor in self._descriptors.items():
                ours = os.fstat(descriptor)
                theirs = os.stat(self.path if name == "." else self.path / name)
                if (ours.st_dev, ours.st_ino) != (theirs.st_dev, theirs.st_ino):
                    return False
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
                return False
            raise
        return True

    def id_now(self) -> str:
        """Return the id that the open folder says it has; "" where that can't be read. Raises OSError."""
        return str((read_json(self.root, IDENTITY) or {}).get("queue_id") or "")

    def write_identity(self) -> None:
        """Write queue.json again as it was, where it is gone. Raises OSError."""
        ours: dict[str, Any] = {"format": FORMAT, "queue_id": self.queue_id, "durability": self.durability}
        ours["max_pending"], ours["max_pending_bytes"] = self.max_pending, self.max_pending_bytes
        _publish_identity(self.root, ours)

    def close(self) -> None:
        """Close every descriptor; the layout can't be used after that."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def has_lost_identity(folder: Path) -> bool:
    """Whether a folder was a queue and does not say which any more: what only a supervisor makes is in it."""
    return not os.path.lexists(folder / IDENTITY) and all((folder / name).is_dir() for name in ("claimed", "results"))


def replace_json(folder: int, name: str, value: Mapping[str, Any], *, durable: bool) -> None:
    """Write a small document as ``name``, in one step for its readers, in place of an older one. Raises OSError.

    A rename that fails is not believed: a server may have done it, and its reply may be lost.
    """
    temporary = f".{name}.{uuid7()}.tmp".encode()
    content = orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)
    write_new(folder, temporary, content, durable)
    try:
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
        if not _holds(folder, name, content):
            raise
    if durable:
        sync(folder)


def _holds(folder: int, name: str, content: bytes) -> bool:
    try:
        return read(folder, name.encode(), len(content), ()).data == content
    except (OSError, Refused):
        return False


def read_json(folder: int, name: str, max_bytes: int = 1 << 20) -> dict[str, Any] | None:
    """Return a small document of ours, or None where it is not there, not whole, or no regular file."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):  # gone, a link, a socket
            return None
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        content = os.read(descriptor, min(max_bytes, os.fstat(descriptor).st_size))
    finally:
        os.close(descriptor)
    try:
        value = orjson.loads(content)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def list_folder(folder: int) -> list[str]:
    """Return the names in an open folder, as of now.

    A description shares its offset with every copy of it, also across fork, so each listing opens its own.
    """
    descriptor = os.open(".", _OPEN_FOLDER, dir_fd=folder)
    try:
        return os.listdir(descriptor)
    finally:
        os.close(descriptor)


def walk_folder(folder: int) -> Iterator[str]:
    """Yield the names in an open folder one by one: a million of them are never in memory at once."""
    descriptor = os.open(".", _OPEN_FOLDER, dir_fd=folder)
    try:
        with os.scandir(descriptor) as entries:
            for entry in entries:
                yield entry.name
    finally:
        os.close(descriptor)


def check_safe(folder: Path) -> None:
    """Raise QueueUnsafe where somebody else may write the folder, or put another one in its place."""
    _check_mode(folder, folder.stat())
    for parent in folder.resolve().parents:
        status = parent.stat()
        if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
            raise QueueUnsafe(
                f"{parent} is writable by others and not sticky (mode {stat.S_IMODE(status.st_mode):04o}), so they could put "
                f"another folder in place of {folder}; 'chmod o-w {parent}', or --insecure if that is meant"
            )


def _check_mode(folder: Path, status: os.stat_result) -> None:
    me = os.geteuid()
    if status.st_uid not in (me, 0):
        raise QueueUnsafe(
            f"{folder} belongs to user {status.st_uid}, not to you ({me}): who owns a queue may run programs as you; "
            f"use a folder of your own, or --insecure if that is meant"
        )
    if status.st_mode & stat.S_IWOTH:
        raise QueueUnsafe(
            f"{folder} is writable by others (mode {stat.S_IMODE(status.st_mode):04o}, bit o+w): who may write a queue may "
            f"run programs as you; 'chmod o-w {folder}', or --insecure if that is meant"
        )


def _make_folder(folder: Path) -> None:
    """Make the queue's folder, private, where it isn't there; its parents as the umask says."""
    with contextlib.suppress(FileExistsError):
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)


def _open_folder(root: int, name: str, path: Path, create: bool) -> int:
    if create:
        with contextlib.suppress(FileExistsError):
            # As open as the queue's own folder: producers of the group must be able to write pending/.
            os.mkdir(name, stat.S_IMODE(os.fstat(root).st_mode) | 0o700, dir_fd=root)
    try:
        descriptor = os.open(name, _OPEN_FOLDER, dir_fd=root)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            if (what := in_place_of(root, name)) is None:
                raise QueueMissing(
                    f"{path / name} is missing: 'dspy-supervisor start --queue-dir {path}' makes it"
                ) from None
            raise QueueMissing(
                f"{path / name} is {what}, where the queue has a folder of its own: move it away, and "
                f"'dspy-supervisor start --queue-dir {path}' makes the folder"
            ) from None
        raise
    if os.fstat(descriptor).st_dev != os.fstat(root).st_dev:
        os.close(descriptor)
        raise QueueMissing(f"{path / name} is on another filesystem than {path}: tasks move between them by rename")
    return descriptor


def in_place_of(root: int, name: str) -> str | None:
    """Return in words what is there and is no folder, or None where nothing is."""
    try:
        mode = os.stat(name, dir_fd=root, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None
    return "a symbolic link" if stat.S_ISLNK(mode) else "a file" if stat.S_ISREG(mode) else "no folder"


def _identity(
    root: int,
    path: Path,
    create: bool,
    durability: str | None,
    bounds: tuple[int, int] | None,
    queue_id: str | None,
    usual: str | None,
    kind: Filesystem,
    accept: object,
) -> dict[str, Any]:
    """Return queue.json, after making or changing it where that was asked for."""
    found = read_json(root, IDENTITY)
    if found is None:
        if _is_there(root, IDENTITY):
            # Never made anew beside the old one: two supervisors with two ids would not see each other's lock.
            raise QueueMissing(
                f"{path / IDENTITY} can't be read: it is torn, or no file of ours; "
                f"'dspy-supervisor queue fsck --repair --queue-dir {path}' writes it again"
            )
        if not create:
            raise QueueMissing(
                f"{path} is no queue (no {IDENTITY}): 'dspy-supervisor start --queue-dir {path}' makes one"
            )
        default = usual or (Durability.NONE if kind.volatile else Durability.TASK)
        wanted: dict[str, Any] = {
            "format": FORMAT,
            "queue_id": queue_id or uuid7(),
            "durability": durability or default,
        }
        wanted["max_pending"], wanted["max_pending_bytes"] = bounds or (0, 0)
        found = _publish_identity(root, wanted)
    if (number := found.get("format")) != accept or isinstance(number, bool):
        raise QueueFormat(path / IDENTITY, number, FORMAT)
    if not _is_identity(found):
        raise ConfigError(
            str(path / IDENTITY), found, "the keys format, queue_id and durability, and bounds that are whole numbers"
        )
    changed = dict(found)
    if durability is not None:
        changed["durability"] = durability
    if bounds is not None:
        changed["max_pending"], changed["max_pending_bytes"] = bounds
    if changed != found:
        replace_json(root, IDENTITY, changed, durable=changed["durability"] != Durability.NONE)
    return changed


def _publish_identity(root: int, wanted: dict[str, Any]) -> dict[str, Any]:
    """Write queue.json unless somebody else was first, and return the one that counts."""
    temporary = f".{IDENTITY}.{uuid7()}.tmp".encode()
    write_new(root, temporary, orjson.dumps(wanted, option=orjson.OPT_APPEND_NEWLINE), True)
    try:
        move_new(root, temporary, root, IDENTITY.encode())
    except FileExistsError:
        os.unlink(temporary, dir_fd=root)
    sync(root)
    found = read_json(root, IDENTITY)
    if found is None:
        raise QueueMissing(f"{IDENTITY} was just written and can't be read again: is somebody removing the queue?")
    return found


def _is_identity(found: Mapping[str, Any]) -> bool:
    bounds = (found.get("max_pending", 0), found.get("max_pending_bytes", 0))
    return (
        found.get("durability") in tuple(Durability)
        and isinstance(found.get("queue_id"), str)
        and all(isinstance(bound, int) and not isinstance(bound, bool) and bound >= 0 for bound in bounds)
    )


def _is_there(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
