"""What a dead owner left, brought to an end. Idempotent, and may itself be killed anywhere.

- A commit (``done/.N.won``) with its record is published. One whose record is missing, and whose task has no record either,
  lost it in a power cut at durability none: the task runs again.
- What a power cut left of moves that were torn in two goes: see tears.py.
- The claims of dead nodes are taken: back to pending/, the attempt charged, the crash count unchanged, since the death of a
  supervisor is not the task's fault. A task that was given out too often ends in failed/.
- Temporary files, records that nobody vouches for and losses of environments that nobody asks about go after a day and more, by
  the age of a file just written there.
"""

from __future__ import annotations

import contextlib
import os
import random
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import orjson
from dspy_fastpath.claim import Refused, read, write_new
from dspy_fastpath.ids import uuid7

from .environments import Marks
from .jobbook import is_carried
from .layout import Layout, list_folder, walk_folder
from .retry import Budget, decide
from .task import Cause, State, TaskName
from .taskqueue import (
    LARGEST_RECORD,
    TaskQueue,
    exists,
    past_causes,
    won_file,
)
from .tears import commits, drop_names_as_records, drop_second_names, is_further, set_superseded_aside
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


def settle_commits(queue: TaskQueue, result: Recovered, *, alone: bool, torn: bool = False) -> None:
    """Publish what is committed.

    ``alone``: no other node may be at work, so a record that is missing is lost. ``torn``: the power may have been cut
    since the queue was last served, so every task is looked at: some seconds for a million.
    """
    layout = queue.layout
    if alone:
        result.dropped += drop_second_names(layout)
    if alone and torn:
        result.dropped += drop_names_as_records(layout)
        result.quarantined += set_superseded_aside(queue)
    for target in (layout.done, layout.failed):
        for name in commits(target):
            published = False
            if _is_record(layout, name.result_file, name):
                published = queue.publish(name, target)
                result.published += published
            elif not exists(target, f"{name.id}.json"):
                if alone:  # else its owner may be at this very moment between two calls
                    result.rerun += _run_again(layout, name, target)
                continue
            queue.forget_commit(name, target, published=published)


def settle_commit(queue: TaskQueue, name: TaskName) -> State | None:
    """Publish the record of one attempt whose owner died right after its commit, and say what it is; None: it made none."""
    for state, target in ((State.DONE, queue.layout.done), (State.FAILED, queue.layout.failed)):
        if exists(target, won_file(name)):
            queue.forget_commit(name, target, published=queue.publish(name, target))
            return state
    return None


def take_from_dead(
    undertaker: Undertaker, owners: Iterable[str], budget: Budget, result: Recovered, reason: str
) -> None:
    """Give the claims of dead owners back, and remove their folders; not what runs in a cluster: it goes on there."""
    queue = undertaker.queue
    for owner in owners:
        if is_carried(owner):
            continue
        try:
            folder = queue.open_owner(owner)
        except NotADirectoryError:  # a stranger's file or link between the folders of owners
            result.quarantined += queue.quarantine(queue.layout.claimed, owner, "no folder of an owner") is not None
            continue
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
    for folder, name in list(_old(layout, clock_of)):
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            os.unlink(name, dir_fd=folder)
            removed += 1
    marks = Marks(layout)
    for name in marks.old(clock_of, ORPHAN_AGE_S):
        marks.remove_file(name)
        removed += 1
    return removed


def count_old(layout: Layout) -> int:
    """Return how much `clear_old` would remove, by this host's clock, since looking writes nothing."""
    lost = Marks(layout).old(lambda _: time.time(), ORPHAN_AGE_S)
    return len(lost) + sum(1 for _ in _old(layout, lambda _: time.time()))


def _old(layout: Layout, clock: Callable[[int], float]) -> Iterator[tuple[int, str]]:
    for folder, age_s in (
        *((folder, TEMPORARY_AGE_S) for folder in (layout.root, layout.pending, layout.nodes, layout.quarantine)),
        (layout.results, ORPHAN_AGE_S),
    ):
        candidates = [name for name in walk_folder(folder) if folder == layout.results or is_temporary(name)]
        if not candidates:
            continue
        now = clock(folder)
        for name in candidates:
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if now - status.st_mtime > age_s and not stat.S_ISDIR(status.st_mode):
                    yield folder, name


def is_temporary(file: str) -> bool:
    """Whether a name is one that ours, and other careful producers', write under before they move it."""
    return file.startswith(".") and file.endswith(".tmp")


def clock_of(folder: int) -> float:
    """Return the time (epoch seconds) by the clock that stamps the files of an open folder."""
    probe = f".{uuid7()}.tmp"
    write_new(folder, probe.encode(), b"", False)
    try:
        return os.stat(probe, dir_fd=folder, follow_symlinks=False).st_mtime
    finally:
        os.unlink(probe, dir_fd=folder)


def _take(undertaker: Undertaker, file: str, folder: int, budget: Budget, result: Recovered, reason: str) -> None:
    queue = undertaker.queue
    name = TaskName.parse(file)
    if file.startswith(".nfs"):
        return  # what a client of NFS keeps of a file that is still open somewhere
    if name is None:
        kept = queue.quarantine(folder, file, "a name in a claim folder that is no task's")
        result.quarantined += kept is not None
        return
    if is_further(queue, name, folder):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file, dir_fd=folder)
            result.dropped += 1
        return
    history = queue.history(name)
    verdict = decide(Cause.LOST, name, past_causes(history), budget, random.random())
    queue.note_attempt(name, {"cause": Cause.LOST, "message": reason})
    if verdict.final is None:
        result.taken += queue.take(name, folder, 0.0)
        return
    message = f"given out {name.attempt + 1} times without an end, the last time: {reason}"
    # Charged like any other that is taken: its owner may only be frozen, and writes its result under the old name.
    error = {"cause": verdict.final, "message": message}
    result.failed += undertaker.bury(folder, file, name.charged(crashed=False), error)


def _run_again(layout: Layout, name: TaskName, target: int) -> bool:
    """Let a task run again whose record a power cut took, with its commit."""
    try:
        os.rename(won_file(name), name.charged(crashed=False).file, src_dir_fd=target, dst_dir_fd=layout.pending)
    except FileNotFoundError:
        return False
    return True


def _is_record(layout: Layout, file: str, name: TaskName) -> bool:
    """Whether results/FILE is a whole record of this task, however deep the result in it."""
    try:
        record = orjson.loads(read(layout.results, file.encode(), LARGEST_RECORD, ()).data)
    except (FileNotFoundError, Refused, ValueError):
        return False
    return isinstance(record, dict) and record.get("task_id") == name.id
