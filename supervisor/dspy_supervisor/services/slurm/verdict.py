"""What became of a job: pure decisions from what its witness, the controller and the accounting say.

The job's own witness (its exit file) says how the task ended; the controller (squeue) whether the job is over; the
accounting (sacct) how it ended where there is no witness, and what it used. A job that is missing from a listing is
unknown, never over: it is lost only when every source that works has had no word of it for a while.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Any

from ...jobfolder import Sentinel
from ...task import Cause
from .listing import AccountRow, JobRow
from .states import LIVE, Fate, fate_of, is_hopeless, look_up

LOST_AFTER_S = 60.0  #: missing everywhere for so long, and in so many listings, is lost
LOST_LISTINGS = 3
LEFT_OUT_S = 5.0  #: an element that is missing from an array that is there, for so long, was taken out of it
ACCOUNT_S = 15.0  #: how long the accounting gets to tell what a job that is over used
_REFUSED_OUTPUT = 53  # exit code 0, signal 53: Slurm could not write the job's output


class Accounting(StrEnum):
    """Whether the accounting can be believed."""

    ON = "on"
    FAILING = "failing"  #: it does not answer: what it does not say means nothing
    OFF = "off"  #: there is none, or it has not answered for a long time


class Do(Enum):
    """What is to be done about a task."""

    WAIT = 0
    SUCCEED = 1
    FAIL = 2  #: the task's fault: by its bounds it is tried again, or given up
    AGAIN = 3  #: nobody's fault: it is tried again
    KILL = 4  #: end the job; how it ended is then the verdict's cause


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be done, and what goes into the record."""

    do: Do
    state: str = ""  #: of the job, in Slurm's word, for people
    cause: Cause | None = None
    message: str = ""
    used: dict[str, Any] = field(default_factory=dict)  #: facts of the job
    details: dict[str, Any] = field(default_factory=dict)  #: of the error
    retry: bool = True
    delay_s: float | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known of one task's job. Times in seconds."""

    row: JobRow | None  #: in the last listing that succeeded
    listings: int  #: that succeeded since the job was submitted, or was seen last
    missing_s: float  #: since the first of these
    account: AccountRow | None  #: the latest incarnation
    accounting: Accounting
    over_s: float  #: since the controller said first that it is over, or did not know it
    sentinel: Sentinel
    silent: bool = False  #: it runs, and gave no sign of life for very long
    beats: bool = False  #: it gave one of late
    siblings: bool = False  #: others of its array are known: the cluster did not forget the array
    ended: tuple[Cause, str] | None = None  #: we ended it, for this
    witness_s: float = 5.0  #: how long a file of the job may take to be seen here
    shares_id: bool = False  #: the controller gave its id to two jobs of ours


def judge(evidence: Evidence) -> Verdict:
    """Return what is to be done about a task whose job is known to the cluster, or was."""
    row = evidence.row
    if row is not None and fate_of(row.state) in LIVE:
        return _live(evidence, row)
    if row is None and not evidence.listings:
        return Verdict(Do.WAIT, "SUBMITTED")
    account = evidence.account
    told = account if account is not None and account.ended is not None else None
    if told is not None and look_up(told.state).fate in LIVE:
        told = None
    state = row.state if row is not None else told.state if told is not None else ""
    if not state:
        return _missing(evidence)
    if evidence.accounting is Accounting.ON and told is None and evidence.over_s < ACCOUNT_S:
        return Verdict(Do.WAIT, look_up(state).word)
    return _over(evidence, state, told)


def _live(evidence: Evidence, row: JobRow) -> Verdict:
    state, sentinel = look_up(row.state), evidence.sentinel
    fate = fate_of(row.state, row.reason)
    if evidence.ended is not None:
        return Verdict(Do.KILL, state.word, *evidence.ended)
    if fate is Fate.QUEUED and sentinel.exit is not None and sentinel.exit.get("ok"):
        # Its node failed after the work was done, and Slurm would do it again.
        return Verdict(Do.SUCCEED, state.word, used=_used(evidence, None))
    if fate is Fate.QUEUED and is_hopeless(row.reason):
        return Verdict(Do.KILL, state.word, Cause.REFUSED, f"the cluster would never start the job: {row.reason}")
    if fate is Fate.RUNNING and evidence.silent:
        return Verdict(Do.KILL, state.word, Cause.LOST, "the job is said to run, and gives no sign of life")
    return Verdict(Do.WAIT, state.word)


