"""The plant: tasks on devices in simulated time, tick by tick, so that a limit can be judged without a machine.

One device is a GPU, or the host itself. ``n`` tasks on it advance together by ``curve[n]`` seconds of work a second,
each by an equal share of that (processor sharing; the curve saturates and then falls, as in Gunther's Universal
Scalability Law). A task holds memory: a part soon after its start, all of it later; what does not fit kills the task,
which then waits again at the end of the queue. A device warms with its power, and a hot one slows down until it is cool.
A task may hang: it holds its place and its memory until its time-out, without work.

Nothing is drawn by chance in here: tasks, noise and all that changes with time are tables made beforehand, so a run is a
pure function of its arguments, every limit meets the very same tasks, and compiled and plain code agree to the last bit.

The state of a run is a tuple of arrays (``Run``); ``advance`` is the only thing that changes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple, TypeVar, cast

import numpy as np
from numba import njit
from numba.extending import register_jitable
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_F = TypeVar("_F", bound=Callable[..., object])

TICK_S = 0.01
SAMPLE_TICKS = 100  # telemetry and the slow physics look once a second


class World(IntEnum):
    """What stays as it is during a run."""

    MEMORY = 0  #: bytes of each device
    EARLY = 1  #: share of a task's memory that it takes soon after its start
    DUTY = 2  #: share of the time in which a lone task has a kernel on the device, 0 to 1
    POWER_IDLE = 3  #: share of the power cap
    POWER_BUSY = 4  #: what full work would draw, as a share of the cap; above 1 the clock gives way
    AMBIENT = 5  #: degrees Celsius
    HEATING = 6  #: degrees above the ambient at the power cap
    COOLING_S = 7  #: time constant of the device's temperature
    HOT = 8  #: degrees at which the clock drops
    COOL = 9  #: degrees at which it is let go again
    HOT_CLOCK = 10  #: share of the clock that is left while hot
    TIMEOUT_S = 11  #: after which a hanging task is ended
    CAPACITY = 12  #: tasks that a service behind them takes at once; above, it refuses a share of them
    HOST = 13  #: 1: the device is the host: no telemetry, but pressure and memory
    CORES = 14  #: of the host, where it is the device


class Trace(IntEnum):
    """What changes from second to second."""

    FOREIGN_MEMORY = 0  #: share of each device's memory that others hold
    FOREIGN_LOAD = 1  #: share of each device's work that others get
    ERRORS = 2  #: probability that a task fails
    HANGS = 3  #: probability that a task hangs
    TELEMETRY = 4  #: 1 where the sampler works
    BRAKE = 5  #: share of the clock that the power supply leaves; below 1 the driver reports it


class Task(IntEnum):
    """What a task is."""

    ARRIVAL_S = 0
    WORK_S = 1  #: on an idle device at full clock
    MEMORY = 2  #: bytes
    CHANCE_FAIL = 3  #: uniform in 0 to 1: fails where that is below the probability
    CHANCE_HANG = 4


class Device(IntEnum):
    """The state of a device."""

    SPEED = 0  #: 1 is as it should be
    CLOCK = 1  #: share that heat and power leave
    USED = 2  #: bytes that our tasks hold
    ACTIVE = 3  #: tasks that work
    PLACED = 4  #: tasks that are there, hanging ones too
    SERVICE = 5  #: seconds of work that each task here has been given since the run began
    NEXT = 6  #: service at which something happens
    RATE = 7  #: service a second
    TEMPERATURE = 8
    THROTTLED = 9  #: 1: hot
    POWER = 10  #: share of the cap
    DUTY = 11  #: share of the time in which some kernel runs
    BUSY_S = 12  #: integral of that since the last sample


class Place(IntEnum):
    """A task that runs, or an empty place."""

    TASK = 0  #: its row, or -1
    DEVICE = 1
    STAGE = 2  #: 0 nothing held yet, 1 the early part, 2 all its memory
    EVENT = 3  #: service at which its next stage comes
    BEGAN = 4  #: service at its start
    STARTED_S = 5
    DEADLINE_S = 6  #: of a hanging task, else inf
    FATE = 7  #: 0 will be done, 1 will fail
    ATTEMPTS = 8  #: that came before


class Seen(IntEnum):
    """What is measured: sums since they were last cleared, then the last sample of telemetry and host."""

    TICKS = 0
    INFLIGHT = 1  #: sum over ticks
    DONE = 2
    ERRORS = 3
    TIMEOUTS = 4
    OOMS = 5
    STARTED = 6
    WAIT_S = 7  #: sum over the started
    ENDED = 8  #: attempts that came to an end by themselves, done or not
    RUN_S = 9  #: sum over these
    SUMS = 10  #: how many of these entries are sums
    BUSY = 10
    MEMORY_FREE = 11  #: bytes over all devices
    THROTTLE = 12  #: 1 for heat, 2 for the power supply's brake, else 0
    POWER = 13
    SAMPLED_S = 14  #: when the last sample was taken
    PSI_CPU = 15
    PSI_MEMORY = 16
    MEMORY_FREE_SHARE = 17  #: of the host
    NEED = 18  #: bytes, the most that one task was seen to hold
    TEMPERATURE = 19  #: of the hottest device


class Clock(IntEnum):
    """Where a run is."""

    TICK = 0
    ARRIVED = 1  #: tasks that came
    HEAD = 2  #: of the ring
    WAITING = 3
    RUNNING = 4
    HANGING_UNTIL_S = 5  #: the first deadline of a hanging task


class Run(NamedTuple):
    """All arrays of one run."""

    world: Floats  # [World]
    trace: Floats  # [second, Trace]
    tasks: Floats  # [task, Task], by arrival
    curve: Floats  # [tasks on a device]: seconds of work a second
    jitter: Floats  # [second, device]: factor of the speed
    noise: Floats  # [second]: added to the sampled duty cycle
    devices: Floats  # [device, Device]
    places: Floats  # [the highest limit, Place]
    ring: Floats  # [2, tasks]: row and number of attempts of what waits
    clock: Floats  # [Clock]
    seen: Floats  # [Seen]

    def copy(self) -> Run:
        """Return a run of the same tasks in the same state, that goes its own way."""
        return self._replace(
            devices=self.devices.copy(),
            places=self.places.copy(),
            ring=self.ring.copy(),
            clock=self.clock.copy(),
            seen=self.seen.copy(),
        )


def part(function: _F) -> _F:
    """Let compiled code call a function, which stays plain for plain code."""
    jitable: _F = register_jitable(function)
    return jitable


Advance = Callable[[Run, int, int], None]


def advance(run: Run, limit: int, ticks: int) -> None:
    """Let at most ``limit`` tasks start and run during the next ticks; ``run.clock`` and ``run.seen`` tell what happened."""
    world, trace, tasks, devices, ring, clock, seen = (
        run.world,
        run.trace,
        run.tasks,
        run.devices,
        run.ring,
        run.clock,
        run.seen,
    )
    many = tasks.shape[0]
    room = ring.shape[1]
    seconds = trace.shape[0]
    host = world[World.HOST] > 0
    for _ in range(ticks):
        tick = int(clock[Clock.TICK])
        now = tick * TICK_S
        second = min(tick // SAMPLE_TICKS, seconds - 1)
        if tick % SAMPLE_TICKS == 0:
            sample(run, now, second)
            for d in range(devices.shape[0]):
                set_rate(run, d, second)

        arrived = int(clock[Clock.ARRIVED])
        while arrived < many and tasks[arrived, Task.ARRIVAL_S] <= now:
            put(ring, clock, arrived, 0, room)
            arrived += 1
        clock[Clock.ARRIVED] = arrived

        while clock[Clock.RUNNING] < limit and clock[Clock.WAITING] > 0:
            start(run, now, second, room)

        for d in range(devices.shape[0]):
            devices[d, Device.BUSY_S] += devices[d, Device.DUTY] * TICK_S
            if devices[d, Device.ACTIVE] > 0:
                devices[d, Device.SERVICE] += devices[d, Device.RATE] * TICK_S
                if devices[d, Device.SERVICE] >= devices[d, Device.NEXT]:
                    settle(run, d, now, second, room)
        if now >= clock[Clock.HANGING_UNTIL_S]:
            end_hanging(run, now, second, room)

        if host:
            pressure = max(0.0, 1.0 - world[World.CORES] / max(1.0, clock[Clock.RUNNING]))
            seen[Seen.PSI_CPU] += (pressure - seen[Seen.PSI_CPU]) * TICK_S / 10.0  # the kernel's avg10
            full = devices[0, Device.USED] / world[World.MEMORY] + trace[second, Trace.FOREIGN_MEMORY]
            pressure = min(1.0, max(0.0, full - 0.88) / 0.12)
            seen[Seen.PSI_MEMORY] += (pressure - seen[Seen.PSI_MEMORY]) * TICK_S / 10.0
        seen[Seen.TICKS] += 1
        seen[Seen.INFLIGHT] += clock[Clock.RUNNING]
        clock[Clock.TICK] = tick + 1


def compiled() -> Advance:
    """Return `advance` compiled, which takes some seconds the first time; the code is kept where Numba may write."""
    try:
        kept: Advance = njit(cache=True)(advance)
        return kept
    except RuntimeError:  # neither this folder nor the user's cache can be written
        return cast(Advance, njit(advance))


@part
def put(ring: Floats, clock: Floats, task: int, attempts: float, room: int) -> None:
    """Let a task wait behind all others."""
    at = int(clock[Clock.HEAD] + clock[Clock.WAITING]) % room
    ring[0, at] = task
    ring[1, at] = attempts
    clock[Clock.WAITING] += 1


@part
def start(run: Run, now: float, second: int, room: int) -> None:
    """Start the first task that waits, on the device with the fewest."""
    world, trace, tasks, devices, places, ring, clock, seen = (
        run.world,
        run.trace,
        run.tasks,
        run.devices,
        run.places,
        run.ring,
        run.clock,
        run.seen,
    )
    head = int(clock[Clock.HEAD])
    task = int(ring[0, head])
    attempts = ring[1, head]
    clock[Clock.HEAD] = (head + 1) % room
    clock[Clock.WAITING] -= 1
    d = 0
    for other in range(1, devices.shape[0]):
        if devices[other, Device.PLACED] < devices[d, Device.PLACED]:
            d = other
    p = 0
    while places[p, Place.TASK] >= 0:
        p += 1
    clock[Clock.RUNNING] += 1
    # An attempt has a chance of its own: the golden ratio spreads them evenly.
    fail = (tasks[task, Task.CHANCE_FAIL] + attempts * 0.6180339887498949) % 1.0
    hang = (tasks[task, Task.CHANCE_HANG] + attempts * 0.6180339887498949) % 1.0
    refused = max(0.0, 1.0 - world[World.CAPACITY] / clock[Clock.RUNNING])
    places[p, Place.TASK] = task
    places[p, Place.DEVICE] = d
    places[p, Place.STAGE] = 0
    places[p, Place.BEGAN] = devices[d, Device.SERVICE]
    places[p, Place.STARTED_S] = now
    places[p, Place.FATE] = 1 if fail < max(trace[second, Trace.ERRORS], refused) else 0
    places[p, Place.DEADLINE_S] = math.inf
    places[p, Place.ATTEMPTS] = attempts
    places[p, Place.EVENT] = devices[d, Device.SERVICE] + 0.05 * tasks[task, Task.WORK_S]
    devices[d, Device.PLACED] += 1
    seen[Seen.STARTED] += 1
    seen[Seen.WAIT_S] += now - tasks[task, Task.ARRIVAL_S]
    if hang < trace[second, Trace.HANGS]:
        places[p, Place.DEADLINE_S] = now + world[World.TIMEOUT_S]
        places[p, Place.EVENT] = math.inf
        clock[Clock.HANGING_UNTIL_S] = min(clock[Clock.HANGING_UNTIL_S], places[p, Place.DEADLINE_S])
        return
    devices[d, Device.ACTIVE] += 1
    devices[d, Device.NEXT] = min(devices[d, Device.NEXT], places[p, Place.EVENT])
    set_rate(run, d, second)


@part
def set_rate(run: Run, d: int, second: int) -> None:
    """Set how fast the tasks of a device advance, from their number and the device's state."""
    devices, trace = run.devices, run.trace
    active = int(devices[d, Device.ACTIVE])
    idle = (1.0 - run.world[World.DUTY]) ** active * (1.0 - trace[second, Trace.FOREIGN_LOAD])
    devices[d, Device.DUTY] = 1.0 - idle
    if active == 0:
        devices[d, Device.RATE] = 0.0
        devices[d, Device.NEXT] = math.inf
        return
    rate = run.curve[active] / active * devices[d, Device.SPEED] * devices[d, Device.CLOCK] * run.jitter[second, d]
    rate *= 1.0 - trace[second, Trace.FOREIGN_LOAD]
    if run.world[World.HOST] > 0:  # reclaiming memory takes time from everybody
        full = devices[d, Device.USED] / run.world[World.MEMORY] + trace[second, Trace.FOREIGN_MEMORY]
        rate *= 1.0 - 0.7 * min(1.0, max(0.0, full - 0.88) / 0.12)
    devices[d, Device.RATE] = rate


