"""What tracing is told: a line of JSON for each attempt, through one pipe that all workers write and its service reads.

::

    {"id": "a1", "attempt": 0, "claimed_at": ..., ...}    an attempt, as its worker or the supervisor saw it
    {"ended": "a1"}                                       a task ended elsewhere: its record tells the rest

A line is written whole or not at all, as pipe(7) promises for up to PIPE_BUF bytes. Where the pipe is full it is dropped: no
task waits for its trace. What was written before the service died, the next one reads.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
from dataclasses import dataclass

import orjson

_PIPE_BYTES = 1 << 20  # the most that a user may have: some three thousand attempts
_MAX_TEXT = 500


@dataclass(slots=True)
class Attempt:
    """One attempt of one task; times are epoch seconds."""

    id: str
    attempt: int
    task_class: str
    kind: str | None
    traceparent: str | None  #: as the producer wrote it
    submitted_at: float
    claimed_at: float | None  #: when a worker began to claim it; None where nobody looked at the clock
    started_at: float | None  #: when its handler was called; None: never
    ended_at: float
    recorded_at: float | None  #: when that was written down; None where nobody looked
    final: bool  #: whether the task has ended with it
    cause: str | None  #: None: it succeeded
    message: str
    worker: int


class Tracer:
    """The end that attempts are told to."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def tell(self, attempt: Attempt) -> None:
        """Tell of an attempt, where there is room."""
        attempt.message = attempt.message[:_MAX_TEXT]
        self._write(orjson.dumps(attempt))

    def ended(self, task_id: str) -> None:
        """Tell that a task has a record, of which nobody told an attempt."""
        self._write(orjson.dumps({"ended": task_id}))

    def _write(self, line: bytes) -> None:
        if len(line) < select.PIPE_BUF:
            with contextlib.suppress(OSError):  # full, or closed by a task
                os.write(self._descriptor, line + b"\n")


class Traces(Tracer):
    """The pipe, for the supervisor that opens it."""

    def __init__(self, ends: tuple[int, int] | None = None) -> None:
        """``ends``: of a pipe that the program before this one opened."""
        self.reader, self.writer = ends or os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # a user has pages for a few of this size
            fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        super().__init__(self.writer)

    def close(self) -> None:
        """Close both ends."""
        os.close(self.reader)
        os.close(self.writer)