def _missing(evidence: Evidence) -> Verdict:
    """The controller has forgotten the job, and the accounting has no word of its end."""
    sentinel = evidence.sentinel
    wait = Verdict(Do.WAIT, "UNKNOWN")
    if sentinel.exit is not None:
        if evidence.accounting is Accounting.ON and evidence.over_s < ACCOUNT_S:
            return wait
        return _by_witness(evidence, "UNKNOWN", None)
    if evidence.beats or evidence.accounting is Accounting.FAILING:
        return wait
    if (
        evidence.siblings
        and sentinel.started < 0
        and evidence.listings >= LOST_LISTINGS
        and evidence.missing_s >= LEFT_OUT_S
    ):
        # No command tells of elements that were cancelled alone while they waited: they are gone at once.
        cause, message = evidence.ended or (Cause.CANCELLED, "cancelled in the cluster while it waited in its array")
        return Verdict(Do.FAIL, "CANCELLED", cause, message, {"slurm_state": "CANCELLED"})
    if evidence.missing_s < LOST_AFTER_S or evidence.listings < LOST_LISTINGS:
        return wait
    if evidence.ended is not None:
        return Verdict(Do.FAIL if evidence.ended[0] is not Cause.LOST else Do.AGAIN, "UNKNOWN", *evidence.ended)
    message = f"no source has known the job for {evidence.missing_s:.0f} s"
    return Verdict(Do.AGAIN, "UNKNOWN", Cause.LOST, message, _used(evidence, None))


def _over(evidence: Evidence, written: str, account: AccountRow | None) -> Verdict:
    state, exit_file = look_up(written), evidence.sentinel.exit
    if exit_file is not None and (exit_file.get("ok") or state.fate is Fate.SUCCESS or state.word == "FAILED"):
        if account is not None and account.step_out_of_memory and not exit_file.get("ok"):
            return _fail(evidence, account, state.word, Cause.OUT_OF_MEMORY, "a step of the job was out of memory")
        return _by_witness(evidence, state.word, account)
    if exit_file is not None and exit_file.get("requeue"):
        return _checkpointed(evidence, state.word, account)
    if exit_file is None and state.fate in (Fate.SUCCESS, Fate.FAILURE) and evidence.over_s < evidence.witness_s:
        return Verdict(Do.WAIT, state.word)  # a file that a node wrote is seen late on a network filesystem
    used = _used(evidence, account)
    if evidence.ended is not None and state.word != "COMPLETED":
        cause, message = evidence.ended
        return Verdict(Do.AGAIN if cause is Cause.LOST else Do.FAIL, state.word, cause, message, used)
    if state.fate is Fate.AGAIN:
        return Verdict(Do.AGAIN, state.word, Cause.LOST, f"{state.text} ({state.word})", used)
    if state.word == "CANCELLED" and evidence.shares_id and evidence.sentinel.started < 0:
        # A node that still has the one the controller forgot refuses the other, and the controller cancels that.
        message = "the controller forgot a job, gave its id to this one, and cancelled it"
        return Verdict(Do.AGAIN, state.word, Cause.LOST, message, used)
    if state.word == "COMPLETED" and evidence.sentinel.twice:
        message = "Slurm launched the job twice, and the copy that had begun left no word of its end"
        return Verdict(Do.AGAIN, state.word, Cause.LOST, message, used)
    if state.word == "COMPLETED":
        message = "the job is COMPLETED, but the program that runs the task left no word of its end"
        return _fail(evidence, account, state.word, Cause.EXIT, message)
    if state.word == "FAILED" and account is not None:
        return _failed(evidence, account)
    cause = state.cause or Cause.EXIT
    by = written[len(state.word) :].strip()
    message = f"{state.text or 'the job ended'} ({state.word}{' ' + by if by else ''})"
    return Verdict(Do.FAIL, state.word, cause, message, used, retry=state.word not in ("DEADLINE", "CANCELLED"))


def _failed(evidence: Evidence, account: AccountRow) -> Verdict:
    """FAILED, and no witness: by the code that Slurm has."""
    if account.step_out_of_memory:
        return _fail(evidence, account, "FAILED", Cause.OUT_OF_MEMORY, "a step of the job was out of memory")
    if not account.code and account.signal == _REFUSED_OUTPUT:
        message = "Slurm could not write the job's output (FAILED 0:53)"
        return Verdict(Do.AGAIN, "FAILED", Cause.LOST, message, _used(evidence, account), delay_s=30.0)
    if account.signal and not account.code:
        return _fail(evidence, account, "FAILED", Cause.SIGNAL, f"the job was killed by signal {account.signal}")
    return _fail(evidence, account, "FAILED", Cause.EXIT, f"the job ended with exit code {account.code}")


