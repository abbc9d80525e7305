"""Second runs of tasks that take unusually long: one result, whoever is first and whoever dies."""

from __future__ import annotations

import os
import signal

from ..conftest import until
from .invariants import runs
from .rig import Rig, events, is_alive, kill_whole, klass, workers
from .twice import Twice


def test_a_second_run_that_is_first_counts_and_the_other_is_killed(rig: Rig, twice: Twice) -> None:
    twice.put("first")
    first, second = twice.both()
    record = rig.record("long")
    assert (
        record["status"] == "done" and record["runner_result"] == second == record["worker"] and not record["attempt"]
    )
    until(lambda: not is_alive(first) and len(workers(twice.supervisor)) == 3, "the first is replaced")
    until(lambda: klass(twice.supervisor)["hedges"]["won"] == 1, "it is counted")
    assert klass(twice.supervisor)["done"] == 21 and not events(twice.supervisor, "worker_died")
    until(
        lambda: not rig.check(drained=True) and not list(rig.queue.glob("logs/long/second.*")), "nothing is left over"
    )


def test_a_first_run_that_is_first_counts_and_the_second_is_killed(rig: Rig, twice: Twice) -> None:
    twice.put("first", "second")
    first, second = twice.both()
    assert "a second time" in twice.supervisor.ask("explain", id="long")["explanation"]
    (twice.path / "first").touch()
    assert rig.record("long")["runner_result"] == first
    until(lambda: not is_alive(second) and len(workers(twice.supervisor)) == 3, "the second is replaced")
    assert klass(twice.supervisor)["done"] == 21 and not events(twice.supervisor, "worker_died")


def test_a_killed_second_run_does_the_task_no_harm(rig: Rig, twice: Twice) -> None:
    twice.put("first", "second")
    first, second = twice.both()
    os.kill(second, signal.SIGKILL)
    until(lambda: klass(twice.supervisor)["hedges"]["running"] == 0, "it is noticed")
    (twice.path / "first").touch()
    record = rig.record("long")
    assert record["runner_result"] == first and record["attempt"] == 0 and "history" not in record
    assert runs(rig.log)["long"] == 2


def test_a_killed_first_run_is_tried_again_and_the_second_ended(rig: Rig, twice: Twice) -> None:
    twice.put("first", "second")
    first, second = twice.both()
    os.kill(first, signal.SIGKILL)
    (twice.path / "second").touch()
    record = rig.record("long")
    assert record["status"] == "done" and record["attempt"] in (0, 1)
    rig.drain()
    until(lambda: not is_alive(second) or record["worker"] == second, "no run goes on for nothing")
    rig.check()


def test_a_supervisor_that_is_killed_while_a_task_runs_twice_leaves_one_task(rig: Rig, twice: Twice) -> None:
    twice.put("first", "second")
    twice.both()
    kill_whole(twice.supervisor)
    assert rig.claims() == ["long.json"]
    (twice.path / "second").touch()
    twice.start()
    record = rig.record("long")
    assert record["status"] == "done" and record["attempt"] == 1
    until(lambda: not rig.claims(), "the claim is gone")
    rig.check()


def test_cancelling_ends_both_runs(rig: Rig, twice: Twice) -> None:
    twice.put("first", "second")
    both = twice.both()
    twice.supervisor.ask("cancel", id="long")
    assert rig.record("long")["error"]["cause"] == "cancelled"
    until(lambda: not any(map(is_alive, both)), "both are ended")


def test_a_task_that_does_not_say_that_it_may_runs_once(rig: Rig, twice: Twice) -> None:
    twice.put("first", idempotent=False)
    until(lambda: len(twice.pids()) == 1, "it runs")
    twice.put("first", task_id="later")
    assert rig.record("later")["status"] == "done"  # by its second run: so the other was late, too, and was looked at
    assert len(twice.pids()) == 1 and klass(twice.supervisor)["hedges"]["started"] == 1
    (twice.path / "first").touch()
    rig.drain()
    assert len(twice.pids()) == 1


def test_a_step_of_an_environment_runs_once_whatever_it_says(rig: Rig, twice: Twice) -> None:
    rig.drop("init", kind="environment", payload={"env_id": "a", "action": "init"})
    assert rig.record("init")["status"] == "done"
    begun, gate = twice.path / "begun", twice.path / "gate"
    action = {"begun": str(begun), "gate": str(gate)}
    step = {"env_id": "a", "action": "step", "action_data": action}
    rig.drop("step", kind="environment", payload=step, idempotent=True)
    until(begun.exists, "the step runs")
    twice.put("first", task_id="later")
    assert rig.record("later")["status"] == "done"  # by its second run: so the step was late, too, and was looked at
    gate.touch()
    assert rig.record("step")["status"] == "done" and klass(twice.supervisor)["hedges"]["started"] == 1
