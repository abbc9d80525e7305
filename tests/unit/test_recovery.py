"""What the dead left is brought to an end: once, whole, and however often recovery itself is killed."""

import os
from contextlib import suppress
from itertools import combinations

import orjson
import pytest
from dspy_supervisor.producer import put_again
from dspy_supervisor.recovery import Recovered, clear_old, settle_commit, settle_commits
from dspy_supervisor.retry import Budget
from dspy_supervisor.task import TaskName
from dspy_supervisor.taskqueue import delayed_file
from dspy_supervisor.tears import BESIDE, drop_second_names, is_further

from tests.queues import Rig, Steps, steps_of
from tests.system.invariants import check


def interrupted(rig, task_id, at, how="before", end="finish"):
    """Let an owner of node p die at a step of its end."""
    rig.put(task_id, task_id)
    held = rig.claim(f"{task_id}.json", "p.1.0")
    with suppress(BaseException), Steps(at, how):
        getattr(rig, end)(held, owner="p.1.0")


def test_10_the_claims_of_the_dead_wait_again_and_are_charged_as_nobodys_fault(rig):
    """Defect 10: no crash recovery, old locks and files stayed for ever."""
    for name in ("a1", "b1"):
        rig.put(name)
        rig.claim(f"{name}.json", "p.1.0")
    rig.put("c1")
    rig.claim("c1.json", "alive.1.0")
    result = rig.recover("p")
    assert (result.taken, result.failed) == (2, 0)
    assert rig.names("pending") == ["a1~1x0.json", "b1~1x0.json"]
    assert os.listdir(rig.path / "claimed") == ["alive.1.0"]
    assert rig.queue.history(TaskName("a1", 1))[0]["cause"] == "lost"
    assert not rig.recover("p")


def test_10_files_that_were_there_before_the_start_are_simply_tasks(rig):
    (rig.path / "pending/old.json").write_text('{"env_id": 1}')
    assert rig.finish(rig.claim("old.json"))


@pytest.mark.parametrize("end", ["finish", "fail"])
@pytest.mark.parametrize("level", ["none", "full"])
def test_an_end_that_was_cut_off_anywhere_is_one_record_or_a_new_attempt(tmp_path, level, end):
    rig = Rig(tmp_path / "queue", durability=level)
    rig.put("warm")
    held = rig.claim("warm.json")
    accepted = []
    for at in range(steps_of(lambda: getattr(rig, end)(held))):
        for how in ("before", "after"):
            accepted.append(f"t{at}{how}")
            interrupted(rig, accepted[-1], at, how, end)
    rig.recover("p")
    check(rig.path, accepted, may_fail=accepted)
    for state in ("done", "failed"):
        assert not [name for name in rig.names(state) if name.startswith(".")]
    for file in rig.names("pending"):
        assert TaskName.parse(file).attempt == 1
        assert rig.finish(rig.claim(file))
    check(rig.path, accepted, may_fail=accepted)
    rig.close()


def wreck(rig):
    """Leave everything that recovery mends; return what was accepted."""
    for at in range(4):
        interrupted(rig, f"a{at}", at)
        interrupted(rig, f"b{at}", at, "after", "fail")
    rig.put("deep")
    held = rig.claim("deep.json", "p.1.0")
    with suppress(BaseException), Steps(0, "after", only=("move",)):
        rig.finish(held, b"[" * 200 + b"]" * 200, "p.1.0")
    rig.put("spent")
    os.rename(rig.path / "pending/spent.json", rig.path / "claimed/p.1.0/spent~19x1.json")
    (rig.path / "claimed/p.1.0/no task").write_text("x")
    (rig.path / "claimed/p.9.9").write_text("a file in place of a folder")
    rig.put("twice")
    rig.claim("twice.json", "p.2.0")
    os.link(rig.path / "claimed/p.2.0/twice.json", rig.path / "pending/twice.json")
    beside = rig.put("beside")
    rig.finish(rig.claim("beside.json", "p.1.0"), owner="p.1.0")
    (rig.path / "pending/beside.json").write_bytes(beside)
    loose = rig.put("loose")
    rig.fail(rig.claim("loose.json", "p.1.0"), owner="p.1.0")
    put_again(rig.layout, "loose")
    os.link(rig.path / "pending/loose~1x0.json", rig.path / "failed/loose.json")
    (rig.path / "claimed/p.1.0/loose.json").write_bytes(loose)
    return [f"{letter}{at}" for letter in "ab" for at in range(4)] + ["deep", "spent", "twice", "beside", "loose"]


