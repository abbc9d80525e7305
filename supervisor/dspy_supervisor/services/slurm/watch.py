"""Looking at the cluster: one squeue for all jobs, and one sacct for all that are over, each as seldom as will do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from ...jobbook import JobBook, name_prefix
from ...log import log
from .commands import Answer, ClusterConfig, Slurm
from .listing import (
    SCONTROL,
    SQUEUE,
    AccountRow,
    Incomplete,
    JobRow,
    chunks,
    parse_sacct,
    parse_scontrol,
    parse_squeue,
    sacct_argv,
    sacct_by_name_argv,
)
from .pace import Pace
from .roster import Element, Job, Roster, Rows, by_name, choose, latest
from .states import LIVE, look_up
from .verdict import ACCOUNT_S, Accounting, Lost, Settle, reconcile

OFF_AFTER_S = 600.0  #: an accounting that did not answer for so long is one that is not there
_BY_NAME_BACK_S = 3600.0  # clocks of two hosts may differ


class Watch:
    """Keeps the roster as the cluster has it."""

    def __init__(
        self,
        slurm: Slurm,
        roster: Roster,
        book: JobBook,
        pace: Pace,
        *,
        end: Callable[[Iterable[str]], None],  # scancel
        again: Callable[[Job], None],  # a submission that never reached the cluster
        looked: Callable[[Rows, list[JobRow]], None],  # after each look that succeeded, sacct's answer included
    ) -> None:
        self._slurm, self._roster, self._book, self._pace = slurm, roster, book, pace
        self._end, self._again, self._looked = end, again, looked
        self.cluster = ClusterConfig()
        self.next_at = 0.0  #: monotonic; when to look again
        self.problem = ""  #: why the cluster can't be asked
        self.unreachable_since: float | None = None  #: epoch seconds
        self._accounting_failed: float | None = None  # monotonic
        self._accounting_said = ""
        self._looking = False
        self._began = 0.0
        self._changed = False
        self._waiting = 0  # answers of this look that are still to come
        self._rows: Rows = {}
        self._all: list[JobRow] = []

    @property
    def accounting(self) -> Accounting:
        """Whether the accounting can be believed now."""
        if not self.cluster.accounting:
            return Accounting.OFF
        if self._accounting_failed is None:
            return Accounting.ON
        long = time.monotonic() - self._accounting_failed > OFF_AFTER_S
        return Accounting.OFF if long else Accounting.FAILING

    @property
    def accounting_problem(self) -> str:
        """Why the accounting does not answer, or nothing."""
        return self._accounting_said if self._accounting_failed is not None else ""

    def hasten(self) -> None:
        """Look soon: something was begun."""
        if not self._pace.failures:
            self.next_at = min(self.next_at, time.monotonic() + self._pace.hasten())

    def turn(self, now: float, *, idle: bool) -> None:
        """Look, where it is time to; ``idle``: there is nothing to look for."""
        if self._looking or now < self.next_at or idle:
            return
        self._looking, self._began, self._changed = True, now, False
        self._slurm.start(SQUEUE, self._listed)

    def _listed(self, answer: Answer) -> None:
        try:
            if not answer.ok:
                raise Incomplete(answer.trouble)
            self._all = parse_squeue(answer.out)
        except Incomplete as error:
            self._failed(str(error))
            return
        if self.problem:
            log.info("slurm_reachable", cluster=self.cluster.name)
        self.problem, self.unreachable_since = "", None
        self._rows = by_name(self._all, name_prefix(self._book.layout.queue_id))
        self._took_s = answer.took_s
        for job in list(self._roster.jobs.values()):
            if job.submission.job_id:
                if job.quiet_at <= self._began:  # else the listing is older than the job
                    self._see(job)
            elif job.is_open:
                self._identify(job)
        self._ask_accounting()
        if not self._waiting and self._looking:
            self._through()

    def _failed(self, why: str) -> None:
        """Nothing changes: what can't be seen is not gone."""
        self._looking = False
        if not self.problem:
            log.warning("slurm_unreachable", error=why, means="jobs go on, tasks stay as they are")
            self.unreachable_since = time.time()
        self.problem = why
        self.next_at = time.monotonic() + self._pace.failed()

    def _see(self, job: Job) -> None:
        now = time.monotonic()
        there = self._rows.get(job.submission.name, {})
        copies: list[JobRow] = []
        changed, job.listed = False, bool(there)
        for index, element in job.elements.items():
            row, more = choose(there.get(index, ()), job.submission.job_id)
            copies += more
            changed = element.see(row, now) or changed
            if row is not None and row.job_id != job.submission.job_id:
                job.identified(row.job_id)
        if copies:
            log.warning("slurm_copies", job=job.submission.job_id, copies=sorted({row.job_id for row in copies}))
            self._end(sorted({row.key for row in copies}))
        if changed:
            self._changed = True

    # -- submissions whose answer was lost ----------------------------------------------------------------------------------

    def _identify(self, job: Job) -> None:
        """Find a submission whose id is not known by its name, or learn that it is not there."""
        found = self._rows.get(job.submission.name)
        if found:
            row, _ = choose((row for rows in found.values() for row in rows), "")
            if row is not None:
                self._adopt(job, row.job_id, "squeue")
                return
        if job_id := self._started_id(job):
            self._adopt(job, job_id, "its own word")
            return
        job.miss(self._began)
        self._reconcile(job)

    def _reconcile(self, job: Job, ids: tuple[str, ...] = ()) -> None:
        lost = Lost(ids, job.absences, self._absent_s(job), self.cluster.reply_s, self.accounting, job.asked)
        do = reconcile(lost)
        if do is Settle.ADOPT:
            self._adopt(job, ids[0], "sacct")
        elif do is Settle.AGAIN:
            log.warning("slurm_not_there", name=job.submission.name, next="its tasks are submitted again")
            self._again(job)

    def _absent_s(self, job: Job) -> float:
        return self._began - job.first_absent if job.first_absent is not None else 0.0

    def _started_id(self, job: Job) -> str:
        for index in job.elements:
            start = self._book.sentinel(job.submission.name, index).start
            if not start.get("void") and (job_id := start.get("array_job_id") or start.get("job_id")):
                return str(job_id)
        return ""

    def _adopt(self, job: Job, job_id: str, source: str) -> None:
        log.info("slurm_found", name=job.submission.name, job=job_id, by=source)
        self.identified(job, job_id, "")
        self._see(job)

    def identified(self, job: Job, job_id: str, cluster: str) -> None:
        """Keep the id of a job, on disk too."""
        try:
            self._book.accepted(job.submission, job_id, cluster or self.cluster.name)
        except OSError as error:
            log.warning("slurm_id_not_kept", job=job_id, error=str(error), means="its name finds it again")
        job.identified(job_id, cluster or self.cluster.name)
        for other in self._roster.jobs.values():
            if other is not job and other.submission.job_id == job_id:
                job.shares_id = other.shares_id = True

    # -- the accounting --------------------------------------------------------------------------------------------------------

    def _ask_accounting(self) -> None:
        if self.accounting is Accounting.OFF and self._accounting_failed is None:
            if any(self._wants_account(element) for element in self._roster.submitted()):
                self._ask(SCONTROL, parse_scontrol)
            return
        wanted = [element for element in self._roster.submitted() if self._wants_account(element)]
        whole = {
            job.submission.name
            for job in {id(element.job): element.job for element in wanted}.values()
            if job is not None and all(element.is_over for element in job.elements.values())
        }
        ids = {
            element.job.submission.job_id if element.job.submission.name in whole else element.job_id
            for element in wanted
            if element.job is not None
        }
        for some in chunks(sorted(ids)):
            self._ask(sacct_argv(some), parse_sacct)
        names = [
            job
            for job in self._roster.jobs.values()
            if job.is_open and not job.asked and self._absent_s(job) >= self.cluster.reply_s
        ]
        if names:
            since = min(job.submission.at for job in names) - _BY_NAME_BACK_S
            self._ask(sacct_by_name_argv([job.submission.name for job in names], since), parse_sacct, names)

    def _wants_account(self, element: Element) -> bool:
        if not element.is_over or (element.account is not None and _is_final(element.account)):
            return False
        if self.accounting is Accounting.OFF:
            return True
        late = time.monotonic() - (element.over_since or 0.0) > ACCOUNT_S
        return not late or element.row is None  # what it used is not worth asking for ever

    def _ask(
        self, argv: tuple[str, ...], parse: Callable[[str], list[AccountRow]], names: list[Job] | None = None
    ) -> None:
        self._waiting += 1

        def answered(answer: Answer) -> None:
            self._waiting -= 1
            try:
                if not answer.ok:
                    raise Incomplete(answer.trouble)
                rows = parse(answer.out)
            except Incomplete as error:
                self._account_failed(argv[0], str(error))
            else:
                if argv[0] == "sacct":
                    self._accounting_failed = None
                self._take_accounts(rows)
                for job in names or ():
                    self._take_name(job, rows)
            if not self._waiting and self._looking:
                self._through()

        self._slurm.start(argv, answered)

    def _account_failed(self, program: str, why: str) -> None:
        if program == "sacct" and "accounting storage is disabled" in why:
            self.cluster = replace(self.cluster, accounting=False)
        elif program == "sacct":
            if self._accounting_failed is None:
                self._accounting_failed = time.monotonic()
                log.warning("slurm_accounting_failing", error=why, means="jobs are judged without it, more slowly")
            self._accounting_said = why

    def _take_accounts(self, rows: list[AccountRow]) -> None:
        by: dict[str, list[AccountRow]] = {}
        for row in rows:
            by.setdefault(row.name, []).append(row)
        for name, some in by.items():
            if (job := self._roster.jobs.get(name)) is not None:
                job.accounted = True
                for index, row in latest(some, name).items():
                    if (element := job.elements.get(index)) is not None and element.is_over:
                        element.account = row
                        self._changed = True

    def _take_name(self, job: Job, rows: list[AccountRow]) -> None:
        found = [row for row in rows if row.name == job.submission.name]
        job.asked = not found
        self._reconcile(job, tuple(dict.fromkeys(row.key.partition("_")[0] for row in found)))

    def _through(self) -> None:
        self._looking = False
        due = any(
            job.is_open or any(element.is_over for element in job.elements.values())
            for job in self._roster.jobs.values()
        )
        took_s = time.monotonic() - self._began
        self.next_at = time.monotonic() + self._pace.answered(took_s, changed=self._changed, due=due)
        self._looked(self._rows, self._all)


def _is_final(row: AccountRow) -> bool:
    return row.ended is not None and look_up(row.state).fate not in LIVE
