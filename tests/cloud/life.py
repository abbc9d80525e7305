"""Machines and supervisors that die at the wrong moment: `make cloud`, some minutes. Every machine is real sshd on loopback."""

from __future__ import annotations

import json
import os
import signal

import pytest
from dspy_supervisor.layout import Layout
from dspy_supervisor.services.cloud import warden
from dspy_supervisor.services.cloud.book import Book

from tests.cloud.conftest import put, wardens
from tests.cloud.machine import Machine
from tests.conftest import until

pytestmark = pytest.mark.timeout(300)
LONG_S = 90


def record(queue, task_id, state="done"):
    path = queue / state / f"{task_id}.json"
    until(path.exists, f"{task_id} is {state}", LONG_S)
    return json.loads(path.read_text())


def runs(log):
    """Return the runs that were begun: task, attempt, machine."""
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def service(one):
    return one.status()["services"]["cloud"]["pid"]


@pytest.fixture
def begun(cloud):
    """A supervisor, a task that waits for its gate on a machine, and both files."""
    log, gate = cloud.folder / "runs", cloud.folder / "gate"
    one = cloud.start()
    put(one.queue, "a1", {"log": str(log), "gate": str(gate)})
    until(lambda: runs(log), "it runs", LONG_S)
    return one, log, gate


def test_a_machine_that_dies_gives_its_task_to_another_and_the_task_is_not_charged(cloud, begun):
    one, log, gate = begun
    cloud.booted[0].die()
    cloud.account.die()
    until(lambda: len(runs(log)) == 2, "it runs again", LONG_S)
    gate.touch()
    found = record(one.queue, "a1")
    assert [entry["cause"] for entry in found["history"]] == ["lost"] and found["attempt"] == 1
    assert found["runner_result"]["where"] == str(cloud.booted[1].home)
    assert len(cloud.account.orders) == 2


def test_a_machine_that_can_not_be_reached_is_deleted_and_its_task_runs_elsewhere(cloud):
    log, gate = cloud.folder / "runs", cloud.folder / "gate"
    one = cloud.start(cloud_lost_s=8)
    put(one.queue, "a1", {"log": str(log), "gate": str(gate)})
    until(lambda: runs(log), "it runs", LONG_S)
    first = cloud.account.live[0]
    cloud.booted[0].die()  # and its provider says that it is well
    until(lambda: first["status"] == "TERMINATED", "it is deleted", LONG_S)
    gate.touch()
    record(one.queue, "a1")
    assert len(runs(log)) == 2


def test_a_service_that_is_killed_goes_on_with_the_machine_and_what_runs_there(cloud, begun):
    one, log, gate = begun
    for number in (signal.SIGKILL, signal.SIGKILL):
        pid = service(one)
        os.kill(pid, number)
        until(lambda pid=pid: service(one) not in (None, pid), "another is there", LONG_S)
    gate.touch()
    assert record(one.queue, "a1")["attempt"] == 0
    assert len(runs(log)) == 1 and len(cloud.account.orders) == 1


def test_a_reload_leaves_machine_and_task_alone(cloud, begun):
    one, log, gate = begun
    pid = service(one)
    (cloud.folder / ".env").write_text("DSPY_CLOUD_IDLE_S=77\n")
    one.signal(signal.SIGHUP)
    until(lambda: service(one) not in (None, pid), "the service is another", LONG_S)
    gate.touch()
    record(one.queue, "a1")
    assert len(runs(log)) == 1 and len(cloud.account.orders) == 1


def test_a_supervisor_that_is_killed_and_started_again_goes_on_with_the_machine(cloud, begun):
    one, log, gate = begun
    one.kill()
    again = cloud.start()
    gate.touch()
    record(again.queue, "a1")
    assert len(runs(log)) == 1 and len(cloud.account.orders) == 1
    assert again.stop() == 0 and not cloud.account.live


def test_the_machines_of_a_killed_supervisor_are_deleted_by_its_warden(cloud, begun):
    one, _, _ = begun
    one.kill()
    until(lambda: not cloud.account.live, "its machine is deleted", warden.GRACE_S + LONG_S)
    with Layout.open(one.queue) as layout:
        book = Book(layout)
        until(lambda: not book.open(), "the book knows it")
        assert book.entries()[0].why == "its supervisor was killed"
        book.close()
    until(lambda: not wardens(cloud.folder), "and it ends")


