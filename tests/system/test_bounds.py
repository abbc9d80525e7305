"""What a class may use of the host: memory and CPU time of a task with all that it starts, CPUs, politeness, variables."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from ..conftest import until
from .rig import Rig, events

ONCE: dict[str, object] = {"class.cpu_short.max_attempts": 1, "class.cpu_short.max_ooms": 1, "kill_grace_s": 0.3}


def bounded(**bounds: object) -> dict[str, object]:
    return ONCE | {f"class.cpu_short.{name}": value for name, value in bounds.items()}


def test_a_task_over_its_memory_is_ended_and_the_record_says_how_much_it_may_have(rig: Rig) -> None:
    rig.start(workers=1, settings=bounded(memory_bytes="256M"))
    rig.drop("hog", {"do": "hog", "bytes": 400 << 20})
    rig.drop("next")
    error = rig.record("hog")["error"]
    assert error["cause"] == "host_oom"
    assert "0.25 GiB are allowed (memory_bytes)" in error["message"]
    assert rig.record("next")["status"] == "done"


def test_what_a_command_starts_counts_as_memory_of_its_task(rig: Rig) -> None:
    rig.start("--kinds", "command", workers=1, settings=bounded(memory_bytes="100M"))
    hog = "import time; block = b'x' * (200 << 20); time.sleep(600)"
    rig.drop("hog", {"argv": ["sh", "-c", '"$0" -c "$1" & wait', sys.executable, hog]}, kind="command")
    assert rig.record("hog")["error"]["cause"] == "host_oom"


def test_a_task_that_starts_more_processes_than_it_may_is_ended_with_all_of_them(rig: Rig) -> None:
    supervisor = rig.start("--kinds", "command", workers=1, settings=bounded(max_processes=10))
    bomb = "for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do sleep 600 & done; wait"
    rig.drop("bomb", {"argv": ["sh", "-c", bomb]}, kind="command")
    rig.drop("next")
    message = rig.record("bomb")["error"]["message"]
    assert "10 are allowed (max_processes)" in message or "pids.max" in message, message
    assert rig.record("next")["status"] == "done"
    assert not [child for child in supervisor.children() if child.name() == "sleep"]


def test_a_task_over_its_cpu_time_is_out_of_time_and_its_stacks_are_kept(rig: Rig) -> None:
    rig.start(workers=1, settings=bounded(cpu_time_s=1))
    rig.drop("spins", {"do": "spin_in_c"})
    rig.drop("next")
    error = rig.record("spins")["error"]
    assert error["cause"] == "timeout"
    assert "1 s are allowed (cpu_time_s)" in error["message"]
    assert "_spin_in_c" in error["stacks"]
    assert rig.record("next")["status"] == "done"


def test_workers_have_the_cpus_the_politeness_and_the_variables_of_their_class(rig: Rig, tmp_path: Path) -> None:
    cpu = min(os.sched_getaffinity(0))
    secret = tmp_path / "token"
    secret.write_text("TOKEN=a,b\n# a comment\n\nDSPY_TASK_NODE=forged\n")
    places = {f"class.cpu_short.{name}": value for name, value in {"cpus": f"{cpu}-{cpu}", "nice": 3}.items()}
    supervisor = rig.start(
        "--kinds", "command", workers=1, settings=places, environ={"DSPY_CPU_SHORT_ENVIRONMENT_FILE": str(secret)}
    )
    rig.drop("place", {"do": "place", "names": ["TOKEN", "DSPY_TASK_NODE"]})
    rig.drop("printed", {"argv": ["sh", "-c", 'echo "token $TOKEN"']}, kind="command")
    found = rig.record("place")["runner_result"]
    assert (found["cpus"], found["nice"] - os.nice(0), found["variables"]["TOKEN"]) == ([cpu], 3, "a,b")
    assert found["variables"]["DSPY_TASK_NODE"] != "forged"
    assert "token a,b" in rig.record("printed")["runner_result"]["stdout_tail"]
    assert "a,b" not in supervisor.log


def test_cpus_that_are_not_here_fail_the_class_with_those_that_are(rig: Rig) -> None:
    supervisor = rig.start(workers=1, settings={"class.cpu_short.cpus": "4000-4001", "breaker_starts": 1}, ready=True)
    until(lambda: events(supervisor, "class_failed"), "the class is failed")
    assert "class.cpu_short.cpus='4000-4001': expected CPUs that are here: " in supervisor.log


def test_a_reload_gives_workers_their_new_bounds(rig: Rig, tmp_path: Path) -> None:
    settings = tmp_path / "x.toml"
    settings.write_text("[class.cpu_short]\nnice = 1\n")
    supervisor = rig.start("--config", str(settings), workers=1)
    settings.write_text(
        "[class.cpu_short]\nnice = 2\nlimit_max = 1\nmemory_bytes = '1G'\nenvironment = {TOKEN = 'x'}\n"
    )
    supervisor.signal(signal.SIGHUP)
    until(lambda: events(supervisor, "reloaded"), "the configuration is read anew")
    rig.drop("place", {"do": "place", "names": ["TOKEN"]})
    found = rig.record("place")["runner_result"]
    assert (found["nice"] - os.nice(0), found["variables"]) == (2, {"TOKEN": "x"})
    (reloaded,) = events(supervisor, "reloaded")
    assert "class.cpu_short.environment" in str(reloaded)
