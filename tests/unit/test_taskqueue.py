"""The moves of one task: one winner, one commit, and no error believed."""

import errno
import os
import time
from contextlib import suppress

import orjson
import pytest
from dspy_supervisor import taskqueue
from dspy_supervisor.record import done_record, failed_record
from dspy_supervisor.task import Cause, TaskName
from dspy_supervisor.taskqueue import TaskQueue, Unusable, delayed_file, parse_delayed, parse_won, past_causes, won_file

from tests.queues import RUN, Rig, Steps, steps_of
from tests.system.invariants import check

OTHER = "n2.1.0"
ERROR = {"cause": Cause.RAISED, "message": "no"}


def race(actions):
    """Run each action in a process of its own, all from one gate, and return which said True."""
    gate, children = os.pipe(), []
    for action in actions:
        pid = os.fork()
        if pid == 0:
            code = 2
            with suppress(BaseException):
                os.close(gate[1])
                os.read(gate[0], 1)
                code = int(bool(action()))
            os._exit(code)
        children.append(pid)
    os.close(gate[0])
    os.close(gate[1])
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert set(codes) <= {0, 1}, codes
    return codes


# -- claim ----------------------------------------------------------------------------------------------------------------


def test_a_claim_is_the_task_in_the_owners_folder(rig):
    document = rig.put("a1", {"n": 1}, **{"class": "gpu"})
    held = rig.claim("a1.json")
    assert (held.name, held.envelope, held.workload) == (("a1", 0, 0), document, "gpu")
    assert held.payload == b'{"n":1}'
    assert (rig.names("pending"), rig.names("claimed")) == ([], ["n1.1.0/a1.json"])
    assert rig.queue.claim("a1.json", rig.owner(OTHER)) is None


def test_a_claim_is_never_synced(durable):
    durable.put("a1")
    folder = durable.owner()
    with Steps() as steps:
        durable.queue.claim("a1.json", folder)
    assert steps.calls == ["claim"]


def test_of_many_owners_exactly_one_gets_a_task(rig):
    folders = [rig.owner(f"n1.{number}.0") for number in range(6)]
    for number in range(20):
        rig.put(f"t{number}")
        wins = race([lambda folder=folder, n=number: rig.queue.claim(f"t{n}.json", folder) for folder in folders])
        assert sum(wins) == 1
    check(rig.path, [f"t{number}" for number in range(20)])


@pytest.mark.parametrize(
    ("content", "may_change"), [(b"", True), (b"{", True), (b'{"payload":NaN}', True), (b'{"kind":1,"payload":2}', True)]
)  # fmt: skip
def test_a_file_that_is_no_task_is_unusable_and_still_there(rig, content, may_change):
    (rig.path / "pending/a1.json").write_bytes(content)
    with pytest.raises(Unusable) as looked:
        rig.queue.look("a1.json")
    with pytest.raises(Unusable) as claimed:
        rig.queue.claim("a1.json", rig.owner())
    assert looked.value.may_change is claimed.value.may_change is may_change
    assert rig.names("claimed") == ["n1.1.0/a1.json"]
    assert rig.queue.quarantine(rig.owner(), "a1.json", claimed.value.reason)
    kept, why = rig.names("quarantine")
    assert (rig.path / "quarantine" / kept).read_bytes() == content
    assert orjson.loads((rig.path / "quarantine" / why).read_bytes())["reason"] == claimed.value.reason


def test_trouble_of_ours_is_no_verdict_on_the_task(rig):
    rig.put("a1")
    for error in (errno.EIO, errno.EMFILE, errno.ENOMEM, errno.EACCES):
        folder = rig.owner()
        with pytest.raises(OSError) as raised, Steps(0, "error", error, only=("claim",)):
            rig.queue.claim("a1.json", folder)
        assert raised.value.errno == error
    check(rig.path, ["a1"])
    assert rig.names("quarantine") == []


