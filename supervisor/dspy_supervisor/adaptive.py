"""The default policy: a search for the limit with the best throughput, below what memory and heat allow.

Throughput over the limit rises, saturates and falls, so it has one top. The search holds a bracket around the best limit
known: it goes out by factors until that no longer pays, then looks between. A limit is measured from when the tasks that
ran before it have ended, only while it binds, and for as long as the noise of its count demands. When the bracket is
narrow or the time is up, the limit rests, until throughput there is no longer what it was, or until memory has room that
it had not.

Heat, lack of power and lack of memory can't wait for a measurement: the limit is halved at once, and that height is not
tried again for a while. A GPU that throttles again at less is left to: throughput tells what that costs.
"""

from __future__ import annotations

import math
from collections.abc import MutableSequence, Sequence

from .limit_terms import Input, Param, Reason, State

_NOISE = 0.4, 3.0  # bounds of the variance of a count of ended tasks, in counts; Poisson's is 1
_SURE = 1.3  # standard errors
_ROOMY = 0.9  # load below which devices are taken to have room
_FULL = 0.95  # load above which fewer tasks are tried before more
_LONGEST_S = 8.0  # that one limit is measured in the search, or a generation of tasks
_SEARCH_S = 44.0  # that a search takes, about
_COOL_S = 8.0  # that a halved limit stays, at least
_TOLERATE_S = 40.0  # of throttling at half the limit: it does not come from our tasks
_HOT_S = 900.0  # after which the next throttling halves again
_IDLE = 0.6  # load below which a limit at rest is looked beyond again, ever more seldom
_RETRY_S = 20.0
_RETRIES_S = 600.0
_SHIFT = 0.4  # of throughput at rest, as a logarithm, that is no chance and no matter of small causes
_WHILE_S = 12.0  # in which every task shows how much memory it takes, about


def adaptive(window: Sequence[float], state: MutableSequence[float], params: Sequence[float]) -> tuple[float, int]:
    """Return the limit of the next window and the reason."""
    limit = window[Input.LIMIT]
    if limit != state[State.AIM]:  # the first window, or somebody else set it
        _forget(limit, state)
    _pass_time(window, state)
    cause = _alarm(window, state, params)
    if cause != Reason.HOLD.value:
        return _halve(limit, cause, window, state, params), cause
    if window[Input.TELEMETRY_AGE_S] > params[Param.STALE_S]:
        return limit, Reason.STALE
    bearable, roof, why = _room(window, state, params)
    if bearable < limit:
        return _shrink(limit, bearable, window, state), why
    if state[State.BACK] > 0.0:
        return _recover(limit, roof, window, state)
    if window[Input.INFLIGHT] < 0.8 * limit or window[Input.BACKLOG] <= 0.0:
        _begin_span(state[State.SETTLE_S], state)
        return limit, Reason.NOT_BINDING
    if state[State.AT_REST] == 0.0:
        state[State.SEARCH_S] += window[Input.INTERVAL_S]
    if state[State.SETTLE_S] > 0.0 or window[Input.INFLIGHT] > limit + 0.3:
        state[State.SETTLE_S] -= window[Input.INTERVAL_S]
        return limit, Reason.MEASURING
    if state[State.SPAN_S] > 0.0 or window[Input.DONE] > 0.0 or state[State.BEST_DONE] > 0.0:
        state[State.SPAN_S] += window[Input.INTERVAL_S]
        state[State.SPAN_DONE] += window[Input.DONE]
        _learn_noise(window[Input.DONE], state)
        state[State.SPAN_ERRORS] += window[Input.ERRORS]
        if window[Input.DONE] > 0.0 and window[Input.RUN_S] > 0.0:
            state[State.SPAN_RUN_S] += window[Input.DONE] * window[Input.RUN_S]
        state[State.SPAN_LOAD] += window[Input.INTERVAL_S] * _load(window)
    if state[State.AT_REST] > 0.0:
        return _rest(limit, roof, window, state, params)
    return _search(limit, roof, window, state, params)


# -- what can't wait ---------------------------------------------------------------------------------------------------


def _forget(limit: float, state: MutableSequence[float]) -> None:
    for number in range(len(state)):
        state[number] = 0.0
    state[State.AIM] = state[State.BEST] = limit


