"""Cancelling a task: by the supervisor that serves the queue here, or without one."""

from __future__ import annotations

import os
from pathlib import Path

from ..control_client import RequestRefused, ask, socket_path
from ..errors import NotRunning, SupervisorError, TaskNotFound
from ..layout import Layout
from ..nodes import Presence
from ..runtime import make_runtime_folder
from ..task import State
from ..taskqueue import TaskQueue
from ..undertaker import Undertaker


def cancel(layout: Layout, runtime_dir: Path, task_id: str) -> str:
    """Cancel a task and return what it was: ``waiting``, and it never runs, or ``running``, and it is being ended.

    Raises TaskNotFound, and SupervisorError where it is over already or runs where nobody here can end it.
    """
    refused: RequestRefused | None = None
    for path in sorted(runtime_dir.glob(socket_path(Path(), layout.queue_id, "*").name)):
        try:
            return str(ask(path, {"do": "cancel", "id": task_id})["was"])
        except NotRunning:
            continue  # a socket that was left behind
        except RequestRefused as error:
            refused = error  # it may run under the next
    if refused is None:
        return _cancel_alone(layout, runtime_dir, task_id)
    if refused.exit_code == TaskNotFound.exit_code:
        raise TaskNotFound(task_id, layout.path)
    raise refused


def configured_runtime_dir(queue_dir: Path) -> Path:
    """Return where the supervisor of a queue has its socket, by environment and files. Raises ConfigError."""
    from ..config import load

    return load({"queue_dir": str(queue_dir)}).config.runtime_dir


def _cancel_alone(layout: Layout, runtime_dir: Path, task_id: str) -> str:
    """Cancel a task that waits, as an owner of our own, under a lock of our own: should we die, others can tell."""
    make_runtime_folder(runtime_dir)
    lock = runtime_dir / f"{layout.queue_id}.cancel-{os.getpid()}.lock"
    try:
        with Presence(layout, lock) as presence:
            undertaker = Undertaker(TaskQueue(layout), presence)
            try:
                state = undertaker.cancel(task_id)
            finally:
                undertaker.close()
    finally:
        lock.unlink(missing_ok=True)
    if state is State.CLAIMED:
        raise SupervisorError(
            f"task {task_id} is claimed by a supervisor of another host, or by one that died: cancel it there, or start one"
        )
    return "waiting"
