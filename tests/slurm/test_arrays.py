"""Many tasks: arrays, verdicts by index, and how little is asked of the cluster."""

from __future__ import annotations

from ..conftest import until
from .bridge import END_S, Bridge


def test_two_hundred_tasks_are_a_few_arrays_and_each_has_its_verdict(bridge: Bridge) -> None:
    for number in range(200):
        script = "exit 7" if number % 50 == 0 else f"echo '__DSPY_RESULT__:{number}'"
        bridge.shell(f"t{number}", script, max_attempts=1)
    bridge.carry()
    bridge.drain(within_s=110.0)
    bridge.check(drained=True, may_fail=[f"t{number}" for number in range(0, 200, 50)])
    for number in range(200):
        record = bridge.record(f"t{number}")
        if number % 50 == 0:
            assert record["error"]["exit_code"] == 7
        else:
            assert record["runner_result"] == number
    assert len(bridge.runs()) == 200 and len(set(bridge.runs())) == 200
    assert bridge.faults.counts()["sbatch"] <= 6, bridge.arrays()


def test_any_subset_of_an_array_can_be_cancelled(bridge: Bridge) -> None:
    """Of pending elements that were cancelled alone, no command of Slurm ever tells again."""
    for number in range(8):
        bridge.waiting(f"t{number}", max_attempts=1)
    supervisor = bridge.carry(slurm_array_limit=4)
    until(lambda: len(bridge.runs()) == 4, "the first of them run", END_S)
    began = [run[0] for run in bridge.runs()]
    pending = [f"t{number}" for number in range(8) if f"t{number}" not in began]
    for task_id in (began[0], pending[0]):
        supervisor.ask("cancel", id=task_id)
    bridge.cluster.run("scancel", bridge.job_of(began[1]), bridge.job_of(pending[1]))  # from outside
    gone = [began[0], began[1], pending[0], pending[1]]
    for task_id in gone:
        assert bridge.failed(task_id)["cause"] in ("cancelled", "lost")
    for task_id in set(began + pending) - set(gone):
        bridge.release(task_id)
        bridge.done(task_id)
    assert {run[0] for run in bridge.runs()} == set(began + pending) - {pending[0], pending[1]}


def test_many_jobs_cost_no_more_calls_than_few(bridge: Bridge) -> None:
    bridge.fill_cluster()
    bridge.carry(slurm_poll_s=1.0)
    costs = []
    for count in (2, 100):
        for number in range(count):
            bridge.shell(f"{count}-{number}")
        until(lambda count=count: len(bridge.cluster.jobs()) >= count, "they are in the cluster", END_S)  # type: ignore[misc]
        before = bridge.faults.counts()
        until(lambda before=before: bridge.faults.counts()["squeue"] >= before["squeue"] + 5, "it looks", END_S)  # type: ignore[misc]
        calls = bridge.faults.counts() - before
        costs.append(calls["sacct"] / calls["squeue"])
        assert calls["scontrol"] <= 1 and not calls["scancel"]
    assert costs[1] <= costs[0] + 1
