"""How many allocations a queue needs: a decision from what waits, what there is, and what went wrong. No effects, no clock.

The rules are HyperQueue's automatic allocation's (docs/deployment/allocation.md), in short: as many as what waits can fill,
between two bounds, few of them queued at once; one that was not needed for a while is given back; failures make the next one
wait longer, and too many of them in a row end it all, with a reason, until somebody looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil

from .listing import JobRow
from .states import Fate, fate_of, is_hopeless, look_up

BACKOFF_S = (60.0, 900.0, 1800.0, 3600.0)  #: after the first failure in a row, the second ...
MAX_REFUSED = 10  #: submissions in a row that Slurm refused
MAX_DEATHS = 3  #: allocations in a row that failed soon after their start
SOON_S = 60.0  #: an allocation that ran for longer works
SETTLE_S = 30.0  #: from the start of an allocation until what waits tells whether it was enough
STALE_S = (
    10.0  #: what waits is counted so often: right after an allocation ended, its last tasks may still be in the count
)
LOST_S = 180.0  #: a submission that no listing shows for so long is not there
QUEUED = 4  #: allocations that may be queued at once
KEEP = ".keep"  #: ends the name of one that is kept although nothing waits
_BAD = frozenset({"FAILED", "BOOT_FAIL", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE"})


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the configuration allows."""

    least: int  #: allocations that are kept although nothing waits
    most: int
    workers: int  #: tasks at once in one
    idle_s: float  #: one that nothing needs is given back after this


@dataclass(slots=True)
class Ledger:
    """What is remembered between two decisions. Times are monotonic seconds."""

    submitted: dict[str, float] = field(default_factory=dict)  #: name to when, until a listing shows it
    running: dict[str, float] = field(default_factory=dict)  #: name to when it was first seen to run
    ended: set[str] = field(default_factory=set)  #: names whose end was judged
    refused: int = 0  #: submissions in a row
    deaths: int = 0  #: soon after their start, in a row
    not_before: float = 0.0
    stale_until: float = 0.0
    unneeded_since: float | None = None
    trouble: str = ""  #: the last failure, in words
    stopped: str = ""  #: why nothing more is submitted, until the configuration is read anew


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now."""

    keep: int = 0  #: allocations to submit that stay although nothing waits
    float: int = 0  #: allocations to submit that end when idle
    cancel: tuple[str, ...] = ()  #: job ids
    why: str = ""


def decide(now: float, bounds: Bounds, jobs: Sequence[JobRow], pending: int, ledger: Ledger) -> Decision:
    """Return what to submit and what to cancel; takes what the listing shows into the ledger, and changes nothing else.

    ``jobs``: all allocations of the queue that a successful listing shows; ``pending``: tasks that wait for one.
    """
    cancel = [job.key for job in jobs if _take_in(now, job, ledger)]
    shown = {job.name for job in jobs}
    for name in ledger.submitted.keys() & shown:
        del ledger.submitted[name]
    for name, at in list(ledger.submitted.items()):
        if now - at > LOST_S:
            del ledger.submitted[name]
    ledger.ended &= shown
    for name in ledger.running.keys() - shown:
        del ledger.running[name]

    alive = [job for job in jobs if _is_alive(job) and job.key not in cancel]
    queued = [job for job in alive if fate_of(job.state) is Fate.QUEUED]
    young = sum(now - ledger.running.get(job.name, now) < SETTLE_S for job in alive if job not in queued)
    waiting = len(queued) + len(ledger.submitted)
    total = len(alive) + len(ledger.submitted)
    useful = ceil(pending / bounds.workers)

    spare = waiting - useful if total > bounds.least else 0
    if spare > 0:
        ledger.unneeded_since = now if ledger.unneeded_since is None else ledger.unneeded_since
        if now - ledger.unneeded_since >= bounds.idle_s:
            floating = [job for job in queued if not job.name.endswith(KEEP)]
            cancel += [job.key for job in floating[::-1][: min(spare, total - bounds.least)]]
            ledger.unneeded_since = None
    else:
        ledger.unneeded_since = None

    if ledger.stopped:
        return Decision(cancel=tuple(cancel), why=ledger.stopped)
    kept = sum(job.name.endswith(KEEP) for job in alive) + sum(name.endswith(KEEP) for name in ledger.submitted)
    keep = max(0, min(bounds.least - kept, bounds.most - total))
    floating_room = min(bounds.most - total - keep, QUEUED - waiting - keep)
    more = max(0, min(useful - waiting - young - keep, floating_room)) if now >= ledger.stale_until else 0
    why = f"{pending} tasks wait; {len(alive) - len(queued)} allocations run, {waiting} are queued"
    if (keep or more) and now < ledger.not_before:
        wait_s = ledger.not_before - now
        return Decision(cancel=tuple(cancel), why=f"{ledger.trouble}; trying again in {wait_s:.0f} s")
    return Decision(keep, more, tuple(cancel), why)


def note_submitted(now: float, name: str, ledger: Ledger) -> None:
    """An allocation was submitted, or may have been: a listing will show."""
    ledger.submitted[name] = now


def note_refused(now: float, error: str, ledger: Ledger) -> None:
    """Slurm refused an allocation."""
    ledger.refused += 1
    _failed(now, f"Slurm refused an allocation: {error}", ledger)
    if ledger.refused >= MAX_REFUSED:
        ledger.stopped = f"{ledger.refused} submissions in a row failed ({ledger.trouble}); reload to try again"


def _take_in(now: float, job: JobRow, ledger: Ledger) -> bool:
    """Learn from one row; True where the job has to be cancelled, since it can never start."""
    if job.name in ledger.ended:
        return False
    fate = fate_of(job.state)
    if fate is Fate.RUNNING:
        began = ledger.running.setdefault(job.name, now)
        if now - began >= SOON_S:
            ledger.refused = ledger.deaths = 0
        return False
    if fate is Fate.QUEUED and is_hopeless(job.reason):
        ledger.ended.add(job.name)
        ledger.refused += 1
        _failed(now, f"allocation {job.key} can never start: {job.reason}", ledger)
        if ledger.refused >= MAX_REFUSED:
            ledger.stopped = (
                f"{ledger.refused} allocations in a row could never start ({job.reason}); reload to try again"
            )
        return True
    if _is_alive(job):
        return False
    ledger.ended.add(job.name)
    if job.name in ledger.running:
        ledger.stale_until = now + STALE_S
    state = look_up(job.state).word
    ran_s = now - ledger.running.get(job.name, now)
    if state == "COMPLETED" or ran_s >= SOON_S:
        ledger.refused = ledger.deaths = 0
    elif state in _BAD:
        ledger.deaths += 1
        _failed(now, f"allocation {job.key} ended with {state} at its start", ledger)
        if ledger.deaths >= MAX_DEATHS:
            ends = f"{ledger.deaths} allocations in a row failed at their start"
            ledger.stopped = f"{ends}, the last with {state}; reload to try again"
    return False


def _failed(now: float, trouble: str, ledger: Ledger) -> None:
    failures = max(ledger.refused, ledger.deaths)
    ledger.trouble = trouble
    ledger.not_before = now + BACKOFF_S[min(failures, len(BACKOFF_S)) - 1]


def _is_alive(job: JobRow) -> bool:
    return fate_of(job.state, job.reason) in (Fate.QUEUED, Fate.RUNNING, Fate.PAUSED, Fate.HELD, Fate.UNKNOWN)
