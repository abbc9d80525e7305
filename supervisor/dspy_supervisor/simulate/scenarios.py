"""The worlds that policies are judged in: each a function whose docstring says what it stands for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from .scenario import Scenario


def steady() -> Scenario:
    """One GPU, tasks of half a second, always more of them than it can do."""
    return _named(steady, arrivals=((0, 11.0),), work_s=0.5, rests=((0, 600),))


def light() -> Scenario:
    """A third of what the GPU could do arrives: the limit does not bind, and nothing speaks for a higher one."""
    return _named(light, arrivals=((0, 3.0),), work_s=0.5, rests=((0, 600),))


def burst() -> Scenario:
    """Somebody submits 850 tasks every two minutes, and nothing in between: five sixths of what can be done."""
    return _named(burst, arrivals=((0, 0.2),), work_s=0.5, at_once=tuple((10.0 + 120.0 * i, 850.0) for i in range(5)))


def ramp() -> Scenario:
    """Arrivals grow from next to nothing to half as much again as can be done, and stay there."""
    return _named(ramp, arrivals=((0, 0.2), (400, 13.0), (600, 13.0)), work_s=0.5, rests=((420, 600),))


def bimodal() -> Scenario:
    """One task of ten takes fifteen times as long as the others, so no window's mean run time says much."""
    return _named(bimodal, arrivals=((0, 7.5),), work_s=0.3, long_share=0.1, long_times=15.0, rests=((0, 600),))


def long_tasks() -> Scenario:
    """Tasks of a quarter of a minute: hardly one ends in a window, and seven fit into the GPU's memory."""
    return _named(
        long_tasks,
        arrivals=((0, 0.5),),
        work_s=12.0,
        need=3.0,
        at_once=((0.0, 40.0),),
        horizon_s=900,
        rests=((0, 900),),
    )


def shift() -> Scenario:
    """After five minutes every task takes four times as long: another model, and no overload at all."""
    return _named(
        shift,
        arrivals=((0, 13.0), (300, 13.0), (300, 3.4)),
        work_s=0.4,
        work_shift=((0, 1.0), (300, 1.0), (300, 4.0)),
        rests=((0, 300), (330, 600)),
    )


def foreign_memory() -> Scenario:
    """Another user's process takes 13 of the GPU's 24 GiB for a few minutes; out of memory follows above four tasks."""
    return _named(
        foreign_memory,
        arrivals=((0, 5.5),),
        work_s=1.0,
        need=2.4,
        foreign_memory=((0, 0.02), (200, 0.02), (205, 0.55), (400, 0.55), (405, 0.02)),
        rests=((0, 200), (205, 400), (405, 600)),
    )


def tight_memory() -> Scenario:
    """Six tasks fit into the GPU's memory, while its compute would bear twice as many."""
    return _named(
        tight_memory,
        arrivals=((0, 9.0),),
        work_s=1.0,
        width=9.0,
        falls=0.001,
        duty=0.2,
        need=3.6,
        need_spread=0.03,
        rests=((0, 600),),
    )


def neighbour() -> Scenario:
    """Another user's kernels take half of the GPU's time for some minutes: every task is slower, at any limit."""
    return _named(
        neighbour,
        arrivals=((0, 8.0),),
        work_s=0.7,
        foreign_load=((0, 0.0), (200, 0.0), (200, 0.5), (400, 0.5), (400, 0.0)),
        rests=((0, 200), (200, 400), (400, 600)),
    )


def heat() -> Scenario:
    """A card in a warm case: full load heats it to 87 degrees, where its clock drops to 40 % until it is at 80."""
    return _named(heat, arrivals=((0, 7.5),), work_s=0.7, heating=78.0, rests=((0, 600),))


def power_cap() -> Scenario:
    """Full work would draw a quarter more than the card's power cap: its clock gives way a little, as is usual."""
    return _named(power_cap, arrivals=((0, 7.5),), work_s=0.7, busy_power=1.25, heating=35.0, rests=((0, 600),))


def power_brake() -> Scenario:
    """The rack's supply pulls the power brake for a minute: all clocks drop to a half, and the driver reports it."""
    return _named(
        power_brake,
        arrivals=((0, 8.0),),
        work_s=0.7,
        brake=((0, 1.0), (300, 1.0), (300, 0.5), (360, 0.5), (360, 1.0)),
        rests=((0, 300), (360, 600)),
    )


def slow_gpu() -> Scenario:
    """Four GPUs behind one limit, and one of them runs at a third of its speed."""
    return _named(
        slow_gpu,
        arrivals=((0, 14.0),),
        work_s=0.7,
        speeds=(1.0, 1.0, 1.0, 0.35),
        width=3.0,
        falls=0.005,
        duty=0.4,
        highest=48,
        rests=((0, 600),),
    )


