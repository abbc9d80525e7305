"""What a task must not be able to do, tried from inside: the proof that the walls stand.

`targets` are made outside, by who can reach them all; `attempt` is called inside, and returns in words what it could do.
"""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import stat
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

_PTRACE_SEIZE = 0x4206
_CLONE_NEWUSER = 0x10000000
_OPENAT2, _FCHMODAT2 = 437, 452
_CHMOD, _CREAT, _MKNOD, _OPEN = 90, 85, 133, 2  # of x86_64, where a C library may leave them unused


@contextmanager
def targets(queue: str, *, network: bool) -> Iterator[dict[str, Any]]:
    """Make what a task is to try to reach, and yield where it is, as JSON."""
    with ExitStack() as stack:
        secret = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dspy-probe-"))) / "secret"
        secret.write_text("secret")
        found: dict[str, Any] = {"queue": queue, "file": str(secret), "pid": os.getpid(), "network": network}
        stack.callback((Path(queue) / "done" / ".probe").unlink, missing_ok=True)  # of walls that don't hold
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind(f"\0dspy-probe-{os.getpid()}")
        abstract.listen()
        named = stack.enter_context(socket.socket(socket.AF_UNIX))
        named.bind(str(secret.with_name("socket")))
        named.listen()
        found |= {"abstract": f"dspy-probe-{os.getpid()}", "socket": str(secret.with_name("socket"))}
        if not network:
            tcp = stack.enter_context(socket.socket())
            tcp.bind(("127.0.0.1", 0))
            tcp.listen()
            found["port"] = tcp.getsockname()[1]
        yield found


def attempt(at: Mapping[str, Any], home: str) -> dict[str, list[str]]:
    """Return what was stopped of all that must not be possible, and what was not: nothing where the walls hold."""
    pid, file, queue = int(at["pid"]), str(at["file"]), str(at["queue"])
    tries: list[tuple[str, Callable[[], object]]] = [
        ("read a file of another task's /tmp", Path(file).read_bytes),
        ("write into another task's /tmp", lambda: Path(file).with_name("new").write_bytes(b"")),
        ("read the queue", (Path(queue) / "queue.json").read_bytes),
        ("list the queue", lambda: os.listdir(f"{queue}/claimed")),
        ("write into the queue", lambda: (Path(queue) / "done" / ".probe").write_bytes(b"")),
        ("change a mode in the queue", lambda: os.chmod(queue, 0o700)),
        ("write outside of its folder", _write_system),
        ("follow a link out of its folder", lambda: _link(home, file)),
        ("signal another process", lambda: os.kill(pid, 0)),
        ("trace another process", lambda: _trace(pid)),
        ("read another process's environment", Path(f"/proc/{pid}/environ").read_bytes),
        ("reach an abstract socket", lambda: _connect(socket.AF_UNIX, "\0" + str(at["abstract"]))),
        ("reach a socket by its path", lambda: _connect(socket.AF_UNIX, str(at["socket"]))),
        ("make a set-user-ID program", lambda: _set_user_id(home)),
        ("give a program capabilities", lambda: _give_capabilities(home)),
        ("make namespaces", _unshare),  # where it can, what follows is tried by one with other rights
        ("get privileges from a program", _privileges),
        ("use a descriptor it was not given", _descriptors),
    ]
    tries.append(("use a descriptor of the process that started it", _descriptors_above))
    if not at["network"]:
        tries.append(("reach the network by TCP", lambda: _connect(socket.AF_INET, ("127.0.0.1", int(at["port"])))))
        tries.append(("reach the network by UDP", _datagram))
    tries.append(("share memory of System V", _system_v))
    found: dict[str, list[str]] = {"stopped": [], "escaped": []}
    for name, one in tries:
        found["escaped" if _works(one) else "stopped"].append(name)
    return found


def _works(one: Callable[[], object]) -> bool:
    try:
        return one() is not False
    except OSError:
        return False


def _write_system() -> None:
    for place in ("/usr", "/etc", "/var", "/"):
        try:
            descriptor = os.open(f"{place}/.dspy-probe", os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
        except OSError:
            continue
        os.close(descriptor)
        os.unlink(f"{place}/.dspy-probe")
        return
    raise PermissionError


def _link(home: str, file: str) -> None:
    link = Path(home) / ".dspy-probe"
    link.symlink_to(file)
    try:
        link.read_bytes()
    finally:
        link.unlink()


def _trace(pid: int) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.ptrace(_PTRACE_SEIZE, pid, None, None) == 0)


