"""The words of the controller: what a window of measurements says, what a policy is told and remembers, and its reasons.

Each enum indexes a plain vector of numbers, so that one source runs compiled and plain. nan means not known.
"""

from __future__ import annotations

from enum import IntEnum


class Policy(IntEnum):
    """How a limit is chosen."""

    FIXED = 0  #: it stays
    PLAN = 1  #: the plan's rule: GPU busier than 0.8: one less; idler than 0.5: one more
    WATERMARK = 2  #: the original's: grows with the queue, shrinks with wait and errors
    GRADIENT = 3  #: run time beside its baseline, after Netflix's Gradient2
    ADAPTIVE = 4  #: ours: climbs by throughput, and minds memory, heat and errors


class Input(IntEnum):
    """What a window says of one class."""

    INTERVAL_S = 0  #: length of the window
    LIMIT = 1  #: tasks that may run at once, as it held during the window
    INFLIGHT = 2  #: tasks that ran at once, mean over the window
    BACKLOG = 3  #: tasks that wait, at the end of the window
    DONE = 4  #: tasks that ended well in this window
    ERRORS = 5  #: attempts that failed, time-outs and out-of-memory included
    TIMEOUTS = 6
    OOMS = 7  #: attempts that ran out of memory on a GPU
    WAIT_S = 8  #: from arrival to start, mean of the tasks that started; nan: none did
    RUN_S = 9  #: run time, mean of the tasks that ended; nan: none did
    RUN_BASE_S = 10  #: the same over minutes
    GPU_BUSY = 11  #: share of time in which some kernel ran, mean of the class's GPUs, 0 to 1
    VRAM_FREE = 12  #: bytes, over the class's GPUs
    VRAM_TOTAL = 13  #: bytes
    VRAM_NEED = 14  #: bytes that a task takes, as learned
    THROTTLE = 15  #: 1 where a GPU throttles for heat, 2 where its power is braked, else 0
    POWER = 16  #: share of the cap
    PSI_CPU = 17  #: share of the last 10 s in which some task of the host stalled, 0 to 1
    PSI_MEM = 18
    PSI_IO = 19
    MEM_FREE_SHARE = 20  #: of the host's or the cgroup's memory, 0 to 1
    TELEMETRY_AGE_S = 21  #: since the GPUs were looked at; nan: no GPU
    DONE_RATE = 22  #: tasks a second that ended well


class Param(IntEnum):
    """The bounds and thresholds of one class."""

    LOWEST = 0  #: limit
    HIGHEST = 1  #: limit
    STALE_S = 2  #: telemetry older than this is not believed
    BUSY_HIGH = 3  #: plan
    BUSY_LOW = 4  #: plan
    QUEUE_HIGH = 5  #: watermark: tasks
    WAIT_HIGH_S = 6  #: watermark
    ERRORS_HIGH = 7  #: watermark: share of the attempts
    INCREASE = 8  #: watermark: tasks
    DECREASE = 9  #: watermark: tasks
    TOLERANCE = 10  #: gradient: run time in baselines that is no sign of overload
    SMOOTHING = 11  #: gradient: share of the way to the new limit that is taken in one window
    VRAM_RESERVE = 12  #: adaptive: share of the memory that stays free
    MEM_FREE_LOW = 13  #: adaptive: share of the host's memory below which nothing grows
    PSI_HIGH = 14  #: adaptive: share of stalled time above which nothing grows
    WORTH = 15  #: adaptive: growth of throughput that a growth of the limit must bring, both as logarithms
    CEILING_S = 16  #: adaptive: how long a limit that went wrong is not tried again


