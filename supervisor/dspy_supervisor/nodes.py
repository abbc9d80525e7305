"""Who serves a queue, and who is dead.

A supervisor that runs is a *node*: a random id, a lock on a local file, and a heartbeat ``nodes/NODE.hb``::

    {"node", "counter", "boot_id", "machine_id", "lock": {"file", "device", "inode"}, "pid", "pid_start", "pid_space",
     "host", "started_at"}

Its workers claim into ``claimed/NODE.N.SLOT/``, so whose a claim is needs no content. Whether a node is dead:

- a node that locked a file which this host can open, and whose lock is free, is dead: the kernel releases a lock with its
  holder. No time-out is involved;
- a node whose lock is not to be found, since a service manager removed its folder, is dead when its process is gone from
  the same space of process ids in the same boot: a later process of that id has another start time;
- a node of this machine from before the last boot is dead, if the queue lies on a local disk: nobody else can mount it;
- any other is judged by its counter: dead when that did not change for ``take_after_s`` by *our own* monotonic clock,
  counting only time in which our own heartbeat reached the disk. Times of other hosts are never compared, nor mtimes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from dspy_fastpath.ids import uuid7

from .errors import AlreadyRunning
from .jobbook import is_carried
from .layout import Layout, list_folder, read_json, replace_json
from .runtime import boot_id

_SUFFIX = ".hb"
_LEAST_PERIODS = 10  # a node that is slow to beat is not dead: never judge by fewer missed beats than this
_LOCK_TRIES, _LOCK_WAIT_S = 5, 0.01
_KINDS = {".lock", ".page", ".sock", ".boot", ".embed", ".checkpoint"}  # of files in the runtime folder
_OLD_S = 86400.0


def take_lock(path: Path, node: str, serves: Path) -> int:
    """Return the descriptor of a lock that this node has taken; whoever closes it gives it up, `release_lock` in order.

    Raises AlreadyRunning while another process of this host has it.
    """
    holder = ""
    for _ in range(_LOCK_TRIES):
        lock, holder = _try_lock(path)
        if lock is not None:
            try:
                os.ftruncate(lock, 0)
                os.pwrite(lock, f"{os.getpid()} {node}\n".encode(), 0)
            except BaseException:
                os.close(lock)
                raise
            return lock
        # Held for a moment it may be by an observer that wants to know whether we are dead.
        time.sleep(_LOCK_WAIT_S)
    raise AlreadyRunning(
        f"a supervisor (pid {holder or 'unknown'}) of this host serves {serves} already; 'dspy-supervisor "
        f"stop --queue-dir {serves}' ends it, --instance NAME starts a second one beside it"
    )


def release_lock(path: Path, lock: int) -> None:
    """Give a lock up, and remove its file while we have it: who takes one looks whether it is still there, `take_lock`."""
    with contextlib.suppress(OSError):
        if _leads_to(path, lock):
            os.unlink(path)
    os.close(lock)


def clear_dead(folder: Path, now: float) -> int:
    """Remove the files of supervisors that are long dead from a runtime folder; return of how many. ``now``: epoch seconds.

    Such are those whose lock nobody has, and of whose files none changed for a day: what a budget of an earlier run spent,
    and that its queue was recovered in this run of the kernel, is of no use any more.
    """
    stems: dict[str, list[Path]] = {}
    for path in folder.iterdir():
        if path.suffix in _KINDS:
            stems.setdefault(path.name.removesuffix(path.suffix), []).append(path)
    cleared = 0
    for stem, paths in stems.items():
        with contextlib.suppress(OSError):  # gone meanwhile, or none of ours
            if now - max(path.lstat().st_mtime for path in paths) < _OLD_S:
                continue
            lock_path = folder / f"{stem}.lock"
            lock, _ = _try_lock(lock_path)
            if lock is None:
                continue
            for path in paths:
                if path != lock_path:
                    path.unlink(missing_ok=True)
            release_lock(lock_path, lock)
            cleared += 1
    return cleared


def _try_lock(path: Path) -> tuple[int | None, str]:
    """Return the descriptor of a lock that we have now, or None and the pid of who has it, as far as that is told."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _leads_to(path, lock):
            return lock, ""
        holder = ""  # its last holder removed it after we had opened it: there may be another by now
    except BlockingIOError:
        holder = os.read(lock, 64).decode(errors="replace").partition(" ")[0]
    except BaseException:
        os.close(lock)
        raise
    os.close(lock)
    return None, holder


