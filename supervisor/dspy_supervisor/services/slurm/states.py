"""Slurm's job states, once: what each means for a task. The words of sacct(1) and squeue(1), from 22.05 to 26.05."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ...task import Cause


class Fate(StrEnum):
    """What a state means for the task."""

    QUEUED = "queued"  #: it waits in the cluster
    RUNNING = "running"
    PAUSED = "paused"  #: no sign of life is expected of it
    ENDING = "ending"  #: how it ended is known, but its processes may still live
    HELD = "held"  #: it needs a human
    SUCCESS = "success"  #: if the job's own witness says so too
    FAILURE = "failure"  #: the task's fault, as far as the cluster can tell
    AGAIN = "again"  #: the cluster's fault, or its will: another attempt, which is not counted
    UNKNOWN = "unknown"  #: no word of ours: wait for one


#: of a job that may still run, or run again
LIVE = frozenset({Fate.QUEUED, Fate.RUNNING, Fate.PAUSED, Fate.ENDING, Fate.HELD, Fate.UNKNOWN})


@dataclass(frozen=True, slots=True)
class JobState:
    """One state of Slurm's."""

    word: str
    short: str  #: as `squeue -t` and its %t have it
    fate: Fate
    cause: Cause | None = None  #: of the attempt that ended so
    text: str = ""  #: for the record


_ALL = (
    JobState("PENDING", "PD", Fate.QUEUED),
    JobState("CONFIGURING", "CF", Fate.RUNNING),
    JobState("RUNNING", "R", Fate.RUNNING),
    JobState("SIGNALING", "SI", Fate.RUNNING),
    JobState("RESIZING", "RS", Fate.RUNNING),
    JobState("STAGE_OUT", "SO", Fate.ENDING),
    JobState("COMPLETING", "CG", Fate.ENDING),
    JobState("SUSPENDED", "S", Fate.PAUSED),
    JobState("STOPPED", "ST", Fate.PAUSED),
    JobState("REQUEUED", "RQ", Fate.QUEUED),
    JobState("REQUEUE_FED", "RF", Fate.QUEUED),
    JobState("REQUEUE_HOLD", "RH", Fate.HELD),
    JobState("SPECIAL_EXIT", "SE", Fate.HELD),
    JobState("RESV_DEL_HOLD", "RD", Fate.HELD),
    JobState("REVOKED", "RV", Fate.UNKNOWN),
    JobState("COMPLETED", "CD", Fate.SUCCESS),
    JobState("FAILED", "F", Fate.FAILURE, Cause.EXIT, "the job failed"),
    JobState("TIMEOUT", "TO", Fate.FAILURE, Cause.TIMEOUT, "the job's time limit in the cluster was up"),
    JobState("DEADLINE", "DL", Fate.FAILURE, Cause.TIMEOUT, "the job's deadline in the cluster passed"),
    JobState("OUT_OF_MEMORY", "OOM", Fate.FAILURE, Cause.OUT_OF_MEMORY, "the job used more memory than it asked for"),
    JobState("CANCELLED", "CA", Fate.FAILURE, Cause.CANCELLED, "the job was cancelled in the cluster"),
    JobState("NODE_FAIL", "NF", Fate.AGAIN, Cause.LOST, "a node of the job failed"),
    JobState("BOOT_FAIL", "BF", Fate.AGAIN, Cause.LOST, "a node of the job did not boot"),
    JobState("PREEMPTED", "PR", Fate.AGAIN, Cause.LOST, "the job was preempted"),
    JobState("LAUNCH_FAILED", "LF", Fate.AGAIN, Cause.LOST, "the job could not be launched"),
    JobState("RECONFIG_FAIL", "RC", Fate.AGAIN, Cause.LOST, "a node of the job could not be reconfigured"),
)
STATES = {state.word: state for state in _ALL}
_SHORT = {state.short: state for state in _ALL}

#: reasons of a pending job that will never start
NEVER = frozenset(
    {
        "DependencyNeverSatisfied",
        "PartitionNodeLimit",
        "PartitionTimeLimit",
        "PartitionConfig",
        "BadConstraints",
        "InvalidAccount",
        "InvalidQOS",
    }
)
#: reasons of a pending job that a human holds, or must release
HELD = frozenset({"JobHeldUser", "JobHeldAdmin", "launch failed requeued held", "launch_failed_requeued_held"})


def look_up(written: str) -> JobState:
    """Return the state that a command printed: whole, short, cut off with a "+", or with words behind it."""
    word = written.split(maxsplit=1)[0].upper() if written.split() else ""
    if (known := STATES.get(word) or _SHORT.get(word)) is not None:
        return known
    if word.endswith("+"):
        found = [state for name, state in STATES.items() if name.startswith(word[:-1])]
        if len(found) == 1:
            return found[0]
    return JobState(word or "?", "?", Fate.UNKNOWN)


def fate_of(written: str, reason: str = "") -> Fate:
    """Return what a state, with the reason of a pending job, means for the task."""
    fate = look_up(written).fate
    return Fate.HELD if fate is Fate.QUEUED and reason.strip("()") in HELD else fate


def is_hopeless(reason: str) -> bool:
    """Whether a pending job with this reason will never start."""
    return reason.strip("()").split(",")[0].strip() in NEVER
