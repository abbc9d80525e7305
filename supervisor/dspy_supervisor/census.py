"""How many tasks lie where, counted from the folders themselves.

A folder's total is exact and costs one listing. A task's class is inside its file, so classes are counted by reading,
as far as a time limit allows: what was not read is missing from the classes, and ``complete`` says so.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from dspy_fastpath.claim import Refused, peek
from dspy_fastpath.envelope import EnvelopeError

from .layout import Layout, list_folder
from .task import State, TaskName, WorkloadClass

_LONGEST_READ = 4 << 20  # bytes; a longer file is counted in its folder only


def _zeros() -> dict[str, int]:
    return {str(state): 0 for state in State} | {"quarantine": 0}


@dataclass(slots=True)
class Census:
    """``folders`` by state and ``quarantine``; ``classes`` by class and state."""

    folders: dict[str, int] = field(default_factory=_zeros)
    classes: dict[str, dict[str, int]] = field(
        default_factory=lambda: {str(workload): {str(state): 0 for state in State} for workload in WorkloadClass}
    )
    complete: bool = True


def count(layout: Layout, limit_s: float = 1.0) -> Census:
    """Return what lies in the queue now; reading for the classes takes ``limit_s`` seconds at most."""
    result = Census()
    deadline = time.monotonic() + limit_s
    result.folders["quarantine"] = sum(not name.endswith(".reason") for name in _visible(layout.quarantine))
    for state, folder, names in _listed(layout):
        result.folders[state] += len(names)
        for done, name in enumerate(names):
            if done % 64 == 0 and time.monotonic() > deadline:
                result.complete = False
                break
            try:
                found = peek(folder, name.encode(), _LONGEST_READ, ())
            except (Refused, EnvelopeError, OSError):
                result.complete = False
                continue
            if found is not None:
                result.classes[WorkloadClass.parse(found.fields.task_class)][state] += 1
    return result


def _listed(layout: Layout) -> Iterator[tuple[State, int, list[str]]]:
    """Yield the task files of each folder; those that move during the count may be seen twice or not at all."""
    yield State.PENDING, layout.pending, [name for name in _visible(layout.pending) if name.endswith(".json")]
    yield State.DELAYED, layout.delayed, [name for name in _visible(layout.delayed) if name.endswith(".json")]
    for owner in _visible(layout.claimed):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            folder = os.open(owner, flags, dir_fd=layout.claimed)
            try:
                yield State.CLAIMED, folder, [name for name in list_folder(folder) if TaskName.parse(name)]
            finally:
                os.close(folder)
    yield State.FAILED, layout.failed, [name for name in _visible(layout.failed) if name.endswith(".json")]
    yield State.DONE, layout.done, [name for name in _visible(layout.done) if name.endswith(".json")]


def _visible(folder: int) -> list[str]:
    return [name for name in list_folder(folder) if not name.startswith(".")]
