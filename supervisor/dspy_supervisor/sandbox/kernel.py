"""What a process asks of the kernel to lock itself in: namespaces, mounts, capabilities, Landlock, seccomp.

Each call raises OSError with what was asked. Sources: unshare(2), mount_setattr(2), pivot_root(2), capabilities(7),
landlock(7), seccomp(2).
"""

from __future__ import annotations

import ctypes
import os
import platform
import stat
import struct
from collections.abc import Iterable

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x20000, 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 4096, 16384, 1 << 18
MNT_DETACH = 2

ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 1, 2, 4, 8

#: Landlock's rights on files (landlock(7)), by the ABI that brought them
FS_EXECUTE, FS_WRITE_FILE, FS_READ_FILE, FS_READ_DIR = 1, 2, 4, 8
FS_MAKE_CHAR, FS_MAKE_BLOCK = 1 << 6, 1 << 11
FS_IOCTL_DEV = 1 << 15
_FS_ALL = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
#: what makes sense for something that is no folder
FS_OF_FILES = FS_EXECUTE | FS_WRITE_FILE | FS_READ_FILE | (1 << 14) | FS_IOCTL_DEV

_AT_RECURSIVE, _AT_FDCWD = 0x8000, -100
_MOUNT_SETATTR, _LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 442, 444, 445, 446
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_CAPSET = {"x86_64": 126, "aarch64": 91}
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 22, 24, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAPABILITY = 63  # that the kernel has bits for; the first it does not know ends the loop

MACHINE = platform.machine()
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))


def _check(result: int, what: str) -> int:
    if result < 0:
        why = ctypes.get_errno()
        raise OSError(why, os.strerror(why), what)
    return result


def _syscall(what: str, number: int, *arguments: object) -> int:
    wide = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    return _check(_libc.syscall(ctypes.c_long(number), *wide), what)


def unshare(flags: int) -> None:
    """Leave the namespaces that flags name for new ones."""
    _check(_libc.unshare(ctypes.c_int(flags)), f"unshare({flags:#x})")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """Mount as mount(2) does."""
    found = _libc.mount(
        os.fsencode(source), os.fsencode(target), kind.encode() or None, ctypes.c_ulong(flags), options.encode() or None
    )
    _check(found, f"mount {kind or source} on {target}")


def restrict_mount(path: str, attributes: int, *, below: bool = True) -> None:
    """Add attributes to the mount at path, and to those below it. Linux 5.12."""
    wanted = struct.pack("=QQQQ", attributes, 0, 0, 0)
    flags = _AT_RECURSIVE if below else 0
    _syscall(
        f"mount_setattr {path}",
        _MOUNT_SETATTR,
        _AT_FDCWD,
        os.fsencode(path),
        flags,
        ctypes.c_char_p(wanted),
        len(wanted),
    )


def unmount(path: str) -> None:
    """Take the mount at path away, however it is used."""
    _check(_libc.umount2(os.fsencode(path), ctypes.c_int(MNT_DETACH)), f"umount {path}")


def pivot_root(new: str, old: str) -> None:
    """Make new the root, and have what was the root at old."""
    _syscall(f"pivot_root {new}", _PIVOT_ROOT[MACHINE], os.fsencode(new), os.fsencode(old))


def die_with_parent() -> None:
    """Die with the thread that forked this process, also where it can't be seen from this pid namespace."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")


def drop_privileges() -> None:
    """Give up every capability for good, and the way to new ones: a set-user-ID program gives none."""
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for number in range(_LAST_CAPABILITY + 1):
        if _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) < 0:  # without the right to, or past the last
            break
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _syscall("capset", _CAPSET[MACHINE], ctypes.c_char_p(header), ctypes.c_char_p(bytes(24)))


def install_filter(program: bytes) -> None:
    """Have the kernel ask this BPF program before each system call, of this process and all that it starts."""
    kept = ctypes.create_string_buffer(program, len(program))
    filled = _Program(len(program) // 8, ctypes.addressof(kept))
    _check(
        _libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(filled), 0, 0),
        "prctl(PR_SET_SECCOMP)",
    )


def landlock_abi() -> int:
    """Return what Landlock of this kernel can do, 0 where there is none."""
    try:
        return _syscall("landlock_create_ruleset", _LANDLOCK_CREATE, None, 0, 1)
    except OSError:
        return 0


def files_rights(abi: int) -> int:
    """Return all rights on files that this ABI knows."""
    return _FS_ALL[max(known for known in _FS_ALL if known <= abi)]


def landlock(abi: int, rules: Iterable[tuple[str, int]], *, network: bool) -> None:
    """Lock this process, and all that it starts, out of every file but these, and from other processes.

    rules: a path, which holds for all below it, and the rights on it; a path that is not there is passed over. Where there
    is no network, TCP is refused, too. From ABI 6 on other processes get no signal and no abstract socket is reached.
    """
    known = files_rights(abi)
    tcp = 3 if abi >= 4 and not network else 0
    scopes = 3 if abi >= 6 else 0
    wanted = struct.pack("=QQQ", known, tcp, scopes)[: 24 if abi >= 6 else 16 if abi >= 4 else 8]
    ruleset = _syscall("landlock_create_ruleset", _LANDLOCK_CREATE, ctypes.c_char_p(wanted), len(wanted), 0)
    try:
        for path, rights in rules:
            try:
                descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
                allowed = rights & known & (known if is_folder else FS_OF_FILES)
                rule = struct.pack("=Qi", allowed, descriptor)
                _syscall(f"landlock_add_rule {path}", _LANDLOCK_ADD, ruleset, 1, ctypes.c_char_p(rule), 0)
            finally:
                os.close(descriptor)
        _syscall("landlock_restrict_self", _LANDLOCK_RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)
