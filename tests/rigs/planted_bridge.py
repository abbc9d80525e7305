"""A supervisor whose way to Slurm has a bug that tests.rigs.slurm must find: ``$PLANT`` names it."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import Any

from dspy_supervisor.__main__ import main
from dspy_supervisor.services.slurm import adopt, inbound, outbound
from dspy_supervisor.services.slurm.commands import Accepted, Refused, Unknown
from dspy_supervisor.services.slurm.verdict import Do, Evidence, Verdict
from dspy_supervisor.task import Cause


def resubmits() -> None:
    """An sbatch that says nothing is taken for one that did nothing."""
    told = outbound.Outbound._answered

    def answered(self: outbound.Outbound, job: Any, said: Accepted | Refused | Unknown) -> None:
        told(self, job, Refused(said.reason, later=True) if isinstance(said, Unknown) else said)

    outbound.Outbound._answered = answered  # type: ignore[method-assign]
    outbound._LATER_S = 0.1  # type: ignore[misc]


def forgets() -> None:
    """What the bridge before submitted is not looked up."""
    adopt.Adopter.find = lambda *_: None  # type: ignore[method-assign]


def charges() -> None:
    """A node that dies is taken for a fault of the task."""
    right = inbound.judge

    def judge(evidence: Evidence) -> Verdict:
        verdict = right(evidence)
        return replace(verdict, do=Do.FAIL, cause=Cause.EXIT) if verdict.cause is Cause.LOST else verdict

    inbound.judge = judge


if __name__ == "__main__":
    {"resubmits": resubmits, "forgets": forgets, "charges": charges}[os.environ["PLANT"]]()
    sys.exit(main())
