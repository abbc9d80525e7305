"""A supervisor and a producer with a bug that tests.rigs.disks must find: ``$PLANT`` names it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import dspy_supervisor.producer as producer_module
from dspy_supervisor.__main__ import main
from dspy_supervisor.record import Claim
from dspy_supervisor.taskqueue import TaskQueue

_finish, _write_new = TaskQueue.finish, producer_module.write_new


def _condemned(self: TaskQueue, held: Claim, owner_folder: int, *more: Any) -> bool:  # the disk's trouble is the task's
    try:
        return _finish(self, held, owner_folder, *more)
    except OSError:
        os.rename(held.file, f"{held.name.id}.json", src_dir_fd=owner_folder, dst_dir_fd=self.layout.failed)
        return True


def _dropped(self: TaskQueue, held: Claim, owner_folder: int, *more: Any) -> bool:  # a failed write is forgotten
    try:
        return _finish(self, held, owner_folder, *more)
    except OSError:
        return True


def _believed(folder: int, name: bytes, content: bytes, durable: bool) -> None:
    try:
        _write_new(folder, name, content, durable)
    except OSError:
        with contextlib.suppress(OSError):
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=folder))


@contextlib.contextmanager
def in_producer(plant: str) -> Iterator[None]:
    """Plant what concerns a producer in this process."""
    with contextlib.ExitStack() as stack:
        if plant in ("no_reserve", "believed_short"):
            stack.enter_context(mock.patch.object(producer_module.Depth, "admit", lambda *_: None))
        if plant == "believed_short":
            stack.enter_context(mock.patch.object(producer_module, "write_new", _believed))
        yield


if __name__ == "__main__":
    if os.environ["PLANT"] == "condemned":
        TaskQueue.finish = _condemned  # type: ignore[method-assign]
    elif os.environ["PLANT"] == "dropped":
        TaskQueue.finish = _dropped  # type: ignore[method-assign]
    sys.exit(main())
