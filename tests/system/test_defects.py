"""Defects of the original system that this one replaces, by the numbers of their list: each was seen there, none may return."""

from __future__ import annotations

import signal

from ..conftest import until
from .invariants import record, runs
from .rig import Rig, kill_whole, klass


def test_defect_1_a_failed_task_does_not_end_the_service(rig: Rig) -> None:
    supervisor = rig.start(settings={"class.cpu_short.max_attempts": 1})
    for number in range(20):
        rig.drop(f"bad{number}", {"do": "raise"})
    rig.drain()
    rig.drop("good")
    assert rig.record("good")["status"] == "done"
    assert supervisor.process.poll() is None


def test_defect_7_every_one_of_1100_tasks_at_once_is_executed(rig: Rig) -> None:
    supervisor = rig.start(settings={"durability": "none"})
    supervisor.signal(signal.SIGSTOP)  # so that all of them come in one rush
    for number in range(1100):
        rig.drop(f"t{number}")
    supervisor.signal(signal.SIGCONT)
    rig.drain()
    assert len(list((rig.queue / "done").glob("*.json"))) == 1100
    assert sorted(runs(rig.log).values()) == [1] * 1100


def test_defect_8_half_a_file_is_never_run(rig: Rig) -> None:
    rig.start(workers=1, settings={"sweep_s": 0.1})
    path = rig.queue / "pending" / "half.json"
    with path.open("w") as file:
        file.write('{"payload": {"do": "echo", "n": 1')
        file.flush()
        rig.drop("other")
        rig.record("other")
        assert path.exists() and rig.ended() == 1
        file.write("23}}")
    assert rig.record("half")["runner_result"]["n"] == 123


def test_defect_9_what_cannot_be_parsed_is_not_deleted(rig: Rig) -> None:
    rig.start(workers=1, settings={"sweep_s": 0.1, "partial_grace_s": 0.2})
    (rig.queue / "pending" / "broken.json").write_text("{broken")
    [kept] = until(lambda: list(rig.queue.glob("quarantine/broken.*.json")), "it is kept aside")
    assert kept.read_text() == "{broken"


def test_defect_10_what_a_crash_left_is_run_but_not_for_ever(rig: Rig) -> None:
    settings: dict[str, object] = {"max_deliveries": 3}
    rig.gate("endless")
    rig.drop("waits")
    for delivery in range(1, 4):
        supervisor = rig.start(workers=1, settings=settings)
        until(lambda delivery=delivery: runs(rig.log)["endless"] == delivery, "it runs")
        kill_whole(supervisor)
    rig.start(workers=1, settings=settings)
    error = rig.record("endless")["error"]
    assert error["cause"] == "deliveries"
    assert rig.record("waits")["status"] == "done"
    rig.check(may_fail=["endless"])


def test_defect_13_the_depth_is_that_of_the_folder(rig: Rig) -> None:
    supervisor = rig.start(settings={"sweep_s": 0.2})
    supervisor.ask("pause")
    for number in range(200):
        rig.drop(f"t{number}", {"do": "raise_until", "until": number % 2})
    until(lambda: klass(supervisor)["pending"] == 200, "all are counted once")
    for number in range(50):  # somebody takes some away
        (rig.queue / "pending" / f"t{number}.json").unlink()
    until(lambda: klass(supervisor)["pending"] == 150, "they are counted no more")
    supervisor.ask("resume")
    rig.drain(150)
    until(lambda: supervisor.status()["delayed"] == 0, "nothing is delayed")
    status = klass(supervisor)
    assert (status["pending"], status["inflight"], status["done"], status["retried"]) == (0, 0, 150, 75)


def test_defect_14_failures_are_counted_when_everything_fails(rig: Rig) -> None:
    supervisor = rig.start(settings={"class.cpu_short.max_attempts": 2})
    for number in range(10):
        rig.drop(f"bad{number}", {"do": ("raise", "segfault")[number % 2]})
    rig.drain()
    until(lambda: klass(supervisor)["failed"] == 10, "all are counted")
    assert klass(supervisor)["done"] == 0
    assert klass(supervisor)["retried"] == 10


def test_defect_15_tasks_run_in_the_order_they_came_and_a_new_limit_is_heard_at_once(rig: Rig) -> None:
    supervisor = rig.start(workers=1, settings={"sweep_s": 600})
    supervisor.ask("pause")
    for number in range(30):
        rig.drop(f"{30 - number:02d}")
    until(lambda: klass(supervisor)["pending"] == 30, "all are known")
    supervisor.ask("resume")
    rig.drain()
    assert [line.split()[0] for line in rig.log.read_text().splitlines()] == [
        f"{30 - number:02d}" for number in range(30)
    ]
    gates = [rig.gate("a"), rig.gate("b")]
    until(lambda: sum(gate.begun.exists() for gate in gates) == 1, "one runs")
    supervisor.ask("limit", **{"class": "cpu_short", "limit": 2})
    for gate in gates:
        gate.wait()
    for gate in gates:
        gate.open()
    rig.drain()


def test_defect_16_a_text_is_a_payload(rig: Rig) -> None:
    rig.start(workers=1, handlers={"cpu_short": "echo"})
    (rig.queue / "pending" / "text.json").write_text('{"id": "text", "payload": "just text"}')
    assert rig.record("text")["runner_result"] == "just text"


def test_defect_18_a_shutdown_lets_running_work_end(rig: Rig) -> None:
    supervisor = rig.start(workers=2)
    gates = [rig.gate("a"), rig.gate("b")]
    for gate in gates:
        gate.wait()
    supervisor.signal(signal.SIGINT)
    until(lambda: klass(supervisor) and supervisor.status()["stopping"], "it drains, and still answers")
    for gate in gates:
        gate.open()
    assert supervisor.wait() == 0
    assert [record(rig.queue, name)["status"] for name in "ab"] == ["done", "done"]
    rig.check(drained=True)
