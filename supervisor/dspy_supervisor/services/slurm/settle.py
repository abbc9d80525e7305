"""What a verdict does to the queue: a record in done/ or failed/, or another attempt. The claim's rename is the one commit."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from dspy_fastpath.counters import Counter, Global, Histogram, Page

from ...channel import Kind
from ...config import Config
from ...jobbook import JobBook
from ...record import Claim, Run, done_record, failed_record
from ...retry import budget_of, decide
from ...task import Cause
from ...taskqueue import TaskQueue, Unusable, past_causes
from .verdict import Do, Verdict

_CAUSES = tuple(Cause)


@dataclass(frozen=True, slots=True)
class Told:
    """What the supervisor is told of a task that is settled."""

    kind: Kind
    text: str = ""
    run_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a job ended, and when, as far as this is known."""

    verdict: Verdict
    job: str = ""  #: its id
    cluster: str = ""
    started: float | None = None  #: epoch seconds
    ended: float | None = None
    elapsed_s: float | None = None
    gpus: int = 0
    result: bytes | None = None  #: JSON


class Settler:
    """Ends tasks in the folder of one owner of claims."""

    def __init__(self, queue: TaskQueue, book: JobBook, owner: str, folder: int, config: Config, page: Page) -> None:
        self._queue, self._book, self._owner, self._folder = queue, book, owner, folder
        self._config, self._page = config, page

    def settle(self, file: str, end: Ended) -> Told:
        """Record how a task ended. Raises OSError, and then nothing is decided: try again."""
        try:
            held = self._queue.read_claim(file, self._folder)
        except Unusable as unusable:
            self._queue.quarantine(self._folder, file, unusable.reason)
            return Told(Kind.QUARANTINED, unusable.reason)
        if held is None:
            return Told(Kind.GONE)
        klass = self._klass(held)
        run = self._run(end)
        told = self._succeed(held, end, run) if end.verdict.do is Do.SUCCEED else self._fail(held, end, run)
        if told.kind is Kind.GONE:
            return told
        if run.started_at is not None:
            self._page.observe(klass, Histogram.WAIT, max(0.0, run.started_at - held.submitted_at))
            self._page.observe(klass, Histogram.RUN, run.duration_s)
        self._page.add_global(Global.SLURM_GPU_SECONDS, int(end.gpus * run.duration_s))
        return told

    def refuse(self, held: Claim, reason: str) -> Told:
        """Fail a task that can't become a job."""
        return self.settle(held.file, Ended(Verdict(Do.FAIL, "", Cause.REFUSED, reason, retry=False)))

    def _succeed(self, held: Claim, end: Ended, run: Run) -> Told:
        result = end.result
        reason = _why_no_result(result, self._config.max_result_bytes)
        if reason or result is None:
            verdict = Verdict(Do.FAIL, end.verdict.state, Cause.INVALID_RESULT, reason, end.verdict.used, retry=False)
            return self._fail(held, Ended(verdict, end.job, end.cluster), run)
        record = done_record(held, result, run, self._queue.history(held.name))
        if not self._queue.finish(held, self._folder, record):
            return Told(Kind.GONE)
        klass = self._klass(held)
        self._page.add(klass, Counter.DONE)
        self._page.observe(klass, Histogram.TOTAL, time.time() - held.submitted_at)
        self._page.add_global(Global.SLURM_COMPLETED)
        return Told(Kind.DONE, "", run.duration_s)

    def _fail(self, held: Claim, end: Ended, run: Run) -> Told:
        queue, verdict = self._queue, end.verdict
        cause = verdict.cause or Cause.LOST
        history = queue.history(held.name)
        settings = self._config.classes[str(held.workload)]
        budget = budget_of(self._config, settings, held.fields.max_attempts)
        decided = decide(
            cause,
            held.name,
            past_causes(history),
            budget,
            random.random(),
            retry=verdict.retry,
            wanted_delay_s=verdict.delay_s,
        )
        error: dict[str, Any] = {"cause": cause, "message": verdict.message, **verdict.details}
        klass = self._klass(held)
        if decided.final is None:
            delay_s = max(decided.delay_s, verdict.delay_s or 0.0)
            queue.note_attempt(held.name, error | ({"slurm": run.job} if run.job else {}))
            if not queue.retry(held.file, self._folder, time.time() + delay_s if delay_s else 0.0):
                return Told(Kind.GONE)
            self._page.add(klass, Counter.RETRIED)
            return Told(Kind.RETRIED, str(cause), run.duration_s)
        if decided.final is not cause:
            error |= {"cause": decided.final, "last_cause": cause}
        if not queue.fail(held, self._folder, failed_record(held, error, run, history)):
            return Told(Kind.GONE)
        self._page.add(klass, Counter.FAILED)
        self._page.observe(klass, Histogram.TOTAL, time.time() - held.submitted_at)
        self._page.fail(klass, _CAUSES.index(decided.final))
        self._page.add_global(Global.SLURM_FAILED)
        return Told(Kind.FAILED, str(decided.final), run.duration_s)

    def _run(self, end: Ended) -> Run:
        ended = end.ended or time.time()
        duration = end.elapsed_s
        if duration is None:
            duration = max(0.0, ended - end.started) if end.started is not None else 0.0
        job: Mapping[str, Any] | None = None
        if end.job:
            job = {"job": end.job, **({"cluster": end.cluster} if end.cluster else {}), **end.verdict.used}
        return Run(end.started, ended, duration, os.getpid(), self._owner, job)

    def _klass(self, held: Claim) -> int:
        return self._page.classes.index(str(held.workload))


def _why_no_result(result: bytes | None, max_bytes: int) -> str:
    if result is None:
        return "the job says that it succeeded, but its result is not there"
    if len(result) > max_bytes:
        return f"the result is {len(result)} bytes of JSON, the bound is {max_bytes}"
    try:
        orjson.loads(result)
    except ValueError as error:
        return f"the job's result is no JSON: {error}"
    return ""
