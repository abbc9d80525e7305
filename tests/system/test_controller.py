"""The controller under a real supervisor: it steers, says why, is replaced, and does no harm when it is gone."""

import json
import os
import signal

import pytest
from dspy_supervisor.client import Queue

from tests.conftest import until

QUICK = {"controller_interval_s": 0.2}


def controller(one):
    return one.status()["services"]["controller"]


def cpu_short(one):
    return one.status()["classes"]["cpu_short"]


@pytest.mark.timeout(300)  # Numba takes its time where other things run, too
def test_it_steers_with_a_reason_counts_its_steps_and_compiles_them(supervisor, tmp_path):
    record = tmp_path / "windows.jsonl"
    one = supervisor("--workers", "cpu_short=4", "--policy", "adaptive", settings={**QUICK, "record_windows": record})
    until(lambda: cpu_short(one)["limit_reason"] == "not_binding", "the controller spoke")
    assert cpu_short(one)["limit_why"] == "0.0 tasks run, 0 wait"
    assert controller(one)["policy"] == "adaptive"
    until(lambda: controller(one)["step"] == "compiled", "the step is compiled", 240.0)
    lines = [json.loads(line) for line in record.read_text().splitlines() if line.endswith("}")]
    assert {line["class"] for line in lines} >= {"cpu_short"}
    assert {(line["lowest"], line["highest"]) for line in lines if line["class"] == "cpu_short"} == {(1, 4)}
    assert one.stop() == 0


def test_a_policy_that_shrinks_is_obeyed_and_counted_by_its_reason(supervisor):
    one = supervisor(
        "--workers", "cpu_short=5", "--policy", "watermark", handlers={"cpu_short": "echo"}, settings=QUICK
    )
    until(lambda: cpu_short(one)["limit_reason"], "the controller spoke")
    with Queue(one.queue) as queue:
        queue.submit({}, kind="call", max_attempts=1)  # which names nothing to call
    until(lambda: cpu_short(one)["limit"] == 3, "the limit is two less")
    assert cpu_short(one)["limit_changes"] == {"errors": 1}
    assert "1 attempts failed, 0 ended well" in one.log


def test_a_controller_that_is_killed_is_replaced_and_tasks_and_limits_stay(supervisor):
    one = supervisor("--workers", "cpu_short=3", "--policy", "adaptive", handlers={"cpu_short": "echo"}, settings=QUICK)
    first = until(lambda: controller(one)["pid"], "it runs")
    until(lambda: cpu_short(one)["limit_reason"], "it spoke")
    limit = cpu_short(one)["limit"]
    os.kill(first, signal.SIGKILL)
    with Queue(one.queue) as queue:
        tasks = [queue.submit({"n": number}) for number in range(20)]
        assert [queue.result(task, 30) for task in tasks] == [{"n": number} for number in range(20)]
    until(lambda: controller(one)["pid"] not in (None, first), "another runs")
    assert controller(one)["restarts"] == 1
    assert cpu_short(one)["limit"] == limit


def test_a_fixed_policy_has_no_controller(supervisor):
    one = supervisor("--workers", "cpu_short=2", "--policy", "fixed")
    assert "controller" not in one.status()["services"]
