"""Forgetting: by age and by count, with the output, and nothing that waits or runs."""

import contextlib
import os
import time
import tracemalloc

import pytest
from dspy_supervisor.gc import forget
from dspy_supervisor.layout import Layout
from dspy_supervisor.recovery import Recovered, settle_commits
from dspy_supervisor.taskqueue import TaskQueue

from tests.queues import Steps


@pytest.fixture
def queue(tmp_path):
    with Layout.open(tmp_path / "queue", create=True, durability="none") as layout:
        yield layout


def end(queue, state, task_id, age_s=0.0):
    path = queue.path / state / f"{task_id}.json"
    path.write_text("{}")
    os.utime(path, times=(time.time() - age_s,) * 2)


def names(queue, state):
    return sorted(os.listdir(queue.path / state))


def test_what_is_older_is_forgotten_with_its_output(queue, tmp_path):
    end(queue, "done", "old", 100)
    end(queue, "done", "new", 1)
    end(queue, "failed", "old2", 100)
    (queue.path / "logs/old").mkdir()
    (tmp_path / "precious").write_text("x")
    (queue.path / "logs/old/link").symlink_to(tmp_path / "precious")
    (queue.path / "logs/new").mkdir()
    result = forget(queue, ["done", "failed"], older_than_s=50)
    assert (result.done, result.failed, result.outputs) == (1, 1, 1)
    assert (names(queue, "done"), names(queue, "failed"), names(queue, "logs")) == (["new.json"], [], ["new"])
    assert (tmp_path / "precious").exists()


def test_the_newest_are_kept_in_each_state(queue):
    for age in range(5):
        end(queue, "done", f"t{age}", age * 10)
        end(queue, "failed", f"f{age}", age * 10)
    assert forget(queue, ["done"], keep=2).done == 3
    assert names(queue, "done") == ["t0.json", "t1.json"]
    assert len(names(queue, "failed")) == 5
    assert forget(queue, ["done"], keep=0).done == 2


def test_age_or_count_is_enough(queue):
    for age in (0, 10, 100, 1000):
        end(queue, "done", f"t{age}", age)
    forget(queue, ["done"], older_than_s=500, keep=2)
    assert names(queue, "done") == ["t0.json", "t10.json"]
    forget(queue, ["done"], older_than_s=5, keep=100)
    assert names(queue, "done") == ["t0.json"]


def test_a_dry_run_only_counts(queue):
    end(queue, "done", "a", 100)
    assert forget(queue, ["done"], older_than_s=1, dry_run=True).done == 1
    assert names(queue, "done") == ["a.json"]


def test_commits_on_their_way_and_what_waits_are_not_touched(queue):
    for path in ("done/.a.json.won", "pending/a.json", "delayed/b.json"):
        (queue.path / path).write_text("{}")
        os.utime(queue.path / path, times=(0, 0))
    result = forget(queue, ["done", "failed", "quarantine"], older_than_s=0, keep=0)
    assert (result.done, result.failed, result.quarantine) == (0, 0, 0)
    assert (queue.path / "pending/a.json").exists()
    assert (queue.path / "done/.a.json.won").exists()


def test_a_refused_file_goes_with_its_reason(queue):
    end(queue, "quarantine", "x.1", 100)
    (queue.path / "quarantine/x.1.json.reason").write_text("{}")
    assert forget(queue, ["quarantine"], older_than_s=10).quarantine == 1
    assert names(queue, "quarantine") == []


def test_a_record_whose_commit_is_still_there_stays(queue):
    """Its worker died before it removed the commit: without the record, recovery would let the task run again."""
    end(queue, "done", "a1", 100)
    (queue.path / "done/.a1.json.won").write_text("{}")
    assert forget(queue, ["done"], older_than_s=1, keep=0).done == 0
    settle_commits(TaskQueue(queue), Recovered(), alone=True)
    assert forget(queue, ["done"], older_than_s=1).done == 1
    assert names(queue, "pending") == names(queue, "done") == []


@pytest.mark.parametrize("keep", [0, 1, 5, 9, 10, 11])
def test_of_records_of_one_moment_exactly_so_many_are_kept(queue, keep):
    for number in range(10):
        end(queue, "done", f"t{number}")
        os.utime(queue.path / f"done/t{number}.json", (5.0, 5.0 if number < 7 else 6.0))
    assert forget(queue, ["done"], keep=keep, dry_run=True).done == max(0, 10 - keep)
    assert forget(queue, ["done"], keep=keep).done == max(0, 10 - keep)
    left = names(queue, "done")
    assert len(left) == min(10, keep)
    assert set(left) >= {"t7.json", "t8.json", "t9.json"} or len(left) < 3


def test_one_that_is_killed_leaves_no_output_without_its_record(queue):
    for at in range(6):
        end(queue, "done", "a1", 100)
        (queue.path / "logs/a1").mkdir(exist_ok=True)
        (queue.path / "logs/a1/out").touch()
        with contextlib.suppress(BaseException), Steps(at):
            forget(queue, ["done"], older_than_s=1)
        assert names(queue, "done") == ["a1.json"] or names(queue, "logs") == []


def test_a_strangers_folder_is_left_alone(queue):
    (queue.path / "done/folder.json").mkdir()
    assert forget(queue, ["done"], keep=0).done == 0


@pytest.mark.slow
def test_of_many_records_only_a_little_is_in_memory(queue):
    for number in range(30_000):
        os.close(os.open(f"{'x' * 60}{number}.json", os.O_CREAT | os.O_WRONLY, dir_fd=queue.done))
    tracemalloc.start()
    try:
        assert forget(queue, ["done"], keep=10).done == 29_990
        assert tracemalloc.get_traced_memory()[1] < 3 << 20
    finally:
        tracemalloc.stop()
