"""What one bridge holds: its claims and their jobs, and its ways to the queue, the cluster and the supervisor."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable

from dspy_fastpath.counters import Page

from ...channel import Kind
from ...environment import slurm_environment
from ...jobbook import JobBook
from ...layout import Layout
from ...parts import ServicePost
from ...record import Claim
from ...taskqueue import TaskQueue, Unusable
from .commands import Slurm
from .listing import chunks
from .roster import Element, Roster
from .settle import Settler, Told

_NETWORK_WITNESS_S, _LOCAL_WITNESS_S = 60.0, 5.0  # a network filesystem shows a new file that late


class Hold:
    """The holdings of one bridge."""

    def __init__(self, post: ServicePost, layout: Layout, page: Page) -> None:
        self.post, self.layout, self.page, self.config = post, layout, page, post.config
        self.queue = TaskQueue(layout, max_bytes=self.config.max_task_bytes, max_depth=self.config.max_depth)
        self.book = JobBook(layout)
        self.book.prepare()
        self.folder = self.queue.open_owner(post.owner)
        self.settler = Settler(self.queue, self.book, post.owner, self.folder, self.config, page)
        self.slurm = Slurm(slurm_environment(self.config.command_env))
        self.roster = Roster()
        self.problem = ""  #: why something that was asked for can't be done now
        self.dirty: set[str] = set()  #: submissions of which more is known than on disk
        self.hasten: Callable[[], None] = lambda: None  #: lets the cluster be looked at soon

    @property
    def witness_s(self) -> float:
        """How long a file that a job wrote may take to be seen here, in seconds."""
        return _NETWORK_WITNESS_S if self.layout.filesystem.network else _LOCAL_WITNESS_S

    def tick(self) -> None:
        """Show the supervisor that we live: in the midst of whatever takes long."""
        self.post.link.alive()

    def close(self) -> None:
        """Give everything back; jobs go on."""
        self.slurm.kill_all()
        os.close(self.folder)
        self.queue.close_owner(self.post.owner)

    def report(self, file: str, told: Told) -> None:
        """Tell the supervisor what became of a task."""
        facts = {"kind": int(told.kind), "file": file, "text": told.text[:1000], "run_s": told.run_s}
        self.post.link.send({"op": "report", **facts})

    def read(self, element: Element) -> Claim | None:
        """Return the claim of a task, or None where it can't be read, or is somebody else's."""
        try:
            return self.queue.read_claim(element.file, self.folder)
        except (Unusable, OSError):
            return None

    def release(self, file: str) -> None:
        """Put a task back that did not become a job; nothing is charged."""
        with contextlib.suppress(OSError):
            self.queue.release(file, self.folder)

    def forget(self, element: Element) -> None:
        """Clear away what is kept of a task's job."""
        if element.job is not None:
            self.book.forget(element.job.submission.name, element.index)
            self.roster.detach(element)

    def gone(self, element: Element) -> None:
        """Somebody else has this task now, with its job."""
        self.roster.remove(element)
        self.report(element.file, Told(Kind.GONE))

    def cancel(self, ids: Iterable[str]) -> None:
        """Ask for the end of jobs. Success means nothing (an id that is unknown is no error): the next looks tell."""
        for some in chunks(sorted({job_id for job_id in ids if job_id})):
            self.slurm.start(("scancel", *some), lambda answer: None)
            self.hasten()