def _fail(evidence: Evidence, account: AccountRow | None, word: str, cause: Cause, message: str) -> Verdict:
    return Verdict(Do.FAIL, word, cause, message, _used(evidence, account))


def _by_witness(evidence: Evidence, word: str, account: AccountRow | None) -> Verdict:
    """Return what the job says of itself."""
    told = evidence.sentinel.exit or {}
    if told.get("requeue"):
        return _checkpointed(evidence, word, account)
    used = _used(evidence, account)
    if told.get("ok"):
        return Verdict(Do.SUCCEED, word, used=used)
    if evidence.ended is not None:
        cause, message = evidence.ended
        return Verdict(Do.AGAIN if cause is Cause.LOST else Do.FAIL, word, cause, message, used)
    if told.get("stopped"):
        return Verdict(Do.AGAIN, word, Cause.LOST, "the job was told to end before the task was through", used)
    code, killed = told.get("exit_code"), told.get("signal")
    cause = _cause(told.get("cause")) or (Cause.SIGNAL if killed else Cause.EXIT)
    message = str(told.get("message") or (f"killed by {killed}" if killed else f"ended with exit code {code}"))
    more = told.get("details")
    details = {
        **(more if isinstance(more, dict) else {}),
        **{name: told[name] for name in ("type", "traceback") if told.get(name)},
    }
    wanted = told.get("retry_delay_s")
    delay_s = float(wanted) if isinstance(wanted, int | float) else None
    return Verdict(Do.FAIL, word, cause, message, used, details, retry=told.get("retry") is not False, delay_s=delay_s)


def _checkpointed(evidence: Evidence, word: str, account: AccountRow | None) -> Verdict:
    message = "it saved a checkpoint, and goes on in the next job"
    if evidence.ended is not None and evidence.ended[0] is Cause.CANCELLED:
        return Verdict(Do.FAIL, word, *evidence.ended, _used(evidence, account))
    return Verdict(Do.AGAIN, word, Cause.LOST, message, _used(evidence, account))


def _used(evidence: Evidence, account: AccountRow | None) -> dict[str, Any]:
    """Return what the record tells of the job beside its end."""
    told, row, start = evidence.sentinel.exit or {}, evidence.row, evidence.sentinel.start
    written = account.state if account is not None else row.state if row is not None else ""
    facts: dict[str, Any] = {
        "slurm_state": look_up(written).word if written else None,
        "exit_code": told.get("exit_code", account.code if account is not None else None),
        "signal": told.get("signal") or (account.signal if account is not None else None) or None,
        "nodes": (account.nodes if account is not None else "") or (row.nodes if row is not None else "")
        or str(start.get("nodes") or start.get("host") or "") or None,
        "max_rss_bytes": (account.max_rss_bytes if account is not None else None) or told.get("max_rss_bytes"),
        "elapsed_s": account.elapsed_s if account is not None else told.get("duration_s"),
    }  # fmt: skip
    return {name: value for name, value in facts.items() if value is not None}


def _cause(written: object) -> Cause | None:
    return Cause(written) if isinstance(written, str) and written in set(Cause) else None


# -- a submission whose answer was lost ---------------------------------------------------------------------------------------


class Settle(Enum):
    """What is to be done about a submission whose id is not known."""

    WAIT = 0
    ADOPT = 1
    AGAIN = 2  #: it never reached the cluster: its tasks may be submitted under another name


@dataclass(frozen=True, slots=True)
class Lost:
    """What is known of a submission whose answer was lost."""

    ids: tuple[str, ...]  #: jobs of its name that any source knows
    absences: int  #: listings without it that succeeded, since the last request of ours ended
    absent_s: float  #: between the first and the last of them
    apart_s: (
        float  #: how far apart these must lie: a controller that hung takes requests that nobody waits for any more
    )
    accounting: Accounting
    asked: bool  #: the accounting was asked for the name, and knows none


def reconcile(lost: Lost) -> Settle:
    """Return whether the job exists. Not found by one look is not known."""
    if lost.ids:
        return Settle.ADOPT
    if lost.absences < 2 or lost.absent_s < lost.apart_s:
        return Settle.WAIT
    if lost.accounting is Accounting.FAILING or (lost.accounting is Accounting.ON and not lost.asked):
        return Settle.WAIT
    return Settle.AGAIN
