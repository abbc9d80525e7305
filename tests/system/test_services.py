"""Services beside the workers: listened to, replaced, given up; and what they carry or steer comes to no harm."""

import os
import signal
import subprocess
import sys

import pytest
from dspy_supervisor.client import Queue

from tests.conftest import until

CREW = "tests.system.crew"


@pytest.fixture
def crew(tmp_path):
    """A function that tells a service what to do."""
    (tmp_path / "crew").mkdir()

    def tell(name: str, word: object) -> None:
        new = tmp_path / "crew" / f"{name}.new"
        new.write_text(str(word))
        new.replace(tmp_path / "crew" / f"{name}.do")

    return tell


def services(one):
    return one.status()["services"]


def limit(one):
    return one.status()["classes"]["cpu_short"]["limit"]


def test_a_limit_that_a_service_says_holds_and_is_shown_with_its_reason(supervisor, crew):
    one = supervisor("--workers", "cpu_short=4", program=CREW)
    crew("controller", 2)
    until(lambda: limit(one) == 2, "the limit is 2")
    shown = one.status()["classes"]["cpu_short"]
    assert (shown["limit_max"], shown["limit_reason"], shown["limit_why"]) == (4, "vram", "told 2")
    assert shown["workers"] == 4, "only feeding changes: a worker costs more to start than to keep"
    crew("controller", 99)
    until(lambda: limit(one) == 4, "the limit is that of the workers")
    assert one.status()["classes"]["cpu_short"]["limit_changes"] == {"vram": 2}


def test_a_limit_set_by_hand_stays_until_a_reload(supervisor, crew):
    one = supervisor("--workers", "cpu_short=4", program=CREW)
    order = ["queue", "limit", "cpu_short", "3", "--queue-dir", str(one.queue), "--set", f"runtime_dir={one.runtime}"]
    ran = subprocess.run([sys.executable, "-m", "dspy_supervisor", *order], capture_output=True, text=True)
    assert ran.stdout == "cpu_short: limit 3, until a reload\n", ran.stderr
    crew("controller", 1)
    until(lambda: services(one)["controller"].get("word") == "1", "the service said 1")
    assert limit(one) == 3
    one.ask("reload")
    crew("controller", 2)
    until(lambda: limit(one) == 2, "the limit is 2")


def test_a_reload_that_changes_something_renews_the_services_without_a_word_of_failure(supervisor, crew, tmp_path):
    (tmp_path / "dspy-supervisor.toml").write_text("[class.cpu_short]\nworkers = 2\n")
    one = supervisor(program=CREW, settings={"breaker_starts": 1})
    before = {until(lambda name=name: services(one)[name]["pid"], f"{name} runs") for name in ("controller", "slurm")}
    (tmp_path / "dspy-supervisor.toml").write_text("[class.cpu_short]\nworkers = 2\nmax_tasks = 9\n")
    assert one.ask("reload")["applied"] == ["class.cpu_short.max_tasks"]
    until(lambda: before.isdisjoint({service["pid"] for service in services(one).values()}), "both are new")
    assert [(service["restarts"], service["failed"]) for service in services(one).values()] == [(0, None)] * 2
    assert "service_died" not in one.log


def test_without_a_word_of_the_controller_limits_go_down_to_half_of_the_workers(supervisor, crew):
    one = supervisor("--workers", "cpu_short=7", program=CREW, environ={"CREW_PATIENCE_S": "1"})
    crew("controller", 6)
    until(lambda: limit(one) == 3, "the limit is half of the workers")
    crew("controller", 2)
    until(lambda: limit(one) == 2, "it speaks again")
    changes = one.status()["classes"]["cpu_short"]["limit_changes"]
    assert changes == {"vram": 2, "silent": 3}
    assert "the controller is silent" in one.log


