"""fsck finds each planted fault, says what mends it, mends it without losing anything, and finds nothing where all is well."""

import os
from dataclasses import replace

import orjson
import pytest
from dspy_supervisor.config import load
from dspy_supervisor.errors import AlreadyRunning, QueueMissing
from dspy_supervisor.fsck import examine
from dspy_supervisor.layout import Layout
from dspy_supervisor.nodes import Presence
from dspy_supervisor.producer import Producer, envelope


@pytest.fixture
def config(tmp_path):
    (tmp_path / "run").mkdir(mode=0o700)
    environ = {
        "HOME": str(tmp_path),
        "ENV_QUEUE_DIR": str(tmp_path / "queue"),
        "DSPY_RUNTIME_DIR": str(tmp_path / "run"),
    }
    config = load({}, environ, tmp_path).config
    Layout.open(config.queue_dir, create=True, durability="none").close()
    return config


@pytest.fixture
def queue(config):
    return config.queue_dir


def put(queue, *ids):
    with Layout.open(queue) as layout:
        for task_id in ids:
            Producer(layout).put(task_id, envelope([task_id], task_id=task_id))


def record(task_id, status="done", **more):
    return orjson.dumps({"id": task_id, "payload": 1, "task_id": task_id, "status": status, "attempt": 0, **more})


def found(config, **more):
    return {problem.place: problem for problem in examine(config, **more)}


def mended(config, *places):
    """Mend, and assert that these were found and nothing is left."""
    seen = found(config)
    assert set(seen) == set(places), seen
    assert not any(problem.mended for problem in seen.values())
    assert all(problem.remedy for problem in seen.values())
    done = found(config, repair=True)
    assert set(done) == set(places), done
    assert all(problem.mended for problem in done.values()), done
    assert found(config) == {}


def test_a_good_queue_has_no_problem_and_a_repair_leaves_it_alone(config, queue):
    put(queue, "a1", "a2")
    (queue / "done/a3.json").write_bytes(record("a3"))
    before = sorted(str(path) for path in queue.rglob("*"))
    assert found(config) == found(config, repair=True) == {}
    assert sorted(str(path) for path in queue.rglob("*")) == before


def test_a_folder_that_never_was_a_queue_is_not_made_one(config, tmp_path):
    other = load({"queue_dir": str(tmp_path)}, {"HOME": str(tmp_path)}, tmp_path).config
    with pytest.raises(QueueMissing, match="is no queue"):
        list(examine(other, repair=True))
    assert not (tmp_path / "pending").exists()


@pytest.mark.parametrize("torn", [b"", b'{"format": 1', b"[]"])
def test_an_identity_that_is_torn_is_kept_aside_and_written_again(config, queue, torn):
    put(queue, "a1")
    (queue / "queue.json").write_bytes(torn)
    mended(config, "queue.json")
    aside = [path for path in (queue / "quarantine").iterdir() if path.name.startswith("queue.json.")]
    assert [path.read_bytes() for path in aside] == [torn]
    assert (queue / "pending/a1.json").exists()


@pytest.mark.parametrize("length", [0, 30, 70, 90, 110])
def test_what_a_torn_identity_still_says_is_kept(config, queue, length):
    with Layout.open(queue, durability="full") as layout:
        queue_id = layout.queue_id
    whole = (queue / "queue.json").read_bytes()
    torn = whole[:length]
    (queue / "queue.json").write_bytes(torn)
    (problem,) = examine(config, repair=True)
    now = orjson.loads((queue / "queue.json").read_bytes())
    assert (now["queue_id"] == queue_id) == (queue_id.encode() in torn)
    is_kept = b'"full"' in torn
    assert now["durability"] == ("full" if is_kept else "task")
    assert ("it has durability task now, whatever it had" in problem.message) != is_kept