def falling_curve() -> Scenario:
    """Tasks that spoil each other's caches: three at once do most, eight do half of that; it begins with twelve."""
    return _named(
        falling_curve, arrivals=((0, 5.5),), work_s=0.5, width=3.0, falls=0.03, duty=0.4, begins=12, rests=((0, 600),)
    )


def bad_minute() -> Scenario:
    """A service behind the tasks is away for a minute and nine of ten attempts fail; then all is as before."""
    return _named(
        bad_minute,
        arrivals=((0, 8.0),),
        work_s=0.7,
        errors=((0, 0.0), (200, 0.0), (200, 0.9), (260, 0.9), (260, 0.0)),
        rests=((0, 200), (260, 600)),
    )


def refusals() -> Scenario:
    """A service behind the tasks takes eight at once; of more it lets the surplus fail, after most of the work."""
    return _named(
        refusals,
        arrivals=((0, 13.0),),
        work_s=0.7,
        width=10.0,
        falls=0.0005,
        duty=0.08,
        capacity=8.0,
        rests=((0, 600),),
    )


def hangs() -> Scenario:
    """One attempt of twenty hangs until its time-out of 30 s, at any limit: places are held, the GPU is not."""
    return _named(hangs, arrivals=((0, 7.5),), work_s=0.7, hangs=((0, 0.05),), rests=((60, 600),))


def stale() -> Scenario:
    """The sampler hangs for two minutes, and meanwhile others begin to take a third of the GPU."""
    return _named(
        stale,
        arrivals=((0, 8.0),),
        work_s=0.7,
        telemetry=((0, 1.0), (150, 1.0), (150, 0.0), (270, 0.0), (270, 1.0)),
        foreign_load=((0, 0.0), (180, 0.0), (180, 0.33)),
        rests=((0, 150), (270, 600)),
    )


def host_cpus() -> Scenario:
    """No GPU: tasks that compute on sixteen cores, and may be 64 at once."""
    return _named(
        host_cpus,
        arrivals=((0, 20.0),),
        work_s=0.9,
        host=True,
        cores=16.0,
        width=16.0,
        falls=0.0005,
        memory=64.0,
        need=0.3,
        highest=64,
        rests=((0, 600),),
    )


def host_memory() -> Scenario:
    """No GPU: 32 cores, but memory for sixteen tasks; then the kernel reclaims at everybody's cost, and kills."""
    return _named(
        host_memory,
        arrivals=((0, 20.0),),
        work_s=0.9,
        host=True,
        cores=32.0,
        width=32.0,
        falls=0.0002,
        memory=64.0,
        need=3.5,
        highest=64,
        rests=((0, 600),),
    )


def waiting() -> Scenario:
    """Tasks that mostly wait for an answer from far away: the best limit is the highest there is."""
    return _named(
        waiting,
        arrivals=((0, 60.0),),
        work_s=1.0,
        host=True,
        cores=64.0,
        width=90.0,
        falls=0.0,
        memory=64.0,
        need=0.1,
        highest=64,
        rests=((0, 600),),
    )


def stranger(seed: int) -> Scenario:
    """Return a world of numbers drawn by chance, for which no policy was tuned; within it nothing changes."""
    random = np.random.default_rng([seed, 77])

    def between(low: float, high: float) -> float:
        """Draw a number of any order of magnitude alike."""
        return float(np.exp(random.uniform(math.log(low), math.log(high))))

    width = between(1.5, 24.0)
    fits = between(3.0, 60.0)
    numbers = Scenario(
        name=f"stranger-{seed}",
        says="Numbers drawn by chance.",
        arrivals=(),
        highest=48,
        begins=int(random.integers(1, 17)),
        rests=((0, 600),),
        width=width,
        falls=between(0.0001, 0.03),
        duty=min(0.9, between(0.5, 1.5) / width),
        work_s=between(0.1, 3.0),
        spread=float(random.uniform(0.0, 0.7)),
        need=23.0 / fits,
        heating=float(random.uniform(35.0, 70.0)),
        busy_power=float(random.uniform(0.6, 1.15)),
    )
    return replace(numbers, arrivals=((0.0, 1.25 * float(numbers.curve().max()) / numbers.work_s),))


def _named(function: Callable[[], Scenario], **numbers: Any) -> Scenario:
    return Scenario(name=function.__name__, says=" ".join((function.__doc__ or "").split()), **numbers)


SCENARIOS: dict[str, Scenario] = {
    made.name: made
    for made in (
        each()
        for each in (
            *(steady, light, burst, ramp, bimodal, long_tasks, shift),
            *(foreign_memory, tight_memory, neighbour, heat, power_cap, power_brake),
            *(slow_gpu, falling_curve, bad_minute, refusals, hangs, stale),
            *(host_cpus, host_memory, waiting),
        )
    )
}
