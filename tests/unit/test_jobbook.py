import json
import os
import re

import pytest
from dspy_supervisor.jobbook import (
    JobBook,
    Order,
    is_carried,
    name_prefix,
    new_name,
)
from dspy_supervisor.jobfolder import take_start, write_beat, write_exit, write_result
from dspy_supervisor.layout import Layout
from dspy_supervisor.task import TaskName


@pytest.fixture
def layout(tmp_path):
    with Layout.open(tmp_path / "queue", create=True, durability="task") as opened:
        yield opened


@pytest.fixture
def book(layout):
    made = JobBook(layout)
    made.prepare()
    return made


def write(book, *files, **intent):
    orders = [Order(file, {"task.json": b"{}", "environment": b""}) for file in files]
    return book.write(new_name(book.layout.queue_id), orders, {"array": len(files) > 1, **intent}, b"#!/bin/sh\n")


def test_names_are_unique_sort_by_time_and_tell_the_queue(layout):
    names = [new_name(layout.queue_id) for _ in range(100)]
    assert len(set(names)) == 100 and names == sorted(names)
    assert all(name.startswith(name_prefix(layout.queue_id)) for name in names)


@pytest.mark.parametrize("queue_id", ["x", "", "a/b;c d", "\udce4" * 40, "0123ABCD"])
def test_the_names_of_a_queue_with_any_id_can_be_told_and_looked_up(queue_id):
    assert re.fullmatch(r"dspy\.[0-9a-f]{8}\.[0-9a-f]{32}", new_name(queue_id))
    assert name_prefix(queue_id) == name_prefix(queue_id)


def test_only_the_claims_of_a_bridge_are_carried():
    assert is_carried("abc.3.slurm")
    assert not any(map(is_carried, ["abc.3.0", "abc.3.end", "slurm", "a.slurm", "a.b.c.slurm"]))


def test_a_submission_is_there_with_all_its_files_and_is_found_by_its_task(book):
    submission = write(book, "a1.json", "b~2x0.json", options=["--time=1"], template="task")
    assert book.find("b~2x0.json") == (submission, 1)
    assert book.find("b.json") is None
    assert sorted(os.listdir(book.path / submission.name)) == ["0", "1", "intent.json", "script"]
    assert submission.job_id == "" and "not known yet" in book.describe("a1.json")
    accepted = book.accepted(submission, "132", "devel")
    assert book.read(submission.name) == accepted
    book.note_seen(submission.name, {"1": {"state": "RUNNING", "nodes": "n3"}})
    assert book.describe("b~2x0.json") == "job 132_1 of cluster devel, RUNNING on n3"
    assert "about to be submitted" in book.describe("c.json")


def test_a_submission_that_was_not_finished_being_written_is_none(book, monkeypatch):
    def fail(*_):
        raise OSError(28, "no space")

    monkeypatch.setattr("dspy_supervisor.jobbook.write_new", fail)
    with pytest.raises(OSError):
        write(book, "a1.json")
    assert os.listdir(book.path) == [] and book.names() == []


def test_what_a_job_writes_is_among_its_tasks_logs(book, layout):
    submission = write(book, "a1~1x0.json")
    with (book.folder(submission.name, 0) / "out").open("a") as out:
        out.write("hello\n")
    assert (layout.path / "logs/a1/job.1.out").read_text() == "hello\n"
    book.keep_output(submission.name, 0, TaskName("a1", 1))
    book.forget(submission.name, 0)
    assert (layout.path / "logs/a1/job.1.out").read_text() == "hello\n"


def test_of_two_copies_of_a_job_one_takes_the_attempt(book):
    submission = write(book, "a1.json")
    folder = book.folder(submission.name, 0)
    assert take_start(folder, 0, {"job_id": "7"})
    assert not book.sentinel(submission.name, 0).twice
    assert not take_start(folder, 0, {"job_id": "8"})
    assert book.sentinel(submission.name, 0).twice
    assert book.sentinel(submission.name, 0).start["job_id"] == "7"
    assert sorted(os.listdir(folder)) == ["environment", "out", "start.0.json", "task.json", "twice.0.json"]


def test_after_the_bridge_has_taken_an_attempt_no_job_can(book):
    submission = write(book, "a1.json")
    folder = book.folder(submission.name, 0)
    assert book.void(submission.name, 0, "not found")
    assert book.void(submission.name, 0, "again")
    assert not any(take_start(folder, restart, {}) for restart in (0, 1, 5))
    assert book.find("a1.json") is None


def test_a_job_that_started_first_keeps_its_attempt_but_its_next_restart_can_be_taken(book):
    submission = write(book, "a1.json")
    folder = book.folder(submission.name, 0)
    assert take_start(folder, 0, {"job_id": "7"})
    assert book.void(submission.name, 0, "lost")
    assert not take_start(folder, 1, {})
    write_exit(folder, 0, {"ok": True})
    assert book.sentinel(submission.name, 0).exit is None


def test_only_the_word_of_the_latest_restart_counts(book):
    submission = write(book, "a1.json")
    folder, name = book.folder(submission.name, 0), submission.name
    assert take_start(folder, 0, {})
    write_exit(folder, 0, {"ok": True})
    assert book.sentinel(name, 0).exit == {"ok": True}
    assert take_start(folder, 1, {}) and not take_start(folder, 0, {})
    write_exit(folder, 0, {"ok": True, "late": True})  # by a copy on a node that was cut off
    assert book.sentinel(name, 0).exit is None
    write_beat(folder, 1, 3)
    write_result(folder, 1, b"[1]")
    write_exit(folder, 1, {"ok": False})
    assert (book.beat(name, 0, 1), book.result(name, 0, 1), book.sentinel(name, 0).exit) == (3, b"[1]", {"ok": False})


def test_a_job_without_a_folder_has_nothing_to_do(book, tmp_path):
    assert not take_start(tmp_path / "gone", 0, {})
    assert book.void("dspy.x", 0, "gone")


def test_the_last_task_of_a_submission_takes_it_along(book):
    submission = write(book, "a.json", "b.json")
    book.forget(submission.name, 0)
    assert book.names() == [submission.name]
    book.forget(submission.name, 1)
    assert os.listdir(book.path) == []


def test_why_a_job_was_ended_outlives_the_bridge(book, layout):
    submission = write(book, "a.json")
    book.note_cancel(submission.name, 0, "cancelled", "by hand")
    assert JobBook(layout).cancelled(submission.name, 0)["cause"] == "cancelled"


def test_links_in_the_folder_lead_nowhere(book, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "intent.json").write_text(json.dumps({"tasks": ["a.json"]}))
    os.symlink(outside, book.path / new_name(book.layout.queue_id))
    assert list(book.submissions()) == []
