"""The plain twin of dspy_fastpath.claim: the same promises by os calls, for tests and for comparison."""

import contextlib
import errno
import os
import stat
from dataclasses import dataclass

from dspy_fastpath.envelope import Fields, scan

UNKNOWN = (errno.ENOENT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
KINDS = {stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}


class Refused(Exception):
    def __init__(self, reason: str, links: int = 1, mtime: float = 0.0) -> None:
        super().__init__(reason)
        self.reason, self.links, self.mtime = reason, links, mtime

    def __reduce__(self):
        return type(self), (self.reason, self.links, self.mtime)


@dataclass(frozen=True, slots=True)
class File:
    data: bytes
    size: int
    mtime: float
    inode: int


@dataclass(frozen=True, slots=True)
class Claimed:
    data: bytes
    fields: Fields
    mtime: float


def check_name(name: bytes) -> None:
    if not isinstance(name, bytes):
        raise TypeError(f"{name!r} is not bytes")
    if not name or b"\0" in name or b"/" in name:
        raise ValueError(f"{name!r} is not a name in a folder")


def gone(folder: int, name: bytes) -> None:
    if os.fstat(folder).st_nlink == 0:
        raise FileNotFoundError(errno.ENOENT, "the folder to move into was deleted", name)


def exists(dir_fd: int, name: bytes) -> bool:
    if b"/" in name or b"\0" in name:
        return False
    try:
        os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def move(source_fd: int, source: bytes, target_fd: int, target: bytes) -> bool:
    check_name(source)
    check_name(target)
    try:
        os.rename(source, target, src_dir_fd=source_fd, dst_dir_fd=target_fd)
    except FileNotFoundError:
        gone(target_fd, target)
        return False
    return True


def move_new(source_fd: int, source: bytes, target_fd: int, target: bytes) -> bool:
    """By link and unlink: what the compiled one does where the filesystem knows no RENAME_NOREPLACE."""
    check_name(source)
    check_name(target)
    try:
        ours = os.stat(source, dir_fd=source_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    try:
        os.link(source, target, src_dir_fd=source_fd, dst_dir_fd=target_fd, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.EEXIST and error.errno not in UNKNOWN:
            raise
        try:
            theirs = os.stat(target, dir_fd=target_fd, follow_symlinks=False)
        except FileNotFoundError:
            gone(target_fd, target)
            return False
        if (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from None
    with contextlib.suppress(FileNotFoundError):
        os.unlink(source, dir_fd=source_fd)
    return True


def write_new(dir_fd: int, name: bytes, data: bytes, sync: bool) -> None:
    check_name(name)
    if not isinstance(data, bytes):
        raise TypeError(f"{type(data)} is not bytes")
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o640, dir_fd=dir_fd)
    try:
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            if sync:
                _sync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        os.unlink(name, dir_fd=dir_fd)
        raise OSError(error.errno, error.strerror, name) from None


_synced = [0]


def _sync(fd: int) -> None:
    _synced[0] += 1
    os.fsync(fd)


def sync(fd: int) -> None:
    _sync(fd)


def syncs() -> int:
    return _synced[0]


def sync_filesystem(fd):
    """Put everything on the disk: Python has no call for one filesystem alone."""
    os.fstat(fd)
    os.sync()


def refuse(found: os.stat_result, max_bytes: int, owners: tuple[int, ...]) -> None:
    reason = None
    if not stat.S_ISREG(found.st_mode):
        reason = KINDS.get(stat.S_IFMT(found.st_mode), "a device")
    elif owners and found.st_uid not in owners:
        reason = f"owned by user {found.st_uid}"
    elif found.st_nlink != 1:
        reason = f"has {found.st_nlink} names (hard link)"
    elif found.st_size > max_bytes:
        reason = f"{found.st_size} bytes, more than the bound of {max_bytes}"
    if reason is not None:
        raise Refused(reason, found.st_nlink, found.st_mtime)


def read(dir_fd: int, name: bytes, max_bytes: int, owners: tuple[int, ...]) -> File:
    check_name(name)
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.EACCES, errno.EPERM):
            refuse(os.stat(name, dir_fd=dir_fd, follow_symlinks=False), max_bytes, owners)
        raise
    try:
        found = os.fstat(descriptor)
        refuse(found, max_bytes, owners)
        parts = []
        left = found.st_size
        while left and (part := os.read(descriptor, left)):
            parts.append(part)
            left -= len(part)
    finally:
        os.close(descriptor)
    return File(b"".join(parts), found.st_size, found.st_mtime, found.st_ino)


def peek(dir_fd: int, name: bytes, max_bytes: int, owners: tuple[int, ...], *, max_depth: int = 128) -> Claimed | None:
    try:
        found = read(dir_fd, name, max_bytes, owners)
    except FileNotFoundError:
        return None
    return Claimed(found.data, scan(found.data, max_depth), found.mtime)


def claim(
    pending_fd: int, name: bytes, claimed_fd: int, max_bytes: int, owners: tuple[int, ...], *, max_depth: int = 128
) -> Claimed | None:
    check_name(name)
    answer = None
    try:
        os.rename(name, name, src_dir_fd=pending_fd, dst_dir_fd=claimed_fd)
    except OSError as error:
        if error.errno not in UNKNOWN:
            raise
        answer = error
    claimed = peek(claimed_fd, name, max_bytes, owners, max_depth=max_depth)
    if claimed is None and answer is not None:
        if answer.errno != errno.ENOENT:
            raise answer
        gone(claimed_fd, name)
    return claimed
