"""An upgrade beside what workers do in other ways: behind walls, by commands, on GPUs, twice, with what they keep."""

from __future__ import annotations

from typing import Any

import pytest

from ..conftest import until
from .gpu_handlers import devices
from .gpu_rig import GIB, A, B, Gpus, Tell, gpu, until_it_waits
from .rig import PATIENCE_S, Rig, events, is_alive, klass, turn, workers
from .test_environments import COUNTING
from .twice import Twice

WAITS = ["sh", "-c", "touch begun; until [ -e go ]; do sleep 0.05; done; pwd"]


@pytest.mark.parametrize("sandbox", ["namespaces", "landlock"])
def test_a_command_goes_on_in_its_sandbox_through_an_upgrade(rig: Rig, sandbox: str) -> None:
    settings: dict[str, object] = {"kinds": "command", "class.cpu_short.sandbox": sandbox}
    one = rig.start("--kinds", "command", workers=2, settings=settings)
    home = rig.queue / "logs" / "long"
    rig.drop("long", {"argv": WAITS}, kind="command")
    until((home / "begun").exists, "the command runs", PATIENCE_S)
    for number in (1, 2):
        turn(one, number)
        rig.drop(f"next{number}", {"argv": ["sh", "-c", f"cat {rig.queue}/queue.json"]}, kind="command")
        found = rig.record(f"next{number}")
        # The workers of the next program have walls as well: the queue is out of sight.
        assert found["status"] == "failed", found
    (home / "go").touch()
    ended = rig.record("long")
    assert (ended["status"], ended["attempt"]) == ("done", 0)
    assert ended["runner_result"]["stdout_tail"].strip() == str(home)
    rig.check(may_fail=["next1", "next2"])
    assert one.stop() == 0


def test_an_environment_that_a_worker_keeps_lives_on_through_an_upgrade(rig: Rig) -> None:
    one = rig.start(workers=1, handlers={"cpu_short": "environment"}, settings=dict(COUNTING))

    def step(task_id: str, action: str) -> dict[str, Any]:
        rig.drop(task_id, {"env_id": "a", "action": action}, kind="environment")
        result: dict[str, Any] = rig.record(task_id)["runner_result"]
        return result

    home = step("init", "init")["state"]["pid"]
    for number in (1, 2):
        turn(one, number)
        assert step(f"step{number}", "step")["state"] == {"count": number, "pid": home}
    [stays] = [line for line in events(one, "worker_stays") if line["worker"] == home][:1]
    assert stays["environments"] == 1
    step("close", "close")
    until(lambda: home not in workers(one), "a worker of the first program ends when it keeps nothing more")
    assert one.stop() == 0


def test_what_a_task_has_of_the_gpus_stays_its_own_through_an_upgrade(gpus: Gpus, tell: Tell) -> None:
    tell(gpu(A), gpu(B))
    one = gpus.begin(3)
    held = gpus.wait_in("held", gpus=1)
    held.wait()
    part = gpus.wait_in("part", gpu_memory="8G")
    part.wait()
    for number in (1, 2):
        turn(one, number)
        shown = {found["uuid"]: found["tasks"] for found in klass(one, "gpu")["gpus"]}
        assert {uuid: list(tasks) for uuid, tasks in shown.items()} == {A: ["held"], B: ["part"]}
        assert shown[B]["part"]["memory"] == 8 * GIB
        beside = gpus.result(gpus.ask(f"small{number}", gpu_memory="3G"))
        assert devices(beside) == [B]
    gpus.ask("large", gpu_memory="15G")
    until_it_waits(one, "large", "taken by other tasks")
    for gate in (held, part):
        gate.open()
    assert [devices(gpus.result(name)) for name in ("held", "part")] == [[A], [B]]
    assert {gpus.record(name)["attempt"] for name in ("held", "part")} == {0}
    gpus.drain()
    gpus.check(drained=True)


def test_of_a_task_that_runs_twice_the_first_run_goes_on_through_an_upgrade(rig: Rig, twice: Twice) -> None:
    one = twice.supervisor
    twice.put("first", "second")
    first, second = twice.both()
    turn(one)
    assert is_alive(first)
    until(lambda: not is_alive(second), "the second run ends: nobody would wait for it")
    (twice.path / "first").touch()
    record = rig.record("long")
    assert (record["runner_result"], record["attempt"]) == (first, 0)
    for number in range(20):
        rig.drop(f"again{number}", kind="twice")
    rig.drain(41)
    assert not events(one, "worker_died")
    until(lambda: not list(rig.queue.glob("logs/long/second.*")), "nothing is left over")
    rig.check(drained=True)
