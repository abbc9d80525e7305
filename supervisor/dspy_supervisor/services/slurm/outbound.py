"""From the queue to the cluster: tasks are claimed, gathered into submissions, and submitted, once each."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from dspy_fastpath.counters import Global

from ...channel import Kind
from ...errors import ConfigError
from ...log import log
from ...record import Claim
from ...task import Cause
from ...taskqueue import Unusable
from .commands import SUBMIT_S, Accepted, Answer, Refused, Unknown, read_submission
from .hold import Hold
from .plan import JobRefused, plan_job, runner_settings
from .roster import Element, Job
from .settle import Ended, Told
from .submit import Planned, Prepared, grouped, prepare
from .templates import render, task_files
from .verdict import Do, Verdict

_GATHER_S, _GATHER_MOST_S = 0.15, 1.0  # tasks that arrive so close together are submitted together
_SUBMITS = 4  # sbatch at work at once: more of them don't get more done
_LATER_S = 60.0  # before a cluster that takes nothing more is asked again
_TROUBLE_S = 5.0  # after an error of the disk
_NEVER = float("inf")


class Outbound:
    """Makes jobs of tasks."""

    def __init__(
        self,
        hold: Hold,
        *,
        identified: Callable[[Job, str, str], None],  # a job's id and cluster are known
        settle: Callable[[Element, Ended], None],
    ) -> None:
        self._hold, self._identified, self._settle = hold, identified, settle
        self.max_array_size = 1001  #: of the cluster
        self.flush_at = _NEVER  #: monotonic; when to make submissions of what came
        self._fresh: dict[str, Claim] = {}  # claimed, and not submitted
        self._gathering_since = 0.0
        self._groups: list[list[Planned]] = []
        self._prepared: list[tuple[Prepared, Job]] = []
        self.submitting = 0  #: sbatch at work

    def claim(self, file: str) -> None:
        """Take a waiting task."""
        hold = self._hold
        try:
            held = hold.queue.claim(file, hold.folder)
        except Unusable as unusable:
            if unusable.may_change:  # its producer is at work on it: it gets its time
                hold.release(file)
                hold.report(file, Told(Kind.GONE))
            else:
                hold.queue.quarantine(hold.folder, file, unusable.reason)
                hold.report(file, Told(Kind.QUARANTINED, unusable.reason))
            return
        except OSError as error:
            hold.release(file)
            hold.report(file, Told(Kind.TROUBLE, f"{file} can't be claimed: {error}"))
            return
        if held is None:
            hold.report(file, Told(Kind.GONE))
            return
        hold.roster.add(file)
        self.keep(held)

    def keep(self, held: Claim, delay_s: float = _GATHER_S) -> None:
        """Take a claimed task into the next submissions."""
        now = time.monotonic()
        if not self._fresh:
            self._gathering_since = now
        self._fresh[held.file] = held
        if delay_s == _GATHER_S:
            self.flush_at = min(now + delay_s, self._gathering_since + _GATHER_MOST_S)
        elif self.flush_at == _NEVER:
            self.flush_at = now + delay_s

    @property
    def is_due(self) -> bool:
        """Whether there is something to do in the next turn."""
        return bool(self._groups)

    def drop(self, file: str) -> None:
        """Take a task out again that is not submitted yet."""
        self._fresh.pop(file, None)
        self._groups = [left for group in self._groups if (left := [one for one in group if one.held.file != file])]

    def turn(self, now: float, *, may_flush: bool) -> None:
        """Submit what is due (``now``: monotonic)."""
        if may_flush and now >= self.flush_at:
            self._flush()
        if self._groups:  # one a turn: a large one takes its time
            self._prepare(self._groups.pop(0))
        while self._prepared and self.submitting < _SUBMITS:
            self._submit(*self._prepared.pop(0))

    def give_back(self) -> None:
        """Return to the queue what was not submitted."""
        for _, job in self._prepared:
            for element in list(job.elements.values()):
                self._hold.forget(element)
                self._give_back(element.file)
        self._prepared.clear()
        for group in self._groups:
            for one in group:
                self._give_back(one.held.file)
        self._groups.clear()
        for file in list(self._fresh):
            self._give_back(file)

    def again(self, job: Job) -> None:
        """A submission never reached the cluster: its tasks go into another, and no late copy of it will run."""
        hold = self._hold
        for element in list(job.elements.values()):
            try:
                voided = hold.book.void(job.submission.name, element.index, "it was not found in the cluster")
            except OSError:
                continue  # the next look tries again
            if not voided:
                continue  # it has started in this very moment, and says so: the next look finds it
            held = hold.read(element)
            if held is None:
                hold.gone(element)
                continue
            hold.roster.detach(element)
            if element.ended is not None:
                self._settle(hold.roster.elements[element.file], Ended(Verdict(Do.FAIL, "", *element.ended)))
            else:
                self.keep(held)

    def _flush(self) -> None:
        """Make submissions of the tasks that came together."""
        self.flush_at = _NEVER
        fresh, self._fresh = self._fresh, {}
        config = self._hold.config
        planned = []
        for held in fresh.values():
            self._hold.tick()
            try:
                planned.append(Planned(held, plan_job(config, config.classes[str(held.workload)], held)))
            except JobRefused as error:
                self._refuse(held, str(error))
            except ConfigError as error:
                self._hold.problem = str(error)
                self._give_back(held.file)
        self._groups += grouped(planned, self.max_array_size)

    def _prepare(self, group: list[Planned]) -> None:
        hold = self._hold
        config = hold.config
        try:
            prepared = prepare(
                hold.book,
                group,
                owner=hold.post.owner,
                python=str(config.slurm_python or sys.executable),
                cwd=os.getcwd(),
                settings=runner_settings(config, config.classes[str(group[0].held.workload)]),
                render=lambda plan, facts: render(config, plan, facts),
                task_files=task_files,
                tick=hold.tick,
            )
        except JobRefused as error:
            for one in group:
                self._refuse(one.held, str(error))
            return
        except OSError as error:
            log.warning("slurm_trouble", error=str(error), next=f"trying again in {_TROUBLE_S:.0f} s")
            for one in group:
                self.keep(one.held, _TROUBLE_S)
            return
        elements = {index: hold.roster.elements[one.held.file] for index, one in enumerate(group)}
        job = hold.roster.attach(prepared.submission, elements, calling=True, now=time.monotonic())
        self._prepared.append((prepared, job))

    def _submit(self, prepared: Prepared, job: Job) -> None:
        self.submitting += 1

        def answered(answer: Answer) -> None:
            self.submitting -= 1
            job.calling, job.quiet_at = False, time.monotonic()
            self._answered(job, read_submission(answer))
            self._hold.hasten()

        self._hold.slurm.start(
            prepared.argv, answered, stdin=prepared.script, timeout_s=SUBMIT_S, environment=prepared.environment
        )

    def _answered(self, job: Job, said: Accepted | Refused | Unknown) -> None:
        name, tasks = job.submission.name, len(job.elements)
        if isinstance(said, Accepted):
            self._hold.problem = ""
            self._identified(job, said.job_id, said.cluster)
            self._hold.page.add_global(Global.SLURM_SUBMITTED, tasks)
            log.info("slurm_submitted", job=said.job_id, tasks=tasks, name=name)
            self._hold.dirty.add(name)
        elif isinstance(said, Refused):
            log.warning("slurm_refused", tasks=tasks, reason=said.reason, later=said.later)
            self._refused(job, said)
        else:
            log.warning("slurm_unknown", name=name, reason=said.reason, next="the job is looked for by its name")

    def _refused(self, job: Job, said: Refused) -> None:
        """The cluster does not have it: nothing has to be remembered of it."""
        hold = self._hold
        for element in list(job.elements.values()):
            held = hold.read(element)
            hold.forget(element)
            if held is None:
                hold.gone(element)
            elif element.ended is not None:
                self._settle(element, Ended(Verdict(Do.FAIL, "", *element.ended)))
            elif said.later:
                hold.problem = said.reason
                self.keep(held, _LATER_S)
            else:
                self._refuse(held, said.reason)

    def _refuse(self, held: Claim, reason: str) -> None:
        element = self._hold.roster.elements.get(held.file) or self._hold.roster.add(held.file)
        self._settle(element, Ended(Verdict(Do.FAIL, "", Cause.REFUSED, reason, retry=False)))

    def _give_back(self, file: str) -> None:
        self._fresh.pop(file, None)
        self._hold.release(file)
        if (element := self._hold.roster.elements.get(file)) is not None:
            self._hold.roster.remove(element)
        self._hold.report(file, Told(Kind.RETURNED))
