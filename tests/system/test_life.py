"""Workers and supervisors that are killed at any moment: nothing is lost, nothing counts twice."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from dspy_supervisor.filesystem import filesystem
from dspy_supervisor.runtime import boot_id
from prometheus_client.parser import text_string_to_metric_families

from ..conftest import until
from .invariants import record, runs
from .rig import Rig, events, guard, is_alive, kill_whole, workers

TASKS = 2000

#: a task is never given up, however often its worker is killed
UNBOUNDED: dict[str, object] = {
    "breaker_starts": 1000,
    "max_deliveries": 1000,
    "class.cpu_short.max_crashes": 1000,
    "class.cpu_short.max_attempts": 1000,
}


def test_a_task_travels_from_a_file_to_its_record(rig: Rig) -> None:
    rig.start()
    rig.drop("a1", {"n": 1})
    assert rig.record("a1")["runner_result"] == {"n": 1, "attempt": 0, "crashes": 0}
    assert not (rig.queue / "pending" / "a1.json").exists()
    until(lambda: not list((rig.queue / "done").glob(".*")), "the commit is forgotten")
    rig.check(drained=True)


def test_random_kills_of_workers_and_supervisors_lose_and_double_nothing(rig: Rig) -> None:
    chance = random.Random(1)
    settings = UNBOUNDED | {"durability": "none"}
    supervisor = rig.start(settings=settings)
    killed = 0
    for number in range(TASKS):
        rig.drop(f"t{number:04d}", {"n": number})
        if number % 40 == 0:
            killed += _kill_one(workers(supervisor), chance)
        if number % 250 == 200:
            kill_whole(supervisor)
            supervisor = rig.start(settings=settings)
    while rig.ended() < TASKS and killed < 100:
        before = rig.ended()
        until(lambda before=before: rig.ended() > before or rig.ended() == TASKS, "work goes on")
        killed += _kill_one(workers(supervisor), chance)
    rig.drain()
    assert supervisor.stop() == 0
    assert killed >= 30  # fewer than were tried: now and then there was no worker to kill
    rig.check(drained=True)
    real = runs(rig.log)
    assert len(real) == TASKS
    assert len(list((rig.queue / "done").glob("*.json"))) == TASKS
    for name, number in real.items():  # each attempt ran at most once
        found = record(rig.queue, name)
        assert f"t{found['runner_result']['n']:04d}" == name
        assert number <= found["attempt"] + 1


def _kill_one(pids: list[int], chance: random.Random) -> int:
    if not pids:
        return 0
    with contextlib.suppress(ProcessLookupError):  # it ended by itself this moment
        os.kill(chance.choice(pids), signal.SIGKILL)
    return 1


def test_a_killed_supervisor_takes_workers_and_their_commands_with_it(rig: Rig, tmp_path: Path) -> None:
    supervisor = rig.start(settings={"kinds": "echo,command"}, workers=1)
    mark = tmp_path / "command.pid"
    rig.drop(
        "slow", {"argv": ["/bin/sh", "-c", f"echo $$ > {mark}.new; mv {mark}.new {mark}; sleep 600"]}, kind="command"
    )
    pid = int(until(lambda: mark.exists() and mark.read_text(), "the command runs"))
    kill_whole(supervisor)
    until(lambda: not is_alive(pid), "the command dies with its worker")
    rig.start(settings={"kinds": "echo,command"}, workers=1)
    until(lambda: rig.claims() == ["slow~1x0.json"], "it runs again, and it was not its own fault")


def test_what_a_task_started_in_a_session_of_its_own_goes_too_also_without_the_guard(rig: Rig, tmp_path: Path) -> None:
    for number in range(2):
        supervisor = rig.start()
        mark = tmp_path / f"{number}.pid"
        rig.drop(f"t{number}", {"do": "daemon", "pid_file": str(mark), "hang": True})
        pid = int(until(lambda mark=mark: mark.exists() and mark.read_text(), "the grandchild runs"))
        if number:  # both at once: then it is the next start that ends it
            stopped = until(lambda supervisor=supervisor: guard(supervisor), "the guard runs")
            os.kill(stopped, signal.SIGSTOP)
            supervisor.kill()
            os.kill(stopped, signal.SIGKILL)
            assert is_alive(pid)
            rig.start()
        else:
            supervisor.kill()
        until(lambda pid=pid: not is_alive(pid), "the grandchild is gone")


def test_a_guard_that_is_killed_is_replaced_and_one_that_is_not_needed_ends(rig: Rig) -> None:
    supervisor = rig.start(workers=1)
    first = until(lambda: guard(supervisor), "the guard runs")
    os.kill(first, signal.SIGKILL)
    second = until(lambda: (found := guard(supervisor)) != first and found, "another takes its place")
    assert supervisor.stop() == 0
    assert not is_alive(second)


def test_only_the_task_of_a_killed_worker_is_charged(rig: Rig) -> None:
    supervisor = rig.start(settings={"sweep_s": 600})
    gates = [rig.gate("first"), rig.gate("second")]
    for gate in gates:
        gate.wait()
    victim = next(int(line.split()[2]) for line in rig.log.read_text().splitlines() if line.startswith("first"))
    os.kill(victim, signal.SIGKILL)
    until(lambda: runs(rig.log)["first"] == 2, "it runs again")
    for gate in gates:
        gate.open()
    first = rig.record("first")
    assert first["runner_result"] == {"n": None, "attempt": 1, "crashes": 1}
    assert rig.record("second")["runner_result"] == {"n": None, "attempt": 0, "crashes": 0}
    [attempt] = first["history"]
    assert (attempt["cause"], attempt["signal"], attempt["attempt"]) == ("signal", "SIGKILL", 0)
    assert [event["worker"] for event in events(supervisor, "worker_died")] == [victim]


def test_metrics_add_up_to_what_lies_in_the_folders(rig: Rig) -> None:
    supervisor = rig.start(settings={"class.cpu_short.max_attempts": 1})
    for number in range(20):
        rig.drop(f"t{number}", {"do": "raise"} if number % 4 == 0 else {"n": number})
    until(lambda: rig.ended() == 20, "all have ended")
    order = [sys.executable, "-m", "dspy_supervisor", "metrics", "--queue-dir", str(rig.queue)]
    order += ["--set", f"runtime_dir={supervisor.runtime}"]

    def counted() -> dict[str, float]:
        ran = subprocess.run(order, capture_output=True, text=True, check=True)
        found = text_string_to_metric_families(ran.stdout)
        samples = [
            sample for family in found for sample in family.samples if sample.name == "dspy_supervisor_tasks_total"
        ]
        return {one.labels["outcome"]: one.value for one in samples if one.labels["class"] == "cpu_short"}

    until(lambda: counted() == {"done": 15.0, "failed": 5.0, "retried": 0.0, "refused": 0.0}, "all are counted")
    assert len(list((rig.queue / "done").glob("*.json"))) == 15
    rig.check(may_fail=[f"t{number}" for number in range(0, 20, 4)])


def left_in(folder: Path) -> set[Path]:
    """Return what is in a runtime folder, but the caches of compiled code."""
    return {path for path in folder.iterdir() if not path.is_dir()}


@pytest.mark.parametrize("is_upgraded", [False, True])
def test_nothing_is_left_in_the_runtime_folder_by_one_that_ends_in_order(rig: Rig, is_upgraded: bool) -> None:
    """It lies in memory, and each queue has names of its own there."""
    supervisor = rig.start(settings={"llm_budgets": "m=60rpm"})
    rig.drop("a1")
    rig.record("a1")
    if is_upgraded:
        supervisor.signal(signal.SIGUSR2)
        until(lambda: events(supervisor, "taken_over"), "it is the next program")
    assert {".lock", ".page", ".sock"} <= {path.suffix for path in left_in(supervisor.runtime)}
    assert supervisor.stop() == 0
    kept = {".boot"} if filesystem(rig.folder).tears_renames else set()
    assert {path.suffix for path in left_in(supervisor.runtime)} == kept


def test_what_a_killed_one_left_in_the_runtime_folder_goes_after_a_day(rig: Rig) -> None:
    killed = rig.start(queue=rig.folder / "first")
    killed.kill()
    of_killed = left_in(killed.runtime)
    assert {".lock", ".page", ".sock"} <= {path.suffix for path in of_killed}
    other = rig.start()
    assert of_killed <= left_in(killed.runtime)  # it may be started again
    of_living = left_in(killed.runtime) - of_killed
    for path in of_killed | of_living:
        os.utime(path, (1.0, 1.0))
    last = rig.start(queue=rig.folder / "last")
    left = left_in(killed.runtime)
    assert of_living <= left and not of_killed & left
    assert other.status()["running"] and last.stop() == 0


@pytest.mark.parametrize("program", ["tests.system.tearing", "dspy_supervisor"])
def test_the_first_start_after_a_boot_clears_what_a_power_cut_left_beside_a_record(rig: Rig, program: str) -> None:
    tears = program == "tests.system.tearing" or filesystem(rig.folder).tears_renames
    supervisor = rig.start(program=program)
    for task_id in ("a1", "b1"):
        rig.drop(task_id, {})
        rig.record(task_id)
    note = supervisor.socket.with_suffix(".boot")
    supervisor.stop()
    assert note.exists() == tears
    left = json.dumps({"payload": {"do": "echo", "log": str(rig.log)}})  # without the id, which is in the name
    (rig.queue / "pending" / "b1.json").write_text(left)
    again = rig.start(program=program, settings={"partial_grace_s": 0.1})
    until(rig.quarantined, "an equal task that comes again, later, is set aside with its reason")
    again.stop()
    note.write_text("the boot before")
    (rig.queue / "pending" / "a1.json").write_text(left)
    last = rig.start(program=program, settings={"partial_grace_s": 0.1})
    if tears:
        assert [one["quarantined"] for one in events(last, "recovered")] == [1]
        assert not (rig.queue / "pending" / "a1.json").exists()
    else:
        until(lambda: len(rig.quarantined()) == 2, "where no rename is torn it is another producer's")
    assert runs(rig.log) == {"a1": 1, "b1": 1}
    assert not tears or note.read_text() == boot_id()