def _pass_time(window: Sequence[float], state: MutableSequence[float]) -> None:
    interval_s = window[Input.INTERVAL_S]
    state[State.HOLD_S] = max(0.0, state[State.HOLD_S] - interval_s)
    state[State.CLEAR_S] = 0.0 if window[Input.THROTTLE] > 0.0 else state[State.CLEAR_S] + interval_s
    if state[State.HOT_S] > 0.0:
        state[State.HOT_S] += interval_s
        if state[State.HOT_S] > _HOT_S and state[State.CLEAR_S] > _HOT_S / 10.0:
            state[State.HOT_S] = 0.0
    if state[State.CEILING] > 0.0:
        state[State.CEILING_S] -= interval_s
        if state[State.CEILING_S] <= 0.0:
            _lift_ceiling(state)
    state[State.LOW_S] += interval_s
    if state[State.LOW_S] > _WHILE_S:
        state[State.LOW_BEFORE], state[State.LOW_FREE], state[State.LOW_S] = state[State.LOW_FREE], 0.0, 0.0
    free = window[Input.VRAM_FREE]
    if free >= 0.0 and (state[State.LOW_FREE] == 0.0 or free < state[State.LOW_FREE]):
        state[State.LOW_FREE] = max(1.0, free)
    free = window[Input.MEM_FREE_SHARE]
    if free >= 0.0 and (state[State.MEM_LEAST] == 0.0 or free < state[State.MEM_LEAST]):
        state[State.MEM_LEAST] = max(1e-6, free)


def _alarm(window: Sequence[float], state: MutableSequence[float], params: Sequence[float]) -> int:
    """Return what can't wait for a measurement, or HOLD."""
    if window[Input.OOMS] > 0.0 and state[State.HOLD_S] <= 0.0:
        return Reason.CUDA_OOM.value if window[Input.VRAM_TOTAL] > 0.0 else Reason.MEMORY.value
    if window[Input.THROTTLE] > 0.0:
        if state[State.HOT_S] == 0.0:
            return Reason.POWER.value if window[Input.THROTTLE] > 1.0 else Reason.THERMAL.value
        if state[State.BACK] > 0.0:
            state[State.HOLD_S] = max(state[State.HOLD_S], 2.0)  # until it is over, but not for ever
            if state[State.HOT_S] > _TOLERATE_S:
                state[State.HOLD_S] = 0.0
    if state[State.HOLD_S] <= 0.0:
        if window[Input.PSI_MEM] > params[Param.PSI_HIGH]:
            return Reason.MEMORY.value
        if window[Input.MEM_FREE_SHARE] < params[Param.MEM_FREE_LOW] / 2.0:
            return Reason.MEMORY.value
    return Reason.HOLD.value


def _halve(
    limit: float, cause: int, window: Sequence[float], state: MutableSequence[float], params: Sequence[float]
) -> float:
    lowest = params[Param.LOWEST]
    half = max(lowest, math.floor(limit / 2.0))
    if limit > lowest and cause != Reason.POWER.value:  # the brake is pulled from outside, whatever we run
        state[State.CEILING], state[State.CEILING_S] = limit, params[Param.CEILING_S]
        state[State.ABOVE] = limit
    back = max(half, math.ceil(0.7 * limit))
    if cause in (Reason.THERMAL.value, Reason.POWER.value):
        state[State.HOT_S] = window[Input.INTERVAL_S]
        if cause == Reason.POWER.value:
            back = max(half, limit)
    elif 0.0 < state[State.BEST] < limit:  # it was a trial that went wrong
        back = max(half, state[State.BEST])
    elif cause == Reason.MEMORY.value:  # the host's memory is taken evenly, so a little less is enough
        back = max(half, math.floor(0.9 * limit))
    if state[State.BEST] >= limit:
        state[State.BEST], state[State.BEST_DONE] = 0.0, 0.0
    if state[State.BELOW] >= back:
        state[State.BELOW] = 0.0
    state[State.BACK], state[State.HOLD_S], state[State.CAUSE] = back, _COOL_S, cause
    return _go(limit, half, window, state)


