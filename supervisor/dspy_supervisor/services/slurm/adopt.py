"""What bridges before this one left: claims whose owner is dead, and submissions that nobody waits for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator

from ...jobbook import JobBook, Submission, is_job
from ...layout import Layout, list_folder, read_json
from ...log import log
from ...lookup import files
from ...nodes import Observer, node_of
from ...parts import ServicePost
from ...task import State, TaskName
from ...taskqueue import TaskQueue
from .roster import Roster, Rows
from .states import LIVE, fate_of

_LOOK_S = 5.0
_SWEEP_S, _FIRST_SWEEP_S = 3600.0, 60.0
_VOID_S = 86400.0  # a late copy of a job finds its folder for so long


class Adopter:
    """Moves the claims of dead bridges into the folder of this one: of two that try, one wins each."""

    def __init__(self, post: ServicePost, layout: Layout, queue: TaskQueue, folder: int) -> None:
        self._post, self._layout, self._queue, self._folder = post, layout, queue, folder
        config = post.config
        self._observer = Observer(post.node, layout, config.runtime_dir, config.take_after_s, config.heartbeat_s)
        self._next = 0.0
        self._beat: object = None
        self._index: dict[str, list[tuple[Submission, int]]] | None = None

    def turn(self, now: float) -> Iterator[str]:
        """Yield the files of tasks that are ours from now on."""
        if now < self._next:
            return
        self._next = now + _LOOK_S
        self._index = None
        owners = [owner for owner in list_folder(self._layout.claimed) if is_job(owner)]
        owners = [owner for owner in owners if owner != self._post.owner]
        if not owners:
            return
        dead = self._dead(now, {node_of(owner) for owner in owners})
        for owner in owners:
            if node_of(owner) in dead:
                with contextlib.suppress(OSError):
                    yield from self._adopt(owner)

    def find(self, book: JobBook, file: str) -> tuple[Submission, int] | None:
        """Return the submission of a task that was taken over; None where it has none, and may be submitted."""
        if self._index is None:
            self._index = {}
            for submission in book.submissions():
                for index, task in enumerate(submission.tasks):
                    self._index.setdefault(task, []).append((submission, index))
        for submission, index in reversed(self._index.get(file, ())):
            if book.folder(submission.name, index).is_dir() and not book.sentinel(submission.name, index).void:
                return submission, index
        return None

    def _dead(self, now: float, nodes: set[str]) -> set[str]:
        beat = (read_json(self._layout.nodes, f"{self._post.node}.hb") or {}).get("counter")
        beating, self._beat = beat is not None and beat != self._beat, beat
        dead = self._observer.dead(now, beating=beating)
        # Of our own node: the bridge before this one. One without a heartbeat has left, and would say if it had not.
        left = nodes - self._observer.others() - {self._post.node}
        return dead | left | {self._post.node}

    def _adopt(self, owner: str) -> Iterator[str]:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        folder = os.open(owner, flags, dir_fd=self._layout.claimed)
        taken = 0
        try:
            for file in list_folder(folder):
                name = TaskName.parse(file)
                if name is not None and self._queue.hand_over(folder, file, self._folder, name):
                    taken += 1
                    yield file
        finally:
            os.close(folder)
            if taken:
                log.info("slurm_adopted", tasks=taken, owner=owner)
        self._queue.close_owner(owner)


class Attic:
    """Clears away submissions whose tasks are settled or went into others, and ends their jobs should they come late."""

    def __init__(self, book: JobBook, roster: Roster, *, end: Callable[[Iterable[str]], None]) -> None:
        self._book, self._roster, self._end = book, roster, end
        self._next = float("-inf")
        self._suspects: set[tuple[str, int]] = set()  # that no claim led to at the last sweep
        self._known: dict[str, bool] = {}  # names that are nobody's: whether their jobs are to be ended

    @property
    def wants_look(self) -> bool:
        """Whether something here waits for a look at the cluster."""
        return bool(self._suspects)

    def turn(self, now: float) -> None:
        """Look through what there is, now and then (``now``: monotonic)."""
        if self._next == float("-inf"):
            self._next = now + _FIRST_SWEEP_S
        if now >= self._next:
            self._next = now + (_SWEEP_S if not self._suspects else _FIRST_SWEEP_S)
            self._known.clear()
            with contextlib.suppress(OSError):
                self._sweep()

    def look(self, rows: Rows) -> None:
        """End what runs in the cluster and is void."""
        for name, there in rows.items():
            if name in self._roster.jobs:
                continue
            live = [row for some in there.values() for row in some if fate_of(row.state) in LIVE]
            if live and name not in self._known:
                void = [row.key for row in live if self._book.sentinel(name, row.index or 0).void]
                self._known[name] = True
                if void:
                    log.warning("slurm_ends_void", jobs=void[:5], number=len(void))
                    self._end(void)

    def _sweep(self) -> None:
        import time

        claimed = {found.file for found in files(self._book.layout, State.CLAIMED)}
        before, self._suspects = self._suspects, set()
        for submission in self._book.submissions():
            job = self._roster.jobs.get(submission.name)
            left = False
            for index, file in enumerate(submission.tasks):
                if not self._book.folder(submission.name, index).is_dir():
                    continue
                left = True
                if job is not None and index in job.elements:
                    continue
                void = self._book.sentinel(submission.name, index).void
                if void and time.time() - submission.at < _VOID_S:
                    continue
                if not void and file in claimed:
                    continue
                if not void and (submission.name, index) not in before:
                    self._suspects.add((submission.name, index))  # it may be on its way from one bridge to another
                elif void or self._book.void(submission.name, index, "no task waits for it"):
                    if submission.job_id and not void:
                        self._end([submission.job_of(index)])
                    self._book.forget(submission.name, index)
                else:
                    self._end([submission.job_of(index)])  # it has started: ended, and cleared away the next time
            if not left and submission.name not in self._roster.jobs:
                self._book.forget(submission.name, 0)
