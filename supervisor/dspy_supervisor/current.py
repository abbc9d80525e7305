"""The task that this process runs: what is logged and put while it runs belongs to it.

A worker runs one task at a time, so one variable is enough, for all threads and coroutines that the handler starts. What a
handler leaves running beyond its task is taken for a part of the next one.
"""

from __future__ import annotations

from typing import Protocol


class Running(Protocol):
    """What others ask of a task that runs."""

    id: str
    attempt: int

    @property
    def traceparent(self) -> str | None:
        """The W3C trace context that belongs to what it does."""


task: Running | None = None


def begin(running: Running) -> None:
    """From now on this task runs."""
    global task  # noqa: PLW0603
    task = running


def end() -> None:
    """No task runs any more."""
    global task  # noqa: PLW0603
    task = None


def traceparent() -> str | None:
    """Return the trace context of the task that runs, or None: none runs, or it has none."""
    return None if task is None else task.traceparent
