"""An upgrade beside what workers do in other ways: behind the walls of a sandbox, by commands, with what they keep."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from dspy_supervisor import __version__

from ..conftest import Supervised, until
from .conftest import PATIENCE_S, Rig, events, workers
from .test_environments import COUNTING
from .test_upgrade import is_now

WAITS = ["sh", "-c", "touch begun; until [ -e go ]; do sleep 0.05; done; pwd"]


def turn(one: Supervised, number: int = 1) -> None:
    """Let the supervisor become the same program once more."""
    one.signal(signal.SIGUSR2)
    is_now(one, __version__, number)


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