def snapshot(rig):
    """Return where every task is."""
    return sorted(name for name in rig.tree() if not name.startswith(("logs", "quarantine", "results")))


def test_recovery_is_idempotent(tmp_path):
    rig = Rig(tmp_path / "queue", durability="task")
    accepted = wreck(rig)
    assert rig.recover("p")
    check_wreck(rig, accepted)
    before = rig.tree()
    assert not rig.recover("p")
    assert rig.tree() == before
    rig.close()


def check_wreck(rig, accepted):
    for path in (rig.path / "quarantine").glob("[!.]*"):
        why = path if path.suffix == ".reason" else path.with_name(path.name + ".reason")
        note = orjson.loads(why.read_bytes())
        assert note["file"] in ("no task", "p.9.9") or note["reason"].startswith(BESIDE)
    for path in list((rig.path / "quarantine").iterdir()):
        path.unlink()
    check(rig.path, accepted, may_fail=[*(f"b{at}" for at in range(4)), "spent"])
    assert orjson.loads((rig.path / "failed/spent.json").read_bytes())["error"]["cause"] == "deliveries"
    assert (rig.path / "done/deep.json").exists()
    assert os.listdir(rig.path / "claimed") == []


@pytest.mark.parametrize("how", ["before", "after"])
def test_recovery_may_be_killed_at_any_step_and_is_finished_by_the_next(tmp_path, how):
    probe = Rig(tmp_path / "probe")
    wreck(probe)
    steps = steps_of(lambda: probe.recover("p"))
    expected = snapshot(probe)
    probe.close()
    assert steps > 20
    for at in range(steps):
        rig = Rig(tmp_path / f"{at}")
        accepted = wreck(rig)
        with suppress(BaseException), Steps(at, how):
            rig.recover("p", me="second")
        rig.recover("p", "second", me="third")
        rig.recover("p", "second", me="fourth")
        for name in rig.names("pending"):
            assert TaskName.parse(name).attempt >= 1
        check_wreck(rig, accepted)
        if not any(
            "~2x" in name for name in rig.tree()
        ):  # what the second had in hand when it died is charged once more
            assert snapshot(rig) == expected
        rig.close()


def test_a_task_that_was_given_out_too_often_is_ended(rig):
    rig.put("a1")
    for attempt in range(20):
        rig.claim(TaskName("a1", attempt).file, "p.1.0")
        result = rig.recover("p")
        assert (result.taken, result.failed) == ((1, 0) if attempt < 19 else (0, 1))
    record = orjson.loads((rig.path / "failed/a1.json").read_bytes())
    assert record["error"]["cause"] == "deliveries" and "20 times" in record["error"]["message"]
    assert [note["cause"] for note in record["history"]] == ["lost"] * 20
    check(rig.path, ["a1"], may_fail=["a1"], drained=True)


@pytest.mark.parametrize("step", range(9))
def test_an_owner_that_was_only_frozen_does_not_harm_the_end_of_its_task(rig, monkeypatch, step):
    """Its late result is written, and removed, under a name that nobody else uses."""
    rig.put("a1")
    frozen = rig.claim("a1.json", "p.1.0")
    late = rig.queue.open_owner("p.1.0")
    once = Budget(max_attempts=3, max_crashes=3, max_deliveries=1, base_s=1, cap_s=1)
    real = Steps._wrap

    def wrap(self, name, call):
        inner = real(self, name, call)

        def thawing(*given, **more):
            if self.count == step and not thawed:
                thawed.append(None)
                thawed.append(rig.queue.finish(frozen, late, b'{"id":"a1","task_id":"a1","status":"done"}'))
            return inner(*given, **more)

        return thawing

    thawed = []
    monkeypatch.setattr(Steps, "_wrap", wrap)
    with Steps():
        rig.recover("p", budget=once)
    os.close(late)
    assert len(thawed) == 2
    check(rig.path, ["a1"], may_fail=["a1"])
    assert (rig.names("done"), rig.names("failed")) == ((["a1.json"], []) if thawed[1] else ([], ["a1.json"]))


