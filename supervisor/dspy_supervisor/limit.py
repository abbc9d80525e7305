"""The controller's step: from one window of measurements of a class to the limit of its next window, and why.

Everything here is a pure function of numbers, in plain Python that Numba can compile too (`compile_step`); both give the
same. What a number means is said by the enums: `Input` indexes a window, `State` what a policy remembers of one class,
`Param` its bounds and thresholds. nan means not known, and no rule takes it for a value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import MutableSequence

Step: TypeAlias = "Callable[[int, Any, Any, Any], tuple[float, int]]"


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
    OOMS = 7  #: attempts that ran out of memory on the GPU
    WAIT_S = 8  #: from arrival to start, mean of the tasks that started; nan: none did
    RUN_S = 9  #: run time, mean of the tasks that ended; nan: none did
    RUN_BASE_S = 10  #: the same over minutes
    GPU_BUSY = 11  #: share of time in which some kernel ran, mean of the class's GPUs, 0 to 1
    VRAM_FREE = 12  #: bytes, over the class's GPUs
    VRAM_TOTAL = 13  #: bytes
    VRAM_NEED = 14  #: bytes that a task takes, as learned
    THROTTLE = 15  #: 1 where a GPU throttles for heat or power, else 0
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
    SMOOTHING = 11  #: gradient: share of the way to the new limit taken in one window
    VRAM_RESERVE = 12  #: share of the memory that stays free
    MEM_FREE_LOW = 13  #: share of the host's memory below which nothing grows


class State(IntEnum):
    """What a policy remembers of one class between windows; all zero at the start."""

    STARTED = 0
    SMOOTH = 1  #: gradient: the limit before rounding
    AIM = 2  #: adaptive: the limit it asked for last
    GOOD = 3  #: adaptive: the best limit so far
    GOOD_RATE = 4  #: adaptive: tasks a second at that limit
    SPAN_S = 5  #: adaptive: how long the present limit was measured
    SPAN_DONE = 6  #: adaptive: tasks that ended meanwhile
    SETTLE = 7  #: adaptive: windows that are not counted, after a change
    CALM_S = 8  #: adaptive: until the next trial
    PHASE = 9  #: adaptive: 0 doubling, 1 at rest, 2 one step up on trial
    BAD_S = 10  #: adaptive: until it may grow again after heat or lack of memory
    CEILING = 11  #: adaptive: a limit that went wrong; 0: none
    CEILING_S = 12  #: adaptive: how long that is believed


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
    CAPPED = 18


_TEXTS = {
    Reason.HOLD: "nothing speaks for another",
    Reason.NOT_BINDING: "fewer tasks run than may",
    Reason.GROW: "throughput still grows with it",
    Reason.PROBE: "one step on trial",
    Reason.LATENCY: "tasks run longer than they used to",
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
    Reason.FALLING: "throughput was better below",
    Reason.CAPPED: "the highest that is allowed",
}


def reason_text(reason: int) -> str:
    """Return a reason in words."""
    return _TEXTS[Reason(reason)]


_DEFAULTS = {
    Param.STALE_S: 9.0,
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
}


def parameters(lowest: float, highest: float, **others: float) -> list[float]:
    """Return the parameters of one class; others by the names of `Param` in lower case."""
    values = _DEFAULTS | {Param[name.upper()]: value for name, value in others.items()}
    return [lowest, highest, *(values[param] for param in Param if param > Param.HIGHEST)]


def new_state() -> list[float]:
    """Return the state of a class that was never measured."""
    return [0.0] * len(State)


def step(
    policy: int,
    window: Sequence[float],
    state: MutableSequence[float],
    params: Sequence[float],
) -> tuple[float, int]:
    """Return the limit of the next window, a whole number, and the `Reason`. Only ``state`` is changed."""
    if policy == Policy.PLAN:
        limit, reason = _plan(window, params)
    elif policy == Policy.WATERMARK:
        limit, reason = _watermark(window, params)
    elif policy == Policy.GRADIENT:
        limit, reason = _gradient(window, state, params)
    elif policy == Policy.ADAPTIVE:
        limit, reason = _adaptive(window, state, params)
    else:
        limit, reason = window[Input.LIMIT], 0
    return min(params[Param.HIGHEST], max(params[Param.LOWEST], limit)), reason


def _plan(window: Sequence[float], params: Sequence[float]) -> tuple[float, int]:
    limit, busy = window[Input.LIMIT], window[Input.GPU_BUSY]
    if busy > params[Param.BUSY_HIGH]:
        return limit - 1.0, Reason.BUSY
    if busy < params[Param.BUSY_LOW]:
        return limit + 1.0, Reason.IDLE
    return limit, Reason.HOLD


def _watermark(window: Sequence[float], params: Sequence[float]) -> tuple[float, int]:
    limit = window[Input.LIMIT]
    ended = window[Input.DONE] + window[Input.ERRORS]
    if ended > 0.0 and window[Input.ERRORS] / ended > params[Param.ERRORS_HIGH]:
        return limit - params[Param.DECREASE], Reason.ERRORS
    if window[Input.WAIT_S] > params[Param.WAIT_HIGH_S]:
        return limit - params[Param.DECREASE], Reason.LATENCY
    if window[Input.BACKLOG] > params[Param.QUEUE_HIGH]:
        return limit + params[Param.INCREASE], Reason.BACKLOG
    return limit, Reason.HOLD


def _gradient(window: Sequence[float], state: MutableSequence[float], params: Sequence[float]) -> tuple[float, int]:
    limit, run_s, base_s = window[Input.LIMIT], window[Input.RUN_S], window[Input.RUN_BASE_S]
    if abs(state[State.SMOOTH] - limit) > 1.0:  # the first window, or set by somebody else
        state[State.SMOOTH] = limit
    if window[Input.INFLIGHT] < limit / 2.0:
        return limit, Reason.NOT_BINDING
    if not (run_s > 0.0 and base_s > 0.0):
        return limit, Reason.HOLD
    gradient = min(1.0, max(0.5, params[Param.TOLERANCE] * base_s / run_s))
    target = state[State.SMOOTH] * gradient + math.sqrt(limit)
    smooth = state[State.SMOOTH] + params[Param.SMOOTHING] * (target - state[State.SMOOTH])
    smooth = min(params[Param.HIGHEST], max(params[Param.LOWEST], smooth))
    state[State.SMOOTH] = smooth
    now = math.floor(smooth)
    if now < limit:
        return now, Reason.LATENCY
    if now > limit:
        return now, Reason.GROW
    return limit, Reason.HOLD


def _adaptive(window: Sequence[float], state: MutableSequence[float], params: Sequence[float]) -> tuple[float, int]:
    limit, interval_s = window[Input.LIMIT], window[Input.INTERVAL_S]
    lowest = params[Param.LOWEST]
    state[State.BAD_S] = max(0.0, state[State.BAD_S] - interval_s)
    state[State.CEILING_S] = max(0.0, state[State.CEILING_S] - interval_s)
    state[State.CALM_S] = max(0.0, state[State.CALM_S] - interval_s)
    if window[Input.OOMS] > 0.0 or window[Input.THROTTLE] > 0.0:
        if state[State.BAD_S] == 0.0:
            state[State.BAD_S], state[State.CEILING_S] = 10.0, 300.0
            state[State.CEILING] = max(lowest, math.floor(limit * 0.85))
            state[State.PHASE], state[State.SETTLE] = 0.0, 2.0
            state[State.SPAN_S], state[State.SPAN_DONE] = 0.0, 0.0
            state[State.GOOD_RATE] = 0.0
            half = max(lowest, math.floor(limit / 2.0))
            if window[Input.OOMS] > 0.0:
                return half, Reason.CUDA_OOM
            return half, Reason.THERMAL
        return limit, Reason.HOLD
    if window[Input.INFLIGHT] < 0.8 * limit or window[Input.BACKLOG] <= 0.0:
        return limit, Reason.NOT_BINDING
    if state[State.SETTLE] > 0.0:
        state[State.SETTLE] -= 1.0
        return limit, Reason.HOLD
    highest = params[Param.HIGHEST]
    if state[State.CEILING_S] > 0.0:
        highest = min(highest, state[State.CEILING])
    if window[Input.VRAM_NEED] > 0.0:
        spare = window[Input.VRAM_FREE] - params[Param.VRAM_RESERVE] * window[Input.VRAM_TOTAL]
        highest = min(highest, max(limit, limit + math.floor(spare / window[Input.VRAM_NEED])))
    state[State.SPAN_S] += interval_s
    state[State.SPAN_DONE] += window[Input.DONE]
    if state[State.SPAN_S] < 3.0 or (state[State.SPAN_DONE] < 30.0 and state[State.SPAN_S] < 20.0):
        return limit, Reason.HOLD
    rate = state[State.SPAN_DONE] / state[State.SPAN_S]
    state[State.SPAN_S], state[State.SPAN_DONE] = 0.0, 0.0
    if window[Input.TELEMETRY_AGE_S] > params[Param.STALE_S]:
        return limit, Reason.STALE
    if state[State.PHASE] == 0.0:
        if rate > 1.1 * state[State.GOOD_RATE]:
            state[State.GOOD], state[State.GOOD_RATE] = limit, rate
            if limit < highest and state[State.BAD_S] == 0.0:
                state[State.SETTLE] = 1.0
                return min(highest, 2.0 * limit), Reason.GROW
        state[State.PHASE], state[State.CALM_S] = 1.0, 20.0
        state[State.SETTLE] = 1.0
        return state[State.GOOD], Reason.FALLING
    if state[State.PHASE] == 2.0:
        state[State.PHASE], state[State.CALM_S] = 1.0, 20.0
        if rate > 1.02 * state[State.GOOD_RATE]:
            state[State.GOOD], state[State.GOOD_RATE] = limit, rate
            return limit, Reason.GROW
        return state[State.GOOD], Reason.FALLING
    state[State.GOOD] = limit
    state[State.GOOD_RATE] += 0.3 * (rate - state[State.GOOD_RATE])
    if state[State.CALM_S] == 0.0 and limit < highest:
        state[State.PHASE], state[State.SETTLE] = 2.0, 1.0
        return limit + 1.0, Reason.PROBE
    return limit, Reason.HOLD


#: the functions that compiled code may call; Numba reads their source and leaves them as they are
_COMPILABLE: tuple[Callable[..., Any], ...] = (_plan, _watermark, _gradient, _adaptive, step)
_SIGNATURE = "Tuple((float64, int64))(int64, float64[::1], float64[::1], float64[::1])"


def let_compiled_code_call_step() -> None:
    """Let functions that the caller compiles with Numba call `step`; imports Numba."""
    from numba.extending import register_jitable

    for function in _COMPILABLE:
        register_jitable(function)


def compile_step(*, cache: bool = False) -> Step:
    """Return `step` compiled for arrays of float64, with the same results; imports Numba, takes about a second.

    cache: keep the compiled code below NUMBA_CACHE_DIR, which must be set, and writable, before Numba is imported.
    """
    import numba

    let_compiled_code_call_step()
    compiled: Step = numba.njit(_SIGNATURE, cache=cache)(step)
    return compiled