def test_an_identity_that_is_gone_is_made_again_at_the_level_that_is_asked_for(config, queue):
    for asked in ("full", None):
        (queue / "queue.json").unlink()
        (problem,) = examine(replace(config, durability=asked), repair=True)
        assert orjson.loads((queue / "queue.json").read_bytes())["durability"] == (asked or "task")
        assert ("whatever it had" in problem.message) == (asked is None)
    (queue / "queue.json").unlink()
    (problem,) = examine(config)
    assert "--durability" in problem.remedy


def test_a_file_where_a_folder_belongs_is_named_and_left(config, queue):
    (queue / "done").rmdir()
    (queue / "done").write_text("mine")
    [problem] = examine(config)
    assert (problem.place, problem.message) == ("done", "a file is where the queue has a folder of its own")
    assert problem.remedy.startswith("move it away, and fsck --repair")
    with pytest.raises(QueueMissing, match="done is a file"):
        list(examine(config, repair=True))
    assert (queue / "done").read_text() == "mine"


def test_a_missing_identity_or_folder_is_made_again(config, queue):
    (queue / "queue.json").unlink()
    (queue / "results").rmdir()
    mended(config, "queue.json", "results")


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("a1.json", b'{"id": "a1"', "torn, or no record"),
        ("a1.json", b"", "torn, or no record"),
        ("a1.json", record("a2"), "its task_id is 'a2'"),
        ("a1.json", record("a1", "failed"), "its status is 'failed'"),
        ("notes.json", b"{}", "its task_id is None"),
    ],
)
def test_what_is_no_record_goes_to_quarantine_with_the_reason(config, queue, file, content, reason):
    (queue / "done" / file).write_bytes(content)
    assert reason in found(config)[f"done/{file}"].message
    mended(config, f"done/{file}")
    kept = [path for path in (queue / "quarantine").iterdir() if path.suffix == ".json"]
    assert [path.read_bytes() for path in kept] == [content]
    assert reason in orjson.loads((queue / "quarantine" / f"{kept[0].name}.reason").read_bytes())["reason"]


def test_a_link_among_the_records_is_not_followed(config, queue, tmp_path):
    (tmp_path / "secret").write_bytes(record("a1"))
    (queue / "failed/a1.json").symlink_to(tmp_path / "secret")
    assert "symbolic link" in found(config)["failed/a1.json"].message


def test_of_two_names_for_one_task_the_furthest_stays(config, queue):
    put(queue, "a1", "a2", "a3")
    (queue / "done/a1.json").write_bytes(record("a1"))
    (queue / "pending/a2~1x0.json").write_bytes((queue / "pending/a2.json").read_bytes())
    mended(config, "pending/a1.json", "pending/a2.json")
    assert sorted(os.listdir(queue / "pending")) == ["a2~1x0.json", "a3.json"]
    assert len([name for name in os.listdir(queue / "quarantine") if not name.endswith(".reason")]) == 2


def test_what_a_power_cut_left_beside_a_record_is_set_aside_and_not_deleted(config, queue):
    for number, name in enumerate(("pending/a1.json", "delayed/000000000005000.a2.json"), 1):
        (queue / f"done/a{number}.json").write_bytes(record(f"a{number}"))
        (queue / name).write_bytes(b'{"payload":1}')
    mended(config, "pending/a1.json", "delayed/000000000005000.a2.json")
    kept = [path for path in (queue / "quarantine").iterdir() if path.suffix == ".json"]
    assert [path.read_bytes() for path in kept] == [b'{"payload":1}'] * 2


def test_a_task_let_loose_again_keeps_its_name_that_waits(config, queue):
    (queue / "failed/a1.json").write_bytes(record("a1", "failed"))
    os.link(queue / "failed/a1.json", queue / "pending/a1~1x0.json")
    assert "pending/a1~1x0.json" in found(config)
    assert all(problem.mended for problem in examine(config, repair=True))
    assert os.listdir(queue / "pending") == ["a1~1x0.json"] and os.listdir(queue / "failed") == []
    assert found(config) == {}


