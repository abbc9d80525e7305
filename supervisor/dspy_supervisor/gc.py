"""Forgetting ended tasks: records in done/ and failed/ by age and by count, each with the output in logs/ID/.

What waits or runs is never touched. A task that was forgotten may be put again under the same id, and would run again.
Age is measured against a file just written there, so it is the file server's clock against itself.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Collection
from dataclasses import dataclass

from dspy_fastpath.claim import write_new
from dspy_fastpath.ids import uuid7

from .layout import Layout, list_folder
from .recovery import clear_old

STATES = ("done", "failed", "quarantine")


@dataclass(slots=True)
class Forgotten:
    """What was removed, or would be."""

    done: int = 0
    failed: int = 0
    quarantine: int = 0
    outputs: int = 0  #: folders in logs/
    temporary: int = 0  #: old temporary files and records that nobody vouches for


def forget(
    layout: Layout,
    states: Collection[str],
    *,
    older_than_s: float | None = None,  # forget what ended before that many seconds
    keep: int | None = None,  # forget all but so many of each state, the newest
    dry_run: bool = False,
) -> Forgotten:
    """Forget what is older, or is beyond the count; of the two, either is enough."""
    result = Forgotten()
    for state in states:
        folder: int = getattr(layout, state)
        for name in _chosen(folder, older_than_s, keep):
            task_id = name.removesuffix(".json")
            if not dry_run:
                try:
                    os.unlink(name, dir_fd=folder)
                except FileNotFoundError:
                    continue  # somebody else's gc, or a retry
                if state == "quarantine":
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(f"{name}.reason", dir_fd=folder)
            setattr(result, state, getattr(result, state) + 1)
            if state != "quarantine":
                result.outputs += _forget_output(layout, task_id, dry_run)
    if not dry_run:
        result.temporary = clear_old(layout)
    return result


def _chosen(folder: int, older_than_s: float | None, keep: int | None) -> list[str]:
    """Return the names of the records to forget, the oldest first."""
    found: list[tuple[float, str]] = []
    for name in list_folder(folder):
        if not name.startswith(".") and name.endswith(".json"):
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if not stat.S_ISDIR(status.st_mode):
                    found.append((status.st_mtime, name))
    found.sort()
    beyond = len(found) - keep if keep is not None else 0
    old = 0
    if older_than_s is not None:
        limit = _now(folder) - older_than_s
        old = sum(written < limit for written, _ in found)
    return [name for _, name in found[: max(0, beyond, old)]]


def _now(folder: int) -> float:
    probe = f".{uuid7()}.tmp"
    write_new(folder, probe.encode(), b"", False)
    try:
        return os.stat(probe, dir_fd=folder, follow_symlinks=False).st_mtime
    finally:
        os.unlink(probe, dir_fd=folder)


def _forget_output(layout: Layout, task_id: str, dry_run: bool) -> bool:
    try:
        if not stat.S_ISDIR(os.stat(task_id, dir_fd=layout.logs, follow_symlinks=False).st_mode):
            return False
        if not dry_run:
            shutil.rmtree(task_id, dir_fd=layout.logs)  # by descriptors: it follows no link that a task left
    except FileNotFoundError:
        return False
    return True