@pytest.mark.parametrize("end", ["finish", "fail"])
def test_12_an_id_that_has_a_record_is_refused_and_the_record_stays(rig, end):
    """Defect 12: a duplicate id overwrote a record."""
    rig.put("a1", 1)
    held = rig.claim("a1.json")
    assert rig.finish(held) if end == "finish" else rig.fail(held)
    before = rig.tree()
    for document, words in ((b'{"id":"a1","payload":1}', "with the same"), (b'{"id":"a1","payload":2}', "with other")):
        (rig.path / "pending/a1.json").write_bytes(document)
        with pytest.raises(Unusable, match=words) as refused:
            rig.queue.claim("a1.json", rig.owner())
        assert not refused.value.may_change
        rig.queue.quarantine(rig.owner(), "a1.json", refused.value.reason)
    after = rig.tree()
    assert {name: after[name] for name in before} == before
    assert len(rig.names("quarantine")) == 4


def test_a_record_that_cannot_be_looked_for_is_not_absent(rig, monkeypatch):
    rig.put("a1")
    folder = rig.owner()
    with open(rig.path / "queue.json") as no_folder:
        monkeypatch.setattr(rig.layout, "done", no_folder.fileno())
        with pytest.raises(NotADirectoryError):
            rig.queue.claim("a1.json", folder)
    monkeypatch.undo()
    check(rig.path, ["a1"])


# -- finish ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["finish", "fail"])
def test_an_end_leaves_one_record_and_nothing_else(rig, end):
    rig.put("a1", 1)
    held = rig.claim("a1.json")
    assert getattr(rig, end)(held)
    state = "done" if end == "finish" else "failed"
    assert rig.names(state) == ["a1.json"]
    assert all(rig.names(folder) == [] for folder in ("pending", "delayed", "claimed", "results", "quarantine"))
    assert orjson.loads((rig.path / state / "a1.json").read_bytes())["status"] == state


@pytest.mark.parametrize(
    ("level", "calls"),
    [
        ("none", ["write_new", "move", "move_new", "unlink"]),
        ("task", ["write_new", "sync", "move", "move_new", "unlink"]),
        ("full", ["write_new", "sync", "move", "move_new", "sync", "sync", "unlink"]),
    ],
)
def test_19_a_result_is_on_the_disk_before_the_commit(tmp_path, level, calls):
    """Defect 19: no fsync. The order is the promise: record, its folder, commit, publication, and only then the rest."""
    rig = Rig(tmp_path / "queue", durability=level)
    rig.put("a1")
    held = rig.claim("a1.json")
    written = []
    real = taskqueue.write_new
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(taskqueue, "write_new", lambda *given: (written.append(given[3]), real(*given))[1])
        with Steps() as steps:
            assert rig.finish(held)
    assert steps.calls == calls
    assert written == [level != "none"]
    rig.close()


def test_a_frozen_owners_late_result_is_void(rig):
    rig.put("a1", 1)
    frozen = rig.claim("a1.json")
    assert rig.recover("n1").taken == 1
    second = rig.claim("a1~1x0.json", OTHER)
    assert rig.finish(second, b'"second"', OTHER)
    before = rig.tree()
    late = rig.queue.open_owner("n1.1.0")
    assert not rig.queue.finish(frozen, late, done_record(frozen, b'"first"', RUN))
    os.close(late)
    assert rig.tree() == before
    assert orjson.loads(before["done/a1.json"])["runner_result"] == "second"
    assert rig.queue.fenced == 1


def test_11_an_owner_and_who_takes_from_it_cannot_both_win(rig):
    """Defect 11: double execution by taking another's lock."""
    for number in range(30):
        rig.put(f"t{number}")
        held = rig.claim(f"t{number}.json")
        own, taker = race(
            [lambda held=held: rig.finish(held), lambda held=held: rig.queue.take(held.name, rig.owner(), 0.0)]
        )
        assert own + taker == 1
        assert rig.names("done").count(f"t{number}.json") == own
        assert rig.names("pending").count(f"t{number}~1x0.json") == taker
    check(rig.path, [f"t{number}" for number in range(30)])


