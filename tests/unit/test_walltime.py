"""What can't end in time is not started: by the clock, and by how long such tasks took."""

from __future__ import annotations

import time

import pytest
from dspy_supervisor.walltime import MAX_KINDS, RunTimes, Walltime

from tests.queues import Rig


@pytest.fixture
def layout(tmp_path):
    return Rig(tmp_path / "queue").layout


def test_a_kind_that_nobody_saw_end_is_expected_to_take_no_time(layout):
    assert RunTimes(layout).expected_s("gpu_slurm", "train") == 0.0


def test_what_is_learned_is_the_mean_and_more_the_less_it_is_certain(layout):
    times = RunTimes(layout)
    times.learn("gpu_slurm", "train", 10.0)
    assert times.expected_s("gpu_slurm", "train") == 30.0
    for _ in range(100):
        times.learn("gpu_slurm", "train", 10.0)
    assert times.expected_s("gpu_slurm", "train") == pytest.approx(10.0, abs=0.1)
    times.learn("gpu_slurm", "train", 50.0)
    assert times.expected_s("gpu_slurm", "train") > 50.0
    assert times.expected_s("gpu_slurm", None) == 0.0


def test_the_next_allocation_knows_it(layout):
    times = RunTimes(layout)
    for _ in range(50):
        times.learn("gpu_slurm", "train", 100.0)
    times.save()
    assert RunTimes(layout).expected_s("gpu_slurm", "train") == pytest.approx(100.0, abs=1.0)


def test_kinds_are_bounded_and_the_one_unseen_for_longest_goes(layout):
    times = RunTimes(layout)
    for number in range(MAX_KINDS + 1):
        times.learn("gpu_slurm", f"k{number}", 1.0)
        times.learn("gpu_slurm", "k0", 1.0)
    assert times.expected_s("gpu_slurm", "k0")
    assert not times.expected_s("gpu_slurm", "k1")


@pytest.mark.parametrize("written", ["", "[]", '{"gpu_slurm/": "x"}', '{"gpu_slurm/": [1]}', "nonsense"])
def test_a_file_that_is_no_record_of_times_is_as_none(layout, written):
    (layout.path / "slurm").mkdir()
    (layout.path / "slurm/run_times.json").write_text(written)
    assert RunTimes(layout).expected_s("gpu_slurm", None) == 0.0


def test_a_task_is_refused_where_less_time_is_left_than_it_takes(layout):
    times = RunTimes(layout)
    for _ in range(100):
        times.learn("gpu_slurm", "long", 1000.0)
    walltime = Walltime(time.time() + 600.0, 60.0, times)
    assert not walltime.refusal("gpu_slurm", "short")
    assert "expected to run for 10" in walltime.refusal("gpu_slurm", "long")
    assert Walltime(time.time() + 30.0, 60.0, times).refusal("gpu_slurm", "short")
