"""Tasks that don't end, and tasks that end their worker: the slot comes back, and the record says what happened."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from ..conftest import until
from .invariants import record
from .rig import Rig, cpu_s, events, is_alive, klass, workers

QUICK: dict[str, object] = {"kill_grace_s": 0.3, "class.cpu_short.max_attempts": 1, "max_deliveries": 3}


@pytest.mark.parametrize(
    ("do", "name"), [("spin_in_c", "_spin_in_c"), ("ignore_term", "stubborn_loop"), ("swallow_everything", "_swallow")]
)
def test_a_task_out_of_time_frees_its_slot_and_its_record_says_where_it_was(rig: Rig, do: str, name: str) -> None:
    rig.start(workers=1, settings=QUICK)
    rig.drop("stuck", {"do": do}, timeout_s=0.5)
    rig.drop("next")
    error = rig.record("stuck")["error"]
    assert error["cause"] == "timeout"
    assert name in error["stacks"]
    assert rig.record("next")["status"] == "done"


def test_a_grandchild_in_a_session_of_its_own_goes_with_its_task(rig: Rig, tmp_path: Path) -> None:
    rig.start(workers=1, settings=QUICK)
    rig.drop("stuck", {"do": "daemon", "pid_file": str(tmp_path / "pid"), "hang": True}, timeout_s=1.5)
    pid = int(until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), "it runs"))
    assert is_alive(pid)
    assert rig.record("stuck")["error"]["cause"] == "timeout"
    until(lambda: not is_alive(pid), "the grandchild is gone")


def test_what_a_task_leaves_running_goes_with_it(rig: Rig, tmp_path: Path) -> None:
    rig.start(workers=1)
    rig.drop("leaves", {"do": "daemon", "pid_file": str(tmp_path / "pid")})
    assert rig.record("leaves")["runner_result"] == "left"
    assert not is_alive(int((tmp_path / "pid").read_text()))


def test_a_task_that_ends_before_term_comes_costs_neither_worker_nor_the_next_one(rig: Rig) -> None:
    """Tasks so short that several are handed over at once, and out of time at any moment the supervisor looks."""
    supervisor = rig.start(workers=1, settings=QUICK | {"durability": "none"})
    for number in range(600):
        rig.drop(f"t{number:03d}", {"do": "sleep", "s": 0.001}, timeout_s=0.0005)
    rig.drain()
    found = [record(rig.queue, name) for name in rig.put_ids if (rig.queue / "done" / f"{name}.json").exists()]
    assert len(found) == 600
    assert [one["task_id"] for one in found if one["attempt"]] == []
    assert not events(supervisor, "worker_died")


@pytest.mark.parametrize(
    ("payload", "facts"),
    [
        ({"do": "segfault"}, {"cause": "signal", "signal": "SIGSEGV"}),
        ({"do": "exit"}, {"cause": "exit", "exit_code": 7}),
        ({"do": "exit", "code": 0}, {"cause": "exit", "exit_code": 0}),
        ({"do": "signal", "signal": 9}, {"cause": "signal", "signal": "SIGKILL"}),
        ({"do": "signal", "signal": 15}, {"cause": "signal", "signal": "SIGTERM"}),
    ],
    ids=["segfault", "exit 7", "exit 0", "SIGKILL", "SIGTERM"],
)
def test_a_poison_task_ends_after_three_workers_and_delays_nobody(rig: Rig, payload, facts) -> None:
    rig.start()
    rig.drop("warm")
    rig.record("warm")
    rig.drop("poison", payload)
    for number in range(20):
        rig.drop(f"good{number}")
    assert {rig.record(f"good{number}")["attempt"] for number in range(20)} == {0}
    found = rig.record("poison")
    assert found["attempt"] == 2 and len(found["history"]) == 2
    assert facts.items() <= found["error"].items()
    assert all(facts.items() <= attempt.items() for attempt in found["history"])
    rig.check(drained=True, may_fail=["poison"])


def test_of_a_mixed_crowd_all_good_tasks_end_and_the_bad_ones_tell_why(rig: Rig) -> None:
    rig.start()
    kinds = {"raise": range(30), "segfault": range(30, 33), "exit": range(33, 36)}
    do = {number: kind for kind, numbers in kinds.items() for number in numbers}
    total = 300
    for number in range(total):
        rig.drop(f"t{number:03d}", {"do": do.get(number * 7 % total, "echo")})
    rig.drain()
    causes = {"raise": "raised", "segfault": "signal", "exit": "exit"}
    for number in range(total):
        kind = do.get(number * 7 % total)
        found = record(rig.queue, f"t{number:03d}", "failed" if kind else "done")
        if kind:
            assert found["error"]["cause"] == causes[kind]
            assert len(found["history"]) == 2
    rig.check(may_fail=[f"t{number:03d}" for number in range(total) if number * 7 % total in do])


def test_what_a_task_does_to_its_process_the_next_one_does_not_see(rig: Rig) -> None:
    rig.start(workers=1)
    rig.drop("a", {"do": "look"})
    before = rig.record("a")["runner_result"]
    rig.drop("b", {"do": "spoil"})
    rig.drop("c", {"do": "look"})
    assert rig.record("b")["status"] == "done"
    assert rig.record("c")["runner_result"] == before


@pytest.mark.parametrize("do", ["close_all", "close_folders"])
def test_a_task_that_closes_descriptors_costs_its_worker_and_nobody_else(rig: Rig, do: str) -> None:
    supervisor = rig.start(workers=1, settings=QUICK)
    rig.drop("closes", {"do": do, "queue": str(rig.queue)})
    rig.drop("next")
    assert rig.record("next")["status"] == "done"
    assert rig.record("closes")["error"]["cause"] == "exit"
    assert klass(supervisor)["state"] == "running"


def test_a_task_that_cuts_its_channel_costs_no_processor_time(rig: Rig, tmp_path: Path) -> None:
    supervisor = rig.start(workers=1, settings=QUICK)
    gate = rig.gate("cut", "cut")
    gate.wait()
    before, began = cpu_s(supervisor.pid), time.monotonic()
    until(lambda: time.monotonic() - began > 1.0, "a second passes")
    assert cpu_s(supervisor.pid) - before < 0.2
    gate.open()
    assert rig.record("cut")["status"] == "done"  # it was written before the worker found nobody to tell
    rig.drop("next")
    assert rig.record("next")["status"] == "done"


@pytest.mark.parametrize(
    ("do", "cause"), [("nan", "invalid_result"), ("hostile", "raised"), ("system_exit", "exit"), ("refuse", "refused")]
)
def test_odd_ends_are_recorded_in_few_words(rig: Rig, do: str, cause: str) -> None:
    rig.start(workers=1, settings=QUICK)
    rig.drop("odd", {"do": do})
    found = rig.record("odd")
    assert found["error"]["cause"] == cause
    assert found["error"]["message"]
    assert (rig.queue / "failed" / "odd.json").stat().st_size < 8192


def test_a_task_that_fails_is_tried_again_later_and_then_ends(rig: Rig) -> None:
    rig.start(workers=1)
    rig.drop("third", {"do": "raise_until", "until": 2})
    found = rig.record("third")
    assert found["status"] == "done" and found["runner_result"]["attempt"] == 2
    assert [attempt["cause"] for attempt in found["history"]] == ["raised", "raised"]


def test_a_task_may_ask_to_be_called_later(rig: Rig) -> None:
    rig.start(workers=1)
    began = time.monotonic()
    rig.drop("later", {"do": "later", "delay_s": 0.5})
    assert rig.record("later")["runner_result"]["attempt"] == 1
    assert time.monotonic() - began >= 0.5


def test_a_task_starts_not_before_its_time(rig: Rig) -> None:
    rig.start(workers=1)
    due = time.time() + 1.0
    rig.drop("due", not_before=due)
    until(lambda: list((rig.queue / "delayed").glob("*.due.json")), "it waits in delayed/")
    rig.record("due")
    assert due <= time.time() < due + 1.0


def test_waiting_delayed_and_running_tasks_are_cancelled(rig: Rig) -> None:
    supervisor = rig.start(workers=1, settings=QUICK)
    running = rig.gate("running", "gate_stubborn")
    running.wait()
    rig.drop("waiting")
    rig.drop("delayed", not_before=time.time() + 600)
    until(lambda: list((rig.queue / "delayed").glob("*.delayed.json")), "it waits in delayed/")
    for name, was in (("waiting", "waiting"), ("delayed", "waiting"), ("running", "running")):
        assert supervisor.ask("cancel", id=name)["was"] == was
        found = rig.record(name)
        assert found["status"] == "failed" and found["error"]["cause"] == "cancelled"
    rig.drop("after")
    assert rig.record("after")["status"] == "done"
    rig.check(may_fail=["waiting", "delayed", "running"])


def test_a_frozen_worker_that_takes_up_nothing_is_replaced(rig: Rig) -> None:
    supervisor = rig.start(workers=1, settings={"take_after_s": 1.5, "heartbeat_s": 0.1})
    rig.drop("warm")
    rig.record("warm")
    [frozen] = workers(supervisor)
    os.kill(frozen, signal.SIGSTOP)
    rig.drop("a1")
    assert rig.record("a1")["runner_result"]["crashes"] == 0
    until(lambda: not is_alive(frozen), "it is ended")
    until(lambda: events(supervisor, "worker_died"), "its end is noticed")
    assert events(supervisor, "worker_died")[0]["cause"] == "lost"