def test_a_claim_ends_once_by_two_threads_of_fate(rig):
    for number in range(30):
        rig.put(f"t{number}")
        held = rig.claim(f"t{number}.json")
        assert (
            sum(
                race(
                    [lambda held=held: rig.finish(held), lambda held=held: rig.queue.retry(held.file, rig.owner(), 0.0)]
                )
            )
            == 1
        )
    check(rig.path, [f"t{number}" for number in range(30)])


@pytest.mark.parametrize("how", ["error", "lost"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.ESTALE, errno.EDQUOT])
def test_19_a_result_that_cannot_be_written_is_kept_by_trying_again(tmp_path, how, error):
    """Defect 19: a failed write of the result was only logged, and the task dropped."""
    rig = Rig(tmp_path / "queue", durability="full")
    rig.put("warm")
    steps = steps_of(lambda: rig.finish(rig.claim("warm.json")))
    for at in range(1, steps):
        rig.put(f"t{at}", at)
        held = rig.claim(f"t{at}.json")
        recorded = None
        with suppress(OSError), Steps(at - 1, how, error):
            recorded = rig.finish(held)
        check(rig.path, [f"t{at}"])
        if recorded is None:
            recorded = rig.finish(held)  # as a worker does, until the disk takes it
        assert recorded, "what it recorded itself is no other's"
        assert rig.queue.fenced == 0
        assert orjson.loads((rig.path / f"done/t{at}.json").read_bytes())["runner_result"] == "ok"
        check(rig.path, [f"t{at}"], drained=True)
    rig.close()


def test_a_record_that_was_cleared_away_between_commit_and_publication_is_written_again(rig, monkeypatch):
    rig.put("a1")
    held = rig.claim("a1.json")
    move = taskqueue.move

    def frozen_for_a_day(*given):
        try:
            return move(*given)
        finally:
            for name in rig.names("results"):
                os.unlink(rig.path / "results" / name)

    monkeypatch.setattr(taskqueue, "move", frozen_for_a_day)
    assert rig.finish(held)
    check(rig.path, ["a1"], drained=True)


# -- a stranger who uses a name twice ---------------------------------------------------------------------------------------


def drop(rig, file, payload):
    (rig.path / "pending" / file).write_bytes(orjson.dumps({"id": "a1", "payload": payload}))


def kept_payloads(rig):
    """Return the payloads of everything the queue still knows, whatever it is now."""
    found = [
        orjson.loads(content)["payload"]
        for name, content in rig.tree().items()
        if name.endswith(".json") and b"payload" in content
    ]
    return sorted(found)


@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("ends", [("finish", "finish"), ("finish", "fail"), ("fail", "finish")])
def test_12_two_files_of_one_name_that_run_at_once_do_not_mix(rig, order, ends):
    """Defect 12 again: both would write one result, and one record would be overwritten or lost."""
    rig.put("a1", 1)
    claims = [(rig.claim("a1.json"), "n1.1.0")]
    drop(rig, "a1.json", 2)
    claims.append((rig.claim("a1.json", OTHER), OTHER))
    if order == "second":
        claims.reverse()
    won = [getattr(rig, end)(held, owner=owner) for end, (held, owner) in zip(ends, claims, strict=True)]
    assert won == [True, False]
    records = [name for state in ("done", "failed") for name in rig.names(state)]
    assert records == ["a1.json"]
    assert kept_payloads(rig) == [1, 2]
    assert rig.names("results") == rig.names("claimed") == []


