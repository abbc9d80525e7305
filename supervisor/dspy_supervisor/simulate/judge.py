"""Policies beside the best fixed limit: runs, sweeps, and what they come to.

A fixed limit is best if no other from 1 to the highest lets more tasks end well within the horizon, in the mean over the
seeds. It was found by trying them all, and it knows the whole run beforehand; a policy knows the windows so far.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..limit import Input, Policy, Step, new_state, parameters
from .plant import TICK_S, Advance, Clock, Device, Floats, Run, Seen, World
from .scenario import Scenario

INTERVAL_S = 2.0  #: between two steps
SETTLED_S = 60.0  #: after which a limit should be at rest
_BASE_S = 120.0  #: the memory of a run time's baseline


@dataclass(frozen=True)
class Trajectory:
    """What one policy did with one run: an entry for each window, at its end."""

    at_s: Floats
    windows: Floats  #: [window, Input], as the policy saw them
    temperature: Floats  #: of the hottest device
    held: Floats  #: share of the devices' memory that our tasks hold
    reasons: tuple[int, ...]  #: for the limit of the window that follows

    @property
    def limit(self) -> Floats:
        """The limit of each window."""
        return self.windows[:, Input.LIMIT]

    @property
    def backlog(self) -> Floats:
        """The tasks that wait at the end of each window."""
        return self.windows[:, Input.BACKLOG]

    @property
    def rate(self) -> Floats:
        """Tasks a second that ended well."""
        return self.windows[:, Input.DONE_RATE]

    @property
    def done(self) -> float:
        """Tasks that ended well, in all."""
        return float(self.windows[:, Input.DONE].sum())

    @property
    def ooms(self) -> float:
        """Tasks that were killed for memory on a GPU, in all."""
        return float(self.windows[:, Input.OOMS].sum())


def fixed(scenario: Scenario, run: Run, limit: int, advance: Advance) -> float:
    """Return how many tasks end well under one limit all the time; the run itself stays at its beginning."""
    run = run.copy()
    advance(run, limit, scenario.ticks)
    return float(run.seen[Seen.DONE])


def sweep(scenario: Scenario, seeds: Sequence[int], advance: Advance) -> Floats:
    """Return `fixed` for each limit, from 1 on, and each seed."""
    runs = [scenario.run(seed) for seed in seeds]
    return np.array(
        [[fixed(scenario, run, limit, advance) for run in runs] for limit in range(1, scenario.highest + 1)]
    )


def play(scenario: Scenario, seed: int, policy: Policy, step: Step, advance: Advance) -> Trajectory:
    """Let a policy choose the limit of each window of a run."""
    run = scenario.run(seed)
    state = np.array(new_state())
    params = np.array(parameters(1.0, float(scenario.highest)))
    limit, base_s, window_ticks = float(scenario.begins), math.nan, round(INTERVAL_S / TICK_S)
    many = scenario.ticks // window_ticks
    at_s, temperature, held = np.zeros(many), np.zeros(many), np.zeros(many)
    windows = np.zeros((many, len(Input)))
    reasons: list[int] = []
    for i in range(many):
        run.seen[: Seen.SUMS] = 0.0
        advance(run, int(limit), window_ticks)
        windows[i] = window = measure(run, limit, base_s, scenario)
        base_s = window[Input.RUN_BASE_S]
        at_s[i] = run.clock[Clock.TICK] * TICK_S
        temperature[i] = run.seen[Seen.TEMPERATURE]
        held[i] = run.devices[:, Device.USED].sum() / (run.world[World.MEMORY] * len(run.devices))
        limit, reason = step(int(policy), window, state, params)
        reasons.append(int(reason))
    return Trajectory(at_s, windows, temperature, held, tuple(reasons))


def measure(run: Run, limit: float, base_s: float, scenario: Scenario) -> Floats:
    """Return the window that a run's sums make, as the controller would build it.

    base_s: the last window's RUN_BASE_S, or nan.
    """
    seen, gpu = run.seen, not scenario.host
    interval_s = seen[Seen.TICKS] * TICK_S
    now_s = run.clock[Clock.TICK] * TICK_S
    ended = seen[Seen.ENDED]
    run_s = seen[Seen.RUN_S] / ended if ended else math.nan
    if math.isnan(base_s):
        base_s = run_s
    elif ended:
        base_s += (run_s - base_s) * (1.0 - math.exp(-interval_s / _BASE_S))
    window = np.full(len(Input), math.nan)
    window[Input.INTERVAL_S] = interval_s
    window[Input.LIMIT] = limit
    window[Input.INFLIGHT] = seen[Seen.INFLIGHT] / seen[Seen.TICKS]
    window[Input.BACKLOG] = run.clock[Clock.WAITING]
    window[Input.DONE] = seen[Seen.DONE]
    window[Input.ERRORS] = seen[Seen.ERRORS] + seen[Seen.TIMEOUTS] + seen[Seen.OOMS]
    window[Input.TIMEOUTS] = seen[Seen.TIMEOUTS]
    window[Input.OOMS] = seen[Seen.OOMS]
    window[Input.WAIT_S] = seen[Seen.WAIT_S] / seen[Seen.STARTED] if seen[Seen.STARTED] else math.nan
    window[Input.RUN_S] = run_s
    window[Input.RUN_BASE_S] = base_s
    window[Input.DONE_RATE] = seen[Seen.DONE] / interval_s
    window[Input.THROTTLE] = 0.0
    window[Input.PSI_CPU] = seen[Seen.PSI_CPU]
    window[Input.PSI_MEM] = seen[Seen.PSI_MEMORY]
    window[Input.PSI_IO] = 0.0
    window[Input.MEM_FREE_SHARE] = 0.7
    if gpu:
        window[Input.GPU_BUSY] = seen[Seen.BUSY]
        window[Input.VRAM_FREE] = seen[Seen.MEMORY_FREE]
        window[Input.VRAM_TOTAL] = run.world[World.MEMORY] * len(run.devices)
        window[Input.VRAM_NEED] = seen[Seen.NEED] if seen[Seen.NEED] else math.nan
        window[Input.THROTTLE] = seen[Seen.THROTTLE]
        window[Input.POWER] = seen[Seen.POWER]
        window[Input.TELEMETRY_AGE_S] = now_s - seen[Seen.SAMPLED_S]
    else:
        window[Input.MEM_FREE_SHARE] = seen[Seen.MEMORY_FREE_SHARE]
    return window


def try_out(
    scenario: Scenario, policies: Sequence[Policy], seeds: Sequence[int], step: Step, advance: Advance
) -> Outcome:
    """Sweep the fixed limits of a scenario, and let each policy run in it."""
    each = sweep(scenario, seeds, advance)
    by_limit = each.mean(axis=1)
    best = each[by_limit.argmax()]
    runs = {policy: [play(scenario, seed, policy, step, advance) for seed in seeds] for policy in policies}
    verdicts = tuple(judge(scenario, policy.name.lower(), runs[policy], best) for policy in policies)
    return Outcome(scenario, by_limit, verdicts, {policy.name.lower(): played[0] for policy, played in runs.items()})


@dataclass(frozen=True)
class Verdict:
    """What a policy came to in a scenario, over all seeds."""

    scenario: str
    policy: str
    done: float  #: tasks that ended well, mean
    share: float  #: of what the best fixed limit did
    worst: float  #: the least such share of one seed
    settling_s: float  #: the longest way to rest, over seeds and stretches; nan where nothing rests
    swing: float  #: the widest oscillation at rest, in tasks; nan where nothing rests
    overshoot: float  #: the highest limit on the way to rest above the highest at rest, in tasks; nan as before
    ooms: float  #: tasks killed for memory on a GPU, mean
    changes: float  #: of the limit, mean
    reasons: dict[int, int]  #: windows by reason, over all seeds


@dataclass(frozen=True)
class Outcome:
    """A scenario that was tried out."""

    scenario: Scenario
    by_limit: Floats  #: tasks that end well under each fixed limit, from 1 on
    verdicts: tuple[Verdict, ...]
    trajectories: dict[str, Trajectory]  #: of the first seed, by policy

    @property
    def best(self) -> int:
        """The best fixed limit."""
        return int(self.by_limit.argmax()) + 1

    @property
    def best_done(self) -> float:
        """Tasks that end well under it."""
        return float(self.by_limit.max())

    @property
    def highest_share(self) -> float:
        """What the highest limit there is does of that."""
        return float(self.by_limit[-1] / self.by_limit.max())

    @property
    def good(self) -> tuple[int, int]:
        """The lowest and the highest fixed limit that do nine tenths of that."""
        enough = np.flatnonzero(self.by_limit >= 0.9 * self.by_limit.max()) + 1
        return int(enough[0]), int(enough[-1])


def judge(scenario: Scenario, policy: str, runs: Sequence[Trajectory], best: Floats) -> Verdict:
    """Return what the runs of one policy, one a seed, come to beside what the best fixed limit did with each seed."""
    rests = [at_rest(run, rest) for run in runs for rest in scenario.rests]
    done = np.array([run.done for run in runs])
    settling_s, swing, overshoot = (max(column) for column in zip(*rests, strict=True)) if rests else (math.nan,) * 3
    return Verdict(
        scenario.name,
        policy,
        float(done.mean()),
        float(done.mean() / best.mean()),
        float((done / best).min()),
        settling_s,
        swing,
        overshoot,
        float(np.mean([run.ooms for run in runs])),
        float(np.mean([np.count_nonzero(np.diff(run.limit)) for run in runs])),
        dict(Counter(reason for run in runs for reason in run.reasons)),
    )


def at_rest(run: Trajectory, rest: tuple[float, float]) -> tuple[float, float, float]:
    """Return (settling_s, swing, overshoot) of one stretch in which nothing changes.

    The limit has settled when it leaves the band of one step around its median of the stretch's second half no more. The
    swing is its range after the time that settling may take.
    """
    begin, end = rest
    here = (run.at_s > begin) & (run.at_s <= end)
    at_s, limit = run.at_s[here] - begin, run.limit[here]
    level = np.median(limit[at_s > (end - begin) / 2])
    outside = np.flatnonzero(np.abs(limit - level) > 1.0)
    settling_s = float(at_s[outside[-1]]) if len(outside) else 0.0
    late = limit[at_s > SETTLED_S]
    early = limit[at_s <= SETTLED_S]
    return settling_s, float(np.ptp(late)), float(max(0.0, early.max() - late.max()))