@part
def settle(run: Run, d: int, now: float, second: int, room: int) -> None:
    """Carry out what has come for the tasks of a device, and find what comes next."""
    world, tasks, devices, places, seen = run.world, run.tasks, run.devices, run.places, run.seen
    service = devices[d, Device.SERVICE]
    following = math.inf
    for p in range(places.shape[0]):
        task = int(places[p, Place.TASK])
        if task < 0 or int(places[p, Place.DEVICE]) != d:
            continue
        if places[p, Place.EVENT] <= service:
            stage = int(places[p, Place.STAGE])
            if stage == 2:
                seen[Seen.ENDED] += 1
                seen[Seen.RUN_S] += now - places[p, Place.STARTED_S]
                failed = places[p, Place.FATE] > 0
                if failed:
                    seen[Seen.ERRORS] += 1
                else:
                    seen[Seen.DONE] += 1
                leave(run, p, 1.0, failed, room)
                continue
            early = world[World.EARLY]
            more = tasks[task, Task.MEMORY] * (early if stage == 0 else 1.0 - early)
            free = world[World.MEMORY] * (1.0 - run.trace[second, Trace.FOREIGN_MEMORY]) - devices[d, Device.USED]
            if more > free:
                if world[World.HOST] > 0:
                    seen[Seen.ERRORS] += 1  # the kernel kills the worker
                else:
                    seen[Seen.OOMS] += 1
                    seen[Seen.ENDED] += 1
                    seen[Seen.RUN_S] += now - places[p, Place.STARTED_S]
                leave(run, p, 0.0 if stage == 0 else early, True, room)
                continue
            devices[d, Device.USED] += more
            places[p, Place.STAGE] = stage + 1
            share = 0.3 if stage == 0 else (0.6 if places[p, Place.FATE] > 0 else 1.0)
            places[p, Place.EVENT] = places[p, Place.BEGAN] + share * tasks[task, Task.WORK_S]
        following = min(following, places[p, Place.EVENT])
    devices[d, Device.NEXT] = following
    set_rate(run, d, second)


