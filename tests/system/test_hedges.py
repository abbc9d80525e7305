"""Second runs of tasks that take unusually long: one result, whoever is first and whoever dies."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from ..conftest import Supervised, until
from .conftest import Rig, events, is_alive, kill_whole, klass, workers
from .invariants import runs

_TWICE = """
import os, time
from tests.system.handlers import note, wait_for
def run(task):
    told = task.payload
    if told is None:
        return None
    note(told["log"], f"{task.id} {task.attempt} {os.getpid()}\\n")
    try:
        os.close(os.open(told["first"], os.O_CREAT | os.O_EXCL))
        gate = told.get("first_gate")
    except FileExistsError:
        gate = told.get("second_gate")
    if gate:
        wait_for(gate)
    return os.getpid()
"""


class Twice:
    """A class that knows how long its tasks take, and one task that takes longer."""

    def __init__(self, rig: Rig, tmp_path: Path) -> None:
        self.rig, self.path = rig, tmp_path
        (tmp_path / "code").mkdir()
        (tmp_path / "code" / "twice.py").write_text(_TWICE)
        self.supervisor = self.start()
        for number in range(20):
            rig.drop(f"quick{number}", kind="twice")
        rig.drain(20)
        until(lambda: klass(self.supervisor)["hedges"]["after_s"] is not None, "it is known how long tasks take")

    def start(self, **settings: object) -> Supervised:
        environments = {"kinds": "environment", "environments": "counting=tests.system.environments:Counting"}
        chosen = {"class.cpu_short.hedge": True, "kind_handlers": "twice=twice:run", **environments, **settings}
        return self.rig.start(workers=3, settings=chosen)

    def put(self, *gates: str, task_id: str = "long", **envelope: Any) -> None:
        """Put a long task, whose runs wait at these gates."""
        told = {f"{gate}_gate": str(self.path / gate) for gate in gates}
        told |= {"log": str(self.rig.log), "first": str(self.path / f"{task_id}.began")}
        self.rig.drop(task_id, kind="twice", payload=told, **{"idempotent": True, **envelope})

    def pids(self) -> list[int]:
        """Return who ran the long task, in the order they began."""
        if not self.rig.log.exists():
            return []
        lines = [line.split() for line in self.rig.log.read_text().splitlines()]
        return [int(pid) for task_id, _, pid in lines if task_id == "long"]

    def both(self) -> list[int]:
        """Wait until it runs twice."""
        until(lambda: len(self.pids()) == 2, "the task runs twice")
        return self.pids()


@pytest.fixture
def twice(rig: Rig, tmp_path: Path) -> Twice:
    return Twice(rig, tmp_path)


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