def test_a_commit_whose_record_a_power_cut_took_runs_again_when_nobody_else_lives(rig):
    interrupted(rig, "a1", 1, "after")
    os.truncate(rig.path / "results/a1~0.json", 0)
    assert not rig.recover("p", alone=False)
    check(rig.path, ["a1"])
    assert rig.recover("p").rerun == 1
    assert rig.names("pending") == ["a1~1x0.json"]
    check(rig.path, ["a1"])


def test_a_commit_of_one_that_is_at_work_is_left_to_it(rig):
    rig.put("a1")
    held = rig.claim("a1.json")
    rig.finish(held)
    rig.put("b1")
    os.rename(rig.path / "pending/b1.json", rig.path / "done/.b1.json.won")
    result = Recovered()
    settle_commits(rig.queue, result, alone=False)
    assert not result
    assert ".b1.json.won" in rig.names("done")


def test_the_commit_of_one_dead_worker_is_published(rig):
    interrupted(rig, "a1", 1, "after")
    assert settle_commit(rig.queue, TaskName("a1"))
    check(rig.path, ["a1"], drained=True)
    assert not settle_commit(rig.queue, TaskName("a1"))


def test_a_commit_that_came_second_is_set_aside_unless_it_is_the_same(rig):
    for name, other in (("same", b'{"payload":1}'), ("other", b'{"payload":2}')):
        (rig.path / "pending" / f"{name}.json").write_bytes(b'{"payload":1}')
        rig.finish(rig.claim(f"{name}.json"))
        (rig.path / "done" / f".{name}~1x0.json.won").write_bytes(other)
        (rig.path / "results" / f"{name}~1.json").write_bytes(orjson.dumps({"task_id": name, "status": "done"}))
    before = {state: (rig.path / f"done/{state}.json").read_bytes() for state in ("same", "other")}
    rig.recover("p")
    assert {state: (rig.path / f"done/{state}.json").read_bytes() for state in before} == before
    (kept,) = [name for name in rig.names("quarantine") if not name.endswith(".reason")]
    assert kept.startswith("other.")
    assert rig.names("results") == []


# -- two names of one file ----------------------------------------------------------------------------------------------------

DELAYED = [f"delayed/{delayed_file(5.0, TaskName('a1', attempt))}" for attempt in range(3)]
NAMES = [
    "done/.a1~1x0.json.won", "failed/.a1~1x0.json.won", "claimed/p.1.0/a1~2x0.json", DELAYED[2], "pending/a1~2x0.json",
    "claimed/p.1.0/a1~1x0.json", DELAYED[1], "pending/a1~1x0.json", "claimed/p.1.0/a1.json", DELAYED[0], "pending/a1.json",
]  # fmt: skip


# A rename within one folder is not torn: a folder reaches the disk as a whole.
PAIRS = [pair for pair in combinations(NAMES, 2) if {name.partition("/")[0] for name in pair} != {"pending"}]


@pytest.mark.parametrize(("further", "lesser"), PAIRS)
def test_of_two_names_of_one_file_the_furthest_stays(rig, further, lesser):
    rig.owner("p.1.0")
    (rig.path / further).write_bytes(b'{"payload":1}')
    os.link(rig.path / further, rig.path / lesser)
    if "won" in further:
        state = further.partition("/")[0]
        (rig.path / "results/a1~1.json").write_bytes(orjson.dumps({"task_id": "a1", "status": state}))
    assert drop_second_names(rig.layout) == 1
    assert (rig.path / further).stat().st_nlink == 1 and not (rig.path / lesser).exists()
    rig.recover("p")
    check(rig.path, ["a1"], may_fail=["a1"])
    for file in rig.names("pending"):
        assert rig.finish(rig.claim(file))