def _lift_ceiling(state: MutableSequence[float]) -> None:
    if state[State.ABOVE] == state[State.CEILING]:
        state[State.ABOVE] = 0.0
        if state[State.AT_REST] > 0.0:
            _begin_search(0.0, state)
    state[State.CEILING] = 0.0


def _recover(limit: float, roof: float, window: Sequence[float], state: MutableSequence[float]) -> tuple[float, int]:
    """Go back to a limit below the one that went wrong, as soon as that is over."""
    if state[State.HOLD_S] > 0.0:
        return limit, int(state[State.CAUSE])
    back = max(limit, min(roof, state[State.BACK]))
    state[State.BACK] = 0.0
    _begin_search(0.0, state)
    if state[State.HOT_S] > 0.0:  # the temperature follows too slowly to search by it
        state[State.AT_REST], state[State.BEST], state[State.BEST_DONE] = 1.0, back, 0.0
    return _go(limit, back, window, state), Reason.RECOVER


def _shrink(limit: float, to: float, window: Sequence[float], state: MutableSequence[float]) -> float:
    """Go down to what memory allows."""
    if state[State.BEST] > to:
        state[State.BEST], state[State.BEST_DONE], state[State.BELOW] = 0.0, 0.0, 0.0
    state[State.ABOVE] = 0.0
    _begin_search(0.0, state)
    return _go(limit, to, window, state)


def _room(window: Sequence[float], state: MutableSequence[float], params: Sequence[float]) -> tuple[float, float, int]:
    """Return the highest limit that is bearable now, the highest that may be tried, and what sets them."""
    limit, lowest = window[Input.LIMIT], params[Param.LOWEST]
    bearable = roof = params[Param.HIGHEST]
    why = Reason.HOLD.value
    need, reserve = window[Input.VRAM_NEED], params[Param.VRAM_RESERVE] * window[Input.VRAM_TOTAL]
    # Tasks that began just now will want more than they hold, so the least of late counts.
    least = state[State.LOW_FREE]
    if 0.0 < state[State.LOW_BEFORE] < least:
        least = state[State.LOW_BEFORE]
    if not need > 0.0 and window[Input.INFLIGHT] >= 1.0:  # not learned yet: at most what all hold by now
        need = (window[Input.VRAM_TOTAL] - least) / window[Input.INFLIGHT]
    if need > 0.0 and least > 0.0 and reserve >= 0.0:
        lacking = reserve / 2.0 - window[Input.VRAM_FREE]
        if lacking > 0.0:
            bearable = max(lowest, min(limit, math.floor(window[Input.INFLIGHT] - lacking / need)))
            why = Reason.VRAM.value
        # Seldom do all of them hold their most at one time, and more seldom in a short time.
        margin = (0.04 if state[State.LOW_BEFORE] > 0.0 else 0.1) * need * window[Input.INFLIGHT]
        room = limit + max(0.0, math.floor((least - reserve - margin) / need))
        if room < roof:
            roof, why = room, Reason.VRAM.value
        if room > state[State.CEILING] > 0.0 and state[State.CAUSE] == Reason.CUDA_OOM.value:
            _lift_ceiling(state)  # others have left
    if 0.0 < state[State.CEILING] <= roof:
        roof, why = max(lowest, state[State.CEILING] - 1.0), int(state[State.CAUSE])
    least = state[State.MEM_LEAST]
    if least > 0.0 and window[Input.INFLIGHT] >= 1.0:
        need = state[State.MEM_NEED]
        if need == 0.0:
            need = (1.0 - least) / window[Input.INFLIGHT]
        need = max(1e-6, need)
        margin = 0.08 * need * window[Input.INFLIGHT]
        room = limit + max(0.0, math.floor((least - params[Param.MEM_FREE_LOW] - margin) / need))
        if room < roof:
            roof, why = room, Reason.MEMORY.value
    return bearable, roof, why


# -- the search --------------------------------------------------------------------------------------------------------


def _load(window: Sequence[float]) -> float:
    """Return how loaded the devices are, from 0 to 1: the GPUs where there are any, else the host."""
    busy = window[Input.GPU_BUSY]
    if busy >= 0.0:
        return busy
    stalled = max(window[Input.PSI_CPU], window[Input.PSI_MEM], window[Input.PSI_IO])
    if stalled < 0.05:
        return 0.5
    return 0.93  # also where nothing is told: more is tried with care


