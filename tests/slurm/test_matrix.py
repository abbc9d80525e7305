"""What becomes of a task, for each end that its job can come to."""

from __future__ import annotations

import json
from typing import Any

from ..conftest import until
from ..system.rig import turn
from .bridge import END_S, Bridge


def slurm_of(record: dict[str, Any]) -> str:
    """Return all that a record tells, to find facts of the job in it."""
    return json.dumps(record)


def test_a_task_becomes_a_job_and_comes_back_with_its_result(bridge: Bridge) -> None:
    bridge.carry()
    bridge.shell("a1", """echo '__DSPY_RESULT__:{"loss": 0.25}'""")
    record = bridge.done("a1")
    assert record["runner_result"] == {"loss": 0.25}
    ((task, attempt, node),) = bridge.runs()
    assert (task, attempt) == ("a1", "0") and node in bridge.cluster.nodes
    assert len(bridge.jobs()) == 1
    bridge.check(drained=True)


def test_the_ends_of_jobs_are_told_apart(bridge: Bridge) -> None:
    """All at once: Slurm looks only every 30 s whether a job's time is up."""
    bridge.carry(**{"class.gpu_slurm.max_ooms": 1})
    bridge.shell("code", "echo no good >&2; exit 3", max_attempts=1)
    bridge.waiting("time", max_attempts=1)
    bridge.waiting("scancel")
    bridge.shell("memory", "exec python3 -c 'b = bytearray(500 << 20); print(len(b))'", max_attempts=1)
    bridge.running("time")
    bridge.running("scancel")
    bridge.cluster.run("scontrol", "update", f"JobId={bridge.job_of('time')}", "EndTime=now+2")
    bridge.cluster.run("scancel", bridge.job_of("scancel"))
    error = bridge.failed("code")
    assert error["cause"] == "exit" and error["exit_code"] == 3
    error = bridge.failed("scancel")
    assert error["cause"] == "cancelled" and "CANCELLED" in slurm_of(error)
    if bridge.cluster.has_memory_limits:  # cgroup v1 as root
        assert bridge.failed("memory")["cause"] == "out_of_memory"
    error = bridge.failed("time")
    assert error["cause"] == "timeout" and "TIMEOUT" in slurm_of(error)
    assert len(bridge.runs()) == len(bridge.put_ids)


def test_a_failed_task_is_tried_again_by_another_job(bridge: Bridge) -> None:
    bridge.carry()
    bridge.shell("a1", '[ "$DSPY_TASK_ATTEMPT" = 2 ]', max_attempts=3)
    record = bridge.done("a1")
    assert [attempt for _, attempt, _ in bridge.runs()] == ["0", "1", "2"]
    assert len(record["history"]) == 2 and len(bridge.jobs()) == 3


def test_a_pending_job_cancelled_from_outside_fails_its_task(bridge: Bridge) -> None:
    bridge.fill_cluster()
    bridge.carry()
    bridge.shell("a1")
    bridge.cluster.run("scancel", bridge.job_of("a1"))
    assert "CANCELLED" in slurm_of(bridge.failed("a1"))
    assert not bridge.runs()


def test_cancel_ends_the_job(bridge: Bridge) -> None:
    supervisor = bridge.carry()
    bridge.waiting("a1")
    bridge.running("a1")
    job = bridge.job_of("a1")
    supervisor.ask("cancel", id="a1")
    assert bridge.failed("a1")["cause"] == "cancelled"
    until(lambda: bridge.cluster.jobs(ended=True).get(job, "CANCELLED") != "RUNNING", "the job ends", END_S)


def test_a_node_that_dies_costs_an_attempt_that_is_not_counted(bridge: Bridge) -> None:
    bridge.carry()
    bridge.waiting("a1", max_attempts=1)
    bridge.running("a1")
    node = bridge.runs()[0][2]
    bridge.cluster.do("kill", node)
    bridge.cluster.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    bridge.release("a1")
    record = bridge.done("a1")
    assert len(bridge.runs()) == 2 and bridge.runs()[1][2] != node
    assert "NODE_FAIL" in slurm_of(record["history"])


def test_a_requeued_job_goes_on_with_its_task(bridge: Bridge) -> None:
    """Slurm gives a requeued job the same id; what its first incarnation wrote must not count."""
    bridge.carry()
    bridge.waiting("a1", max_attempts=1, resources={"requeue": True})
    bridge.running("a1")
    bridge.cluster.run("scontrol", "requeue", bridge.job_of("a1"))
    bridge.running("a1", 2)
    bridge.release("a1")
    bridge.done("a1")
    assert len(bridge.runs()) == 2
    bridge.check(drained=True)


def test_a_preempted_job_runs_its_task_again(bridge: Bridge) -> None:
    bridge.carry(slurm_partition="lowcancel", slurm_nodes=4, slurm_exclusive="true")
    bridge.waiting("a1", max_attempts=1)
    bridge.running("a1")
    job = bridge.job_of("a1")
    urgent = bridge.cluster.submit("exit 0", "--nodes=4", "--exclusive")
    until(lambda: bridge.cluster.jobs(ended=True).get(job) == "PREEMPTED", "it is preempted", END_S)
    bridge.cluster.wait(urgent, "COMPLETED")
    bridge.release("a1")
    record = bridge.done("a1")
    assert "PREEMPTED" in slurm_of(record["history"]) and len(bridge.runs()) == 2


def test_a_supervisor_that_stops_leaves_its_jobs_and_the_next_takes_them_over(bridge: Bridge) -> None:
    first = bridge.carry()
    bridge.waiting("a1")
    bridge.running("a1")
    assert first.stop() == 0
    assert bridge.cluster.jobs()
    bridge.release("a1")
    bridge.carry()
    bridge.done("a1")
    assert len(bridge.runs()) == 1 and len(bridge.jobs()) == 1
    bridge.check(drained=True)


def test_jobs_go_on_through_upgrades_and_the_next_program_judges_them(bridge: Bridge) -> None:
    one = bridge.carry()
    blocker = bridge.fill_cluster()
    bridge.waiting("queued")
    job = bridge.job_of("queued")
    turn(one, 1)
    bridge.cluster.run("scancel", blocker)
    bridge.running("queued")
    bridge.waiting("later")
    bridge.running("later")
    turn(one, 2)
    bridge.release("queued", "later")
    records = [bridge.done(name) for name in ("queued", "later")]
    assert [record["attempt"] for record in records] == [0, 0]
    assert len(bridge.runs()) == 2 == len(bridge.jobs()) and job in bridge.jobs()
    bridge.check(drained=True)


def test_a_killed_supervisor_loses_nothing(bridge: Bridge) -> None:
    first = bridge.carry()
    for number in range(4):
        bridge.waiting(f"a{number}")
    for number in range(4):
        bridge.running(f"a{number}")
    first.kill()
    bridge.release("a0", "a1")
    bridge.carry()
    bridge.release("a2", "a3")
    for number in range(4):
        bridge.done(f"a{number}")
    assert sorted(run[0] for run in bridge.runs()) == ["a0", "a1", "a2", "a3"]
    bridge.check(drained=True)
