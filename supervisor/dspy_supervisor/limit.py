"""The controller's step: from one window of measurements of a class to the limit of its next window, and why.

Everything here is a pure function of numbers, in plain Python that Numba can compile too (`compile_step`); both give the
same. What a number means is said by the enums: `Input` indexes a window, `State` what a policy remembers of one class,
`Param` its bounds and thresholds. nan means not known, and no rule takes it for a value.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from .adaptive import COMPILABLE, adaptive
from .adaptive import __file__ as adaptive_file
from .limit_terms import Input, Param, Policy, Reason, State, new_state, parameters, reason_text
from .limit_terms import __file__ as terms_file

if TYPE_CHECKING:
    from collections.abc import MutableSequence

__all__ = [
    "Input", "Param", "Policy", "Reason", "State", "Step", "compile_step", "digest",
    "let_compiled_code_call_step", "new_state", "parameters", "reason_text", "step",
]  # fmt: skip

Step: TypeAlias = "Callable[[int, Any, Any, Any], tuple[float, int]]"


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
        limit, reason = adaptive(window, state, params)
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


#: the functions that compiled code may call; Numba reads their source and leaves them as they are
_COMPILABLE: tuple[Callable[..., Any], ...] = (*COMPILABLE, _plan, _watermark, _gradient, step)
_SIGNATURE = "Tuple((float64, int64))(int64, float64[::1], float64[::1], float64[::1])"


def let_compiled_code_call_step() -> None:
    """Let functions that the caller compiles with Numba call `step`; imports Numba."""
    from numba.extending import register_jitable

    for function in _COMPILABLE:
        register_jitable(function)


def digest() -> str:
    """Return what names this version of the step's sources: Numba's own cache looks at one file of them only."""
    sums = [zlib.crc32(Path(place).read_bytes()) for place in (__file__, adaptive_file, terms_file)]
    return "-".join(f"{each:08x}" for each in sums)


def compile_step(*, cache: bool = False) -> Step:
    """Return `step` compiled for arrays of float64, with the same results; imports Numba, takes about a second.

    cache: keep the compiled code below NUMBA_CACHE_DIR, which must be set, and writable, before Numba is imported.
    """
    import numba

    let_compiled_code_call_step()
    compiled: Step = numba.njit(_SIGNATURE, cache=cache)(step)
    return compiled
