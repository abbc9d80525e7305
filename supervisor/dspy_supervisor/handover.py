"""What a supervisor leaves to the program that takes its process over: a document in memory, and open descriptors.

The process stays, so its children stay its children; what goes over is who they are and what they have in hand. The document
is JSON of this form, `Handover`; numbers of descriptors in it are those that the next program finds open. `FORMAT` is also that
of what supervisor and workers say to each other (channel.py): the workers of the old program talk to the new one.

A program that can't read it does as after a kill: `abandon`, and recovery finds in the queue all there is to know.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

from . import proctree
from .errors import SupervisorError

FORMAT = 1
_SMALLEST = 3  # descriptors below are the standard ones


class HandoverUnreadable(SupervisorError):
    """Another program left what this one can't go on with."""


@dataclass(frozen=True, slots=True)
class KeyState:
    """A key that is bound to a worker."""

    key: str  #: in hexadecimal: it may be any text
    is_kept: bool
    busy: str  #: the task that the worker has of it, or lanes.CLOSING


@dataclass(frozen=True, slots=True)
class NeedState:
    """What a task needs of GPUs; see devices.Need."""

    gpus: int
    share: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class SeatState:
    """The devices of a worker, and the task that has them."""

    devices: tuple[str, ...]
    kind: str
    kept: int
    peak: int
    file: str = ""  #: "": it is idle
    need: NeedState | None = None
    given: NeedState | None = None
    task_kind: str = ""
    declared: bool = False
    started: float = 0.0


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A worker that lives."""

    task_class: str
    pid: int
    slot: int
    incarnation: int
    owner: str
    channel: int
    stacks: int
    started: float  #: monotonic seconds, as all times here
    oom_kills: int
    tasks: int
    ready: bool
    deaf: bool
    is_blind: bool
    fed: dict[str, float]
    task: str = ""  #: that it has begun
    start_ns: int = 0
    deadline_ns: int = 0
    group: str = ""  #: path of its control group
    keys: tuple[KeyState, ...] = ()
    seat: SeatState | None = None


@dataclass(frozen=True, slots=True)
class Handover:
    """All of it."""

    format: int
    version: str  #: of the program that wrote it
    number: int  #: of programs that this process has run before
    queue_id: str
    queue_format: int
    queue_dir: str
    runtime_dir: str
    instance: str
    classes: tuple[str, ...]
    started_at: float  #: epoch seconds
    stopped_at: float  #: monotonic seconds, when the old program did
    node: str
    beats: int
    owners: int
    lock: int
    control: int
    guard: int  #: its pid
    guard_pipe: int
    traces: tuple[int, ...]  #: both ends of the pipe, or nothing
    mean_run_s: dict[str, float]
    counted: tuple[str, ...]  #: tasks that were counted as they arrived
    workers: tuple[WorkerState, ...] = field(default_factory=tuple)

    @classmethod
    def read(cls, descriptor: int) -> Self:
        """Return what another program wrote. Raises HandoverUnreadable."""
        import msgspec

        try:
            content = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
            found: dict[str, Any] = msgspec.json.decode(content, type=dict)
            if found.get("format") != FORMAT:
                raise HandoverUnreadable(
                    f"the running program hands over in format {found.get('format')!r}, and this one takes format {FORMAT}: "
                    f"restart the supervisor instead"
                )
            return msgspec.json.decode(content, type=cls)
        except (OSError, msgspec.MsgspecError) as error:
            raise HandoverUnreadable(f"what the running program hands over can't be read: {error}") from None

    def write(self) -> int:
        """Return the descriptor of a file in memory that holds it, which a program started from here finds open."""
        import msgspec

        content = memoryview(msgspec.json.encode(self))
        descriptor = os.memfd_create("handover", 0)
        try:
            while content:
                content = content[os.write(descriptor, content) :]
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def descriptors(self) -> Iterator[int]:
        """Yield what has to stay open."""
        yield from (self.lock, self.control, self.guard_pipe, *self.traces)
        for worker in self.workers:
            yield from (worker.channel, worker.stacks)


@contextlib.contextmanager
def kept_open(descriptors: Iterator[int]) -> Iterator[None]:
    """Let these stay open when this process turns to another program, which it does inside; close them then again."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # until the next program can take them
    changed = list(descriptors)
    try:
        for descriptor in changed:
            os.set_inheritable(descriptor, True)
        yield
    finally:
        for descriptor in changed:
            os.set_inheritable(descriptor, False)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def hear_signals() -> None:
    """Take the signals that waited while one program turned to the next."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())


def abandon() -> None:
    """Be as if freshly started: kill and reap what the program before left running, and close what it left open."""
    proctree.reap_orphans(())
    for name in os.listdir("/proc/self/fd"):
        if int(name) >= _SMALLEST:
            with contextlib.suppress(OSError):
                os.close(int(name))
