"""A worker that has GPUs: it sees its own and no others, bounds their memory, and tells how much a task took.

Before the name of a task it is sent ``=BYTES``: the memory of each GPU that the task may have. Behind the text of a report
on how a task ended it writes a line: the bytes the task took, or would have needed, and whether CUDA is of no use any more.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from . import cuda_process
from .attempt import Outcome, Surroundings
from .channel import Kind, Report
from .cuda_errors import is_out_of_memory, is_spoilt, needed_bytes
from .devices import Need, NeedError, read_need
from .environment import set_variable
from .parts import Handler
from .record import Claim
from .task import Cause
from .worker import Worker

MEMORY = "="  #: what a bound of memory begins with, as no name of a task does
ENDED = frozenset({Kind.DONE, Kind.FAILED, Kind.RETRIED})


class Told(NamedTuple):
    """What a worker tells of a task's use of its GPU."""

    memory_bytes: int  #: taken, or needed where it ran out; 0: not known
    spoilt: bool  #: CUDA can't be used any more in that process
    ran_out: bool


def tell(told: Told) -> str:
    """Return it as it travels, behind the text of a report."""
    return f"\n{told.memory_bytes} {int(told.spoilt)} {int(told.ran_out)}"


def hear(text: str) -> tuple[str, Told | None]:
    """Return the text of a report and what was told behind it."""
    text, line, told = text.rpartition("\n")
    if not line:
        return told, None
    memory_bytes, spoilt, ran_out = told.split(" ")
    return text, Told(int(memory_bytes), spoilt == "1", ran_out == "1")


class GpuWorker(Worker):
    """A worker with GPUs."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._memory_bytes = self._bound_bytes = 0
        self._told = Told(0, False, False)

    def _one(self, file: str, surroundings: Surroundings) -> None:
        if file.startswith(MEMORY):
            self._memory_bytes = int(file.removeprefix(MEMORY))
        else:
            super()._one(file, surroundings)

    def _run(self, held: Claim, handler: Handler, started: float) -> Outcome:
        self._told = Told(0, False, False)
        resources = held.fields.resources
        try:
            read_need(held.envelope[slice(*resources)] if resources else None, Need())
        except NeedError as error:
            return Outcome(False, cause=Cause.REFUSED, message=str(error), retry=False)
        if self._memory_bytes:
            set_variable("DSPY_GPU_MEMORY_LIMIT", str(self._memory_bytes))  # until the surroundings are put back
            if self._memory_bytes != self._bound_bytes and cuda_process.bound(self._memory_bytes):
                self._bound_bytes = self._memory_bytes
        cuda_process.reset_peak()
        outcome = super()._run(held, handler, started)
        self._told = _told(outcome)
        return outcome

    def _report(self, report: Report) -> None:
        if report.kind in ENDED:
            report = report._replace(text=report.text + tell(self._told))
        super()._report(report)


def _told(outcome: Outcome) -> Told:
    peak = cuda_process.peak_bytes()
    if outcome.ok:
        return Told(peak, False, False)
    tails = [str(outcome.details.get(name, "")) for name in ("stderr_tail", "stdout_tail")]
    text = "\n".join([outcome.message, outcome.traceback, *tails])
    if outcome.cause is Cause.OUT_OF_MEMORY and (outcome.details.get("memory") == "gpu" or is_out_of_memory(text)):
        return Told(max(needed_bytes(text), peak), True, True)
    return Told(0, is_spoilt(text), False)
