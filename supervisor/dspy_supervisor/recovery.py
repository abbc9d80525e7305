"""What a dead owner left, brought to an end. Idempotent, and may itself be killed anywhere.

- A commit (``done/.N.won``) with its record is published. One whose record is missing, and whose task has no record either,
  lost it in a power cut at durability none: the task runs again.
- Two names for one task, as a power cut can leave them: the furthest stays (done > failed > higher attempt > claimed >
  pending), so a claim whose task has a record goes, and so does a claim whose next attempt exists.
- The claims of dead nodes are taken: back to pending/, the attempt charged, the crash count unchanged, since the death of a
  supervisor is not the task's fault. A task that was given out too often ends in failed/.
- Temporary files and records that nobody vouches for go after a day and more, by the age of a file just written there.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterable
from dataclasses import dataclass

import orjson
from dspy_fastpath.claim import Refused, peek, write_new
from dspy_fastpath.envelope import EnvelopeError
from dspy_fastpath.ids import uuid7

from .layout import Layout, list_folder
from .retry import Budget, decide
from .task import Cause, TaskName
from .taskqueue import TaskQueue, exists, parse_delayed, parse_won, past_causes
from .undertaker import Undertaker

TEMPORARY_AGE_S = 36 * 3600.0  #: a producer may be slow, or asleep for a night
ORPHAN_AGE_S = 24 * 3600.0


@dataclass(slots=True)
class Recovered:
    """What a recovery did."""

    published: int = 0  #: records of committed attempts that were made visible
    rerun: int = 0  #: commits whose record a power cut took
    taken: int = 0  #: claims of dead owners that wait again
    failed: int = 0  #: claims of dead owners that were given out too often
    dropped: int = 0  #: second names of a task that is further
    quarantined: int = 0

    def __bool__(self) -> bool:
        return any((self.published, self.rerun, self.taken, self.failed, self.dropped, self.quarantined))


def settle_commits(queue: TaskQueue, result: Recovered, *, alone: bool) -> None:
    """Publish what is committed. ``alone``: no other node may be at work, so a record that is missing is lost."""
    layout = queue.layout
    for target in (layout.done, layout.failed):
        for file in list_folder(target):
            name = parse_won(file)
            if name is None:
                continue
            if _is_record(layout, name.result_file, name):
                result.published += queue.publish(name, target)
            elif not exists(target, f"{name.id}.json"):
                if not alone:
                    continue  # its owner may be at this very moment between two renames
                with contextlib.suppress(FileNotFoundError):
                    os.rename(file, name.charged(crashed=False).file, src_dir_fd=target, dst_dir_fd=layout.pending)
                    result.rerun += 1
                continue
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file, dir_fd=target)


def settle_commit(queue: TaskQueue, name: TaskName) -> bool:
    """Publish the record of one attempt whose owner died right after its commit; False where it made none."""
    for target in (queue.layout.done, queue.layout.failed):
        won = f".{name.file}.won"
        if exists(target, won):
            queue.publish(name, target)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(won, dir_fd=target)
            return True
    return False


def take_from_dead(
    undertaker: Undertaker, owners: Iterable[str], budget: Budget, result: Recovered, reason: str
) -> None:
    """Give the claims of dead owners back, and remove their folders."""
    queue = undertaker.queue
    for owner in owners:
        folder = queue.open_owner(owner)
        try:
            for file in list_folder(folder):
                _take(undertaker, file, folder, budget, result, reason)
        finally:
            os.close(folder)
        queue.close_owner(owner)


def clear_old(layout: Layout) -> int:
    """Remove temporary files and records that nobody vouches for, when they are old; return how many.

    Age is measured from a file just written beside them, so it is the file server's clock against itself.
    """
    removed = 0
    for folder, age_s, is_old in (
        (layout.pending, TEMPORARY_AGE_S, lambda name: name.startswith(".") and name.endswith(".tmp")),
        (layout.results, ORPHAN_AGE_S, lambda name: True),
    ):
        candidates = [name for name in list_folder(folder) if is_old(name)]
        if not candidates:
            continue
        probe = f".{uuid7()}.tmp"
        write_new(folder, probe.encode(), b"", False)
        try:
            now = os.stat(probe, dir_fd=folder, follow_symlinks=False).st_mtime
        finally:
            os.unlink(probe, dir_fd=folder)
        for name in candidates:
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                if now - os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime > age_s:
                    os.unlink(name, dir_fd=folder)
                    removed += 1
    return removed


def _take(undertaker: Undertaker, file: str, folder: int, budget: Budget, result: Recovered, reason: str) -> None:
    queue = undertaker.queue
    name = TaskName.parse(file)
    if name is None:
        kept = queue.quarantine(folder, file, "a name in a claim folder that is no task's")
        result.quarantined += kept is not None
        return
    if is_further(queue.layout, name):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file, dir_fd=folder)
            result.dropped += 1
        return
    history = queue.history(name)
    verdict = decide(Cause.LOST, name, past_causes(history), budget, random.random())
    if verdict.final is None:
        queue.note_attempt(name, {"cause": Cause.LOST, "message": reason})
        result.taken += queue.take(name, folder, 0.0)
        return
    message = f"given out {name.attempt + 1} times without an end, the last time: {reason}"
    result.failed += undertaker.bury(folder, file, name, {"cause": verdict.final, "message": message})


def is_further(layout: Layout, name: TaskName) -> bool:
    """Whether the task of a claim is further than the claim: it has a record, a commit, or a later attempt waits."""
    for target in (layout.done, layout.failed):
        if exists(target, f"{name.id}.json") or exists(target, f".{name.file}.won"):
            return True
    nexts = [name.charged(crashed=False).file, name.charged(crashed=True).file]
    if any(exists(layout.pending, file) for file in nexts):
        return True
    if not layout.syncs:
        return False  # no power cut is recovered from at this level, and no other fault leaves two names
    waiting = {parsed[1].file for parsed in map(parse_delayed, list_folder(layout.delayed)) if parsed}
    return any(file in waiting for file in nexts)


def _is_record(layout: Layout, file: str, name: TaskName) -> bool:
    """Whether results/FILE is a whole record of this task."""
    try:
        got = peek(layout.results, file.encode(), 1 << 40, ())
        return got is not None and orjson.loads(got.data).get("task_id") == name.id
    except (Refused, EnvelopeError, ValueError):
        return False
