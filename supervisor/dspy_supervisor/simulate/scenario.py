"""One world in numbers, and the run that is made of it with a seed.

A scenario consists of numbers that can be argued about one by one; ``Scenario.run`` draws its tasks and its noise. Nothing
in one knows of any policy. Arrivals are a trace of tasks a second; where a trace says more than the devices can do, the
queue is never empty, and the limit alone decides what is done.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

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