def test_two_files_of_one_name_that_end_step_by_step_lose_nothing(rig):
    """The second ends completely between any two steps of the first."""
    rig.put("warm")
    count = steps_of(lambda: rig.finish(rig.claim("warm.json")))
    for at in range(1, count - 1):
        name = f"t{at}"
        rig.put(name, [1])
        first = rig.claim(f"{name}.json")
        (rig.path / "pending" / f"{name}.json").write_bytes(b'{"payload":[2]}')
        second = rig.claim(f"{name}.json", OTHER)
        results = []
        real, calls = Steps._wrap, [0]

        def interleaved(self, call_name, call, real=real, calls=calls, second=second, results=results, at=at):
            inner = real(self, call_name, call)

            def step(*given, **more):
                if results or self.count != at:
                    return inner(*given, **more)
                results.append(None)
                results[0] = rig.finish(second, b'"second"', OTHER)
                return inner(*given, **more)

            return step

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Steps, "_wrap", interleaved)
            with Steps():
                results.append(rig.finish(first, b'"first"'))
        assert sum(map(bool, results)) == 1, (at, results)
        record = orjson.loads((rig.path / f"done/{name}.json").read_bytes())
        assert (record["payload"], record["runner_result"]) in (([1], "first"), ([2], "second")), at
        told = [content for file, content in rig.tree().items() if name in file and b"payload" in content]
        assert sum(b"[1]" in content for content in told) == sum(b"[2]" in content for content in told) >= 1, at
        for held, owner in ((first, "n1.1.0"), (second, OTHER)):
            with suppress(FileNotFoundError):
                os.unlink(rig.path / "claimed" / owner / held.file)
        for path in (rig.path / "quarantine").iterdir():
            path.unlink()


@pytest.mark.parametrize("move", ["release", "retry", "retry later", "promote", "delay"])
def test_no_move_overwrites_a_strangers_file(rig, move):
    due = 4e9
    if move == "promote":
        rig.put("a1", 1, due=due)
    else:
        rig.put("a1", 1)
    if move in ("release", "retry", "retry later"):
        held = rig.claim("a1.json")
    target = {
        "release": "pending/a1.json", "retry": "pending/a1~1x0.json", "promote": "pending/a1.json",
        "retry later": f"delayed/{delayed_file(due, TaskName('a1', 1))}", "delay": f"delayed/{delayed_file(due, TaskName('a1'))}",
    }[move]  # fmt: skip
    (rig.path / target).write_bytes(b'{"payload":2}')
    moved = {
        "release": lambda: rig.queue.release(held.file, rig.owner()),
        "retry": lambda: rig.queue.retry(held.file, rig.owner(), 0.0),
        "retry later": lambda: rig.queue.retry(held.file, rig.owner(), due),
        "promote": lambda: rig.queue.promote(rig.names("delayed")[0]),
        "delay": lambda: rig.queue.delay("a1.json", due),
    }[move]()
    assert moved
    assert orjson.loads((rig.path / target).read_bytes())["payload"] == 1
    assert kept_payloads(rig) == [1, 2]


@pytest.mark.parametrize("move", ["release", "promote"])
def test_a_move_onto_the_same_file_leaves_one_name(rig, move):
    """A rename between two names of one file does nothing and reports success."""
    rig.put("a1", 1, due=4e9 if move == "promote" else None)
    if move == "release":
        rig.claim("a1.json")
        os.link(rig.path / "claimed/n1.1.0/a1.json", rig.path / "pending/a1.json")
        assert rig.queue.release("a1.json", rig.owner())
    else:
        os.link(rig.path / "delayed" / rig.names("delayed")[0], rig.path / "pending/a1.json")
        assert rig.queue.promote(rig.names("delayed")[0])
    check(rig.path, ["a1"])
    assert rig.names("pending") == ["a1.json"] and os.stat(rig.path / "pending/a1.json").st_nlink == 1


# -- retry, release, delay --------------------------------------------------------------------------------------------------


