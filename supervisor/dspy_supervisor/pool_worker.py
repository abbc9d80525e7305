"""A worker process, seen from its pool: what it has in hand, why it is being ended, and how it ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from dataclasses import dataclass, field
from typing import NamedTuple

from .cgroup import Group
from .config import ClassConfig
from .task import Cause


@dataclass(slots=True)
class Death:
    """How a worker ended."""

    status: int  #: wait status
    cause: Cause
    message: str
    wanted: bool  #: it was told to end, and had nothing in hand
    file: str = ""  #: the task it was ended for; another that it had in hand by then is not to blame
    stacks: str = ""
    start_ns: int = 0  #: monotonic, of the task in hand; 0: none had begun
    lost: list[str] = field(default_factory=list)  #: keys it kept something under


class Doom(NamedTuple):
    """Why a worker is being ended."""

    cause: Cause
    message: str
    file: str  #: the task that is to blame; "": whatever it has in hand


@dataclass(slots=True, eq=False)
class Worker:
    """One worker process, seen from the supervisor."""

    pid: int
    pidfd: int
    slot: int
    incarnation: int  #: no two workers have the same
    owner: str
    channel: socket.socket
    stacks: int
    started: float  #: monotonic seconds
    settings: ClassConfig
    retire_after: int  #: tasks; 0: never
    fed: dict[str, float] = field(default_factory=dict)  #: names it has and did not report on: when they were fed
    ready: bool = False
    deaf: bool = False  #: its end of the channel is closed
    ending: bool = False  #: told to end when it has nothing in hand
    silent_s: float = 0.0  #: how long it has had names, begun none of them and said nothing
    tasks: int = 0
    doom: Doom | None = None  #: why it is being killed
    is_spare: bool = False  #: ended since the other of two runs of its task was first
    oom_kills: int = 0  #: of this host, when it started
    is_blind: bool = False  #: it writes to the page of another program: what it runs is told by its reports alone
    group: Group | None = None  #: its own, where this supervisor has a subtree of control groups


def explain(worker: Worker, status: int, klass: str) -> Death:
    """Return how a worker of a class ended, by its wait status and by what we did to it."""
    stacks = ""
    if worker.doom is not None:
        size = min(os.fstat(worker.stacks).st_size, 3072)
        stacks = os.pread(worker.stacks, size, 0).decode(errors="replace")
        cause, message, file = worker.doom
        return Death(status, cause, message, wanted=worker.is_spare, file=file, stacks=stacks)
    code = os.waitstatus_to_exitcode(status)
    who = f"worker {worker.pid} ({klass})"
    if code == -signal.SIGKILL and worker.group and worker.group.ooms:
        bound = worker.settings.memory_bytes
        allowed = f"{bound / 2**30:.2f} GiB are allowed (memory_bytes)" if bound else "the bound of a group above it"
        return Death(status, Cause.HOST_OOM, f"{who} was ended by the kernel for its memory, {allowed}", False)
    if code == -signal.SIGKILL and oom_kills() > worker.oom_kills:
        return Death(status, Cause.HOST_OOM, f"{who} was killed by the kernel, which was out of memory", False)
    if code < 0:
        return Death(status, Cause.SIGNAL, f"{who} was killed by {signal.Signals(-code).name}", False)
    return Death(status, Cause.EXIT, f"{who} ended with exit code {code}", worker.ending and code == 0)


def oom_kills() -> int:
    """Return how many processes the kernel of this host killed for memory since it started."""
    with contextlib.suppress(OSError), open("/proc/vmstat", "rb") as file:
        for line in file:
            if line.startswith(b"oom_kill "):
                return int(line.split()[1])
    return 0
