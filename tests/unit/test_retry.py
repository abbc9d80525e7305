"""What becomes of a task: a pure decision."""

from types import SimpleNamespace

import pytest
from dspy_supervisor.record import MAX_HISTORY
from dspy_supervisor.retry import Budget, budget_of, decide
from dspy_supervisor.task import Cause, TaskName
from hypothesis import given
from hypothesis import strategies as st

BUDGET = Budget(max_attempts=3, max_crashes=3, max_deliveries=20, base_s=1.0, cap_s=60.0)
FAULTS = [Cause.RAISED, Cause.TIMEOUT, Cause.SIGNAL, Cause.EXIT, Cause.INVALID_RESULT]


def run(causes, budget=BUDGET, **options):
    """Return after how many attempts a task that always ends so is given up, and why."""
    name, past = TaskName("a1"), []
    while True:
        cause = causes[min(name.attempt, len(causes) - 1)]
        verdict = decide(cause, name, past[-MAX_HISTORY:], budget, 0.5, **options)
        if verdict.final is not None:
            return name.attempt + 1, verdict.final
        past.append(cause)
        name = name.charged(crashed=bool(options.get("died")))


@pytest.mark.parametrize("cause", FAULTS)
def test_a_fault_is_tried_so_often_and_no_more(cause):
    assert run([cause]) == (3, cause)


def test_memory_that_ran_out_has_a_budget_of_its_own():
    assert run([Cause.OUT_OF_MEMORY]) == (5, Cause.OUT_OF_MEMORY)
    # neither counts for the other: two of each, and then the third that raises
    assert run([Cause.OUT_OF_MEMORY, Cause.RAISED, Cause.OUT_OF_MEMORY, Cause.RAISED, Cause.RAISED]) == (
        5,
        Cause.RAISED,
    )


def test_a_worker_that_the_kernel_kills_for_memory_counts_as_a_death_too():
    assert run([Cause.HOST_OOM], died=True) == (3, Cause.HOST_OOM)


@pytest.mark.parametrize("cause", [Cause.REFUSED, Cause.CANCELLED, Cause.DELIVERIES])
def test_what_trying_again_cannot_help_ends_at_once(cause):
    assert run([cause]) == (1, cause)


def test_a_handler_may_say_that_trying_again_cannot_help():
    assert run([Cause.RAISED], retry=False) == (1, Cause.RAISED)


def test_three_deaths_end_a_task_with_what_killed_it():
    patient = Budget(max_attempts=100, max_crashes=3, max_deliveries=100, base_s=1, cap_s=1)
    assert run([Cause.SIGNAL], patient, died=True) == (3, Cause.SIGNAL)


def test_restarts_are_not_the_tasks_fault_and_still_end():
    assert run([Cause.LOST]) == (20, Cause.DELIVERIES)
    assert run([Cause.LOST, Cause.LOST, Cause.LOST, Cause.RAISED]) == (6, Cause.RAISED)


@pytest.mark.parametrize("bound", [25, 50, 1000])
def test_a_bound_beyond_what_the_history_tells_is_kept_and_named(bound):
    budget = Budget(max_attempts=bound, max_crashes=3, max_deliveries=bound, base_s=1, cap_s=1)
    assert run([Cause.RAISED], budget) == (bound, Cause.RAISED)


@given(st.integers(0, 30), st.floats(0, 1, exclude_max=True), st.sampled_from(FAULTS[:2]))
def test_the_back_off_is_between_nothing_and_the_cap(attempt, chance, cause):
    budget = Budget(max_attempts=1000, max_crashes=3, max_deliveries=1000, base_s=0.5, cap_s=60.0)
    past = [Cause.RAISED] * min(attempt, MAX_HISTORY)
    verdict = decide(cause, TaskName("a1", attempt), past, budget, chance)
    assert verdict.final is None and 0 <= verdict.delay_s <= min(60.0, 0.5 * 2.0**attempt)


def test_whom_the_task_cannot_blame_it_does_not_wait_for():
    assert decide(Cause.LOST, TaskName("a1"), [], BUDGET, 0.9).delay_s == 0
    assert decide(Cause.SIGNAL, TaskName("a1"), [], BUDGET, 0.9, died=True).delay_s == 0


@pytest.mark.parametrize(("wanted", "waits"), [(5.0, 5.0), (0.0, 0.0), (-3.0, 0.0), (1e9, 1e9), (float("nan"), 0.0)])
def test_a_handler_may_say_how_long_to_wait(wanted, waits):
    assert decide(Cause.RAISED, TaskName("a1"), [], BUDGET, 0.9, wanted_delay_s=wanted).delay_s == waits


@pytest.mark.parametrize(
    ("settings", "own", "attempts", "crashes", "ooms", "deliveries"),
    [
        ((3, 3, 5), None, 3, 3, 5, 20),
        ((3, 3, 5), 1, 1, 1, 1, 20),
        ((3, 3, 5), 50, 50, 3, 5, 50),
        ((40, 3, 5), None, 40, 3, 5, 40),
        ((40, 3, 5), 2, 2, 2, 2, 40),
        ((3, 3, 30), None, 3, 3, 30, 20),
    ],
)
def test_the_task_may_bound_itself_and_every_bound_can_be_reached(settings, own, attempts, crashes, ooms, deliveries):
    config = SimpleNamespace(max_deliveries=20)
    bounds = {"max_attempts": settings[0], "max_crashes": settings[1], "max_ooms": settings[2]}
    klass = SimpleNamespace(**bounds, retry_base_s=1.0, retry_cap_s=300.0)
    budget = budget_of(config, klass, own)
    found = (budget.max_attempts, budget.max_crashes, budget.max_ooms, budget.max_deliveries)
    assert found == (attempts, crashes, ooms, deliveries)
