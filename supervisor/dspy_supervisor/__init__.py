"""Runs streams of tasks from a durable folder queue, in forked worker processes.

General layout, imports only run downhill::

    errors, task                                the words: errors with exit codes, classes, names on disk
    config, filesystem, layout, record,         the rules: settings, the folder and its moves, recovery
    taskqueue, recovery, retry, backlog
    parts                                       the sockets: Task, Handler, load("module:function")
    worker, intake, pool, control               the actors, and above them loop, then cli/
    client                                      beside the actors: what a Python program imports
    handlers/                                   what a task can do, a file each; dspy_fastpath is compiled, below all
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .checkpoint import CheckpointSaved as CheckpointSaved
    from .checkpoint import checkpoint_requested as checkpoint_requested
    from .checkpoint import checkpoint_saved as checkpoint_saved
    from .client import AsyncQueue as AsyncQueue
    from .client import Queue as Queue
    from .client import QueueExecutor as QueueExecutor
    from .errors import AlreadyRunning as AlreadyRunning
    from .errors import ConfigError as ConfigError
    from .errors import DuplicateTask as DuplicateTask
    from .errors import EnvelopeInvalid as EnvelopeInvalid
    from .errors import NotRunning as NotRunning
    from .errors import QueueFormat as QueueFormat
    from .errors import QueueFull as QueueFull
    from .errors import QueueMissing as QueueMissing
    from .errors import QueueUnsafe as QueueUnsafe
    from .errors import ServiceUnavailable as ServiceUnavailable
    from .errors import SupervisorError as SupervisorError
    from .errors import TaskFailed as TaskFailed
    from .errors import TaskNotFound as TaskNotFound
    from .errors import WaitTimeout as WaitTimeout
    from .parts import Retry as Retry
    from .parts import Task as Task
    from .parts import TaskRefused as TaskRefused

_ERRORS = (
    "AlreadyRunning ConfigError DuplicateTask EnvelopeInvalid NotRunning QueueFormat QueueFull QueueMissing "
    "QueueUnsafe "
    "ServiceUnavailable SupervisorError TaskFailed TaskNotFound WaitTimeout"
)
_HOME = {
    **dict.fromkeys(("CheckpointSaved", "checkpoint_requested", "checkpoint_saved"), "checkpoint"),
    **dict.fromkeys(("AsyncQueue", "Queue", "QueueExecutor"), "client"),
    **dict.fromkeys(("Retry", "Task", "TaskRefused"), "parts"),
    **dict.fromkeys(_ERRORS.split(), "errors"),
}

__all__ = ["__version__", *sorted(_HOME)]  # noqa: PLE0604


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562): `--version` needs none of them."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