def _unshare() -> bool:
    return bool(ctypes.CDLL(None).unshare(_CLONE_NEWUSER) == 0)


def _system_v() -> bool:
    return bool(ctypes.CDLL(None).shmget(0, 4096, 0o1600) >= 0)


def _privileges() -> bool:
    """Whether a set-user-ID program would give any, or there is one to use already."""
    with open("/proc/self/status") as file:
        facts = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    names = ["CapEff", "CapPrm", "CapAmb", *(["CapBnd"] if os.geteuid() == 0 else [])]  # the last only root can empty
    return facts["NoNewPrivs"] != "1" or any(int(facts[name], 16) for name in names)


def _set_user_id(home: str) -> bool:
    """Whether some call makes a file that others would run as its owner or its group."""
    path, folder = f"{home}/.dspy-probe", os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    name, flags, syscall = os.fsencode(path), os.O_CREAT | os.O_WRONLY, ctypes.CDLL(None).syscall

    def fchmod(mode: int) -> None:
        with open(path) as file:
            os.fchmod(file.fileno(), mode)

    def tmpfile(mode: int) -> None:
        descriptor = os.open(home, os.O_TMPFILE | os.O_WRONLY, mode)
        try:
            os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=folder)  # which makes it follow
        finally:
            os.close(descriptor)

    changes: list[Callable[[int], object]] = [
        lambda mode: os.chmod(path, mode),
        lambda mode: os.chmod(path, mode, dir_fd=folder),
        lambda mode: syscall(_FCHMODAT2, folder, name, mode, 0),
        fchmod,
    ]
    makes: list[Callable[[int], object]] = [
        lambda mode: os.close(os.open(path, flags, mode)),
        lambda mode: os.mknod(path, stat.S_IFREG | mode, dir_fd=folder),
        lambda mode: _close(syscall(_OPENAT2, folder, name, struct.pack("=QQQ", flags, mode, 0), 24)),
        tmpfile,
    ]
    if platform.machine() == "x86_64":
        changes.append(lambda mode: syscall(_CHMOD, name, mode))
        makes.append(lambda mode: _close(syscall(_CREAT, name, mode)))
        makes.append(lambda mode: _close(syscall(_OPEN, name, flags, mode)))
        makes.append(lambda mode: syscall(_MKNOD, name, stat.S_IFREG | mode, 0))
    try:
        return any(
            _sets_id(partial(way, bit | 0o755), path, is_there=ways is changes)
            for ways in (changes, makes)
            for way in ways
            for bit in (stat.S_ISUID, stat.S_ISGID)
        )
    finally:
        os.close(folder)


def _sets_id(way: Callable[[], object], path: str, *, is_there: bool) -> bool:
    """Whether this gives the file at path one of the bits; it is to be there beforehand, or made by this."""
    if is_there:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    try:
        with suppress(OSError):
            way()
        return bool(os.lstat(path).st_mode & (stat.S_ISUID | stat.S_ISGID))
    except FileNotFoundError:
        return False
    finally:
        with suppress(OSError):
            os.unlink(path)


def _close(descriptor: int) -> None:
    if descriptor >= 0:
        os.close(descriptor)


def _give_capabilities(home: str) -> None:
    """Let who runs a file get capabilities (capabilities(7), VFS_CAP_REVISION_2: CAP_SETUID, effective)."""
    path = Path(home) / ".dspy-probe"
    path.touch()
    try:
        os.setxattr(path, "security.capability", struct.pack("<5I", 0x02000001, 1 << 7, 0, 0, 0))
    finally:
        path.unlink()


def _descriptors() -> bool:
    """Whether there is one beside the standard three, the socket that the result goes out by, and this listing's own."""
    return len(os.listdir("/proc/self/fd")) > 5


def _descriptors_above() -> bool:
    """Whether process 1, which is this task's own in a namespace and the host's elsewhere, has a file open to be used."""
    names = [os.readlink(f"/proc/1/fd/{number}") for number in os.listdir("/proc/1/fd")]
    return any(name.startswith("/") and name != os.devnull for name in names)


def _connect(family: int, address: Any) -> None:
    with socket.socket(family) as stream:
        stream.settimeout(1.0)
        stream.connect(address)


def _datagram() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(b"", ("127.0.0.1", 9))
