"""Forgetting ended tasks: records in done/ and failed/ by age and by count, each with the output in logs/ID/.

What waits or runs is never touched. A task that was forgotten may be put again under the same id, and would run again.
Age is measured against a file just written there, so it is the file server's clock against itself.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from .layout import Layout, walk_folder
from .recovery import clear_old, clock_of
from .taskqueue import parse_won

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
    before = clock_of(layout.nodes) - older_than_s if older_than_s is not None else float("-inf")
    for state in states:
        folder: int = getattr(layout, state)
        for name in _chosen(folder, before, keep):
            # Output first: killed in between, the next gc finds the record, and nothing is left for ever.
            if state != "quarantine":
                result.outputs += _forget_output(layout, name.removesuffix(".json"), dry_run)
            if not dry_run:
                try:
                    os.unlink(name, dir_fd=folder)
                except (FileNotFoundError, IsADirectoryError):
                    continue  # somebody else's gc, or a retry; a folder is a stranger's
                if state == "quarantine":
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(f"{name}.reason", dir_fd=folder)
            setattr(result, state, getattr(result, state) + 1)
    if not dry_run:
        result.temporary = clear_old(layout)
    return result


def _chosen(folder: int, before: float, keep: int | None) -> Iterator[str]:
    """Yield the names of the records to forget: written before ``before`` (epoch seconds), or beyond the newest ``keep``.

    Two walks through the folder, and of a million records eight bytes each: their names are never in memory at once.
    """
    beyond, ties = float("-inf"), 0  # of those written at ``beyond`` exactly, only so many go
    if keep is not None:
        times = array("d", (written for _, written in _ended(folder)))
        too_many = len(times) - keep
        if too_many > 0:
            times = array("d", sorted(times))
            beyond = times[too_many - 1]
            ties = too_many - bisect_left(times, beyond)
    # A commit that is still there vouches for its record: without it the task would be taken for one to run again.
    committed = {won.id for won in map(parse_won, walk_folder(folder)) if won is not None}
    for name, written in _ended(folder):
        if name.removesuffix(".json") in committed:
            continue
        if written == beyond and ties > 0:
            ties -= 1
            yield name
        elif written < before or written < beyond:
            yield name


def _ended(folder: int) -> Iterator[tuple[str, float]]:
    """Yield name and time of writing (epoch seconds) of each record."""
    for name in walk_folder(folder):
        if not name.startswith(".") and name.endswith(".json"):
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if not stat.S_ISDIR(status.st_mode):
                    yield name, status.st_mtime


def _forget_output(layout: Layout, task_id: str, dry_run: bool) -> bool:
    try:
        if not stat.S_ISDIR(os.stat(task_id, dir_fd=layout.logs, follow_symlinks=False).st_mode):
            return False
        if not dry_run:
            shutil.rmtree(task_id, dir_fd=layout.logs)  # by descriptors: it follows no link that a task left
    except FileNotFoundError:
        return False
    return True