def _begin_span(settle_s: float, state: MutableSequence[float]) -> None:
    state[State.SETTLE_S], state[State.SPAN_S], state[State.SPAN_DONE] = settle_s, 0.0, 0.0
    state[State.SPAN_ERRORS], state[State.SPAN_LOAD], state[State.SPAN_RUN_S] = 0.0, 0.0, 0.0
    state[State.LAST_DONE] = 0.0


def _learn_noise(done: float, state: MutableSequence[float]) -> None:
    """Learn how much counts of ended tasks differ from window to window, where all else is the same."""
    last, state[State.LAST_DONE] = state[State.LAST_DONE] - 1.0, done + 1.0
    if last >= 0.0 and last + done > 0.0:
        sample = (done - last) ** 2 / (done + last)
        before = state[State.NOISE] if state[State.NOISE] > 0.0 else _NOISE[0]
        state[State.NOISE] = before + 0.15 * (sample - before)


def _noise(done: float, state: Sequence[float]) -> float:
    """Return the standard error of the logarithm of a rate beside the best one's."""
    variance = min(_NOISE[1], max(_NOISE[0], state[State.NOISE]))
    return math.sqrt(variance * (1.0 / done + 1.0 / state[State.BEST_DONE]))


def _begin_search(stride: float, state: MutableSequence[float]) -> None:
    state[State.AT_REST], state[State.SEARCH_S], state[State.STRIDE] = 0.0, 0.0, stride
    state[State.DRIFT], state[State.REST_S] = 0.0, 0.0


def _go(limit: float, to: float, window: Sequence[float], state: MutableSequence[float]) -> float:
    """Ask for a limit, and let a generation of tasks pass before it is measured."""
    settle_s = window[Input.INTERVAL_S]
    rate = state[State.BEST_RATE]
    if rate > 0.0:
        settle_s = min(10.0, max(settle_s, to / rate))
    _begin_span(settle_s, state)
    state[State.AIM] = to
    if to != limit:
        state[State.LOW_BEFORE], state[State.LOW_FREE], state[State.LOW_S] = 0.0, 0.0, 0.0
        if 0.0 < state[State.MEM_LIMIT] < limit / 1.3:  # a smaller step tells more of the time between than of itself
            more = state[State.MEM_BEFORE] - state[State.MEM_LEAST]
            state[State.MEM_NEED] = max(1e-6, more / (limit - state[State.MEM_LIMIT]))
        state[State.MEM_LIMIT] = limit if to > limit and state[State.MEM_LEAST] > 0.0 else 0.0
        state[State.MEM_BEFORE], state[State.MEM_LEAST] = state[State.MEM_LEAST], 0.0
    return to


def _yield(state: Sequence[float]) -> float:
    """Return what the span yielded, tasks a second: what fails takes from what else would be done."""
    return max(0.5, state[State.SPAN_DONE] - 0.25 * state[State.SPAN_ERRORS]) / state[State.SPAN_S]


def _take(limit: float, state: MutableSequence[float]) -> None:
    """Take the limit that was measured as the best."""
    state[State.BEST], state[State.BEST_RATE] = limit, _yield(state)
    state[State.BEST_DONE] = max(0.5, state[State.SPAN_DONE])
    state[State.BEST_LOAD] = state[State.SPAN_LOAD] / state[State.SPAN_S]
    state[State.BEST_RUN_S] = state[State.SPAN_RUN_S] / state[State.BEST_DONE]


def _gain(limit: float, state: Sequence[float]) -> float:
    """Return by how much the limit on trial yields more than the best one, as a logarithm.

    The count of what ended is too low while long tasks, and such as hang, gather in the places of a new limit; by
    Little's law the rate is also tasks at once by run time, which is too high then. The truth lies between.
    """
    best = state[State.BEST]
    counted = math.log(_yield(state) / state[State.BEST_RATE])
    done, run_s = state[State.SPAN_DONE], state[State.SPAN_RUN_S]
    if not (run_s > 0.0 and state[State.BEST_RUN_S] > 0.0) or state[State.SPAN_ERRORS] > 0.1 * done:
        return counted
    return 0.5 * (counted + math.log(limit / best * state[State.BEST_RUN_S] * done / run_s))