def test_a_stop_lets_what_runs_end_and_gives_back_what_does_not(cloud, begun):
    one, log, _ = begun
    put(one.queue, "a2", {"log": str(log)})
    assert one.stop(LONG_S) == 0
    assert not cloud.account.live
    left = [*(one.queue / "pending").iterdir(), *(one.queue / "delayed").iterdir()]
    assert {path.name.partition("~")[0].removesuffix(".json") for path in left} | {
        path.stem for path in (one.queue / "done").glob("*.json")
    } == {"a1", "a2"}
    assert (one.queue / "pending" / "a1~1x0.json").exists()


def test_a_task_can_be_cancelled_where_it_runs(cloud, begun):
    one, _, _ = begun
    assert one.ask("cancel", id="a1")["was"] == "running"
    assert record(one.queue, "a1", "failed")["error"]["cause"] == "cancelled"


def test_at_the_spend_cap_machines_go_although_work_waits(cloud):
    cloud.account.offers[0]["prices"] = {"onDemand": 720.0, "currency": "USD"}  # 0.2 $ a second
    cloud.account.offers[0].pop("disk")
    log, gate = cloud.folder / "runs", cloud.folder / "gate"
    one = cloud.start(cloud_max_price=720, cloud_spend_cap=14, drain_s=5)
    put(one.queue, "a1", {"log": str(log), "gate": str(gate)})
    until(lambda: cloud.account.pods, "a machine is ordered", LONG_S)
    until(lambda: not cloud.account.live, "it is deleted", LONG_S)
    until(lambda: "spend cap" in (one.status()["services"]["cloud"]["problem"] or ""), "it is said why")
    state = one.status()["services"]["cloud"]
    assert state["spent"] <= 14 and len(cloud.account.pods) == 1
    assert "spend cap" in one.ask("explain", id="a1")["explanation"]


def test_an_idle_machine_is_deleted(cloud):
    one = cloud.start(cloud_idle_s=2)
    put(one.queue, "a1", {})
    record(one.queue, "a1")
    until(lambda: not cloud.account.live, "it is gone", LONG_S)


def test_hosts_of_ones_own_take_tasks_and_are_left_in_peace(cloud):
    machines = [Machine(cloud.folder / "pods" / name, cloud.settings["cloud_ssh_key"]) for name in ("one", "two")]
    cloud.booted.extend(machines)
    hosts = ",".join(machine.host for machine in machines)
    log, gate = cloud.folder / "runs", cloud.folder / "gate"
    one = cloud.start(cloud_provider="ssh", cloud_hosts=hosts, cloud_pods=2, cloud_max_price=0, cloud_spend_cap=0)
    for number in range(4):
        put(one.queue, f"a{number}", {"log": str(log), "gate": str(gate)})
    until(lambda: {where for _, _, where in runs(log)} == {str(m.home) for m in machines}, "both work", LONG_S)
    gate.touch()
    for number in range(4):
        record(one.queue, f"a{number}")
    assert one.stop(LONG_S) == 0 and not cloud.account.orders
    for machine in machines:
        until(
            lambda machine=machine: not any("start" in p.cmdline() for p in machine.processes() if p.is_running()),
            "its supervisor ended",
        )


def test_files_and_setup_come_before_the_first_task(cloud):
    code = cloud.folder / "fresh_handlers.py"
    code.write_text("from pathlib import Path\ndef read(task):\n    return Path('setup.txt').read_text()\n")
    one = cloud.start(
        handlers={"cpu_long": "fresh_handlers:read"}, cloud_files=code, cloud_setup="echo ready > setup.txt"
    )
    put(one.queue, "a1", {})
    assert record(one.queue, "a1")["runner_result"] == "ready\n"


def test_a_setup_that_fails_is_told_and_the_machine_is_given_up(cloud):
    one = cloud.start(cloud_setup="echo no such wheel >&2; exit 3", cloud_boot_s=8)
    put(one.queue, "a1", {})
    until(lambda: "no such wheel" in str(one.status()["services"]["cloud"]), "it is told", LONG_S)
    until(lambda: any(pod["status"] == "TERMINATED" for pod in cloud.account.pods.values()), "it is deleted", LONG_S)
