"""Allocations that run many tasks each, and work that goes on in the next job, on the real cluster."""

from __future__ import annotations

from typing import Any

from ..conftest import Supervised, until
from .bridge import END_S, Bridge

PILOTS: dict[str, object] = {
    "slurm_pilots_max": 2,
    "slurm_pilot_idle_s": 1,
    "slurm_time": 30,
    "slurm_memory": "512M",  # a supervisor and its workers
    "class.gpu_slurm.max_attempts": 1,
}


def test_a_few_allocations_run_many_tasks_and_are_given_back(bridge: Bridge) -> None:
    supervisor = bridge.carry(slurm_pilot_workers=4, **PILOTS)
    names = [bridge.shell(f"t{number:02d}") for number in range(40)]
    for name in names:
        bridge.done(name)
    assert sorted(run[0] for run in bridge.runs()) == names
    until(lambda: not bridge.cluster.jobs(), "the allocations are given back", END_S)
    assert 1 <= len(pilots(bridge)) <= 2
    until(lambda: state(supervisor)["running"] == 0, "the bridge has seen it", END_S)
    assert not state(supervisor)["stopped"]
    assert supervisor.stop() == 0


def test_a_pilot_that_is_cancelled_hands_back_its_task_and_nothing_is_charged(bridge: Bridge) -> None:
    bridge.carry(**PILOTS, drain_s=1, kill_grace_s=0.5)  # the cluster kills 3 s after SIGTERM
    bridge.waiting("t1")
    bridge.running("t1")
    (job,) = bridge.cluster.jobs()
    bridge.cluster.run("scancel", job)
    bridge.running("t1", 2)
    bridge.release("t1")
    bridge.done("t1")
    assert [run[:2] for run in bridge.runs()] == [("t1", "0"), ("t1", "1")]
    assert len(pilots(bridge)) == 2


def test_allocations_that_the_cluster_refuses_are_not_asked_for_again_and_again(bridge: Bridge) -> None:
    supervisor = bridge.carry(**PILOTS | {"slurm_partition": "nowhere"})
    bridge.shell("t1")
    until(lambda: "Invalid partition" in state(supervisor).get("reason", ""), "the reason is told", END_S)
    assert "trying again in" in state(supervisor)["reason"]
    assert "it waits for an allocation" in supervisor.ask("explain", id="t1")["explanation"]
    asked = sum(line.startswith("sbatch") for line in bridge.faults.calls())
    assert asked <= 2
    assert (bridge.queue / "pending/t1.json").exists()


def test_work_that_was_saved_goes_on_in_the_next_job_and_not_from_zero(bridge: Bridge) -> None:
    supervisor = bridge.carry(**{"class.gpu_slurm.max_attempts": 1})
    work = 'cd "$TASK_FOLDER"; [ -e saved ] && exit 0; until [ -s "$DSPY_CHECKPOINT" ]; do sleep 0.1; done; touch saved; exit 85'
    bridge.shell("t1", work)
    bridge.running("t1")
    first = bridge.job_of("t1")
    bridge.cluster.run("scancel", "--batch", "--signal=USR1", first)
    record = bridge.done("t1")
    assert record["attempt"] == 1
    assert [run[:2] for run in bridge.runs()] == [("t1", "0"), ("t1", "1")]
    assert len(bridge.jobs()) == 2
    assert supervisor.stop() == 0


def pilots(bridge: Bridge) -> set[str]:
    """Return the ids of all allocations there were."""
    rows = bridge.cluster.accounted(fields="jobid,jobname")
    rows += [row.split() for row in bridge.cluster.run("squeue", "-h", "-t", "all", "-o", "%i %j").splitlines()]
    queue = bridge.queue / "slurm/pilots"
    names = {path.name.removesuffix(".out") for path in queue.glob("*.out")}
    return {row[0] for row in rows if row[1] in names}


def state(supervisor: Supervised) -> dict[str, Any]:
    """Return what the bridge says of its allocations."""
    found: dict[str, Any] = supervisor.status()["services"]["slurm"].get("pilots") or {}
    return found
