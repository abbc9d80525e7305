"""Where a task is, whatever its attempt, also while it moves."""

import os

import pytest
from dspy_supervisor import lookup
from dspy_supervisor.lookup import files, find, find_all, find_one, name_of, quarantined, read_found, read_record
from dspy_supervisor.task import Cause, State, TaskName

from tests.queues import Killed, Steps


@pytest.mark.parametrize("attempt", [0, 1, 3, 31, 32, 500])
@pytest.mark.parametrize("crashed", [False, True])
def test_a_waiting_task_is_found_at_any_attempt(rig, attempt, crashed):
    name = TaskName("a1", attempt, attempt if crashed else 0)
    (rig.path / "pending" / name.file).write_bytes(b'{"payload":1}')
    if attempt > 3:  # what a retry leaves
        rig.queue.note_attempt(TaskName("a1", attempt - 1), {"cause": Cause.RAISED, "message": ""})
    (rig.path / "pending/a1.b.json").write_bytes(b"{}")
    (rig.path / "pending/a11.json").write_bytes(b"{}")
    for places in (list(find(rig.layout, "a1")), find_all(rig.layout, ["a1", "x"])["a1"], [find_one(rig.layout, "a1")]):
        (found,) = places
        assert (found.state, name_of(found)) == (State.PENDING, name)
        assert read_found(rig.layout, found).data == b'{"payload":1}'


def test_every_state_is_found_and_read(rig):
    rig.put("p")
    rig.put("l", due=4e9)
    for name in "cdf":
        rig.put(name)
        held = rig.claim(f"{name}.json")
        if name != "c":
            rig.finish(held) if name == "d" else rig.fail(held)
    expected = {"p": "pending", "l": "delayed", "c": "claimed", "d": "done", "f": "failed"}
    assert {name: find_one(rig.layout, name).state for name in expected} == expected
    assert {name: found[0].state for name, found in find_all(rig.layout, [*expected]).items()} == expected
    for name, state in expected.items():
        found = find_one(rig.layout, name)
        assert read_found(rig.layout, found) is not None
        assert found in list(files(rig.layout, State(state)))
    assert find_one(rig.layout, "l").due == 4e9
    assert find_one(rig.layout, "c").owner == "n1.1.0"
    assert all(find_one(rig.layout, no_id) is None for no_id in ("", "../../etc", "a/b", "a\0", "."))
    assert find_one(rig.layout, "nobody") is None and find_all(rig.layout, []) == {}


def test_a_task_between_commit_and_publication_is_found(rig):
    rig.put("a1")
    held = rig.claim("a1.json")
    with pytest.raises(Killed), Steps(1, "after"):
        rig.finish(held)
    for found in (find_one(rig.layout, "a1"), next(find(rig.layout, "a1")), find_all(rig.layout, ["a1"])["a1"][0]):
        assert found.state is State.CLAIMED


@pytest.mark.parametrize("step", range(6))
def test_a_task_on_its_way_forward_is_not_missed(rig, monkeypatch, step):
    """It moves on to its end between any two of the looks."""
    rig.put("a1")
    looks = []

    def moving(real):
        def look(*given, **more):
            if len(looks) == step:
                looks.append(None)
                rig.finish(rig.claim("a1.json"))
            looks.append(None)
            return real(*given, **more)

        return look

    monkeypatch.setattr(lookup, "exists", moving(lookup.exists))
    monkeypatch.setattr(lookup, "list_folder", moving(lookup.list_folder))
    assert list(find(rig.layout, "a1"))


@pytest.mark.parametrize("kind", ["empty", "torn", "list", "folder", "fifo", "link"])
def test_what_is_no_record_reads_as_none(rig, tmp_path, kind):
    path = rig.path / "done/a1.json"
    (tmp_path / "secret").write_text('{"secret": 1}')
    {
        "empty": path.touch, "torn": lambda: path.write_text('{"id":'), "list": lambda: path.write_text("[]"),
        "folder": path.mkdir,
        "fifo": lambda: os.mkfifo(path), "link": lambda: path.symlink_to(tmp_path / "secret"),
    }[kind]()  # fmt: skip
    assert read_record(rig.layout, "a1") is None
    assert read_found(rig.layout, find_one(rig.layout, "a1")) is None


@pytest.mark.parametrize("no_id", ["../pending/a1", "/etc/a1", "..", "", "a/b", "a\0", "x" * 300])
def test_what_can_be_no_id_has_no_record_and_leads_to_no_other_folder(rig, no_id):
    rig.put("a1")
    assert read_record(rig.layout, no_id) is None


def test_why_a_file_was_refused_is_told_by_its_id(rig):
    for reason in ("first", "second"):
        (rig.path / "pending/a1.json").write_text("{")
        rig.queue.quarantine(rig.layout.pending, "a1.json", reason)
    assert quarantined(rig.layout, "a1") == "second"
    assert quarantined(rig.layout, "a") is None