def _search(
    limit: float, roof: float, window: Sequence[float], state: MutableSequence[float], params: Sequence[float]
) -> tuple[float, int]:
    span_s, done = state[State.SPAN_S], max(state[State.SPAN_DONE], 0.5)
    if span_s < 2.0 * window[Input.INTERVAL_S]:
        return limit, Reason.MEASURING
    if state[State.WARM] == 0.0:
        if limit >= 8.0 and done < limit and span_s < _LONGEST_S:
            return limit, Reason.MEASURING
        state[State.WARM] = 1.0
        if limit >= 8.0:
            _begin_span(0.0, state)
            return limit, Reason.MEASURING
    best = state[State.BEST]
    rate = _yield(state)
    generation_s = limit / rate
    longest_s = min(30.0, max(_LONGEST_S, generation_s))
    if best in (0.0, limit):
        if best == 0.0 or state[State.BEST_DONE] == 0.0:
            if span_s < longest_s and done < 12.0:
                return limit, Reason.MEASURING
            _take(limit, state)
        state[State.CLEAR] = 0.0
        return _next(limit, roof, window, state, params)
    growth = _gain(limit, state)
    gain = growth - params[Param.WORTH] * math.log(limit / best)
    noise = _noise(done, state)
    if (abs(gain) < _SURE * noise or span_s < 0.5 * generation_s) and span_s < longest_s:
        return limit, Reason.MEASURING
    small = 1.0 < state[State.STRIDE] < 1.2
    # The more room devices have, the likelier it is beforehand that more helps.
    room = min(1.2, max(0.0, 4.0 * (_ROOMY - state[State.BEST_LOAD])))
    needed = noise if small and room == 0.0 else -room * noise if limit > best and not small else room * noise
    state[State.CLEAR] = 1.0 if gain > noise else 0.0
    if gain > needed:
        if limit > best:
            flat = growth < 0.35 * math.log(limit / best)
            state[State.BELOW] = best
            _take(limit, state)
            if flat and state[State.BEST_LOAD] > _ROOMY and state[State.ABOVE] == 0.0:
                state[State.ABOVE] = (
                    math.ceil(1.25 * limit) + 1.0
                )  # saturated: what is best lies behind rather than ahead
        else:
            state[State.ABOVE] = best
            _take(limit, state)
        state[State.STRIDE] = 1.5 if small else 0.0
    elif limit > best:
        state[State.ABOVE], state[State.PROVEN] = limit, 0.0
        if gain < -_SURE * noise:
            state[State.PROVEN] = 1.0
    else:
        state[State.BELOW] = limit
    return _next(limit, roof, window, state, params)


def _next(
    limit: float, roof: float, window: Sequence[float], state: MutableSequence[float], params: Sequence[float]
) -> tuple[float, int]:
    """Go to the limit that is to be tried next, or to rest at the best."""
    best, below, above, lowest = state[State.BEST], state[State.BELOW], state[State.ABOVE], params[Param.LOWEST]
    load, stride = state[State.BEST_LOAD], state[State.STRIDE]
    state[State.ROOF] = 0.0
    to = best
    # What is idle is not overloaded, unless more was seen to be worse.
    may_fall = below == 0.0 and best > lowest and (load > _ROOMY or state[State.PROVEN] > 0.0)
    late = state[State.SEARCH_S] > _SEARCH_S
    if late and (state[State.CLEAR] == 0.0 or (below > 0.0 and above > 0.0) or state[State.SEARCH_S] > 3.0 * _SEARCH_S):
        pass
    elif best < roof and above == 0.0 and not (may_fall and load > _FULL):
        if stride == 0.0:
            stride = 1.3 if load > _ROOMY else 1.5 if load > 0.7 else 2.0
        to = min(roof, max(best + 1.0, math.floor(best * stride)))
    elif may_fall:
        to = max(lowest, min(best - 1.0, math.ceil(best / (stride if stride > 0.0 else 2.0))))
    else:
        if above == 0.0 or above > roof + 1.0:
            above = roof + 1.0
        if above - best > max(1.0, 0.25 * best):
            to = max(best + 1.0, math.floor(math.sqrt(best * above)))
        elif below > 0.0 and load > _ROOMY and best - below > max(1.0, 0.3 * best):
            to = min(best - 1.0, math.ceil(math.sqrt(best * below)))
    if to == best:
        state[State.AT_REST] = 1.0
        if best >= roof:
            state[State.ROOF] = roof
        if limit == best:
            _begin_span(0.0, state)
            return limit, Reason.HOLD
        return _go(limit, best, window, state), Reason.FALLING if best < limit else Reason.GROW
    if to > limit and limit == best:
        return _go(limit, to, window, state), Reason.GROW
    return _go(limit, to, window, state), Reason.PROBE