def test_a_retry_is_charged_by_its_own_rename(rig):
    rig.put("a1")
    held = rig.claim("a1.json")
    due = time.time() + 1000
    with Steps() as steps:
        assert rig.queue.retry(held.file, rig.owner(), due, crashed=True)
    assert steps.calls == ["move"]
    (file,) = rig.names("delayed")
    assert parse_delayed(file) == (pytest.approx(due, abs=0.002), TaskName("a1", 1, 1))
    assert rig.queue.promote(file)
    assert rig.claim("a1~1x1.json").name == ("a1", 1, 1)
    assert not rig.queue.retry(held.file, rig.owner(), due)


def test_a_release_charges_nothing(rig):
    rig.put("a1")
    rig.claim("a1.json")
    assert rig.queue.release("a1.json", rig.owner())
    assert rig.names("pending") == ["a1.json"]
    assert not rig.queue.release("a1.json", rig.owner())


@pytest.mark.parametrize("due", [1e12, 1.7e12, 1e300, float("inf"), 253402300799.0, -5.0, 0.0])
def test_no_time_makes_a_delayed_task_unreadable(rig, due):
    """A not_before in milliseconds by mistake, or of a thousand digits, is a long wait and no crash."""
    rig.put("a1")
    assert rig.queue.delay("a1.json", due)
    (file,) = rig.names("delayed")
    parsed = parse_delayed(file)
    assert parsed is not None and parsed[1] == ("a1", 0, 0)
    assert rig.queue.promote(file) and rig.names("pending") == ["a1.json"]


def test_delayed_names_sort_by_time():
    files = [delayed_file(due, TaskName("a", 1)) for due in (0, 1.5, 9e8, 1.7e9, 1e12)]
    assert files == sorted(files)
    assert [parse_delayed(file)[0] for file in files[:4]] == [0, 1.5, 9e8, 1.7e9]


@pytest.mark.parametrize(
    "file", ["a1.json", "1.a1.json", "00000000000001.a1.json", "x" * 15 + ".a1.json", "0" * 15 + ".~.json", ""]
)
def test_other_names_are_none_of_delayed(rig, file):
    assert parse_delayed(file) is None
    with pytest.raises(Unusable):
        rig.queue.promote(file or "x")


def test_commits_and_names_translate_both_ways():
    for name in (TaskName("a"), TaskName("a.b", 3, 1)):
        assert parse_won(won_file(name)) == name
    assert parse_won("a1.json") is parse_won(".a1.won") is parse_won(".a1.json") is None


# -- lost replies -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def networked(tmp_path):
    rig = Rig(tmp_path / "queue", durability="task")
    rig.layout.filesystem = rig.layout.filesystem._replace(network=True, name="nfs")
    yield rig
    rig.close()


def lose_replies(monkeypatch, error):
    """Let every move be done, and answered as the server's lost reply is: ENOENT as False, other errors raised."""
    real = taskqueue.move

    def move(*given):
        done = real(*given)
        if error == errno.ENOENT or not done:
            return False
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(taskqueue, "move", move)