@part
def leave(run: Run, p: int, held: float, again: bool, room: int) -> None:
    """Take a working task, which holds a share of its memory, from its place, and let it wait again or not."""
    devices, places, clock = run.devices, run.places, run.clock
    d, task = int(places[p, Place.DEVICE]), int(places[p, Place.TASK])
    devices[d, Device.USED] = max(0.0, devices[d, Device.USED] - held * run.tasks[task, Task.MEMORY])
    devices[d, Device.PLACED] -= 1
    devices[d, Device.ACTIVE] -= 1
    places[p, Place.TASK] = -1
    clock[Clock.RUNNING] -= 1
    if again:
        put(run.ring, clock, task, places[p, Place.ATTEMPTS] + 1, room)


@part
def end_hanging(run: Run, now: float, second: int, room: int) -> None:
    """End the tasks whose time is out; they hold no memory, since they never began."""
    devices, places, clock = run.devices, run.places, run.clock
    following = math.inf
    for p in range(places.shape[0]):
        if places[p, Place.TASK] < 0 or places[p, Place.DEADLINE_S] == math.inf:
            continue
        if places[p, Place.DEADLINE_S] <= now:
            task = int(places[p, Place.TASK])
            devices[int(places[p, Place.DEVICE]), Device.PLACED] -= 1
            places[p, Place.TASK] = -1
            clock[Clock.RUNNING] -= 1
            run.seen[Seen.TIMEOUTS] += 1
            put(run.ring, clock, task, places[p, Place.ATTEMPTS] + 1, room)
        else:
            following = min(following, places[p, Place.DEADLINE_S])
    clock[Clock.HANGING_UNTIL_S] = following


