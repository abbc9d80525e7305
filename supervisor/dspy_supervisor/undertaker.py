"""Ends tasks that have no worker: cancelled while they waited, or given up after their worker died.

The task's file first moves into a claim folder of our own. From then on it has one owner again, and is completed as any
other task is, so whoever else had an eye on it loses in the usual way.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from typing import Any

from dspy_fastpath.claim import move

from .errors import SupervisorError, TaskNotFound
from .lookup import find_one
from .nodes import Presence
from .record import Run, failed_record
from .task import Cause, State, TaskName
from .taskqueue import TaskQueue, Unusable, parse_delayed


class Undertaker:
    """An owner of claims that only ends tasks."""

    def __init__(self, queue: TaskQueue, presence: Presence) -> None:
        self.queue = queue
        self.owner = presence.new_owner("end")
        self._folder: int | None = None  # made when it is needed

    def bury(self, folder: int, file: str, name: TaskName, error: Mapping[str, Any], run: Run | None = None) -> bool:
        """End the task in folder/file in failed/, as ``name``, with ``error``; False where somebody else had it first.

        After an OSError the task is where it was.
        """
        own = self._open()
        if not self.queue.hand_over(folder, file, own, name):
            return False
        try:
            held = self.queue.read_claim(name.file, own)
            if held is None:
                return False
            run = run or Run(None, time.time(), 0.0, os.getpid(), self.owner)
            return self.queue.fail(held, own, failed_record(held, error, run, self.queue.history(name)))
        except Unusable as unusable:
            self.queue.quarantine(own, name.file, unusable.reason)
            return False
        except OSError:
            with contextlib.suppress(OSError):  # nobody would look for it in a folder of ours
                move(own, name.file.encode(), folder, file.encode())
            raise

    def cancel(self, task_id: str) -> State:
        """Cancel a task that waits, and return where it is now: FAILED, or CLAIMED where a worker has it.

        Raises TaskNotFound, and SupervisorError where it is done already.
        """
        for _ in range(3):  # it may move on between the look and the rename
            found = find_one(self.queue.layout, task_id)
            if found is None:
                raise TaskNotFound(task_id, self.queue.layout.path)
            if found.state is State.CLAIMED:
                return State.CLAIMED
            if found.state in (State.DONE, State.FAILED):
                raise SupervisorError(f"task {task_id} is {found.state} already: nothing is left to cancel")
            parsed = parse_delayed(found.file) if found.state is State.DELAYED else None
            name = parsed[1] if parsed else TaskName.parse(found.file)
            if name is None or found.folder is None:
                continue
            error = {"cause": Cause.CANCELLED, "message": "cancelled before it started"}
            if self.bury(found.folder, found.file, name, error):
                return State.FAILED
        raise SupervisorError(f"task {task_id} is moving; try again")

    def close(self) -> None:
        """Leave, and remove the folder where it was made."""
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None
            self.queue.close_owner(self.owner)

    def _open(self) -> int:
        if self._folder is None:
            self._folder = self.queue.open_owner(self.owner)
        return self._folder
