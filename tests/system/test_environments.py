"""Tasks with a key: in order, on the worker that holds it; environments live there, and are told of once when it is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dspy_supervisor import Queue
from dspy_supervisor.environments import Marks
from dspy_supervisor.layout import Layout
from dspy_supervisor.pause import Pause

from ..conftest import ROOT, Supervised, until
from .rig import Rig, events, kill_whole, klass, workers

COUNTING = {"environments": "counting=tests.system.environments:Counting", "kinds": "environment"}


def _serve(rig: Rig, *options: str, workers: int = 2, **settings: object) -> Supervised:
    handlers = {"cpu_short": "environment"}
    return rig.start(*options, workers=workers, handlers=handlers, settings={**COUNTING, **settings})


def _ask(rig: Rig, task_id: str, env: str, action: str, **more: Any) -> dict[str, Any]:
    """Put one task of an environment and return its record."""
    rig.drop(task_id, kind="environment", payload={"env_id": env, "action": action, **more})
    return rig.record(task_id)


def _marks(rig: Rig) -> list[str]:
    with Layout.open(rig.queue, insecure=True) as layout:
        return sorted(mark.key for mark in Marks(layout).all())


def test_environments_are_spread_over_workers_and_each_stays_where_it_is(rig: Rig) -> None:
    supervisor = _serve(rig)
    until(lambda: len(workers(supervisor)) == 2, "both workers run")
    envs = ["a", "b", "c", "d"]
    homes = {env: _ask(rig, f"init-{env}", env, "init")["runner_result"]["state"]["pid"] for env in envs}
    assert sorted(list(homes.values()).count(pid) for pid in set(homes.values())) == [2, 2]
    for number in range(1, 4):
        for env in envs:
            found = _ask(rig, f"step-{env}-{number}", env, "step", action_data=number)["runner_result"]
            assert found["state"] == {"count": number, "pid": homes[env]}
            assert (found["success"], found["reward"], found["done"]) == (True, 1.0, False)
            assert found["info"] == {"action": number}
    assert klass(supervisor)["environments"] == 4 and _marks(rig) == envs
    assert _ask(rig, "reset-a", "a", "reset", seed=40)["runner_result"]["state"]["count"] == 40
    assert _ask(rig, "close-a", "a", "close")["runner_result"]["was_open"] is True
    refused = _ask(rig, "late", "a", "step")["error"]
    assert refused["cause"] == "refused" and "no environment 'a'" in refused["message"] and "traceback" not in refused
    assert klass(supervisor)["environments"] == 3 and _marks(rig) == envs[1:]


def test_what_is_put_all_at_once_runs_in_the_order_it_came(rig: Rig) -> None:
    for number in range(40):
        for env in "abc":
            action = {"action": "step", "action_data": number} if number else {"action": "init"}
            rig.drop(f"t{number:02d}-{env}", kind="environment", payload={"env_id": env, **action})
    _serve(rig)
    rig.drain()
    for env in "abc":
        counts = [rig.record(f"t{number:02d}-{env}")["runner_result"]["state"]["count"] for number in range(40)]
        assert counts == list(range(40))
    rig.check(drained=False)


def test_a_task_that_is_tried_again_holds_its_key_back_also_over_a_restart(rig: Rig) -> None:
    settings = {"retry_base_s": 20.0, "retry_cap_s": 20.0}
    supervisor = rig.start(workers=2, settings=settings)
    rig.drop("t1", {"do": "later", "delay_s": 5.0}, affinity="k")
    until(lambda: list(rig.queue.glob("delayed/*t1~1x0.json")), "the first attempt is put back")
    rig.drop("t2", {"do": "echo"}, affinity="k")
    rig.drop("free", {"do": "echo"}, affinity="l")
    assert rig.record("free")["status"] == "done"
    until(lambda: "next attempt of t1" in supervisor.ask("explain", id="t2")["explanation"], "it is explained")
    assert not (rig.queue / "done" / "t2.json").exists()
    kill_whole(supervisor)
    rig.start(workers=2, settings=settings)
    assert rig.record("t2")["attempt"] == 0
    first, second = rig.record("t1"), rig.record("t2")
    assert first["attempt"] == 1 and first["completed_at"] <= second["started_at"]


def test_a_killed_worker_gives_each_of_its_environments_one_env_lost(rig: Rig, tmp_path: Path) -> None:
    supervisor = _serve(rig, workers=1)
    for env in "abc":
        _ask(rig, f"init-{env}", env, "init")
    [pid] = workers(supervisor)
    gate = {"begun": str(tmp_path / "begun"), "gate": str(tmp_path / "gate")}
    rig.drop("in-hand", kind="environment", payload={"env_id": "a", "action": "step", "action_data": gate})
    rig.drop("behind", kind="environment", payload={"env_id": "a", "action": "step"})
    until((tmp_path / "begun").exists, "the step runs")
    until(
        lambda: "which runs and has its key 'a'" in supervisor.ask("explain", id="behind")["explanation"], "explained"
    )
    os.kill(pid, signal.SIGKILL)
    lost = rig.record("in-hand")
    assert lost["error"]["cause"] == "env_lost" and lost["error"]["last_cause"] == "signal" and lost["attempt"] == 0
    assert "SIGKILL" in lost["error"]["message"] and rig.record("behind")["error"]["cause"] == "refused"
    assert [_ask(rig, f"b{n}", "b", "step")["error"]["cause"] for n in range(3)] == ["env_lost", "refused", "refused"]
    assert "SIGKILL" in rig.record("b0")["error"]["message"]
    assert _ask(rig, "again", "c", "init")["status"] == "done"  # it asks for nothing of what was
    assert _ask(rig, "c1", "c", "step")["runner_result"]["state"]["count"] == 1
    until(lambda: _marks(rig) == ["c"], "what was told is forgotten")
    assert {event["key"] for event in events(supervisor, "env_lost")} == {"a", "b", "c"}
    assert _ask(rig, "init-a2", "a", "init")["status"] == "done"


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_what_ends_with_its_supervisor_is_told_after_the_restart_and_once(rig: Rig, tmp_path: Path, how: str) -> None:
    supervisor = _serve(rig)
    log = tmp_path / "env.log"
    for env in "ab":
        _ask(rig, f"init-{env}", env, "init", config={"log": str(log)})
    if how == "killed":
        kill_whole(supervisor)
    else:
        supervisor.stop()
        assert [line.split()[0] for line in log.read_text().splitlines()] == ["made", "made", "closed", "closed"]
    assert _marks(rig) == ["a", "b"]
    _serve(rig)
    assert [_ask(rig, f"a{n}", "a", "step")["error"]["cause"] for n in range(2)] == ["env_lost", "refused"]
    kill_whole(_last(rig))
    _serve(rig)
    assert [_ask(rig, f"x{n}", "a", "step")["error"]["cause"] for n in range(2)] == ["refused", "refused"]
    assert _ask(rig, "b0", "b", "step")["error"]["cause"] == "env_lost"
    until(lambda: not _marks(rig), "what was told is forgotten")


def _last(rig: Rig) -> Supervised:
    return rig.started[-1]


def test_a_task_that_makes_an_environment_and_dies_is_tried_again_as_any_other(rig: Rig, tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "mortal.py").write_text(
        "import os\n"
        "def run(task):\n"
        "    if task.payload == 'make':\n"
        "        if task.kept() is None:\n"
        "            task.keep({'made': task.attempt})\n"
        "            if not task.attempt: os.kill(os.getpid(), 9)\n"
        "    return task.kept()\n"
    )
    rig.start(handlers={"cpu_short": "mortal:run"})
    for name, what in (("m", "make"), ("n", "look")):
        path = rig.queue / "pending" / f".{name}"
        path.write_text(json.dumps({"id": name, "payload": what, "affinity": "k"}))
        path.rename(rig.queue / "pending" / f"{name}.json")
        found = rig.record(name)
        assert found["runner_result"] == {"made": 1}, found
    assert rig.record("m")["attempt"] == 1


def test_a_worker_due_to_be_replaced_stays_until_its_environments_are_closed(rig: Rig) -> None:
    supervisor = _serve(rig, workers=1, sweep_s=0.5, **{"class.cpu_short.max_tasks": 3})
    home = _ask(rig, "init", "a", "init")["runner_result"]["state"]["pid"]
    for number in range(6):
        assert _ask(rig, f"s{number}", "a", "step")["runner_result"]["state"]["pid"] == home
    until(lambda: len(workers(supervisor)) == 2, "another worker is there for the others")
    [words] = klass(supervisor)["environments_leaving"]
    assert str(home) in words and "environments are closed: 1" in words
    assert _ask(rig, "other", "b", "init")["runner_result"]["state"]["pid"] != home
    assert _ask(rig, "end", "a", "close")["status"] == "done"
    until(lambda: home not in workers(supervisor), "it goes when its environment is closed")
    assert not events(supervisor, "env_lost", "worker_died")


def test_an_unused_environment_is_closed_in_its_worker(rig: Rig, tmp_path: Path) -> None:
    supervisor = _serve(rig, env_idle_s=0.3, sweep_s=0.1)
    log = tmp_path / "env.log"
    home = _ask(rig, "init", "a", "init", config={"log": str(log)})["runner_result"]["state"]["pid"]
    until(lambda: "closed" in log.read_text(), "it is closed")
    assert log.read_text().splitlines() == [f"made {home} 0", f"closed {home} 0"]
    until(lambda: klass(supervisor)["environments"] == 0 and not _marks(rig), "it is forgotten")
    late = _ask(rig, "late", "a", "step")["error"]
    assert late["cause"] == "refused" and "env_idle_s" in late["message"]


def test_the_rl_runners_files_are_taken_and_answered_as_it_did(rig: Rig) -> None:
    _serve(rig, env_result_files=True)

    def write(name: str, task: dict[str, Any]) -> dict[str, Any]:
        with (rig.queue / "pending" / f"{name}.json").open("w") as file:  # in place, without an id or a payload key
            json.dump(task, file)
        path = rig.queue / "done" / f"{task.get('episode_id') or task['env_id'] + '_' + task['action']}_result.json"
        until(path.exists, f"{path.name} is there")
        found: dict[str, Any] = json.loads(path.read_bytes())
        path.unlink()
        return found

    config = {"memory_limit": "1GB", "cpu_limit": 1, "timeout": 30}
    made = write("rl_0_1", {"env_id": "rl_0", "action": "init", "config": config, "timestamp": 1.0})
    assert made["success"] is True and made["state"]["count"] == 0
    stepped = write("rl_0_2", {"env_id": "rl_0", "action": "step", "action_data": 1, "timestamp": 2.0})
    assert (stepped["success"], stepped["reward"], stepped["done"], stepped["info"]) == (
        True,
        1.0,
        False,
        {"action": 1},
    )
    assert stepped["state"] == {"count": 1, "pid": made["state"]["pid"]}
    assert write("rl_0_3", {"env_id": "rl_0", "action": "close", "timestamp": 3.0})["success"] is True
    failed = write("rl_0_4", {"env_id": "rl_0", "action": "step", "timestamp": 4.0})
    assert failed["success"] is False and "no environment 'rl_0'" in failed["error"]
    episode = write("ep_1", {"episode_id": "ep_1", "config": {"max_steps": 9, "goal": 5}, "actions": [1] * 20})
    assert (episode["success"], episode["total_reward"], episode["steps"], episode["done"]) == (True, 5.0, 5, True)
    outside = rig.drop("evil", kind="environment", payload={"env_id": "../../evil", "action": "init"})
    assert rig.record(outside)["status"] == "done"
    assert not list(rig.folder.rglob("*_result.json"))


def test_processes_of_an_environment_live_as_long_as_it_does(rig: Rig) -> None:
    supervisor = _serve(rig, workers=1)
    home = _ask(rig, "init", "a", "init")["runner_result"]["state"]["pid"]
    _ask(rig, "s1", "a", "step", action_data={"child": True})
    children = [child for child in supervisor.children() if child.ppid() == home]
    assert len(children) == 1
    _ask(rig, "s2", "a", "step")
    assert children[0].is_running()
    _ask(rig, "end", "a", "close")
    until(lambda: not children[0].is_running(), "it ends with its environment")


def test_the_example_walks_its_environments(rig: Rig) -> None:
    example = ROOT / "docs" / "examples" / "environments"
    rig.start(
        handlers={"cpu_short": "environment"},
        settings={"environments": "walk=walk:Walk"},
        environ={"PYTHONPATH": os.pathsep.join(filter(None, [str(example), os.environ.get("PYTHONPATH")]))},
    )
    command = [sys.executable, str(example / "play.py"), str(rig.queue), "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"walk-{number}" for number in range(4)]
    assert len({line.split(": ")[1] for line in lines}) == 1  # the same seed, the same walk


def test_tasks_without_a_key_that_came_later_do_not_keep_one_with_a_key_waiting(rig: Rig) -> None:
    """A worker that always has something in hand would never be free for it."""
    with Layout.open(rig.queue, create=True) as layout:
        Pause(layout).pause(None, "")
    supervisor = rig.start(workers=1, settings={"kinds": "echo"})
    with Queue(rig.queue) as queue:
        for first, last in ((0, 100), (100, 2000)):
            queue.submit_many([(None, {"id": f"plain-{n:04}"}) for n in range(first, last)], kind="echo")
            if not first:
                queue.submit(None, kind="echo", affinity="k", id="keyed")
        supervisor.ask("resume")
        queue.wait(["keyed", "plain-1999"], 60)
    ended = {name: rig.record(name)["completed_at"] for name in ("keyed", "plain-0000", "plain-1000")}
    assert ended["plain-0000"] < ended["keyed"] < ended["plain-1000"]
