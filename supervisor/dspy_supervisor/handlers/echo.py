"""The echo handler: the payload is the result. It shows that a queue works, and what a task costs beside its work."""

from __future__ import annotations

from ..parts import JSON, Handler, Task


def make() -> Handler:
    """Return the handler."""
    return echo


def echo(task: Task) -> JSON:
    """Return the payload."""
    payload: JSON = task.payload
    return payload
