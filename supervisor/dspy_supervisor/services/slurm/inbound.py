"""From the cluster to the queue: each look at the cluster is judged, and what is over is recorded."""

from __future__ import annotations

import time

from dspy_fastpath.counters import Global

from ...jobfolder import Sentinel
from ...log import log
from ...task import Cause, TaskName
from .hold import Hold
from .roster import Element
from .settle import Ended
from .states import LIVE, Fate, fate_of, look_up
from .verdict import Accounting, Do, Verdict, judge

_TOLD_S = 15.0  # before a job that did not end is told so again
_BEATS = 200  # heartbeats that are looked at in one turn
_TROUBLE_S = 5.0  # after an error of the disk
_NOTHING = Sentinel()


class Inbound:
    """Brings back what became of jobs."""

    def __init__(self, hold: Hold) -> None:
        self._hold = hold
        self._unsettled: dict[str, tuple[Element, Ended]] = {}  # the disk did not take what became of them
        self._again_at = float("inf")

    def turn(self, now: float) -> None:
        """Try again what the disk did not take (``now``: monotonic)."""
        if now >= self._again_at:
            self._again_at = float("inf")
            for element, end in list(self._unsettled.values()):
                self.settle(element, end)

    def look(self, accounting: Accounting) -> None:
        """A look at the cluster is through: judge what there is to be judged."""
        now, beats = time.monotonic(), 0
        end: list[str] = []
        for element in self._hold.roster.submitted():
            self._hold.tick()
            if element.job is None or element.file in self._unsettled:
                continue
            row = element.row
            quiet = row is not None and fate_of(row.state) in LIVE and element.ended is None
            beat = element.needs_beat(now) and (element.is_over or beats < _BEATS)
            if row is not None and quiet and not beat and fate_of(row.state) is not Fate.QUEUED:
                self._note(element, look_up(row.state).word)
                continue
            beats += beat
            try:
                if self._judge(element, accounting, now, beat=beat, read=beat or not quiet or element.ran):
                    end.append(element.job_id)
            except OSError as error:
                log.warning("slurm_trouble", task=element.file, error=str(error), next="looking again")
        self._hold.cancel(end)
        counts = self._hold.roster.counts()
        self._hold.page.set_global(Global.SLURM_RUNNING, counts["running"] + counts["ending"])
        self._hold.page.set_global(Global.SLURM_PENDING, counts["pending"] + counts["held"])

    def cancel(self, file: str) -> bool:
        """End the job of a task; False where the task is not with the cluster yet."""
        element = self._hold.roster.elements.get(file)
        if element is None or element.ended is not None:
            return True
        ended = (Cause.CANCELLED, "cancelled while it was with the cluster")
        if element.job is None:
            self.settle(element, Ended(Verdict(Do.FAIL, "", *ended)))
            return False
        try:
            self._hold.book.note_cancel(element.job.submission.name, element.index, *ended)
        except OSError as error:
            log.warning("slurm_trouble", task=file, error=str(error), means="a cancel may be forgotten at a restart")
        element.ended = ended
        if element.job_id:
            element.told_to_end = time.monotonic()
            self._hold.cancel([element.job_id])
        log.info("slurm_cancel", task=file, job=element.job_id)
        return True

    def settle(self, element: Element, end: Ended) -> None:
        """Record how a task ended, now or when the disk takes it."""
        hold = self._hold
        try:
            told = hold.settler.settle(element.file, end)
        except OSError as error:
            log.warning("slurm_trouble", task=element.file, error=str(error), next=f"again in {_TROUBLE_S:.0f} s")
            self._unsettled[element.file] = element, end
            self._again_at = time.monotonic() + _TROUBLE_S
            return
        self._unsettled.pop(element.file, None)
        if end.job:
            log.info("slurm_ended", job=end.job, task=element.file, state=end.verdict.state, told=told.kind.name)
        name = TaskName.parse(element.file)
        if element.job is not None and name is not None:
            hold.book.keep_output(element.job.submission.name, element.index, name)
        hold.forget(element)
        hold.roster.remove(hold.roster.elements.get(element.file, element))
        hold.report(element.file, told)

    def _judge(self, element: Element, accounting: Accounting, now: float, *, beat: bool, read: bool) -> bool:
        """Judge one task; True where its job is to be ended now."""
        if element.job is None:
            return False
        hold = self._hold
        sentinel = hold.book.sentinel(element.job.submission.name, element.index) if read else _NOTHING
        if beat:
            element.look_at_beat(hold.book, sentinel, now)
        verdict = judge(element.evidence(sentinel, accounting, now, hold.witness_s))
        self._note(element, verdict.state)
        if verdict.do is Do.KILL:
            return self._tell_to_end(element, verdict, now)
        if verdict.do is not Do.WAIT:
            self._conclude(element, verdict, sentinel)
        return False

    def _conclude(self, element: Element, verdict: Verdict, sentinel: Sentinel) -> None:
        job, account, book = element.job, element.account, self._hold.book
        if job is None:
            return
        name = job.submission.name
        lives = element.row is not None and fate_of(element.row.state) in LIVE
        if verdict.do is Do.AGAIN or lives:
            # No copy that is left somewhere, or comes late, may work beside the next attempt.
            if not sentinel.void and not book.void(name, element.index, verdict.message or "it is over"):
                return  # it has just started anew: look again
            if lives:
                self._hold.cancel([element.job_id])
        told = sentinel.exit or {}
        began = sentinel.start.get("at", account.started if account is not None else None)
        ended = told.get("at", account.ended if account is not None else None)
        took = told.get("duration_s", account.elapsed_s if account is not None else None)
        end = Ended(
            verdict,
            element.job_id,
            job.submission.cluster,
            _seconds(began),
            _seconds(ended),
            _seconds(took),
            account.gpus if account is not None else 0,
            book.result(name, element.index, sentinel.started) if verdict.do is Do.SUCCEED else None,
        )
        self.settle(element, end)

    def _tell_to_end(self, element: Element, verdict: Verdict, now: float) -> bool:
        if element.job is None or now - element.told_to_end < _TOLD_S:
            return False
        if element.ended is None and verdict.cause is not None:
            element.ended = (verdict.cause, verdict.message)
            self._hold.book.note_cancel(element.job.submission.name, element.index, *element.ended)
            log.warning("slurm_ends_job", job=element.job_id, task=element.file, reason=verdict.message)
        element.told_to_end = now
        return True

    def _note(self, element: Element, state: str) -> None:
        if element.job is not None and state != element.state:
            element.state = state
            self._hold.dirty.add(element.job.submission.name)


def _seconds(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