@part
def sample(run: Run, now: float, second: int) -> None:
    """Let heat and power have their effect for one second, and take what telemetry and the host would tell."""
    world, trace, devices, seen = run.world, run.trace, run.devices, run.seen
    works = trace[second, Trace.TELEMETRY] > 0 and world[World.HOST] == 0
    many = devices.shape[0]
    busy = throttle = free = power = hottest = 0.0
    for d in range(many):
        duty = devices[d, Device.BUSY_S]
        devices[d, Device.BUSY_S] = 0.0
        span = world[World.POWER_BUSY] - world[World.POWER_IDLE]
        clock = 1.0
        drawn = world[World.POWER_IDLE] + span * duty
        if devices[d, Device.THROTTLED] > 0:
            drawn = world[World.POWER_IDLE] + span * duty * world[World.HOT_CLOCK]
        elif drawn > 1.0:  # near the cap, the power of the work goes about with the square of the clock
            clock = math.sqrt((1.0 - world[World.POWER_IDLE]) / (drawn - world[World.POWER_IDLE]))
            drawn = 1.0
        towards = world[World.AMBIENT] + world[World.HEATING] * drawn
        devices[d, Device.TEMPERATURE] += (towards - devices[d, Device.TEMPERATURE]) / world[World.COOLING_S]
        if devices[d, Device.TEMPERATURE] >= world[World.HOT]:
            devices[d, Device.THROTTLED] = 1.0
        elif devices[d, Device.TEMPERATURE] <= world[World.COOL]:
            devices[d, Device.THROTTLED] = 0.0
        if devices[d, Device.THROTTLED] > 0:
            clock = world[World.HOT_CLOCK]
        brake = trace[second, Trace.BRAKE]
        devices[d, Device.CLOCK] = clock * brake
        devices[d, Device.POWER] = drawn
        busy += duty / many
        power += drawn / many
        if devices[d, Device.THROTTLED] > 0:
            throttle = 1.0
        elif brake < 1.0 and throttle == 0.0:
            throttle = 2.0
        free += max(0.0, world[World.MEMORY] * (1.0 - trace[second, Trace.FOREIGN_MEMORY]) - devices[d, Device.USED])
        hottest = max(hottest, devices[d, Device.TEMPERATURE])
    seen[Seen.TEMPERATURE] = hottest
    if world[World.HOST] > 0:
        held = devices[0, Device.USED] / world[World.MEMORY] + trace[second, Trace.FOREIGN_MEMORY]
        seen[Seen.MEMORY_FREE_SHARE] = max(0.0, 1.0 - held)
    if works:
        seen[Seen.BUSY] = min(1.0, max(0.0, busy + run.noise[second]))
        seen[Seen.MEMORY_FREE] = free
        seen[Seen.THROTTLE] = throttle
        seen[Seen.POWER] = power
        seen[Seen.SAMPLED_S] = now
        for p in range(run.places.shape[0]):
            stage = run.places[p, Place.STAGE]
            if run.places[p, Place.TASK] >= 0 and stage > 0:
                share = 1.0 if stage == 2 else world[World.EARLY]
                need = share * run.tasks[int(run.places[p, Place.TASK]), Task.MEMORY]
                seen[Seen.NEED] = max(seen[Seen.NEED], need)
