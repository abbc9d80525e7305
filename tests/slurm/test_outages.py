"""Commands that fail, lie and hang, daemons that stop, supervisors that die: exactly one job for each attempt."""

from __future__ import annotations

import os
import signal

import pytest

from ..conftest import until
from .bridge import END_S, Bridge

#: what may go wrong with one sbatch: in half of these the job exists all the same
SUBMISSIONS = ("sbatch refuse", "sbatch lost", "sbatch cut 0", "sbatch cut 1", "sbatch delay 1")


def test_each_submission_that_goes_wrong_leads_to_one_job(bridge: Bridge) -> None:
    bridge.faults.plan(*SUBMISSIONS)
    bridge.carry()
    ids = [bridge.shell(f"a{number}", resources={"comment": f"a{number}"}) for number in range(len(SUBMISSIONS))]
    for task_id in ids:  # unlike jobs, so no array of them
        bridge.done(task_id)
    assert not bridge.faults.left()
    assert sorted(run[0] for run in bridge.runs()) == ids and len(bridge.jobs()) == len(ids)
    bridge.check(drained=True)


@pytest.mark.parametrize("fault", ["sbatch hang", "sbatch late"])
def test_a_supervisor_killed_between_sbatch_and_the_record_submits_no_second_job(bridge: Bridge, fault: str) -> None:
    """With `late` the cluster has taken the job and nobody was told; with `hang` it never heard of it."""
    bridge.faults.plan(fault)
    first = bridge.carry()
    bridge.shell("a1")
    until(lambda: not bridge.faults.left(), "sbatch is called", END_S)
    if fault.endswith("late"):
        until(bridge.jobs, "the cluster has the job", END_S)
    first.kill()
    bridge.carry()
    bridge.done("a1")
    assert len(bridge.runs()) == 1 and len(bridge.jobs()) == 1
    bridge.check(drained=True)


def test_a_bridge_killed_between_sbatch_and_the_record_is_replaced_and_submits_no_second_job(bridge: Bridge) -> None:
    bridge.faults.plan("sbatch late")
    supervisor = bridge.carry()
    bridge.shell("a1")
    until(lambda: not bridge.faults.left(), "sbatch is called", END_S)
    until(bridge.jobs, "the cluster has the job", END_S)
    os.kill(bridge.service(supervisor), signal.SIGKILL)
    bridge.done("a1")
    assert len(bridge.runs()) == 1 and len(bridge.jobs()) == 1


def test_listings_that_fail_or_are_cut_off_change_nothing(bridge: Bridge) -> None:
    bridge.carry()
    bridge.waiting("a1", max_attempts=1)
    bridge.running("a1")
    bridge.faults.plan("squeue refuse", "squeue cut 0", "squeue cut 3", "sacct refuse", "squeue cut 0", "sacct cut 1")
    until(lambda: bridge.faults.left() <= 2, "squeue goes wrong", END_S)
    bridge.release("a1")
    bridge.done("a1")
    assert len(bridge.runs()) == 1 and len(bridge.jobs()) == 1


def test_a_controller_that_stops_and_comes_back_loses_no_task(bridge: Bridge) -> None:
    supervisor = bridge.carry()
    bridge.waiting("a1", max_attempts=1)
    bridge.running("a1")
    calls = bridge.faults.counts()["squeue"]
    bridge.cluster.do("kill", "slurmctld")
    bridge.shell("a2", max_attempts=1)  # comes while nobody takes jobs
    bridge.release("a1")  # and this one ends while nobody looks
    until(lambda: bridge.faults.counts()["squeue"] > calls + 1, "it asks in vain", END_S)
    assert "nreachable" in str(supervisor.status()["services"]["slurm"]) or bridge.ended() == 0
    bridge.cluster.do("start", "slurmctld")
    bridge.done("a1")
    bridge.done("a2")
    assert sorted(run[0] for run in bridge.runs()) == ["a1", "a2"]
    bridge.check(drained=True)


def test_a_controller_that_hangs_takes_a_job_only_once(bridge: Bridge) -> None:
    """sbatch fails by its own time-out, and the job comes to life when the controller goes on."""
    bridge.carry()
    bridge.shell("a0")
    bridge.done("a0")
    bridge.cluster.do("pause", "slurmctld")
    bridge.shell("a1")
    until(lambda: bridge.faults.counts()["sbatch"] == 2, "sbatch is called", END_S)
    bridge.cluster.do("resume", "slurmctld")
    bridge.done("a1")
    assert len(bridge.runs()) == 2 and len(bridge.jobs()) == 2


def test_a_job_that_ended_and_was_forgotten_while_nobody_looked_is_judged_right(bridge: Bridge) -> None:
    first = bridge.carry()
    bridge.waiting("good")
    bridge.waiting("bad", max_attempts=1)
    bridge.running("good")
    bridge.running("bad")
    ids = [bridge.job_of("good"), bridge.job_of("bad")]
    first.kill()
    bridge.cluster.run("scancel", ids[1])
    bridge.release("good")
    until(lambda: not set(ids) & bridge.cluster.jobs(ended=True).keys(), "the controller forgets them", END_S)
    bridge.carry()
    bridge.done("good")
    assert "CANCELLED" in str(bridge.failed("bad"))
    assert len(bridge.runs()) == 2


def test_without_its_accounting_a_cluster_still_gives_verdicts(bridge: Bridge) -> None:
    bridge.carry()
    bridge.cluster.do("kill", "slurmdbd")
    bridge.shell("good")
    bridge.shell("bad", "exit 5", max_attempts=1)
    bridge.done("good")
    assert bridge.failed("bad")["exit_code"] == 5
    assert len(bridge.runs()) == 2