def test_the_claims_of_a_dead_supervisor_are_taken_back(config, queue):
    put(queue, "a1")
    with Layout.open(queue) as layout:
        lock = config.runtime_dir / f"{layout.queue_id}.main.lock"
        dead = Presence(layout, lock)
        owner = dead.new_owner(0)
        (queue / "claimed" / owner).mkdir()
        (queue / "pending/a1.json").rename(queue / "claimed" / owner / "a1.json")
        dead.forget_in_child()  # as its death does: the lock is free, the heartbeat stays
    mended(config, f"claimed/{owner}")
    assert os.listdir(queue / "pending") == ["a1~1x0.json"]
    assert os.listdir(queue / "claimed") == os.listdir(queue / "nodes") == []


def test_a_commit_whose_owner_died_is_published(config, queue):
    put(queue, "a1")
    (queue / "pending/a1.json").rename(queue / "done/.a1.json.won")
    (queue / "results/a1~0.json").write_bytes(record("a1"))
    mended(config, "done/.a1.json.won")
    assert orjson.loads((queue / "done/a1.json").read_bytes())["task_id"] == "a1"
    assert os.listdir(queue / "results") == []


def test_where_a_supervisor_runs_it_looks_and_does_not_mend(config, queue):
    (queue / "done/a1.json").write_bytes(b"torn")
    with Layout.open(queue) as layout, Presence(layout, config.runtime_dir / f"{layout.queue_id}.main.lock"):
        assert set(found(config)) == {"done/a1.json"}
        with pytest.raises(AlreadyRunning):
            found(config, repair=True)
    assert (queue / "done/a1.json").exists()


def test_a_pause_that_cannot_be_read_is_told(config, queue):
    (queue / "paused.json").write_text("[")
    assert set(found(config)) == {"paused.json"}


@pytest.fixture
def later(config):
    """The same configuration, by which nothing is too young to be judged."""
    return replace(config, partial_grace_s=-1.0)


STRANGERS = ["pending/-rf.json", "pending/torn.json", "pending/folder.json", "delayed/a1.json", "claimed/x"]


def test_what_is_no_task_goes_to_quarantine_once_it_cannot_become_one(config, later, queue):
    put(queue, "a1")
    for place in STRANGERS:
        (queue / place).mkdir() if "folder" in place else (queue / place).write_bytes(b"{torn")
    (queue / "pending/x.json.tmp").write_text("somebody is writing")
    (queue / "pending/x.lock").touch()
    assert set(found(config)) == {"claimed/x"}
    mended(later, *STRANGERS)
    assert sorted(os.listdir(queue / "pending")) == ["a1.json", "x.json.tmp", "x.lock"]
    kept = [name for name in os.listdir(queue / "quarantine") if not name.endswith(".reason")]
    assert len(kept) == len(STRANGERS)


def test_what_a_death_left_behind_is_cleared_when_it_is_old(config, queue):
    for place in ("pending/.a.x.tmp", "nodes/.n.x.tmp", "results/a1~0.json", "quarantine/.q.tmp"):
        (queue / place).write_text("{}")
        os.utime(queue / place, (0, 0))
    young = ["pending/.b.x.tmp", "nodes/.m.x.tmp", "results/b1~0.json", "quarantine/.r.tmp"]
    for place in young:
        (queue / place).touch()
    (problem,) = found(config).values()
    assert problem.message.startswith("4 ")
    assert all(problem.mended for problem in found(config, repair=True).values())
    assert found(config) == {}
    assert all((queue / place).exists() for place in young)


def test_what_is_at_a_cluster_is_left_there_and_a_torn_submission_is_told(config, queue):
    name = "dspy.0123abcd." + "0" * 32
    for folder in (queue / "claimed/gone.1.slurm", queue / "slurm" / name):
        folder.mkdir(parents=True)
    put(queue, "a")
    (queue / "pending/a.json").rename(queue / "claimed/gone.1.slurm/a.json")
    assert found(config).keys() == {f"slurm/{name}"}
    assert name in found(config, repair=True)[f"slurm/{name}"].remedy
    assert (queue / "claimed/gone.1.slurm/a.json").exists()
    (queue / "slurm" / name / "intent.json").write_text('{"tasks": ["a.json"]}')
    assert found(config) == {}
