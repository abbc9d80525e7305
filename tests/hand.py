"""A hand that does a worker's work on the files of a queue, step by step, where no supervisor is wanted."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from dspy_supervisor.layout import Layout
from dspy_supervisor.record import Claim, Run, done_record, failed_record
from dspy_supervisor.task import TaskName
from dspy_supervisor.taskqueue import TaskQueue


class Hand:
    """Ends tasks as a worker does."""

    def __init__(self, path: Path) -> None:
        self.layout = Layout.open(path)
        self.queue = TaskQueue(self.layout)
        self.owner = self.queue.open_owner("hand.1.0")

    def claim(self, task_id: str, attempt: int = 0) -> Claim:
        held = self.queue.claim(TaskName(task_id, attempt).file, self.owner)
        assert held is not None
        return held

    def finish(self, task_id: str, result: Any = None) -> None:
        held = self.claim(task_id)
        run = Run(time.time(), time.time(), 0.0, os.getpid(), "hand.1.0")
        assert self.queue.finish(held, self.owner, done_record(held, json.dumps(result).encode(), run))

    def fail(self, task_id: str, attempt: int = 0, **error: Any) -> None:
        held = self.claim(task_id, attempt)
        run = Run(time.time(), time.time(), 0.0, os.getpid(), "hand.1.0")
        facts = {"cause": "raised", "message": "no luck", **error}
        assert self.queue.fail(held, self.owner, failed_record(held, facts, run))

    def refuse(self, task_id: str, reason: str) -> None:
        assert self.queue.quarantine(self.layout.pending, f"{task_id}.json", reason)

    def close(self) -> None:
        os.close(self.owner)
        self.layout.close()
