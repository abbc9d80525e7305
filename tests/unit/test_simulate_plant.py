"""The plant: nothing is lost in it, its physics follow its numbers, and compiled code does what plain code does."""

import dataclasses
import math

import numpy as np
import pytest
from dspy_supervisor.simulate import plant
from dspy_supervisor.simulate.plant import Clock, Device, Place, Seen, Task, World
from dspy_supervisor.simulate.scenario import Scenario
from dspy_supervisor.simulate.scenarios import SCENARIOS

PLAIN_TICKS = 1500


@pytest.fixture(scope="module")
def advance():
    return plant.compiled()


def world(**numbers) -> Scenario:
    """Return a world with a queue that is never empty, and tasks that are all alike."""
    chosen = {"arrivals": ((0, 30.0),), "work_s": 0.5, "spread": 0.0, "horizon_s": 120.0, **numbers}
    return Scenario(name="test", says="", **chosen)


def quiet(scenario: Scenario) -> plant.Run:
    """Return a run without noise."""
    run = scenario.run(1)
    run.jitter[:] = 1.0
    run.noise[:] = 0.0
    return run


@pytest.mark.parametrize("name", SCENARIOS)
def test_compiled_and_plain_agree_to_the_last_bit(advance, name):
    compiled = SCENARIOS[name].run(7)
    plain = compiled.copy()
    for limit in (3, SCENARIOS[name].highest, 1):
        advance(compiled, limit, PLAIN_TICKS // 3)
        plant.advance(plain, limit, PLAIN_TICKS // 3)
    for ours, theirs in zip(compiled, plain, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_task_that_came_is_done_or_waits_or_runs(advance, name):
    scenario = SCENARIOS[name]
    run = scenario.run(3)
    for limit in (4, scenario.highest, 2, 9):
        advance(run, limit, scenario.ticks // 4)
        running = int((run.places[:, Place.TASK] >= 0).sum())
        assert running == run.clock[Clock.RUNNING] == run.devices[:, Device.PLACED].sum()
        assert run.clock[Clock.ARRIVED] == run.seen[Seen.DONE] + run.clock[Clock.WAITING] + running
        assert (run.devices[:, Device.USED] <= run.world[World.MEMORY]).all()
    assert run.seen[Seen.DONE] > 0


def test_a_limit_is_never_exceeded_once_what_ran_has_ended(advance):
    run = quiet(world())
    advance(run, 12, 500)
    assert run.clock[Clock.RUNNING] == 12
    advance(run, 5, 1)
    assert run.clock[Clock.RUNNING] >= 11  # nothing is killed for a lower limit
    advance(run, 5, 500)
    assert run.clock[Clock.RUNNING] == 5


def test_a_lone_task_takes_its_own_time(advance):
    run = quiet(world(arrivals=((0, 0.5),)))
    advance(run, 1, 12_000)
    assert run.seen[Seen.RUN_S] / run.seen[Seen.DONE] == pytest.approx(0.5, abs=2 * plant.TICK_S)


@pytest.mark.parametrize("limit", [1, 3, 8, 20])
def test_throughput_follows_the_curve(advance, limit):
    scenario = world(need=0.1)
    run = quiet(scenario)
    advance(run, limit, scenario.ticks)
    rate = run.seen[Seen.DONE] / scenario.horizon_s
    assert rate == pytest.approx(scenario.curve()[limit] / scenario.work_s, rel=0.06)  # ends are seen at whole ticks


def test_the_curve_rises_saturates_and_falls():
    curve = world().curve()
    best = int(curve.argmax())
    assert curve[0] == 0.0
    assert curve[1] == pytest.approx(1.0)
    assert 1 < best < len(curve) - 1
    assert curve[-1] < 0.6 * curve[best]


def test_tasks_that_do_not_fit_die_and_wait_again(advance):
    scenario = world(need=5.0, need_spread=0.0)
    fits, crowded = quiet(scenario), quiet(scenario)
    advance(fits, 4, scenario.ticks)
    advance(crowded, 8, scenario.ticks)
    assert fits.seen[Seen.OOMS] == 0
    assert crowded.seen[Seen.OOMS] > 100
    assert crowded.seen[Seen.DONE] < fits.seen[Seen.DONE]


def test_a_hot_device_slows_down_until_it_is_cool(advance):
    scenario = world(heating=90.0)
    run = quiet(scenario)
    hot = 0
    for _ in range(110):
        advance(run, 10, 100)
        hot += run.seen[Seen.THROTTLE] > 0
        assert run.devices[0, Device.TEMPERATURE] < 91.0
        assert (run.devices[0, Device.CLOCK] < 1.0) == (run.seen[Seen.THROTTLE] > 0)
    assert 10 < hot < 100


def test_a_power_cap_costs_a_little_clock_and_is_no_throttling(advance):
    scenario = world(busy_power=1.25, heating=30.0)
    run = quiet(scenario)
    advance(run, 10, 6000)
    assert run.seen[Seen.POWER] == 1.0
    assert run.seen[Seen.THROTTLE] == 0.0
    assert 0.8 < run.devices[0, Device.CLOCK] < 0.95


def test_a_task_that_hangs_holds_its_place_until_its_time_out(advance):
    scenario = world(hangs=((0, 1.0),), timeout_s=10.0)
    run = quiet(scenario)
    advance(run, 4, 1500)
    assert (run.seen[Seen.TIMEOUTS], run.seen[Seen.DONE], run.clock[Clock.RUNNING]) == (4, 0, 4)
    assert run.devices[0, Device.USED] == 0.0


def test_what_a_sampler_that_hangs_told_last_grows_old(advance):
    run = quiet(world(telemetry=((0, 1.0), (20, 1.0), (20, 0.0))))
    advance(run, 2, 2000)
    free = run.seen[Seen.MEMORY_FREE]
    advance(run, 12, 2000)
    assert run.clock[Clock.TICK] * plant.TICK_S - run.seen[Seen.SAMPLED_S] > 20.0
    assert run.seen[Seen.MEMORY_FREE] == free


def test_a_slow_gpu_does_less_than_the_others(advance):
    scenario = world(speeds=(1.0, 0.35), arrivals=((0, 40.0),))
    run = quiet(scenario)
    advance(run, 8, scenario.ticks)
    fast, slow = run.devices[:, Device.SERVICE]
    assert slow == pytest.approx(0.35 * fast, rel=0.1)


def test_the_same_seed_gives_the_same_tasks_and_another_gives_others():
    one, same, other = (SCENARIOS["bimodal"].run(seed).tasks for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert len(one) != len(other) or (one[:, Task.WORK_S] != other[:, Task.WORK_S]).any()


def test_there_are_scenarios_enough_and_each_says_what_it_stands_for():
    assert len(SCENARIOS) >= 12
    assert len({scenario.says for scenario in SCENARIOS.values()}) == len(SCENARIOS)
    for scenario in SCENARIOS.values():
        assert len(scenario.says) > 30
        assert scenario.begins <= scenario.highest
        assert all(end <= scenario.horizon_s and end - begin > 60 for begin, end in scenario.rests)


def test_a_trace_jumps_where_two_points_share_a_second():
    scenario = dataclasses.replace(world(), errors=((0, 0.0), (50, 0.0), (50, 0.9), (60, 0.9), (60, 0.0)))
    errors = scenario.run(1).trace[:, plant.Trace.ERRORS]
    assert [errors[second] for second in (49, 50, 59, 60)] == pytest.approx([0.0, 0.9, 0.9, 0.0], abs=1e-3)
    assert math.isfinite(errors.sum())
