"""The control groups of a supervisor whose service manager gave it its own subtree: one group for each worker.

::

    SERVICE/supervisor       the supervisor, its guard and its services
    SERVICE/worker-SLOT.N    one worker and whatever its tasks start, with the bounds of its class

cgroups(7), version 2, delegated as by ``Delegate=cpu memory pids`` in a unit of systemd. A worker runs one task at a time, so
what its group uses is the task's. Where nothing is delegated, `bounds` watches from outside instead.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable
from pathlib import Path

from .config import ClassConfig
from .environment import delegated_group
from .log import log

CONTROLLERS = ("cpu", "memory", "pids")
_MOUNT = Path("/sys/fs/cgroup")
_HOME = "supervisor"
_DELEGATED = ("user.delegate", "trusted.delegate")  # what systemd marks a delegated group with


class Cgroups:
    """The subtree of one supervisor. ``on``: the controllers that hold in it; without memory, `bounds` watches that."""

    def __init__(self, folder: Path, on: Iterable[str]) -> None:
        self._folder, self.on = folder, frozenset(on)
        self._left: set[str] = set()  # groups of the dead that still had processes

    def enter(self, name: str, pid: int, settings: ClassConfig) -> Group | None:
        """Make a group with the bounds of a class and put a process there; None where the kernel refuses, which is logged."""
        self._clear()
        folder = self._folder / f"worker-{name}"
        try:
            folder.mkdir()
            if "memory" in self.on:
                # All of it or nothing: a task that lost one of its processes at random is of no use.
                _write(folder / "memory.oom.group", 1)
                if settings.memory_bytes:
                    _write(folder / "memory.max", settings.memory_bytes)
                    with contextlib.suppress(FileNotFoundError):  # a kernel without swap accounting
                        _write(folder / "memory.swap.max", 0)
            if "pids" in self.on and settings.max_processes:
                _write(folder / "pids.max", settings.max_processes)
            if "cpu" in self.on and settings.cpu_weight:
                _write(folder / "cpu.weight", settings.cpu_weight)
            _write(folder / "cgroup.procs", pid)
        except OSError as error:
            log.warning("no_group", worker=pid, klass=settings.name, error=str(error), next="its bounds are watched")
            with contextlib.suppress(OSError):
                folder.rmdir()
            return None
        return Group(self, folder)

    def leave(self, folder: Path, *, kill: bool) -> None:
        """Give a dead worker's group back; ``kill``: with what is left in it."""
        if kill:
            with contextlib.suppress(OSError):
                _write(folder / "cgroup.kill", 1)
        self._left.add(folder.name)
        self._clear()

    def _clear(self) -> None:
        for name in list(self._left):
            try:
                (self._folder / name).rmdir()
            except FileNotFoundError:
                pass
            except OSError:  # EBUSY: processes are in it, of which the killed will be gone by the next time
                continue
            self._left.discard(name)


class Group:
    """The group of one worker."""

    def __init__(self, groups: Cgroups, folder: Path) -> None:
        self._groups, self.folder = groups, folder
        self.holds = {"memory", "pids"} <= groups.on  #: else `bounds` watches

    @property
    def ooms(self) -> int:
        """How often the kernel ended processes of this group because it reached its own bound on memory."""
        with contextlib.suppress(OSError, ValueError):
            for line in (self.folder / "memory.events.local").read_text().splitlines():
                name, _, number = line.partition(" ")
                if name == "oom_kill":
                    return int(number)
        return 0

    def close(self, *, keep_children: bool) -> None:
        """Give the group back after the worker's death; what its tasks left is killed, but where it may stay."""
        self._groups.leave(self.folder, kill=not keep_children)


def find(own: str | None = None, mount: Path = _MOUNT) -> tuple[Path | None, str]:
    """Return the group that was delegated to this process, or None and in words why there is none.

    own: what /proc/self/cgroup says.
    """
    if own is None:
        own = Path("/proc/self/cgroup").read_text()
    path = next((line[3:] for line in own.splitlines() if line.startswith("0::")), None)
    if path is None or not (mount / "cgroup.controllers").exists():
        return None, "control groups of version 2 are not mounted here"
    folder = mount / path.lstrip("/")
    if folder.name == _HOME:  # of this program before it replaced itself
        folder = folder.parent
    # A user's manager does not mark what it delegates (systemd's cgroup_xattr_apply): there the unit says it.
    if not any(_mark(folder, name) == b"1" for name in _DELEGATED) and folder.name != delegated_group():
        return None, f"no service manager delegated {path} to this process (Delegate=cpu memory pids)"
    if not os.access(folder, os.W_OK):
        return None, f"{folder} is not ours to write"
    return folder, ""


def settle(living: Collection[str] = ()) -> tuple[Cgroups | None, str]:
    """Settle in the group that was delegated to this process; None and in words why there is none.

    living: paths of groups whose workers the program before this one in its process left to it.
    """
    folder, why = find()
    if folder is None:
        return None, why
    try:
        return _take(folder, living), ""
    except OSError as error:
        log.warning("no_groups", folder=str(folder), error=str(error), next="bounds of tasks are watched from outside")
        return None, f"{folder}: {error}"


def _take(folder: Path, living: Collection[str]) -> Cgroups:
    """Settle in a delegated group: a group with controllers for its children may hold no process itself. Raises OSError."""
    home = folder / _HOME
    home.mkdir(exist_ok=True)
    for pid in (folder / "cgroup.procs").read_text().split():
        with contextlib.suppress(ProcessLookupError):
            _write(home / "cgroup.procs", pid)
    on = []
    for controller in CONTROLLERS:
        try:
            _write(folder / "cgroup.subtree_control", f"+{controller}")
            on.append(controller)
        except OSError as error:
            log.warning("no_controller", controller=controller, error=str(error))
    groups = Cgroups(folder, on)
    for old in folder.glob("worker-*"):  # of a supervisor that was killed
        if str(old) not in living:
            groups.leave(old, kill=True)
    return groups


def _mark(folder: Path, name: str) -> bytes:
    try:
        return os.getxattr(folder, name)
    except OSError:
        return b""


def _write(path: Path, value: object) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)  # without O_CREAT: FileNotFoundError where the kernel lacks it
    try:
        os.write(file, f"{value}\n".encode())
    finally:
        os.close(file)
