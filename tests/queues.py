"""A queue in a folder, owners of claims in it, and deaths between any two of its steps: what tests of its rules begin with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from dspy_supervisor import fsck, gc, layout, lookup, producer, recovery, taskqueue, tears, undertaker
from dspy_supervisor.layout import Layout
from dspy_supervisor.producer import Producer, envelope
from dspy_supervisor.record import Claim, Run, done_record, failed_record
from dspy_supervisor.recovery import Recovered, settle_commits, take_from_dead
from dspy_supervisor.retry import Budget
from dspy_supervisor.task import Cause, TaskName
from dspy_supervisor.taskqueue import TaskQueue
from dspy_supervisor.undertaker import Undertaker

BUDGET = Budget(max_attempts=3, max_crashes=3, max_deliveries=20, base_s=1.0, cap_s=300.0)
RUN = Run(started_at=1_700_000_000.25, ended_at=1_700_000_001.5, duration_s=1.25, worker=4711, owner="n1.1.0")
MODULES = (taskqueue, producer, recovery, tears, layout, lookup, undertaker, fsck, gc)
CALLS = ("move", "move_new", "write_new", "sync", "sync_filesystem", "claim")
OS_CALLS = ("rename", "unlink", "mkdir", "rmdir")
SYNCS = ("sync", "sync_filesystem")


class Node:
    """What an undertaker asks of the supervisor it works for."""

    def __init__(self, name: str) -> None:
        self.node, self._owners = name, 0

    def new_owner(self, slot: int | str) -> str:
        self._owners += 1
        return f"{self.node}.{self._owners}.{slot}"


class Rig:
    """A queue, and everything that moves tasks in it."""

    def __init__(self, path: Path, *, durability: str = "none", **more: Any) -> None:
        self.layout = Layout.open(path, create=True, durability=durability, **more)
        self.path = self.layout.path
        self.queue = TaskQueue(self.layout)
        self.producer = Producer(self.layout)
        self._folders: dict[str, int] = {}

    def put(self, task_id: str, payload: Any = None, *, due: float | None = None, **options: Any) -> bytes:
        document = envelope(payload, task_id=task_id, **options)
        self.producer.put(task_id, document, due=due)
        return document

    def owner(self, name: str = "n1.1.0") -> int:
        """Return the open folder of an owner's claims."""
        if name in self._folders and not os.fstat(self._folders[name]).st_nlink:
            os.close(self._folders.pop(name))  # a recovery removed it
        if name not in self._folders:
            self._folders[name] = self.queue.open_owner(name)
        return self._folders[name]

    def claim(self, file: str, owner: str = "n1.1.0") -> Claim:
        got = self.queue.claim(file, self.owner(owner))
        assert got is not None
        return got

    def finish(self, held: Claim, result: bytes = b'"ok"', owner: str = "n1.1.0") -> bool:
        return self.queue.finish(held, self.owner(owner), done_record(held, result, RUN, self.queue.history(held.name)))

    def fail(self, held: Claim, owner: str = "n1.1.0", cause: Cause = Cause.RAISED) -> bool:
        error = {"cause": cause, "message": "no"}
        return self.queue.fail(held, self.owner(owner), failed_record(held, error, RUN, self.queue.history(held.name)))

    def recover(self, *dead: str, me: str = "me", alone: bool = True, budget: Budget = BUDGET) -> Recovered:
        """Do what a supervisor does at its start, where these nodes are dead."""
        result = Recovered()
        settle_commits(self.queue, result, alone=alone, torn=True)
        boss = Undertaker(self.queue, Node(me))  # type: ignore[arg-type]
        owners = [owner for owner in sorted(os.listdir(self.path / "claimed")) if owner.partition(".")[0] in dead]
        take_from_dead(boss, owners, budget, result, "its supervisor died")
        boss.close()
        return result

    def names(self, folder: str) -> list[str]:
        """Return what lies in a folder, by paths below it for claimed/."""
        root = self.path / folder
        if folder == "claimed":
            return sorted(f"{path.parent.name}/{path.name}" for path in root.glob("*/*"))
        return sorted(os.listdir(root))

    def tree(self) -> dict[str, Any]:
        """Return every file below the queue's folder with its content."""
        return {str(path.relative_to(self.path)): path.read_bytes() for path in self.path.rglob("*") if path.is_file()}

    def close(self) -> None:
        for descriptor in self._folders.values():
            os.close(descriptor)
        self.layout.close()


class Killed(BaseException):
    """The process ended here."""


class Steps:
    """Counts the calls that change the queue's folders, and lets something happen at the N-th.

    ``at`` None: only count. ``how`` "before" and "after": the process dies before or after that call, and does nothing more,
    no tidying up either; "exit" as "before", for a real process of its own. "error":
    that call fails with ``error``. "lost": it is done, and fails with ``error`` all the same.
    """

    def __init__(self, at: int | None = None, how: str = "before", error: int = 5, only: tuple[str, ...] = ()) -> None:
        self.at, self.how, self.error, self.only = at, how, error, only
        self.count = 0
        self.calls: list[str] = []
        self._dead = False
        self._patches = ExitStack()

    def _wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            if self._dead:
                raise Killed
            if name in OS_CALLS and not any(key.endswith("dir_fd") for key in options):
                return call(*arguments, **options)
            if self.only and name not in self.only:
                return call(*arguments, **options)
            self.calls.append(name)
            self.count += 1
            if self.count - 1 != self.at:
                return call(*arguments, **options)
            if self.how == "exit":
                os._exit(0)
            if self.how == "before":
                self._dead = True
                raise Killed
            if self.how != "error":
                call(*arguments, **options)
            if self.how == "after":
                self._dead = True
                raise Killed
            raise OSError(self.error, os.strerror(self.error))

        return step

    def __enter__(self) -> Steps:
        originals: dict[Any, Any] = {}
        for module in MODULES:
            for name in CALLS:
                if hasattr(module, name):
                    call = getattr(module, name)
                    wrapped = originals.setdefault(call, self._wrap(name, call))
                    self._patches.enter_context(mock.patch.object(module, name, wrapped))
        for name in OS_CALLS:
            self._patches.enter_context(mock.patch.object(os, name, self._wrap(name, getattr(os, name))))
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.close()


def steps_of(action: Callable[[], object]) -> int:
    """Return how many steps an action takes."""
    with Steps() as counted:
        action()
    return counted.count


@contextmanager
def dying(at: int, how: str = "before") -> Iterator[Steps]:
    """Let the process die at its N-th step within the block, and go on after it as its successor."""
    steps = Steps(at, how)
    try:
        with steps:
            yield steps
    except Killed:
        pass


def task_file(task_id: str, attempt: int = 0, crashes: int = 0) -> str:
    return TaskName(task_id, attempt, crashes).file
