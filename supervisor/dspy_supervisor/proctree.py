"""Process trees: who descends from whom, and how a whole tree is ended so that nothing of it is left.

A process is its pid and its start time (field 22 of /proc/PID/stat): a pid alone may be somebody else by now. Children
that moved to a session of their own, or whose parent is dead, escape a signal to a process group; so the tree is read
from /proc, and a worker is a subreaper, to whom the kernel gives what loses its parent (prctl(2)).
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

from dspy_fastpath import process as compiled

MARK = "DSPY_TASK_NODE"  #: the variable in which what a task starts carries the node of its supervisor

_WALL = 0x40000000  # also children that clone(2) made without SIGCHLD
_STAT_BYTES = 1024  # a line is about 350
_STILL = {"T", "t"}  # stopped by a signal or by a debugger
_BLOCKED_S = 0.1  # who is in state D that long is not forking: it waits for a disk, or for the exec of its vfork child


class Process(NamedTuple):
    """What /proc/PID/stat says of a process."""

    pid: int
    started: int  #: clock ticks since boot; with the pid it is unique
    state: str  #: one letter, Z and X are the dead
    parent: int
    group: int
    session: int

    @property
    def alive(self) -> bool:
        """Whether it still runs code, or could."""
        return self.state not in "ZX"


#: What a process asks of the kernel for itself.
become_subreaper = compiled.become_subreaper
die_with_parent = compiled.die_with_parent


def look(pid: int) -> Process | None:
    """Return the process that has this pid now, or None."""
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return None
    try:
        line = os.read(descriptor, _STAT_BYTES)
    except ProcessLookupError:  # it was reaped between the two calls
        return None
    finally:
        os.close(descriptor)
    fields = line[line.rindex(b")") + 2 :].split()  # the name before it may hold blanks and brackets
    return Process(pid, int(fields[19]), fields[0].decode(), int(fields[1]), int(fields[2]), int(fields[3]))


def children() -> set[int]:
    """Return the pids of this process's own children, the dead among them; 2 us where there are none."""
    if not _has_children():
        return set()
    me = os.getpid()
    return {process.pid for process in _everything().values() if process.parent == me}


def descendants(pid: int) -> list[int]:
    """Return the pids of what lives below pid, or in the session it leads; parents come before children."""
    everything = _everything()
    root = everything.get(pid)
    if root is None:
        return []
    return [process.pid for process in _living(everything, [root], {pid}) if process.pid != pid]


def trees(pids: Iterable[int]) -> dict[int, list[int]]:
    """Return for each process that is there what lives of it, below it, and in the session it leads, itself first."""
    everything = _everything()
    roots = [everything[pid] for pid in pids if pid in everything]
    return {root.pid: [process.pid for process in _living(everything, [root], {root.pid})] for root in roots}


def kill_tree(pids: Iterable[int], signum: int, within_s: float = 5.0, spare: Collection[int] = ()) -> list[int]:
    """Send a signal to processes and all their descendants; return the pids that were sent it.

    pids: children of the caller that it has not reaped, so that their pids are theirs. What is in their session counts as
    theirs also where its own parent is dead; but not in the caller's session, nor in those of the processes in spare.
    SIGKILL ends the whole tree: it is stopped first, again and again until nothing new appears and nothing moves, since
    what is stopped cannot fork; within_s bounds that. Other signals are sent once to what is there: what a program
    starts in answer to SIGTERM is its way of cleaning up. Death is not waited for.
    """
    roots = [root for root in map(look, pids) if root is not None and root.pid != os.getpid()]
    # A session is made, never joined, and its number is not given out again while it has members: so all of them descend
    # from one who is a root or was below one, unless it was made above the caller.
    strangers = filter(None, map(look, (os.getpid(), os.getppid(), *spare)))
    sessions = {root.session for root in roots} - {stranger.session for stranger in strangers}
    if signum != signal.SIGKILL:
        return [process.pid for process in _living(_everything(), roots, sessions) if _ask(process, signum)]
    deadline = time.monotonic() + within_s
    seen: dict[tuple[int, int], Process] = {}
    quiet_since = time.monotonic()
    still = False
    with ExitStack() as stack:
        while True:
            everything = _everything()
            tree = {(process.pid, process.started): process for process in _living(everything, roots, sessions)}
            new = [process for identity, process in tree.items() if identity not in seen]
            now = time.monotonic()
            if seen and new:
                stack.enter_context(_ahead())
            seen.update(tree)
            # A stop signal that meets a fork halfway does not undo it: the child is seen only when the parent stopped.
            if new or not {process.state for process in tree.values()} <= _STILL | {"D"}:
                quiet_since = now
            # Twice: a child may be born after /proc was listed and before its parent, already listed, was seen to stop.
            was_still, still = still, all(process.state in _STILL for process in tree.values())
            if (was_still and still and not new) or now - quiet_since > _BLOCKED_S or now > deadline:
                return [process.pid for process in seen.values() if _send(process, signal.SIGKILL)]
            if new:
                _stop(new, {pid for pid, _ in tree}, everything)
            else:
                time.sleep(0.001)  # they need the processor to stop


def reap_orphans(keep: Collection[int], within_s: float = 5.0) -> int:
    """Kill and reap every child of this process that is not in keep, with all below; return how many were reaped.

    In a subreaper this ends whatever a task left behind. It costs 2 us where there is no child at all.
    Raises TimeoutError where something does not die within_s seconds, as in an uninterruptible wait for a disk.
    """
    deadline = time.monotonic() + within_s
    reaped = 0
    while True:
        found = _stop_children(keep)
        if not found:
            return reaped
        kill_tree(found, signal.SIGKILL, max(0.0, deadline - time.monotonic()), keep)
        for pid in found:
            if not wait_gone([pid], deadline):
                state = getattr(look(pid), "state", "gone")
                raise TimeoutError(f"process {pid} does not die: it is in state {state}")
            with suppress(ChildProcessError):  # SIGCHLD is ignored here: the kernel reaps
                os.waitpid(pid, os.WNOHANG | _WALL)
            reaped += 1