@pytest.mark.parametrize("error", [errno.ENOENT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
@pytest.mark.parametrize("action", ["finish", "fail", "retry", "retry later", "release", "delay", "quarantine"])
def test_a_move_that_was_done_is_settled_by_its_target(networked, monkeypatch, error, action):
    rig = networked
    rig.put("a1")
    if action != "delay":
        held = rig.claim("a1.json")
    lose_replies(monkeypatch, error)
    done = {
        "finish": lambda: rig.finish(held),
        "fail": lambda: rig.fail(held),
        "retry": lambda: rig.queue.retry(held.file, rig.owner(), 0.0),
        "retry later": lambda: rig.queue.retry(held.file, rig.owner(), 4e9),
        "release": lambda: rig.queue.release(held.file, rig.owner()),
        "delay": lambda: rig.queue.delay("a1.json", 4e9),
        "quarantine": lambda: rig.queue.quarantine(rig.owner(), "a1.json", "why"),
    }[action]()
    assert done
    if action != "quarantine":
        check(rig.path, ["a1"], may_fail=["a1"])
    assert rig.names("results") == []


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_move_that_was_not_done_is_tried_again_and_then_an_error(rig, error):
    rig.put("a1")
    rig.claim("a1.json")
    folder = rig.owner()
    with Steps(0, "error", error, only=("move",)) as steps:
        assert rig.queue.release("a1.json", folder)
    assert steps.count == 2
    rig.claim("a1.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(taskqueue, "move", lambda *_: (_ for _ in ()).throw(OSError(error, "no")))
        with pytest.raises(OSError):
            rig.queue.release("a1.json", folder)
    check(rig.path, ["a1"])


def test_an_owner_that_lost_its_claim_is_fenced_over_a_network_too(networked):
    networked.put("a1")
    held = networked.claim("a1.json")
    networked.recover("n1")
    folder = networked.queue.open_owner("n1.1.0")
    assert not networked.queue.finish(held, folder, done_record(held, b"1", RUN))
    os.close(folder)
    check(networked.path, ["a1"])


# -- history, quarantine, owners --------------------------------------------------------------------------------------------


def test_the_history_is_told_oldest_first_and_bounded(rig):
    for attempt in range(25):
        rig.queue.note_attempt(TaskName("a1", attempt), {"cause": Cause.RAISED, "message": str(attempt)})
    history = rig.queue.history(TaskName("a1", 25))
    assert [note["attempt"] for note in history] == list(range(5, 25))
    assert past_causes(history) == [Cause.RAISED] * 20
    assert rig.queue.history(TaskName("a1")) == [] == rig.queue.history(TaskName("b1", 3))


@pytest.mark.parametrize(
    "content", [b'{"cause":[]}', b'{"cause":{"a":1}}', b'{"cause":"nonsense"}', b"{}", b"[]", b"", b"[" * 900 + b"]" * 900,
                b'{"cause":"raised","x":' + b"[" * 500 + b"]" * 500 + b"}"],
)  # fmt: skip
def test_what_a_task_writes_over_its_notes_harms_nobody(rig, content):
    rig.put("a1")
    held = rig.claim("a1.json")
    rig.queue.note_attempt(held.name, {"cause": Cause.RAISED, "message": "x"})
    (rig.path / "logs/a1/attempt.0.json").write_bytes(content)
    rig.queue.retry(held.file, rig.owner(), 0.0)
    held = rig.claim("a1~1x0.json")
    past_causes(rig.queue.history(held.name))
    assert rig.finish(held)


def test_a_link_in_place_of_the_notes_is_not_followed(rig, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (rig.path / "logs/a1").symlink_to(tmp_path / "elsewhere")
    rig.queue.note_attempt(TaskName("a1"), {"cause": Cause.RAISED, "message": "x"})
    assert os.listdir(tmp_path / "elsewhere") == []
    assert rig.queue.history(TaskName("a1", 1)) == []


@pytest.mark.parametrize(
    "name",
    ["-rf.json", "a b.json", "$(id).json", "x\n.json", "\x1b[31m.json", "é" * 100 + ".json", "\udcff\udcfe", "..a"],
)
def test_6_a_name_is_data_and_leads_nowhere(rig, name):
    """Defect 6: path traversal through the id."""
    (rig.path / "pending" / name).write_text("{}")
    with pytest.raises(Unusable):
        rig.queue.look(name)
    kept = rig.queue.quarantine(rig.layout.pending, name, "its name")
    assert kept is not None and TaskName.parse(kept)
    why = orjson.loads((rig.path / f"quarantine/{kept}.reason").read_bytes())
    assert why["file"].isascii() and why["file"].isprintable()
    assert rig.names("pending") == []


def test_6_an_id_in_the_json_is_never_part_of_a_path(rig, tmp_path):
    (rig.path / "pending/a1.json").write_text('{"id":"../../../evil","payload":1}')
    held = rig.claim("a1.json")
    assert rig.finish(held)
    assert rig.names("done") == ["a1.json"]
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("kind", ["folder", "fifo", "link", "hard link", "socket"])
def test_whatever_lies_there_can_be_quarantined(rig, tmp_path, kind):
    path = rig.path / "pending/a1.json"
    (tmp_path / "secret").write_text("secret")
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(tmp_path / "secret")
    elif kind == "hard link":
        os.link(tmp_path / "secret", path)
    else:
        os.mknod(path, 0o140600)
    with pytest.raises(Unusable) as refused:
        rig.queue.look("a1.json")
    assert refused.value.may_change is (kind == "hard link")
    assert rig.queue.quarantine(rig.layout.pending, "a1.json", refused.value.reason)
    assert (tmp_path / "secret").read_text() == "secret"


def test_a_quarantine_of_what_is_gone_leaves_no_reason_behind(rig):
    assert rig.queue.quarantine(rig.layout.pending, "a1.json", "why") is None
    assert rig.names("quarantine") == []


def test_9_a_file_that_does_not_parse_is_never_deleted(rig):
    """Defect 9: unparsable files were deleted. A death at any step of the move leaves the file."""
    for at in range(4):
        for how in ("before", "after"):
            (rig.path / "pending/a1.json").write_bytes(b"{torn")
            with suppress(BaseException), Steps(at, how):
                rig.queue.quarantine(rig.layout.pending, "a1.json", "why")
            assert b"{torn" in rig.tree().values()
            for folder in ("pending", "quarantine"):
                for file in rig.names(folder):
                    os.unlink(rig.path / folder / file)


def test_an_owners_folder_goes_when_it_is_empty(rig):
    rig.put("a1")
    rig.claim("a1.json")
    assert not rig.queue.close_owner("n1.1.0")
    rig.queue.release("a1.json", rig.owner())
    assert rig.queue.close_owner("n1.1.0")
    assert rig.queue.close_owner("n1.1.0")


def test_a_task_over_the_bounds_of_this_queue_is_unusable(rig):
    queue = TaskQueue(rig.layout, max_bytes=50, max_depth=3)
    rig.put("big", "x" * 100)
    rig.put("deep", [[[1]]])
    for file, words in (("big.json", "more than the bound of 50"), ("deep.json", "deep")):
        with pytest.raises(Unusable, match=words):
            queue.look(file)


# -- deaths -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["none", "full"])
@pytest.mark.parametrize("end", ["finish", "fail", "retry", "release"])
def test_a_real_death_at_any_step_loses_nothing(tmp_path, level, end):
    rig = Rig(tmp_path / "queue", durability=level)
    actions = {
        "finish": lambda held, owner: rig.queue.finish(held, owner, done_record(held, b"1", RUN)),
        "fail": lambda held, owner: rig.queue.fail(held, owner, failed_record(held, ERROR, RUN)),
        "retry": lambda held, owner: rig.queue.retry(held.file, owner, 0.0),
        "release": lambda held, owner: rig.queue.release(held.file, owner),
    }
    rig.put("warm")
    folder = rig.owner()
    steps = steps_of(lambda: actions[end](rig.queue.claim("warm.json", folder), folder))
    accepted = ["warm"]
    for point in range(steps):
        name = f"t{point}"
        rig.put(name, point)
        accepted.append(name)
        owner = rig.owner(f"p{point}.1.0")
        pid = os.fork()
        if pid == 0:
            try:
                with Steps(point, "exit"):
                    held = rig.queue.claim(f"{name}.json", owner)
                    actions[end](held, owner)
            finally:
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0  # it died where it should
        rig.recover(f"p{point}")
        check(rig.path, accepted, may_fail=accepted)
    for file in rig.names("pending"):
        assert rig.finish(rig.claim(file))
    for state in ("done", "failed"):
        check(rig.path, [file[:-5] for file in rig.names(state)], may_fail=accepted, drained=True)
    rig.close()
