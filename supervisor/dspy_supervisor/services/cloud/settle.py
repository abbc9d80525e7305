"""What a machine says of a task, done to the queue here: a record in done/ or failed/, or another attempt elsewhere.

The record is written anew from the envelope that is here: a machine decides what came out, never what was asked.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from dspy_fastpath.claim import write_new
from dspy_fastpath.counters import Counter, Histogram, Page
from dspy_fastpath.envelope import EnvelopeError, scan

from ...channel import Kind
from ...config import Config
from ...record import Claim, Run, done_record, failed_record
from ...retry import budget_of, decide
from ...task import Cause, TaskName
from ...taskqueue import DEEPEST, MOST_EXTRAS, TaskQueue, Unusable, past_causes

_CAUSES = tuple(Cause)
_MOST_NAME = 200


@dataclass(frozen=True, slots=True)
class Told:
    """What the supervisor is told of a task that is settled."""

    kind: Kind
    text: str = ""
    run_s: float = 0.0


class Settler:
    """Ends tasks in the folder of one owner of claims. All raise OSError, and then nothing is decided: try again."""

    def __init__(self, queue: TaskQueue, folder: int, config: Config, page: Page) -> None:
        self._queue, self._folder, self._config, self._page = queue, folder, config, page

    def ended(self, file: str, machine: str, record: bytes, outputs: Sequence[tuple[str, bytes]]) -> Told:
        """Bring home how a task ended on a machine."""
        held = self._read(file)
        if isinstance(held, Told):
            return held
        try:
            fields = scan(record, DEEPEST, MOST_EXTRAS)
            spans = {key: record[start:end] for key, start, end in fields.extras}
            facts = {key: orjson.loads(spans[key]) for key in spans.keys() - {"runner_result"}}
        except (EnvelopeError, ValueError) as unread:
            return self._lose(held, machine, f"{machine} sent a record that can't be read: {unread}")
        run = _run(facts, machine)
        history = [*self._queue.history(held.name), *_notes(facts.get("history"))]
        self._keep(held.name, outputs)
        if facts.get("status") == "done" and "runner_result" in spans:
            result = spans["runner_result"]
            if len(result) <= self._config.max_result_bytes:
                return self._succeed(held, done_record(held, result, run, history), run)
            message = f"the result is {len(result)} bytes of JSON, the bound is {self._config.max_result_bytes}"
            error: dict[str, Any] = {"cause": Cause.INVALID_RESULT, "message": message}
        else:
            told = facts.get("error")
            error = told if isinstance(told, dict) else {"message": "the machine did not say why it failed"}
        cause = _cause(error.get("cause"))
        return self._fail(held, error | {"cause": cause, "machine": machine}, cause, run, history)

    def lose(self, file: str, machine: str, why: str) -> Told:
        """Put a task back whose machine is gone: another attempt, that it is not charged for."""
        held = self._read(file)
        return held if isinstance(held, Told) else self._lose(held, machine, why)

    def _read(self, file: str) -> Claim | Told:
        try:
            held = self._queue.read_claim(file, self._folder)
        except Unusable as unusable:
            self._queue.quarantine(self._folder, file, unusable.reason)
            return Told(Kind.QUARANTINED, unusable.reason)
        return held if held is not None else Told(Kind.GONE)

    def _succeed(self, held: Claim, record: bytes, run: Run) -> Told:
        if not self._queue.finish(held, self._folder, record):
            return Told(Kind.GONE)
        self._observe(held, Counter.DONE, run)
        return Told(Kind.DONE, "", run.duration_s)

    def _fail(
        self, held: Claim, error: dict[str, Any], cause: Cause, run: Run, history: Sequence[dict[str, Any]]
    ) -> Told:
        if not self._queue.fail(held, self._folder, failed_record(held, error, run, history)):
            return Told(Kind.GONE)
        self._observe(held, Counter.FAILED, run)
        self._page.fail(self._klass(held), _CAUSES.index(cause))
        return Told(Kind.FAILED, str(cause), run.duration_s)

    def _lose(self, held: Claim, machine: str, why: str) -> Told:
        settings = self._config.classes[str(held.workload)]
        history = self._queue.history(held.name)
        budget = budget_of(self._config, settings, held.fields.max_attempts)
        decided = decide(Cause.LOST, held.name, past_causes(history), budget, random.random())
        error = {"cause": Cause.LOST, "message": why, "machine": machine}
        if decided.final is not None:
            error |= {"cause": decided.final, "last_cause": Cause.LOST}
            return self._fail(held, error, decided.final, Run(None, time.time(), 0.0, os.getpid(), machine), history)
        self._queue.note_attempt(held.name, error)
        if not self._queue.retry(held.file, self._folder, 0.0):
            return Told(Kind.GONE)
        self._page.add(self._klass(held), Counter.RETRIED)
        return Told(Kind.RETRIED, str(Cause.LOST))

    def _observe(self, held: Claim, counter: Counter, run: Run) -> None:
        klass = self._klass(held)
        self._page.add(klass, counter)
        self._page.observe(klass, Histogram.TOTAL, max(0.0, time.time() - held.submitted_at))
        if run.started_at is not None:
            self._page.observe(klass, Histogram.WAIT, max(0.0, run.started_at - held.submitted_at))
            self._page.observe(klass, Histogram.RUN, run.duration_s)

    def _keep(self, name: TaskName, outputs: Sequence[tuple[str, bytes]]) -> None:
        """Put a task's files into its folder here, as far as they have names of files, and the disk takes them."""
        if not outputs:
            return
        logs = self._queue.layout.logs
        with contextlib.suppress(OSError):
            with contextlib.suppress(FileExistsError):
                os.mkdir(name.id, 0o750, dir_fd=logs)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            folder = os.open(name.id, flags, dir_fd=logs)
            try:
                for file, content in outputs:
                    if "/" in file or "\0" in file or file.startswith((".", "attempt.")) or len(file) > _MOST_NAME:
                        continue
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(file, dir_fd=folder)
                    write_new(folder, file.encode(), content, False)
            finally:
                os.close(folder)

    def _klass(self, held: Claim) -> int:
        return self._page.classes.index(str(held.workload))


def _run(facts: dict[str, Any], machine: str) -> Run:
    started, ended = _epoch(facts.get("started_at")), _epoch(facts.get("completed_at"))
    took = facts.get("duration_ms")
    worker = facts.get("worker")
    return Run(
        started,
        ended or time.time(),
        took / 1e3 if isinstance(took, int | float) else 0.0,
        worker if isinstance(worker, int) and not isinstance(worker, bool) else 0,
        machine,
    )


def _epoch(written: object) -> float | None:
    with contextlib.suppress(ValueError):
        return datetime.fromisoformat(written).timestamp() if isinstance(written, str) else None
    return None


def _cause(written: object) -> Cause:
    try:
        return Cause(str(written))
    except ValueError:
        return Cause.LOST


def _notes(written: object) -> list[dict[str, Any]]:
    return [note for note in written if isinstance(note, dict)] if isinstance(written, list) else []