def _leads_to(path: Path, lock: int) -> bool:
    ours = os.fstat(lock)
    try:
        theirs = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)


def _read_line(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def node_of(owner: str) -> str:
    """Return the node that an owner of claims (NODE.N.SLOT) belongs to."""
    return owner.partition(".")[0]


def _pid_space() -> str:
    """Return the name of the space that our process ids are of, or "" where the kernel does not tell."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _start_ticks(pid: int) -> int | None:
    """Return when a process started, in ticks since the boot, or None where it can't be told."""
    try:
        line = Path(f"/proc/{pid}/stat").read_text()
        return int(line[line.rindex(")") + 2 :].split()[19])  # starttime, proc(5)
    except (OSError, ValueError, IndexError):
        return None


def _dead_by_process(beat: dict[str, Any]) -> Literal[True] | None:
    """True where the node's process is gone for certain, None where it may live: then its counter tells."""
    pid, start = beat.get("pid"), beat.get("pid_start")
    if not beat.get("pid_space") or beat.get("pid_space") != _pid_space():
        return None  # a container of this host, perhaps
    if not isinstance(pid, int) or not isinstance(start, int) or pid <= 0:
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # there is one, of another user
    now = _start_ticks(pid)
    return True if now is not None and now != start else None


class Held(NamedTuple):
    """What makes a process a node."""

    node: str
    lock: int  #: descriptor
    beats: int
    owners: int  #: that were named


class Presence:
    """This process as a node: its lock, its id, its heartbeat."""

    def __init__(self, layout: Layout, lock_path: Path, before: Held | None = None) -> None:
        """Take the lock. Raises AlreadyRunning while another process of this host has it.

        ``before``: what this very process had under the program before this one.
        """
        self.lock_path = lock_path
        self._counter = 0
        self._owners = 0
        if before is not None:
            self.node, self._lock, self._counter, self._owners = before
            self.adopt(layout)
            return
        self.node = uuid7().replace("-", "")[-20:]
        self._lock = take_lock(lock_path, self.node, layout.path)
        try:
            self.adopt(layout)
        except BaseException:
            release_lock(lock_path, self._lock)
            raise

    def adopt(self, layout: Layout) -> None:
        """Announce this node in a queue, also one that was made again."""
        self._layout = layout
        self.beat(durable=layout.syncs)

    def move(self, layout: Layout, lock_path: Path, lock: int) -> None:
        """Announce this node in a queue of another id, whose lock it has taken, and give up that of the queue before."""
        before = self.lock_path, self._lock
        self.lock_path, self._lock = lock_path, lock
        try:
            self.adopt(layout)
        finally:
            release_lock(*before)

    def beat(self, *, durable: bool = False) -> None:
        """Write the heartbeat with its next count. Raises OSError, and then this node must not judge others."""
        self._counter += 1
        status = os.fstat(self._lock)
        beat = {
            "node": self.node,
            "counter": self._counter,
            "boot_id": boot_id(),
            "machine_id": _read_line("/etc/machine-id"),
            "lock": {"file": self.lock_path.name, "device": status.st_dev, "inode": status.st_ino},
            "pid": os.getpid(),
            "pid_start": _start_ticks(os.getpid()),
            "pid_space": _pid_space(),
            "host": socket.gethostname(),
            "started_at": round(time.time(), 3) if self._counter == 1 else None,
        }
        replace_json(self._layout.nodes, self.node + _SUFFIX, beat, durable=durable)

    def new_owner(self, slot: int | str) -> str:
        """Return an owner's name that was never used: each incarnation of a worker has its own."""
        self._owners += 1
        return f"{self.node}.{self._owners}.{slot}"

    @property
    def held(self) -> Held:
        """What the program that takes this process over goes on with."""
        return Held(self.node, self._lock, self._counter, self._owners)

    def forget_in_child(self) -> None:
        """Close the lock in a forked child: it belongs to the parent alone."""
        os.close(self._lock)

    def close(self) -> None:
        """Leave: remove the heartbeat, release the lock."""
        with contextlib.suppress(OSError):
            os.unlink(self.node + _SUFFIX, dir_fd=self._layout.nodes)
        release_lock(self.lock_path, self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(slots=True)
class _Seen:
    counter: object
    unchanged_s: float = 0.0  # by our own clock, while our own beats succeeded


@dataclass(slots=True)
class Observer:
    """Judges the other nodes of a queue."""

    me: str
    layout: Layout
    locks: Path  #: the runtime folder: locks are looked for there and nowhere else, whatever a heartbeat says
    take_after_s: float  #: seconds
    heartbeat_s: float  #: seconds between our own beats
    _seen: dict[str, _Seen] = field(default_factory=dict)
    _last: float | None = None

    def others(self) -> set[str]:
        """Return the nodes, beside this one, that have a heartbeat or claims."""
        found = {name[: -len(_SUFFIX)] for name in list_folder(self.layout.nodes) if name.endswith(_SUFFIX)}
        found |= {node_of(owner) for owner in list_folder(self.layout.claimed) if not is_carried(owner)}
        return {node for node in found if not node.startswith(".")} - {self.me}

    def dead(self, now: float, *, beating: bool) -> set[str]:
        """Return the nodes that are dead at ``now`` (monotonic seconds); ``beating``: our own last heartbeat was written."""
        elapsed = now - self._last if beating and self._last is not None else 0.0
        # A pause of ours (a suspended machine, SIGSTOP) proves nothing about the others.
        elapsed = min(elapsed, 2 * self.heartbeat_s)
        self._last = now if beating else None
        others = self.others()
        for gone in self._seen.keys() - others:
            del self._seen[gone]
        return {node for node in others if self._is_dead(node, elapsed)}

    def _is_dead(self, node: str, elapsed: float) -> bool:
        beat = read_json(self.layout.nodes, node + _SUFFIX)
        if beat is not None and (known := self._dead_by_lock(beat)) is not None:
            return known
        counter = beat.get("counter") if beat else None
        seen = self._seen.get(node)
        if seen is None or seen.counter != counter:
            self._seen[node] = _Seen(counter)
            return False
        seen.unchanged_s += elapsed
        return seen.unchanged_s >= max(self.take_after_s, _LEAST_PERIODS * self.heartbeat_s)

    def _dead_by_lock(self, beat: dict[str, Any]) -> bool | None:
        """Whether the node's lock tells that it is dead, or None where the lock tells nothing here."""
        if beat.get("boot_id") != boot_id():
            same_machine = beat.get("machine_id") and beat.get("machine_id") == _read_line("/etc/machine-id")
            return True if same_machine and not self.layout.filesystem.network else None
        lock = beat.get("lock")
        name = lock.get("file") if isinstance(lock, dict) else None
        if not isinstance(lock, dict) or not isinstance(name, str) or Path(name).name != name:
            return None
        try:
            descriptor = os.open(self.locks / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return _dead_by_process(beat)
        try:
            status = os.fstat(descriptor)
            if (status.st_dev, status.st_ino) != (lock.get("device"), lock.get("inode")):
                return _dead_by_process(beat)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # Held, but perhaps by the node that came after it: the holder has written its id.
                return os.pread(descriptor, 64, 0).split()[1:] != [str(beat.get("node")).encode()]
            return True
        finally:
            os.close(descriptor)

    def forget(self, node: str) -> None:
        """Remove a dead node's heartbeat, after all its claims are taken."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(node + _SUFFIX, dir_fd=self.layout.nodes)
        self._seen.pop(node, None)


def claims_of(layout: Layout, nodes: set[str]) -> dict[str, list[str]]:
    """Return what lies in the claim folders of these nodes, but as jobs of a cluster: owner to file names."""
    found: dict[str, list[str]] = {}
    for owner in list_folder(layout.claimed):
        if node_of(owner) not in nodes or is_carried(owner):
            continue
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(owner, flags, dir_fd=layout.claimed)
        except (FileNotFoundError, NotADirectoryError):
            continue
        try:
            found[owner] = sorted(list_folder(descriptor))
        finally:
            os.close(descriptor)
    return found