def test_a_strangers_hard_link_is_no_second_name(rig, tmp_path):
    rig.put("a1")
    os.link(rig.path / "pending/a1.json", rig.path / "pending/b1.json")
    os.link(rig.path / "pending/a1.json", tmp_path / "outside")
    rig.put("c1", due=4e9)
    os.link(rig.path / "delayed" / rig.names("delayed")[0], tmp_path / "outside2")
    assert drop_second_names(rig.layout) == 0
    assert len(rig.names("pending")) == 2


@pytest.mark.parametrize("content", [b'{"payload":1}', b'{"payload":2}'])
def test_a_claim_is_dropped_only_for_a_record_of_its_own_content(rig, content):
    (rig.path / "pending/a1.json").write_bytes(b'{"payload":1}')
    rig.finish(rig.claim("a1.json"))
    folder = rig.owner("p.1.0")
    (rig.path / "claimed/p.1.0/a1.json").write_bytes(content)
    same = content == b'{"payload":1}'
    assert is_further(rig.queue, TaskName("a1"), folder) is same
    result = rig.recover("p")
    assert (result.dropped, result.taken) == (int(same), int(not same))
    assert any(content == kept for kept in rig.tree().values()) is not same


def test_a_planted_later_attempt_does_not_make_a_claim_go(rig):
    rig.put("a1", 1)
    rig.claim("a1.json", "p.1.0")
    (rig.path / "pending/a1~1x0.json").write_bytes(b'{"payload":2}')
    rig.recover("p")
    assert b'"payload":1' in (rig.path / "pending/a1~1x0.json").read_bytes()
    assert b'{"payload":2}' in rig.tree().values()


# -- a task beside what came of it --------------------------------------------------------------------------------------------


def copied(rig, place, action):
    """Do something that moves a file away, and show the file at its old place as well, as a power cut may."""
    content = (rig.path / place).read_bytes()
    result = action()
    (rig.path / place).parent.mkdir(exist_ok=True)
    (rig.path / place).write_bytes(content)
    return result


@pytest.mark.parametrize("end", ["finish", "fail"])
@pytest.mark.parametrize("place", ["pending/a1.json", DELAYED[0]])
def test_what_waits_beside_its_own_record_goes(rig, end, place):
    rig.put("a1", 1)
    assert copied(rig, "pending/a1.json", lambda: getattr(rig, end)(rig.claim("a1.json")))
    os.rename(rig.path / "pending/a1.json", rig.path / place)
    assert rig.recover("p").quarantined == 1
    (kept,) = [name for name in rig.names("quarantine") if name.endswith(".reason")]
    assert f"{'done' if end == 'finish' else 'failed'}/a1.json" in (rig.path / "quarantine" / kept).read_text()
    check(rig.path, ["a1"], may_fail=["a1"], drained=True)


@pytest.mark.parametrize("name", ["results/a1~0.json", "failed/a1.json"])
def test_a_record_let_loose_again_is_one_task_where_its_names_as_a_record_show_too(rig, name):
    rig.put("a1", 1)
    rig.fail(rig.claim("a1.json"))
    put_again(rig.layout, "a1")
    os.link(rig.path / "pending/a1~1x0.json", rig.path / name)
    assert rig.recover("p").dropped == 1
    check(rig.path, ["a1"])
    assert rig.finish(rig.claim("a1~1x0.json"))


@pytest.mark.parametrize("place", ["claimed/p.1.0/a1.json", "failed/.a1.json.won", DELAYED[0]])
@pytest.mark.parametrize("again", ["pending/a1~1x0.json", "claimed/p.2.0/a1~1x0.json", DELAYED[1]])
def test_an_attempt_goes_where_its_record_was_let_loose_again(rig, place, again):
    rig.put("a1", 1)
    envelope = (rig.path / "pending/a1.json").read_bytes()
    rig.fail(rig.claim("a1.json"))
    put_again(rig.layout, "a1")
    (rig.path / "pending/a1.json").write_bytes(envelope)
    for before, after in (("pending/a1.json", place), ("pending/a1~1x0.json", again)):
        (rig.path / after).parent.mkdir(exist_ok=True)
        os.rename(rig.path / before, rig.path / after)
    if "won" in place:
        os.link(rig.path / again, rig.path / "results/a1~0.json")
    rig.recover("p")
    check(rig.path, ["a1"])
    assert not rig.names("results")


