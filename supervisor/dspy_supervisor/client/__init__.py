"""What a program imports to put tasks into a queue and to get their results.

::

    queue           Queue: submit, result, wait, cancel, retry, list
    asynchronous    AsyncQueue: the same as coroutines
    executor        QueueExecutor: the queue as a concurrent.futures.Executor; futures, its futures and their thread
    cancelling      ending a task by a supervisor, or without one
    envelopes       what a caller says of a task, as its envelope
    endings         which of the tasks that somebody waits for have ended
    access          the folder, opened anew when another one takes its place

A name is loaded when it is first used, so a program that only puts tasks loads neither asyncio nor concurrent.futures.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .asynchronous import AsyncQueue as AsyncQueue
    from .executor import QueueExecutor as QueueExecutor
    from .queue import Queue as Queue
    from .queue import TaskInfo as TaskInfo
    from .queue import Waited as Waited

_HOME = {
    "AsyncQueue": "asynchronous",
    "Queue": "queue",
    "QueueExecutor": "executor",
    "TaskInfo": "queue",
    "Waited": "queue",
}

__all__ = ["AsyncQueue", "Queue", "QueueExecutor", "TaskInfo", "Waited"]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value