def kill_marked(nodes: Collection[str], within_s: float = 5.0) -> int:
    """Kill every program that has the mark of one of these nodes in its environment; return how many.

    A program hands its environment on to what it starts, so this finds what changed its parent and its session; what
    cleared its environment is not found.
    """
    marks = {f"{MARK}={node}".encode() for node in nodes}
    deadline = time.monotonic() + within_s
    killed = empty = 0
    while True:
        found = [process for process in _everything().values() if process.alive and _has_mark(process.pid, marks)]
        # One in the middle of its exec shows no environment for a moment: nothing must be found twice.
        empty = 0 if found else empty + 1
        if empty == 2 or time.monotonic() > deadline:
            return killed
        if empty:
            time.sleep(0.005)
        killed += sum(_send(process, signal.SIGKILL) for process in found)
        wait_gone([process.pid for process in found], deadline)


def _has_mark(pid: int, marks: set[bytes]) -> bool:
    if pid == os.getpid():
        return False
    try:
        descriptor = os.open(f"/proc/{pid}/environ", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # gone, or another user's
        return False
    try:
        with os.fdopen(descriptor, "rb") as file:
            return not marks.isdisjoint(file.read().split(b"\0"))
    except OSError:
        return False


def wait_gone(pids: Iterable[int], deadline: float) -> bool:
    """Wait until none of these processes runs any more, or time.monotonic() is deadline; return whether they ended."""
    poll = select.poll()
    descriptors = set()
    try:
        for pid in pids:
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            descriptors.add(descriptor)
            poll.register(descriptor, select.POLLIN)
        waiting = set(descriptors)
        while waiting:
            left_s = deadline - time.monotonic()
            ready = poll.poll(max(0.0, left_s) * 1000)
            for descriptor, _ in ready:
                poll.unregister(descriptor)
                waiting.discard(descriptor)
            if not ready and left_s <= 0:
                return False
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return True


def _everything() -> dict[int, Process]:
    # /proc/PID/task/*/children would be quicker, but needs CONFIG_PROC_CHILDREN and misses children while others exit
    found = (look(int(name)) for name in os.listdir("/proc") if name.isdecimal())
    return {process.pid: process for process in found if process is not None}


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT | _WALL)
    except ChildProcessError:
        return False
    return True


def _stop_children(keep: Collection[int]) -> set[int]:
    """Stop every child that is not in keep; return them, the dead among them.

    The youngest is looked at first and stopped at once: what runs from pid to pid, each time in a session of its own, is
    gone from there in less than a millisecond.
    """
    if not _has_children():
        return set()
    me = os.getpid()
    found = set()
    for pid in sorted((int(name) for name in os.listdir("/proc") if name.isdecimal()), reverse=True):
        process = look(pid)
        if process is not None and process.parent == me and pid not in keep:
            found.add(pid)
            if process.alive:
                _send(process, signal.SIGSTOP)
    return found


def _living(everything: Mapping[int, Process], roots: Collection[Process], sessions: Collection[int]) -> list[Process]:
    """Return what can still run code of the roots, these sessions and all below, without the caller; parents first."""
    by_parent: dict[int, list[Process]] = {}
    for process in everything.values():
        by_parent.setdefault(process.parent, []).append(process)
    known = {root.pid for root in roots}
    queue = [everything[pid] for pid in known if pid in everything]
    queue += [
        process
        for process in everything.values()
        if process.pid not in known and (process.session in sessions or process.group in known)
    ]
    known.update(process.pid for process in queue)
    for process in queue:
        for child in by_parent.get(process.pid, ()):
            if child.pid not in known:
                known.add(child.pid)
                queue.append(child)
    me = os.getpid()
    return [process for process in queue if process.alive and process.pid != me]


@contextmanager
def _ahead() -> Iterator[None]:
    """Run before others where that is allowed: among a hundred busy forks this process gets a hundredth of the time."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    try:
        yield
    finally:
        with suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, before)


def _stop(processes: Collection[Process], tree: Collection[int], everything: Mapping[int, Process]) -> None:
    """Stop these processes: by groups, where a group has no members outside their tree."""
    mixed = {process.group for process in everything.values() if process.alive and process.pid not in tree}
    mixed |= {os.getpgrp(), 0, 1}  # 0 is a group of another pid namespace, and killpg(1) is kill(-1): everybody
    # One call stops a group as a whole, between two of its forks: single signals lose the race against a fork bomb.
    for group in {process.group for process in processes} - mixed:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGSTOP)
    for process in processes:
        if process.group in mixed:
            _send(process, signal.SIGSTOP)


def _ask(process: Process, signum: int) -> bool:
    sent = _send(process, signum)
    if sent and process.state == "T":
        _send(process, signal.SIGCONT)  # what is stopped hears a signal only when it runs again
    return sent


def _send(process: Process, signum: int) -> bool:
    """Send a signal to just this process; False where it is gone, or became somebody else's."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        # The descriptor pins who has the pid now; the start time says whether that is the one who was meant.
        now = look(process.pid)
        if now is None or now.started != process.started:
            return False
        signal.pidfd_send_signal(descriptor, signum)
    except (ProcessLookupError, PermissionError):  # gone, or a program with the rights of another user
        return False
    finally:
        os.close(descriptor)
    return True
