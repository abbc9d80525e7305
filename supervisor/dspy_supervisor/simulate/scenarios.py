"""The worlds that policies are judged in: each a function whose docstring says what it stands for.

A scenario is made of numbers that can be argued about one by one; ``Scenario.run`` draws its tasks and its noise from a
seed. Nothing in one knows of any policy. Arrivals are a trace of tasks a second; where a trace says more than the devices
can do, the queue is never empty and the limit alone decides what is done.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from .plant import TICK_S, Clock, Device, Floats, Place, Run, Seen, Task, World

GIB = float(1 << 30)
Points = tuple[tuple[float, float], ...]  #: (second, value), linear in between; two at one second are a jump


@dataclass(frozen=True)
class Scenario:
    """One world. Times are seconds, memory is in GiB, a trace is points in time, linear in between."""

    name: str
    says: str  #: what it stands for
    arrivals: Points  #: tasks a second
    horizon_s: float = 600.0
    highest: int = 32  #: the most that the class allows: the original's Max
    begins: int = 4  #: the limit at the start: the original's Base
    rests: tuple[tuple[float, float], ...] = ()  #: stretches in which nothing changes, so a limit should be at rest
    # the devices
    speeds: tuple[float, ...] = (1.0,)  #: one a device
    width: float = 5.0  #: tasks that a device runs side by side before it saturates
    falls: float = 0.002  #: what each further pair costs: kappa of the Universal Scalability Law
    memory: float = 24.0
    duty: float = 0.3
    heating: float = 40.0  #: degrees above the ambient at the power cap
    busy_power: float = 0.85  #: share of the cap that full work draws
    capacity: float = math.inf
    host: bool = False
    cores: float = math.inf
    # the tasks
    work_s: float = 2.0  #: mean, on an idle device
    spread: float = 0.3  #: sigma of the logarithm
    long_share: float = 0.0  #: share of the tasks that take ``long_times`` as much
    long_times: float = 10.0
    work_shift: Points = ((0.0, 1.0),)  #: factor on the work of a task that arrives then
    need: float = 0.8  #: mean
    need_spread: float = 0.05
    timeout_s: float = 30.0
    # what others do
    foreign_memory: Points = ((0.0, 0.02),)  #: share
    foreign_load: Points = ((0.0, 0.0),)  #: share
    errors: Points = ((0.0, 0.0),)  #: probability
    hangs: Points = ((0.0, 0.0),)  #: probability
    telemetry: Points = ((0.0, 1.0),)  #: 0: the sampler tells nothing new
    brake: Points = ((0.0, 1.0),)  #: share of the clock that the power supply leaves
    at_once: Points = field(default=())  #: (second, tasks) that come together

    @property
    def ticks(self) -> int:
        """Length of a run."""
        return round(self.horizon_s / TICK_S)

    def curve(self) -> Floats:
        """Return the seconds of work a second that 0, 1, 2 ... tasks on one device get together."""
        n = np.arange(1, self.highest + 1, dtype=np.float64)
        saturated = (n**-3.0 + self.width**-3.0) ** (-1.0 / 3.0)
        whole = saturated / (1.0 + self.falls * n * (n - 1.0))
        return np.concatenate([[0.0], whole / whole[0]])

    def run(self, seed: int) -> Run:
        """Return a run at its beginning."""
        random = np.random.default_rng([seed, *self.name.encode()])
        seconds = np.arange(math.ceil(self.horizon_s) + 1, dtype=np.float64)
        devices = np.zeros((len(self.speeds), len(Device)))
        devices[:, Device.SPEED] = self.speeds
        devices[:, Device.CLOCK] = 1.0
        devices[:, Device.NEXT] = math.inf
        devices[:, Device.TEMPERATURE] = 45.0
        places = np.zeros((self.highest, len(Place)))
        places[:, Place.TASK] = -1.0
        clock = np.zeros(len(Clock))
        clock[Clock.HANGING_UNTIL_S] = math.inf
        seen = np.zeros(len(Seen))
        trace = np.stack(
            [
                _at(seconds, points)
                for points in (
                    self.foreign_memory,
                    self.foreign_load,
                    self.errors,
                    self.hangs,
                    self.telemetry,
                    self.brake,
                )
            ],
            axis=1,
        )
        tasks = self._tasks(random, seconds)
        return Run(
            world=self._world(),
            trace=trace,
            tasks=tasks,
            curve=self.curve(),
            jitter=_wander(random, len(seconds), len(self.speeds)),
            noise=random.normal(0.0, 0.03, len(seconds)),
            devices=devices,
            places=places,
            ring=np.zeros((2, len(tasks) + 1)),
            clock=clock,
            seen=seen,
        )

    def _world(self) -> Floats:
        world = np.zeros(len(World))
        world[World.MEMORY] = self.memory * GIB
        world[World.EARLY] = 0.7
        world[World.DUTY] = self.duty
        world[World.POWER_IDLE] = 0.15
        world[World.POWER_BUSY] = self.busy_power
        world[World.AMBIENT] = 35.0
        world[World.HEATING] = self.heating
        world[World.COOLING_S] = 20.0
        world[World.HOT] = 87.0
        world[World.COOL] = 80.0
        world[World.HOT_CLOCK] = 0.4
        world[World.TIMEOUT_S] = self.timeout_s
        world[World.CAPACITY] = self.capacity
        world[World.HOST] = self.host
        world[World.CORES] = self.cores
        return world

    def _tasks(self, random: np.random.Generator, seconds: Floats) -> Floats:
        coming = random.poisson(_at(seconds, self.arrivals))
        times = np.repeat(seconds, coming) + random.random(int(coming.sum()))
        for second, many in self.at_once:
            times = np.concatenate([times, np.full(int(many), second)])
        times = np.sort(times)
        many = len(times)
        work = self.work_s * np.exp(random.normal(-(self.spread**2) / 2, self.spread, many))
        work *= np.where(random.random(many) < self.long_share, self.long_times, 1.0)
        work *= _at(times, self.work_shift)
        tasks = np.zeros((many, len(Task)))
        tasks[:, Task.ARRIVAL_S] = times
        tasks[:, Task.WORK_S] = work
        tasks[:, Task.MEMORY] = self.need * GIB * np.clip(random.normal(1.0, self.need_spread, many), 0.5, 1.5)
        tasks[:, Task.CHANCE_FAIL] = random.random(many)
        tasks[:, Task.CHANCE_HANG] = random.random(many)
        return tasks


def _at(seconds: Floats, points: Points) -> Floats:
    """Return a trace at some moments; at a jump the later value holds."""
    assert all(a[0] <= b[0] for a, b in pairwise(points))
    moments = np.array([moment for moment, _ in points], dtype=np.float64)
    moments += np.arange(len(points)) * 1e-9  # a jump is very steep
    found: Floats = np.interp(seconds + 1e-6, moments, [value for _, value in points])
    return found


def _wander(random: np.random.Generator, seconds: int, devices: int) -> Floats:
    """Return factors around 1 with a spread of 3 % and a memory of ten seconds: what else goes on in a machine."""
    factors = np.ones((seconds, devices))
    now = np.zeros(devices)
    for second in range(seconds):
        now = 0.9 * now + random.normal(0.0, 0.03 * math.sqrt(1 - 0.9**2), devices)
        factors[second] = 1.0 + np.clip(now, -0.2, 0.2)
    return factors


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
    """Four tasks fit into the GPU's memory, while its compute would bear twice as many."""
    return _named(tight_memory, arrivals=((0, 5.5),), work_s=1.0, need=5.0, need_spread=0.04, rests=((0, 600),))


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
    """Full work would draw a quarter more than the card's power cap: the clock gives way a little, as data centres run
    them all day, and the best limit is what it would be without."""
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
