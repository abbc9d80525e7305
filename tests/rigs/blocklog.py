"""A disk that keeps every write: a filesystem's blocks as they went to the medium, with the flushes between them.

A process of its own serves one file over the kernel's FUSE protocol (``<linux/fuse.h>``), a loop device stands on that file,
and a real filesystem is mounted on the device. Each block write is a record, each flush one too, in the order they came.
What the medium may hold after a power cut at any record follows from it: all that was written before the last flush, and
any part of what came after.

Everything is mounted in a mount namespace of this process: it must be the whole purpose of it. Needs root and /dev/fuse.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import signal
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_IN = struct.Struct("<IIQQIIII")
_OUT = struct.Struct("<IiQ")
_INIT = struct.Struct("<IIIIHHIIHHI7I")
_ATTR = struct.Struct("<6Q10I")
_ENTRY = struct.Struct("<4Q2I")
_MOVED = struct.Struct("<QQI")  # fh, offset, size: what a read and a write begin with
_RECORD = struct.Struct("<QI")
_FLUSH = (1 << 64) - 1  # the offset of a record that is a flush
_LOOKUP, _FORGET, _GETATTR, _SETATTR, _OPEN, _READ, _WRITE = 1, 2, 3, 4, 14, 15, 16
_STATFS, _RELEASE, _FSYNC, _CLOSE, _INIT_CALL, _INTERRUPT, _BATCH_FORGET = 17, 18, 20, 25, 26, 36, 42
_BIG_WRITES, _MAX_PAGES = 1 << 5, 1 << 22
_MOST = 1 << 20
_CLONE_NEWNS, _MS_REC, _MS_PRIVATE, _PR_SET_PDEATHSIG = 0x00020000, 1 << 14, 1 << 18, 1

_libc = ctypes.CDLL(None, use_errno=True)

#: filesystem: size of its disk in bytes, how it is made, and the options of its mount
FILESYSTEMS = {
    "ext4": (16 << 20, ["mkfs.ext4", "-q", "-F", "-b", "1024", "-J", "size=1"], "commit=1"),
    "btrfs": (64 << 20, ["mkfs.btrfs", "-q", "-f", "-M"], "commit=1"),
    "xfs": (300 << 20, ["mkfs.xfs", "-q", "-f"], "nouuid"),
}


def in_own_namespace() -> None:
    """Let what this process mounts be seen by it and its children alone."""
    _checked(_libc.unshare(_CLONE_NEWNS))
    _checked(_libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None))


def _checked(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@contextlib.contextmanager
def mounted(image: Path, kind: str, where: Path) -> Iterator[Path]:
    """Mount the filesystem in an image, on a loop device that goes with it."""
    where.mkdir(exist_ok=True)
    subprocess.run(["mount", "-i", "-t", kind, "-o", f"loop,{FILESYSTEMS[kind][2]}", image, where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)


class BlockLog:
    """One recorded disk; ``position`` counts its records so far, and may be read at any moment."""

    def __init__(self, folder: Path, kind: str) -> None:
        size, make, _ = FILESYSTEMS[kind]
        self.kind, self.folder = kind, folder
        self.base, self.log = folder / "base", folder / "log"
        with self.base.open("wb") as base:
            base.truncate(size)
        subprocess.run([*make, self.base], check=True, stdout=subprocess.DEVNULL)
        self._count = mmap.mmap(-1, 8)

    @property
    def position(self) -> int:
        return int.from_bytes(self._count[:8], "little")

    @contextlib.contextmanager
    def recording(self) -> Iterator[Path]:
        """Mount the disk, and record it until the end of the block."""
        medium = self.folder / "medium"
        medium.mkdir()
        fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,max_read={_MOST}"
        _checked(_libc.mount(b"blocklog", bytes(medium), b"fuse", 0, options.encode()))
        server = os.fork()
        if server == 0:
            try:
                _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
                _Server(fuse, self.base, self.log, self._count).serve()
            finally:
                os._exit(0)
        os.close(fuse)
        try:
            with mounted(medium / "disk", self.kind, self.folder / "recorded") as root:
                yield root
        finally:
            subprocess.run(["umount", medium], check=False)
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)

    def records(self) -> Iterator[tuple[int, bytes] | None]:
        """Yield each record: offset and content of a write, None for a flush."""
        with self.log.open("rb") as log:
            while head := log.read(_RECORD.size):
                offset, size = _RECORD.unpack(head)
                yield None if offset == _FLUSH else (offset, log.read(size))


@dataclass
class _Server:
    """Serves the one file ``disk`` from memory, and writes down what happens to it."""

    fuse: int
    base: Path
    log: Path
    count: mmap.mmap

    def serve(self) -> None:
        self._disk = bytearray(self.base.read_bytes())
        self._number = 0
        with self.log.open("wb", buffering=0) as self._file:
            while True:
                try:
                    request = os.read(self.fuse, _MOST + 65536)
                except OSError as error:
                    if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                        continue
                    return  # ENODEV: it was unmounted
                _, call, unique, node, *_ = _IN.unpack_from(request)
                if call in (_FORGET, _BATCH_FORGET, _INTERRUPT):
                    continue
                answer = self._answer(call, node, request[_IN.size :])
                failed, content = (-answer, b"") if isinstance(answer, int) else (0, answer)
                with contextlib.suppress(FileNotFoundError):  # nobody waits for it any more
                    os.write(self.fuse, _OUT.pack(_OUT.size + len(content), failed, unique) + content)

    def _answer(self, call: int, node: int, body: bytes) -> bytes | int:
        if call == _INIT_CALL:
            major, _, ahead, offered = struct.unpack_from("<4I", body)
            flags = offered & (_BIG_WRITES | _MAX_PAGES)
            return _INIT.pack(major, 31, ahead, flags, 16, 12, _MOST, 1, _MOST // 4096, 0, 0, *[0] * 7)
        if call == _LOOKUP:
            return _ENTRY.pack(2, 0, 3600, 3600, 0, 0) + self._attr(2) if body == b"disk\0" else errno.ENOENT
        if call in (_GETATTR, _SETATTR):
            return struct.pack("<QII", 3600, 0, 0) + self._attr(node)
        if call == _OPEN:
            return struct.pack("<QII", 0, 0, 0)
        if call == _READ:
            _, offset, size = _MOVED.unpack_from(body)
            return bytes(self._disk[offset : offset + size])
        if call == _WRITE:
            _, offset, size = _MOVED.unpack_from(body)
            content = body[40 : 40 + size]
            self._disk[offset : offset + size] = content
            self._record(offset, content)
            return struct.pack("<II", size, 0)
        if call == _FSYNC:
            self._record(_FLUSH, b"")
            return b""
        if call in (_CLOSE, _RELEASE):
            return b""
        return bytes(80) if call == _STATFS else errno.ENOSYS

    def _attr(self, node: int) -> bytes:
        mode, size = (0o40755, 0) if node == 1 else (0o100600, len(self._disk))
        return _ATTR.pack(node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def _record(self, offset: int, content: bytes) -> None:
        os.write(self._file.fileno(), _RECORD.pack(offset, len(content)) + content)
        self._number += 1
        self.count[:8] = self._number.to_bytes(8, "little")
