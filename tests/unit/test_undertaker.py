"""Ending tasks that nobody runs: cancelled, or given up."""

import errno
import os
from contextlib import suppress

import orjson
import pytest
from dspy_supervisor.errors import SupervisorError, TaskNotFound
from dspy_supervisor.task import Cause, State, TaskName
from dspy_supervisor.undertaker import Undertaker

from tests.queues import Node, Steps, steps_of
from tests.system.invariants import check

ERROR = {"cause": Cause.SIGNAL, "message": "killed"}


@pytest.fixture
def undertaker(rig):
    made = Undertaker(rig.queue, Node("me"))
    yield made
    with suppress(OSError):
        made.close()


def test_a_waiting_task_is_cancelled_into_failed(rig, undertaker):
    rig.put("a1", 1)
    rig.put("b1", 2, due=4e9)
    assert undertaker.cancel("a1") is undertaker.cancel("b1") is State.FAILED
    check(rig.path, ["a1", "b1"], may_fail=["a1", "b1"])
    record = orjson.loads((rig.path / "failed/a1.json").read_bytes())
    assert record["error"]["cause"] == "cancelled" and "started_at" not in record
    undertaker.close()
    assert os.listdir(rig.path / "claimed") == []


def test_what_runs_is_left_to_its_worker_and_what_ended_is_told(rig, undertaker):
    rig.put("a1")
    held = rig.claim("a1.json")
    assert undertaker.cancel("a1") is State.CLAIMED
    rig.finish(held)
    with pytest.raises(SupervisorError, match="done already"):
        undertaker.cancel("a1")
    with pytest.raises(TaskNotFound):
        undertaker.cancel("b1")
    check(rig.path, ["a1"])


def test_the_task_of_a_dead_worker_is_ended_with_its_history(rig, undertaker):
    rig.put("a1")
    rig.queue.note_attempt(TaskName("a1"), {"cause": Cause.RAISED, "message": "first"})
    os.rename(rig.path / "pending/a1.json", rig.path / "pending/a1~1x0.json")
    rig.claim("a1~1x0.json")
    (rig.path / "results/a1~1.json").write_text("half a rec")  # what it was writing when it died
    assert undertaker.bury(rig.owner(), "a1~1x0.json", TaskName("a1", 1), ERROR)
    record = orjson.loads((rig.path / "failed/a1.json").read_bytes())
    assert [note["message"] for note in record["history"]] == ["first"] and record["attempt"] == 1
    assert not undertaker.bury(rig.owner(), "a1~1x0.json", TaskName("a1", 1), ERROR)
    check(rig.path, ["a1"], may_fail=["a1"])


def test_what_turns_out_to_be_no_task_goes_to_quarantine(rig, undertaker):
    (rig.path / "pending/a1.json").write_text("{")
    assert not undertaker.bury(rig.layout.pending, "a1.json", TaskName("a1"), ERROR)
    assert any(name.startswith("a1.") for name in rig.names("quarantine")) and rig.names("failed") == []


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_where_the_disk_does_not_take_the_end_the_task_is_where_it_was(rig, undertaker, error):
    rig.put("warm")
    undertaker.bury(rig.layout.pending, "warm.json", TaskName("warm"), ERROR)
    for at in range(
        steps_of(lambda: (rig.put("b1"), undertaker.bury(rig.layout.pending, "b1.json", TaskName("b1"), ERROR)))
    ):
        name = f"t{at}"
        rig.put(name)
        with suppress(OSError), Steps(at, "error", error):
            undertaker.bury(rig.layout.pending, f"{name}.json", TaskName(name), ERROR)
        check(rig.path, [name], may_fail=[name])
        held = [file for file in rig.names("claimed") if name in file]
        assert held == [] or "done" in rig.names("failed")
        undertaker.bury(rig.layout.pending, f"{name}.json", TaskName(name), ERROR)


def test_a_lost_reply_leaves_nothing_in_a_folder_that_nobody_looks_into(rig, undertaker, monkeypatch):
    from dspy_supervisor import taskqueue

    rig.layout.filesystem = rig.layout.filesystem._replace(network=True)
    rig.put("a1")
    real = taskqueue.move
    monkeypatch.setattr(taskqueue, "move", lambda *given: (real(*given), False)[1])
    assert undertaker.bury(rig.layout.pending, "a1.json", TaskName("a1"), ERROR)
    check(rig.path, ["a1"], may_fail=["a1"])
    assert rig.names("claimed") == []