class State(IntEnum):
    """What a policy remembers of one class between windows; all zero at the start."""

    SMOOTH = 0  #: gradient: the limit before rounding
    # all that follows is of adaptive
    AIM = 1  #: the limit it asked for last; 0: nothing is known
    BEST = 2  #: the best limit so far; 0: none
    BEST_RATE = 3  #: what it yields, tasks a second
    BEST_DONE = 4  #: tasks which that was measured by; 0: not measured
    BEST_LOAD = 5  #: how loaded the devices are then, 0 to 1
    BELOW = 6  #: the next limit below that is taken to be worse; 0: none
    ABOVE = 7  #: the next limit above that is taken to be worse; 0: none
    STRIDE = 8  #: factor of the next step out of the bracket; 0: as the devices' load suggests
    SETTLE_S = 9  #: time that is not counted, after a change
    SPAN_S = 10  #: how long the present limit was measured
    SPAN_DONE = 11  #: tasks that ended well meanwhile
    SPAN_ERRORS = 12  #: attempts that failed meanwhile
    SPAN_LOAD = 13  #: integral of the load, seconds
    SEARCH_S = 14  #: how long the search has taken
    AT_REST = 15  #: 1: nothing is tried
    DRIFT = 16  #: by how much the last span at rest differed from what was known, as a logarithm
    HOLD_S = 17  #: until it may grow again, after it was halved
    BACK = 18  #: the limit to go back to then; 0: none
    CAUSE = 19  #: the reason of the last halving
    CEILING = 20  #: a limit that went wrong; 0: none
    CEILING_S = 21  #: how long that is believed
    HOT_S = 22  #: time since it was halved for heat or power; 0: it was not, or that is long ago
    CLEAR_S = 23  #: how long no GPU has throttled
    LOW_FREE = 24  #: bytes of GPU memory, the least that was free in this while; 0: not looked yet
    LOW_BEFORE = 25  #: the same of the while before
    LOW_S = 26  #: length of this while
    ROOF = 27  #: the limit that memory allowed when the search ended there; 0: it ended elsewhere
    REST_S = 28  #: how long it has been at rest while devices had room
    RETRY_S = 29  #: after which it looks further up once more; 0: the first time
    PROVEN = 30  #: 1: that ABOVE is worse is more than chance
    MEM_LIMIT = 31  #: the limit before this one, where that was lower; 0: it was not
    MEM_BEFORE = 32  #: share of the host's memory that was free then, at the least
    MEM_LEAST = 33  #: the same for this limit; 0: not looked yet
    MEM_NEED = 34  #: share of the host's memory that a task takes, as learned; 0: not learned
    SPAN_RUN_S = 35  #: run time of the tasks that ended well in the span, summed
    BEST_RUN_S = 36  #: their mean run time under the best limit
    WARM = 37  #: 1: a first generation of tasks has ended, which began all at once and so tells little
    CLEAR = 38  #: 1: the last trial was better by more than chance
    NOISE = 39  #: variance of the count of ended tasks, in counts, as learned from window to window; 0: not yet
    LAST_DONE = 40  #: count of the window before in the span, and one; 0: it was the first


class Reason(IntEnum):
    """Why a limit is what it is."""

    HOLD = 0
    NOT_BINDING = 1
    GROW = 2
    PROBE = 3
    LATENCY = 4
    VRAM = 5
    THERMAL = 6
    POWER = 7
    CUDA_OOM = 8
    ERRORS = 9
    MEMORY = 10
    CPU = 11
    STALE = 12
    RECOVER = 13
    BACKLOG = 14
    BUSY = 15
    IDLE = 16
    FALLING = 17
    MEASURING = 18


_TEXTS = {
    Reason.HOLD: "throughput is best here",
    Reason.NOT_BINDING: "fewer tasks run than may",
    Reason.GROW: "throughput grows with it",
    Reason.PROBE: "on trial",
    Reason.LATENCY: "tasks take longer than they used to",
    Reason.VRAM: "GPU memory",
    Reason.THERMAL: "a GPU throttles for heat",
    Reason.POWER: "a GPU throttles for power",
    Reason.CUDA_OOM: "out of memory on a GPU",
    Reason.ERRORS: "tasks fail",
    Reason.MEMORY: "memory of the host",
    Reason.CPU: "the CPUs are overloaded",
    Reason.STALE: "telemetry is stale",
    Reason.RECOVER: "what lowered it is over",
    Reason.BACKLOG: "tasks wait",
    Reason.BUSY: "the GPU is busy",
    Reason.IDLE: "the GPU has room",
    Reason.FALLING: "throughput is better with fewer",
    Reason.MEASURING: "being measured",
}


def reason_text(reason: int) -> str:
    """Return a reason in words."""
    return _TEXTS[Reason(reason)]


_DEFAULTS = {
    Param.STALE_S: 9.0,  # three looks
    Param.BUSY_HIGH: 0.8,
    Param.BUSY_LOW: 0.5,
    Param.QUEUE_HIGH: 40.0,
    Param.WAIT_HIGH_S: 2.0,
    Param.ERRORS_HIGH: 0.2,
    Param.INCREASE: 2.0,
    Param.DECREASE: 2.0,
    Param.TOLERANCE: 1.5,
    Param.SMOOTHING: 0.2,
    Param.VRAM_RESERVE: 0.04,
    Param.MEM_FREE_LOW: 0.1,
    Param.PSI_HIGH: 0.2,
    Param.WORTH: 0.05,
    Param.CEILING_S: 600.0,
}


def parameters(lowest: float, highest: float, **others: float) -> list[float]:
    """Return the parameters of one class; others by the names of `Param` in lower case."""
    values = _DEFAULTS | {Param[name.upper()]: value for name, value in others.items()}
    return [lowest, highest, *(values[param] for param in Param if param > Param.HIGHEST)]


def new_state() -> list[float]:
    """Return the state of a class that was never measured."""
    return [0.0] * len(State)
