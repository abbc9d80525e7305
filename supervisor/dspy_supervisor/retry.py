"""What becomes of a task after an attempt that did not succeed: a pure decision.

Back-off is exponential with full jitter (Brooker, "Exponential Backoff And Jitter", 2015): uniform in
[0, min(cap, base * 2**faults)].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .config import ClassConfig, Config
from .record import MAX_HISTORY
from .task import Cause, TaskName

#: these end a task at once: trying again can't help
FINAL = frozenset({Cause.REFUSED, Cause.CANCELLED, Cause.DELIVERIES, Cause.ENV_LOST})
#: these are not the task's fault and charge no attempt of its budget, only a delivery
BLAMELESS = frozenset({Cause.LOST})
_OOMS = frozenset({Cause.OUT_OF_MEMORY, Cause.HOST_OOM})  # that have a budget of their own
_NO_FAULTS = BLAMELESS | _OOMS
#: in these the worker itself died under the task
DEATHS = frozenset({Cause.SIGNAL, Cause.EXIT, Cause.HOST_OOM})


@dataclass(frozen=True, slots=True)
class Budget:
    """How often one task may be tried."""

    max_attempts: int  #: attempts that may end by the task's own fault
    max_crashes: int  #: workers that it may take with it
    max_deliveries: int  #: attempts of any kind
    base_s: float  #: first back-off, seconds
    cap_s: float  #: longest back-off, seconds
    max_ooms: int = 5  #: attempts that may end out of memory: who else used it is chance, so they are counted apart


def budget_of(config: Config, settings: ClassConfig, own: int | None = None) -> Budget:
    """Return how often a task of a class may be tried; ``own``: the bound on attempts that the task names itself."""
    return Budget(
        max_attempts=settings.max_attempts if own is None else own,
        max_crashes=settings.max_crashes if own is None else min(settings.max_crashes, own),
        max_deliveries=max(config.max_deliveries, settings.max_attempts, own or 0),
        base_s=settings.retry_base_s,
        cap_s=settings.retry_cap_s,
        max_ooms=settings.max_ooms if own is None else min(settings.max_ooms, own),
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """``final`` is the cause to fail with, or None: then try again after ``delay_s`` seconds."""

    final: Cause | None
    delay_s: float = 0.0


def decide(
    cause: Cause,
    name: TaskName,
    past: Sequence[Cause],  # causes of the earlier attempts, as far as they are known
    budget: Budget,
    chance: float,  # uniform in [0, 1)
    *,
    died: bool = False,  # the worker died with this attempt
    retry: bool = True,  # what the handler said of it
    wanted_delay_s: float | None = None,  # seconds, from the handler
) -> Verdict:
    """Return whether the task that just ended an attempt by ``cause`` is tried again, and when."""
    if cause in FINAL or not retry:
        return Verdict(cause)
    if died and cause in DEATHS and name.crashes + 1 >= budget.max_crashes:
        return Verdict(cause)
    if cause in _OOMS:
        faults, bound = sum(earlier in _OOMS for earlier in past), budget.max_ooms
    else:
        faults, bound = sum(earlier not in _NO_FAULTS for earlier in past), budget.max_attempts
    if len(past) >= MAX_HISTORY:  # those before are not told of any more: they count, or a high bound is never reached
        faults += name.attempt - len(past)
    if cause not in BLAMELESS and faults + 1 >= bound:
        return Verdict(cause)
    if name.attempt + 1 >= budget.max_deliveries:
        return Verdict(Cause.DELIVERIES)
    if cause in BLAMELESS or died:
        return Verdict(None)  # the task waits for nothing: the worker that died is what backs off
    if wanted_delay_s is not None:
        return Verdict(None, max(0.0, wanted_delay_s))
    return Verdict(None, chance * min(budget.cap_s, budget.base_s * 2.0 ** min(faults, 60)))
