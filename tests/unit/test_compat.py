"""The two files that dashboards of the earlier system read, COMPAT (j), and the files its producers write, (a) to (e)."""

import json
import os

import pytest
from dspy_supervisor import compat
from dspy_supervisor.compat import CompatFiles
from dspy_supervisor.taskqueue import Unusable

CLASSES = {"gpu": 1, "cpu_short": 2, "cpu_long": 3, "gpu_slurm": 9}


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(compat.time, "monotonic", lambda: now[0])
    return now


def metrics(rig):
    path = rig.path / "runner_metrics.json"
    return json.loads(path.read_text()) if path.exists() else None


def test_metrics_are_whole_numbers_and_written_once_a_second(rig, clock):
    files = CompatFiles(rig.layout, metrics=True, actions=False)
    files.show(CLASSES)
    first = metrics(rig)
    assert set(first) == {"gpu", "cpu_short", "cpu_long", "processed", "ts"}
    assert all(type(value) is int for value in first.values())
    assert (first["gpu"], first["cpu_short"], first["processed"]) == (1, 2, 0)
    files.ended("a1.json")
    files.show(CLASSES)
    assert metrics(rig) == first
    clock[0] += 1.0
    files.show(CLASSES)
    assert metrics(rig)["processed"] == 1
    inode = (rig.path / "runner_metrics.json").stat().st_ino
    clock[0] += 1.0
    files.show(CLASSES)
    assert (rig.path / "runner_metrics.json").stat().st_ino == inode, "nothing changed, so nothing is written"


def test_actions_are_lines_beside_the_queue(rig):
    files = CompatFiles(rig.layout, metrics=False, actions=True)
    files.ended("a1~2x0.json")
    files.ended("b1.json")
    files.show(CLASSES)
    files.close()
    files.close()
    lines = [json.loads(line) for line in (rig.path.parent / "agent_action.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == [{"name": "env_task_done", "id": name} for name in ("a1", "b1")]
    assert lines[0]["topic"] == "agent.action" and type(lines[0]["ts"]) is int
    assert metrics(rig) is None


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_a_strangers_file_in_place_of_the_log_turns_it_off(rig, tmp_path, kind):
    path = rig.path.parent / "agent_action.jsonl"
    (tmp_path / "secret").write_text("secret")
    {"link": lambda: path.symlink_to(tmp_path / "secret"), "fifo": lambda: os.mkfifo(path), "folder": path.mkdir}[
        kind
    ]()
    files = CompatFiles(rig.layout, metrics=False, actions=True)
    files.ended("a1.json")
    files.ended("b1.json")
    files.close()
    assert (tmp_path / "secret").read_text() == "secret"


def test_both_can_be_switched_off(rig):
    files = CompatFiles(rig.layout, metrics=False, actions=False)
    files.ended("a1.json")
    files.show(CLASSES)
    assert metrics(rig) is None and not (rig.path.parent / "agent_action.jsonl").exists()


# -- what the first producers write -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content", "workload", "payload"),
    [
        ("a1.json", '{"id":"a1","class":"cpu_short","payload":{"x":1}}', "cpu_short", {"x": 1}),
        ("a1.json", '{"id":"a1","class":null,"payload":1}', "cpu_short", 1),
        ("a1.json", '{"id":"a1","payload":"text"}', "cpu_short", "text"),
        ("a1.json", '{"id":"a1","class":"something","payload":[]}', "cpu_short", []),
        ("a1.json", '{"id":"a1","class":"GPU","payload":null}', "gpu", None),
        ("a1.json", '{"ID":"a1","Class":"cpu_long","Payload":{"y":2}}', "cpu_long", {"y": 2}),
        ("a1.json", '{"id":"other","payload":1,"note":"kept"}', "cpu_short", 1),
        ("with.several.dots.json", '{"payload":1}', "cpu_short", 1),
        (
            "a1.json",
            '{"env_id":7,"action":[1,2],"timestamp":3.5}',
            "cpu_short",
            {"env_id": 7, "action": [1, 2], "timestamp": 3.5},
        ),
        ("a1.json", '{"env_id":7,"config":{"a":1}}', "cpu_short", {"env_id": 7, "config": {"a": 1}}),
        (
            "a1.json",
            '{"episode_id":"e","kind":{"any":"thing"}}',
            "cpu_short",
            {"episode_id": "e", "kind": {"any": "thing"}},
        ),
        ("a1.json", "{}", "cpu_short", {}),
        (
            "a1.json",
            json.dumps({"id": "a1", "class": "gpu", "payload": {"t": "é"}}, indent=2) + "\n",
            "gpu",
            {"t": "é"},
        ),
    ],
)
def test_a_file_of_the_first_producers_runs_as_it_was_meant(rig, file, content, workload, payload):
    (rig.path / "pending" / file).write_text(content)
    looked = rig.queue.look(file)
    held = rig.claim(file)
    assert held.envelope == looked.envelope and held.workload == workload and json.loads(held.payload) == payload
    assert rig.finish(held, b'{"ok":true}')
    record = json.loads((rig.path / "done" / file).read_text())
    assert record["payload"] == payload and record["class"] == workload and record["runner_result"] == {"ok": True}
    assert record["id"] == (json.loads(content).get("id") or json.loads(content).get("ID") or file[:-5])
    assert record.get("note") == json.loads(content).get("note")
    assert rig.names("pending") == []
    assert len([name for name in rig.names("done") if name.endswith(".json")]) == 1


@pytest.mark.parametrize("size", [0, 1, 10, 40, 43])
def test_8_a_file_that_is_still_being_written_is_no_task_yet_and_stays(rig, size):
    """Defect 8: torn reads of files still being written."""
    content = b'{"id":"a1","class":"gpu","payload":{"x":12}}'
    assert size < len(content)
    path = rig.path / "pending/a1.json"
    path.write_bytes(content[:size])
    with pytest.raises(Unusable) as torn:
        rig.queue.look("a1.json")
    assert torn.value.may_change
    with open(path, "ab") as writer:
        writer.write(content[size:])
    assert rig.claim("a1.json").envelope == content


@pytest.mark.parametrize("file", ["a1.json.tmp", ".a1.json", "a1.lock", "a1.tmp", ".a1.tmp"])
def test_temporary_names_are_nobodys_task(rig, file):
    (rig.path / "pending" / file).write_text('{"payload":1}')
    with pytest.raises(Unusable):
        rig.queue.look(file)
    rig.recover("nobody")
    assert rig.names("pending") == [file]