@pytest.mark.parametrize("end", ["finish", "fail"])
def test_a_published_record_that_shows_in_results_too_is_one_end(rig, end):
    state = {"finish": "done", "fail": "failed"}[end]
    rig.put("a1", 1)
    held = rig.claim("a1.json", "p.1.0")
    os.link(rig.path / "claimed/p.1.0/a1.json", rig.path / "pending/.kept")
    getattr(rig, end)(held, owner="p.1.0")
    (rig.path / "claimed/p.1.0").mkdir(exist_ok=True)
    os.rename(rig.path / "pending/.kept", rig.path / f"{state}/.a1.json.won")
    os.link(rig.path / f"{state}/.a1.json.won", rig.path / "claimed/p.1.0/a1.json")
    os.link(rig.path / f"{state}/a1.json", rig.path / "results/a1~0.json")
    rig.recover("p")
    check(rig.path, ["a1"], may_fail=["a1"], drained=True)


def test_what_cannot_be_read_beside_a_record_stays_and_keeps_nobody_from_starting(rig):
    rig.put("a1", 1)
    rig.finish(rig.claim("a1.json"))
    with (rig.path / "pending/a1.json").open("wb") as huge:
        huge.truncate(1 << 40)
    os.mkfifo(rig.path / "pending/a1~1x0.json")
    before = rig.names("pending")
    assert not rig.recover("p")
    assert rig.names("pending") == before


def test_what_asks_for_something_else_than_the_record_of_its_id_stays(rig):
    rig.put("a1", 1)
    rig.finish(rig.claim("a1.json"))
    for file in ("a1.json", "a1~1x0.json"):
        (rig.path / "pending" / file).write_bytes(b'{"payload":2}')
    assert not rig.recover("p").dropped
    assert rig.names("pending") == ["a1.json", "a1~1x0.json"]


# -- what is old --------------------------------------------------------------------------------------------------------------

HOUR = 3600


def aged(path, age_s, content=b"x"):
    path.write_bytes(content)
    now = path.stat().st_mtime
    os.utime(path, (now - age_s, now - age_s))


def test_only_what_is_old_and_nobodys_is_cleared(rig):
    for place in ("pending/.a.tmp", "nodes/.n.hb.x.tmp", "quarantine/.q.tmp", ".queue.json.x.tmp"):
        aged(rig.path / place, 37 * HOUR)
        aged(rig.path / place.replace(".tmp", "-young.tmp"), 35 * HOUR)
    aged(rig.path / "results/a1~0.json", 25 * HOUR)
    aged(rig.path / "results/b1~0.json", 23 * HOUR)
    for place in ("pending/old.json", "pending/.hidden", "pending/x.tmp", "done/d.json", "failed/f.json"):
        aged(rig.path / place, 1000 * HOUR, b'{"payload":1}')
    (rig.path / "results/folder").mkdir()
    os.utime(rig.path / "results/folder", (0, 0))
    before = set(rig.tree())
    assert clear_old(rig.layout) == 5
    assert before - set(rig.tree()) == {
        "pending/.a.tmp", "nodes/.n.hb.x.tmp", "quarantine/.q.tmp", ".queue.json.x.tmp", "results/a1~0.json",
    }  # fmt: skip
    assert clear_old(rig.layout) == 0


def test_age_is_measured_by_the_clock_of_the_folder(rig, monkeypatch):
    """A host whose own clock is years ahead clears nothing."""
    (rig.path / "pending/.a.tmp").touch()
    (rig.path / "results/a1~0.json").touch()
    monkeypatch.setattr("time.time", lambda: 4e9)
    assert clear_old(rig.layout) == 0