def _take_rate(rate: float, done: float, load: float, state: MutableSequence[float]) -> None:
    state[State.BEST_RATE], state[State.BEST_DONE], state[State.BEST_LOAD] = rate, done, load
    state[State.BEST_RUN_S], state[State.DRIFT] = 0.0, 0.0


def _rest(
    limit: float, roof: float, window: Sequence[float], state: MutableSequence[float], params: Sequence[float]
) -> tuple[float, int]:
    span_s, done = state[State.SPAN_S], max(state[State.SPAN_DONE], 0.5)
    best, known = state[State.BEST], state[State.BEST_DONE]
    state[State.REST_S] = state[State.REST_S] + window[Input.INTERVAL_S] if state[State.BEST_LOAD] < _IDLE else 0.0
    if span_s < 10.0 or (done < 40.0 and span_s < 30.0):
        return limit, Reason.HOLD
    if known == 0.0 or (state[State.HOT_S] > 0.0 and state[State.CLEAR_S] < 60.0):  # it comes and goes with the heat
        _take(limit, state)
        _begin_span(0.0, state)
        return limit, Reason.HOLD
    if state[State.ROOF] > 0.0 and roof > 1.15 * state[State.ROOF]:
        state[State.ABOVE] = 0.0
        _begin_search(0.0, state)
        return _next(limit, roof, window, state, params)
    rate, load = _yield(state), state[State.SPAN_LOAD] / span_s
    shift = math.log(rate / state[State.BEST_RATE])
    noise = _noise(done, state)
    _begin_span(0.0, state)
    if abs(shift) < max(_SHIFT, 3.0 * noise):
        state[State.BEST_RATE] += done / (done + known) * (rate - state[State.BEST_RATE])
        state[State.BEST_DONE] = min(100.0, known + done)
        state[State.BEST_LOAD] = load
        state[State.DRIFT] = 0.0
        if state[State.REST_S] > max(_RETRY_S, state[State.RETRY_S]) and state[State.PROVEN] == 0.0 and roof > limit:
            state[State.RETRY_S] = min(_RETRIES_S, 2.0 * max(_RETRY_S, state[State.RETRY_S]))
            state[State.ABOVE] = state[State.CEILING]
            _begin_search(0.0, state)
            return _next(limit, roof, window, state, params)
        return limit, Reason.HOLD
    before = state[State.DRIFT]
    state[State.DRIFT] = shift
    if before * shift <= 0.0:  # once may be chance
        return limit, Reason.HOLD
    if shift < 0.0 and load < _ROOMY:  # slower, and not for lack of room
        _take_rate(rate, done, load, state)
        return limit, Reason.HOLD
    # Something changed, and perhaps the best limit with it: one small step says so, and more follow where it helps.
    _begin_search(1.1, state)
    _take_rate(rate, done, load, state)
    if shift < 0.0:
        state[State.BELOW], state[State.ABOVE] = 0.0, best + 1.0
    else:
        state[State.BELOW], state[State.ABOVE] = max(1.0, best - 1.0), state[State.CEILING]
    return _next(limit, roof, window, state, params)


#: what compiled code may call
COMPILABLE = (
    adaptive, _forget, _pass_time, _alarm, _halve, _lift_ceiling, _recover, _shrink, _room, _load, _begin_span,
    _learn_noise, _noise, _begin_search, _go, _yield, _take, _gain, _search, _next, _take_rate, _rest,
)  # fmt: skip
