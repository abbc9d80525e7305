"""A supervisor with a bug that tests.rigs.hosts must find: ``$PLANT`` names it."""

from __future__ import annotations

import contextlib
import os
import sys

from dspy_fastpath.claim import move, write_new
from dspy_supervisor.__main__ import main
from dspy_supervisor.record import Claim
from dspy_supervisor.taskqueue import TaskQueue


def _believed_enoent(
    self: TaskQueue, source_folder: int, source: str, target_folder: int, target: str
) -> bool:  # an error is taken for a fact
    return move(source_folder, os.fsencode(source), target_folder, os.fsencode(target))


def _no_fence(self: TaskQueue, held: Claim, owner_folder: int, record: bytes, target: int) -> bool:
    file = f"{held.name.id}.json"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(file, dir_fd=target)
    write_new(target, file.encode(), record, False)
    with contextlib.suppress(FileNotFoundError):  # taken meanwhile: nobody looks
        os.unlink(held.file, dir_fd=owner_folder)
    return True


if __name__ == "__main__":
    if os.environ["PLANT"] == "believed_enoent":
        TaskQueue._move = _believed_enoent  # type: ignore[method-assign]
    else:
        TaskQueue._complete = _no_fence  # type: ignore[method-assign]
    sys.exit(main())
