"""Allocations follow what waits, between bounds; they don't flap, and stop with a reason where they fail."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

import pytest
from dspy_supervisor.config import load
from dspy_supervisor.services.slurm.allocations import (
    BACKOFF_S,
    KEEP,
    MAX_DEATHS,
    MAX_REFUSED,
    Bounds,
    Ledger,
    decide,
    note_refused,
    note_submitted,
)
from dspy_supervisor.services.slurm.listing import JobRow
from dspy_supervisor.services.slurm.pilots import Pilots, pilot_settings

from tests.queues import Rig

CYCLE_S = 10.0


class Cluster:
    """A cluster of so many places, in simulated time, and the allocations of one queue on it."""

    def __init__(self, bounds: Bounds, places: int = 100, fate: Callable[[], str] | None = None) -> None:
        self.bounds, self.places, self.fate = bounds, places, fate
        self.now, self.tasks, self.ledger = 1000.0, 0, Ledger()
        self.jobs: dict[str, JobRow] = {}
        self.idle: dict[str, float] = {}
        self.submitted = self.cancelled = 0
        self.why = ""

    def cycle(self, times: int = 1, *, task_s: float = 20.0) -> None:
        for _ in range(times):
            found = decide(self.now, self.bounds, list(self.jobs.values()), self.tasks, self.ledger)
            self.why = found.why
            for key in found.cancel:
                self.cancelled += 1
                name = next(name for name, job in self.jobs.items() if job.key == key)
                del self.jobs[name]
            for number in range(found.keep + found.float):
                name = f"p{self.submitted}" + (KEEP if number < found.keep else "")
                self.submitted += 1
                note_submitted(self.now, name, self.ledger)
                self.jobs[name] = JobRow(str(self.submitted), str(self.submitted), None, "PENDING", name)
            assert len(self.alive()) <= self.bounds.most
            self._pass(task_s)

    def alive(self, state: str = "") -> list[str]:
        live = ("PENDING", "RUNNING")
        return [name for name, job in self.jobs.items() if job.state in live and state in job.state]

    def _pass(self, task_s: float) -> None:
        """Let one cycle go by: jobs start, run tasks, and end when idle."""
        self.now += CYCLE_S
        for name in self.alive("PENDING"):
            if len(self.alive("RUNNING")) < self.places:
                state = self.fate() if self.fate else "RUNNING"
                self.jobs[name] = dataclasses.replace(self.jobs[name], state=state)
        for name in self.alive("RUNNING"):
            done = min(self.tasks, max(1, int(self.bounds.workers * CYCLE_S / task_s)))
            self.tasks -= done
            self.idle[name] = 0.0 if done else self.idle.get(name, 0.0) + CYCLE_S
            if self.idle[name] >= self.bounds.idle_s and not name.endswith(KEEP):
                self.jobs[name] = dataclasses.replace(self.jobs[name], state="COMPLETED")


def test_one_task_gets_one_allocation_which_is_given_back_when_idle():
    cluster = Cluster(Bounds(0, 8, 1, 60.0))
    cluster.cycle(5)
    assert cluster.submitted == 0
    cluster.tasks = 1
    cluster.cycle(20)
    assert (cluster.submitted, cluster.tasks, cluster.alive()) == (1, 0, [])


def test_a_long_backlog_gets_as_many_as_the_bound_and_no_more_than_it_can_fill():
    cluster = Cluster(Bounds(0, 8, 4, 60.0))
    cluster.tasks = 1000
    cluster.cycle(6)
    assert len(cluster.alive()) == 8
    few = Cluster(Bounds(0, 8, 4, 60.0))
    few.tasks = 9
    few.cycle(1)
    assert len(few.alive()) == 3


def test_on_a_full_cluster_few_wait_in_its_queue():
    cluster = Cluster(Bounds(0, 50, 1, 60.0), places=2)
    cluster.tasks = 10_000
    cluster.cycle(30)
    assert len(cluster.alive("RUNNING")) == 2
    assert len(cluster.alive("PENDING")) == 4


def test_those_that_are_kept_are_there_though_nothing_waits_and_are_replaced():
    cluster = Cluster(Bounds(2, 8, 1, 60.0))
    cluster.cycle(60)
    assert cluster.submitted == 2
    assert all(name.endswith(KEEP) for name in cluster.alive())
    gone = cluster.alive()[0]
    cluster.jobs[gone] = dataclasses.replace(cluster.jobs[gone], state="TIMEOUT")
    cluster.cycle(30)
    assert cluster.submitted == 3
    assert len(cluster.alive()) == 2


def test_bursts_that_come_and_go_make_none_flap():
    cluster = Cluster(Bounds(0, 8, 1, 300.0))
    for _ in range(50):
        cluster.tasks += 8
        cluster.cycle(10)
    assert cluster.submitted <= 8
    assert cluster.cancelled == 0


def test_queued_ones_that_nothing_needs_any_more_are_cancelled_but_not_at_once():
    cluster = Cluster(Bounds(0, 8, 1, 60.0), places=0)
    cluster.tasks = 4
    cluster.cycle(1)
    assert len(cluster.alive("PENDING")) == 4
    cluster.tasks = 0
    cluster.cycle(3)
    assert len(cluster.alive("PENDING")) == 4
    cluster.cycle(10)
    assert cluster.alive() == []
    assert cluster.cancelled == 4


def test_a_submission_whose_answer_was_lost_is_counted_until_listings_show_that_it_is_not_there():
    bounds, ledger = Bounds(0, 1, 1, 60.0), Ledger()
    assert decide(0.0, bounds, [], 5, ledger).float == 1
    note_submitted(0.0, "p0", ledger)
    assert decide(100.0, bounds, [], 5, ledger).float == 0
    assert decide(200.0, bounds, [], 5, ledger).float == 1


def test_an_allocation_that_just_started_gets_time_to_take_what_waits():
    bounds, ledger = Bounds(0, 8, 1, 60.0), Ledger()
    started = JobRow("7", "7", None, "RUNNING", "p0")
    assert decide(0.0, bounds, [started], 1, ledger).float == 0
    assert decide(5.0, bounds, [started], 3, ledger).float == 2
    assert decide(100.0, bounds, [started], 1, ledger).float == 1


def test_right_after_one_ended_the_count_is_not_trusted():
    bounds, ledger = Bounds(0, 8, 1, 60.0), Ledger()
    job = JobRow("7", "7", None, "RUNNING", "p0")
    decide(0.0, bounds, [job], 1, ledger)
    ended = dataclasses.replace(job, state="COMPLETED")
    assert decide(90.0, bounds, [ended], 1, ledger).float == 0
    assert decide(120.0, bounds, [ended], 1, ledger).float == 1


def test_refusals_make_the_next_try_wait_longer_and_end_it_with_the_reason():
    bounds, ledger, now, waits = Bounds(0, 8, 1, 60.0), Ledger(), 0.0, []
    for _ in range(MAX_REFUSED):
        tried = now
        while not decide(now, bounds, [], 1, ledger).float:
            assert "invalid partition" in decide(now, bounds, [], 1, ledger).why
            now += 10.0
        waits.append(now - tried)
        note_refused(now, "invalid partition specified: x", ledger)
    assert waits[:5] == [0.0, *BACKOFF_S]
    found = decide(now + 1e6, bounds, [], 1, ledger)
    assert not found.float
    assert "10 submissions in a row failed" in found.why
    assert "invalid partition" in found.why


def test_allocations_that_fail_at_their_start_end_it_and_one_that_works_forgives():
    bad = Cluster(Bounds(0, 1, 1, 60.0), fate=lambda: "FAILED")
    bad.tasks = 5
    bad.cycle(1000)
    assert bad.submitted == MAX_DEATHS
    assert "FAILED" in bad.why
    turns = itertools.cycle(["FAILED", "FAILED", "RUNNING"])
    mixed = Cluster(Bounds(0, 1, 1, 60.0), fate=lambda: next(turns))
    for _ in range(10):
        mixed.tasks = 1
        mixed.cycle(400)
        assert (mixed.tasks, mixed.ledger.stopped) == (0, "")


@pytest.mark.parametrize("state", ["CANCELLED", "PREEMPTED", "TIMEOUT"])
def test_what_others_did_to_an_allocation_is_not_held_against_the_next(state):
    cluster = Cluster(Bounds(0, 1, 1, 60.0), fate=lambda: state)
    cluster.tasks = 1
    cluster.cycle(50)
    assert cluster.submitted == 50
    assert not cluster.ledger.stopped


def test_one_that_can_never_start_is_cancelled_and_counts_as_refused():
    bounds, ledger = Bounds(0, 1, 1, 60.0), Ledger()
    never = JobRow("7", "7", None, "PENDING", "p0", "PartitionTimeLimit")
    found = decide(0.0, bounds, [never], 1, ledger)
    assert found.cancel == ("7",)
    assert "can never start: PartitionTimeLimit" in found.why
    assert decide(1.0, bounds, [never], 1, ledger).cancel == ()
    assert ledger.refused == 1


def test_whatever_happens_the_bounds_hold_and_calm_returns():
    chance = random.Random(7)
    for _ in range(30):
        least = chance.randint(0, 3)
        bounds = Bounds(least, least + chance.randint(1, 6), chance.randint(1, 4), 60.0)
        cluster = Cluster(bounds, places=chance.randint(1, 10))
        for _ in range(100):
            cluster.tasks += chance.choice([0, 0, 0, 1, 5, 50])
            cluster.cycle()
        cluster.cycle(400, task_s=1.0)
        assert cluster.tasks == 0
        assert len(cluster.alive()) == least
        before = cluster.submitted
        cluster.cycle(100)
        assert cluster.submitted == before


def config(path: Path, **more: object):
    flags = {"queue_dir": str(path / "queue"), "mode": "cluster", "slurm_pilots_max": "4", **more}
    return load(flags, {"HOME": str(path)}, path).config


def test_a_pilot_is_a_job_with_an_end_and_a_name_of_its_own(tmp_path):
    rig = Rig(tmp_path / "queue")
    pilots = Pilots(config(tmp_path, slurm_gpus="a100:1", slurm_nodes="4"), rig.layout)
    (rig.path / "slurm").mkdir()
    step = pilots.step(0.0, [], 3)
    assert len({job.name for job in step.submit}) == 3
    assert all(job.name.startswith(pilots.prefix) for job in step.submit)
    options = step.submit[0].options
    assert {"--time=0-01:00:00", "--signal=B:TERM@120", "--no-requeue", "--gres=gpu:a100:1", "--nodes=1"} <= set(
        options
    )
    assert f"--output={rig.path}/slurm/pilots/{step.submit[0].name}.out" in options
    assert step.state["queued"] == 3
    pilots.submitted(step.submit[0].name, None, "invalid partition specified: x")
    assert "invalid partition" in pilots.step(1.0, [], 3).state["reason"]


def test_the_supervisor_in_a_pilot_runs_tasks_as_we_would(tmp_path):
    ours = config(
        tmp_path,
        kinds="echo,command",
        kind_handlers="say=my.tools:say",
        slurm_pilot_workers="3",
        retry_base_s="0.5",
        command_cwd="/data",
        **{"class.gpu_slurm.handler": "my.tools:run", "class.gpu_slurm.max_attempts": "7"},
    )
    ours = dataclasses.replace(
        ours, command_cwd=('/a "b" \\ é',), kind_handlers=MappingProxyType({"say": "my.tools:say"})
    )
    path = tmp_path / "pilot.toml"
    path.write_text(pilot_settings(ours, 42.0))
    theirs = load({"config": str(path), "ends_at": "12345"}, {"HOME": str(tmp_path)}, tmp_path)
    assert theirs.files == (path,)
    found = theirs.config
    assert not found.enable_slurm
    assert (found.queue_dir, found.idle_exit_s, found.ends_at) == (ours.queue_dir, 42.0, 12345.0)
    assert (found.kinds, found.kind_handlers, found.command_cwd) == (ours.kinds, ours.kind_handlers, ours.command_cwd)
    assert found.retry_base_s == 0.5
    gpu_slurm = found.classes["gpu_slurm"]
    assert (gpu_slurm.workers, gpu_slurm.handler, gpu_slurm.max_attempts) == (3, "my.tools:run", 7)
    assert {name: one.workers for name, one in found.classes.items() if one.workers} == {"gpu_slurm": 3}