@pytest.mark.parametrize("word", ["die", "babble"])
def test_a_service_that_goes_wrong_is_replaced_and_its_last_limit_holds(supervisor, crew, word):
    one = supervisor("--workers", "cpu_short=4", program=CREW, settings={"breaker_starts": 1000})
    crew("controller", 2)
    until(lambda: limit(one) == 2, "the limit is 2")
    crew("controller", word)
    until(lambda: services(one)["controller"]["restarts"] >= 2, "it was replaced")
    with Queue(one.queue) as queue:
        assert queue.result(queue.submit({"n": 1}), 30) == {"n": 1}
    assert limit(one) == 2
    crew("controller", 3)
    until(lambda: limit(one) == 3, "a new one is heard")


def test_a_service_that_hangs_is_killed_with_its_stacks_written(supervisor, crew):
    one = supervisor(program=CREW)
    pid = until(lambda: services(one)["controller"]["pid"], "it runs")
    crew("controller", "hang")
    until(lambda: "service_hung" in one.log, "it is found out", 60)
    crew("controller", 1)
    until(lambda: services(one)["controller"]["pid"] not in (None, pid), "it was replaced")
    assert "in steer" in one.log


def test_a_service_that_dies_over_and_over_is_given_up_until_a_reload(supervisor, crew):
    crew("controller", "die")
    one = supervisor(program=CREW, settings={"breaker_starts": 3})
    failed = until(lambda: services(one)["controller"]["failed"], "it is given up")
    assert failed == "3 in a row died at their start; the last: exit code 3"
    with Queue(one.queue) as queue:
        assert queue.result(queue.submit({"n": 1}), 30) == {"n": 1}
    crew("controller", 1)
    one.ask("reload")
    until(lambda: services(one)["controller"].get("word") == "1", "it runs again")
    assert services(one)["controller"]["failed"] is None


def test_a_service_that_was_given_up_is_tried_again_now_and_then(supervisor, crew):
    crew("controller", "die")
    one = supervisor(program=CREW, settings={"breaker_starts": 2}, environ={"CREW_MEND_S": "0.5"})
    until(lambda: services(one)["controller"]["restarts"] >= 4, "it was tried twice after it was given up")
    assert one.log.count("service_failed") >= 2
    crew("controller", 1)
    until(lambda: services(one)["controller"].get("word") == "1", "it runs again")
    assert services(one)["controller"]["failed"] is None


def test_tasks_of_a_carried_class_are_run_by_the_service(supervisor, crew):
    one = supervisor(program=CREW)
    with Queue(one.queue) as queue:
        tasks = [queue.submit({"n": number}, task_class="gpu_slurm") for number in range(200)]
        assert {queue.result(task, 60) for task in tasks} == {"carried"}
    shown = until(lambda: (now := one.status())["classes"]["gpu_slurm"]["inflight"] == 0 and now, "none is in flight")
    assert shown["classes"]["gpu_slurm"]["pending"] == 0


def test_names_that_a_service_did_not_claim_are_fed_to_the_next(supervisor, crew):
    one = supervisor(program=CREW, settings={"breaker_starts": 1000})
    crew("slurm", "hold")
    with Queue(one.queue) as queue:
        task = queue.submit({"n": 1}, task_class="gpu_slurm")
        until(lambda: one.status()["classes"]["gpu_slurm"]["inflight"] == 1, "it has the name")
        os.kill(services(one)["slurm"]["pid"], signal.SIGKILL)
        crew("slurm", "go")
        assert queue.result(task, 60) == "carried"


def test_a_class_that_is_paused_is_not_handed_over(supervisor, crew):
    one = supervisor(program=CREW)
    one.ask("pause", classes=["gpu_slurm"], reason="maintenance")
    with Queue(one.queue) as queue:
        task = queue.submit({"n": 1}, task_class="gpu_slurm")
        assert until(
            lambda: "maintenance" in (said := one.ask("explain", id=task)["explanation"]) and said, "it is seen"
        ).startswith("class gpu_slurm is paused (maintenance)")
        one.ask("resume", classes=["gpu_slurm"])
        assert queue.result(task, 60) == "carried"


def test_a_stop_ends_the_services_too(supervisor, crew):
    one = supervisor(program=CREW)
    pids = {until(lambda name=name: services(one)[name]["pid"], f"{name} runs") for name in ("controller", "slurm")}
    assert one.stop() == 0
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
    assert one.log.count("service_ended") == 2
