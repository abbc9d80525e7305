"""Putting: complete, durable, once, and within the bounds; or not at all."""

import errno
import os
import subprocess
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

import orjson
import pytest
from dspy_supervisor import producer as module
from dspy_supervisor.errors import DuplicateTask, EnvelopeInvalid, QueueFull, SupervisorError, TaskNotFound
from dspy_supervisor.producer import Producer, envelope, id_of_key, put_again, read_jsonl
from dspy_supervisor.task import Cause, TaskName

from tests.queues import SYNCS, Rig, Steps, steps_of
from tests.system.invariants import check

DUE = 4e9


def documents(count, start=0):
    return [(f"t{number}", envelope({"n": number}, task_id=f"t{number}")) for number in range(start, start + count)]


# -- envelopes ------------------------------------------------------------------------------------------------------------


def test_an_envelope_says_what_was_asked():
    got = orjson.loads(envelope([1], task_id="a1", **{"class": "gpu"}, priority=3, kind=None))
    assert got == {"id": "a1", "class": "gpu", "priority": 3, "payload": [1]}
    assert envelope(raw_payload=b'{"a" : 1e0}', task_id="a1").endswith(b'"payload":{"a" : 1e0}}')


@dataclass
class Holder:
    value: object


def endless():
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "payload",
    [
        float("nan"), [1, {"a": [float("inf")]}], (float("-inf"),), Holder([float("nan")]), {1: 2}, {1}, b"bytes",
        pytest.param(object(), id="object"),
        "\ud800", 2**64, endless(), {"a": endless()},
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_json_is_refused_by_name(payload):
    with pytest.raises(EnvelopeInvalid, match="payload"):
        envelope(payload, task_id="a1")


def test_what_is_too_deep_for_the_encoder_is_refused():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(EnvelopeInvalid):
        envelope(deep, task_id="a1")
    while deep:  # or its end would be as deep
        deep = deep.pop()


@pytest.mark.parametrize(
    ("document", "place"),
    [
        (b"{", "line 1 column 2"), (b"", "empty"), (b'{"payload":NaN}', "column 12"),
        (b'{"priority":"x","payload":1}', "priority"),
        (b"[]", "line 1"), (b'{"payload":' + b"[" * 200 + b"]" * 200 + b"}", "deep"), (b'{"id":1,"ID":2,"payload":1}', "id"),
        (b'{"payload":"' + b"x" * 5000 + b'"}', "more than the bound of 4000"),
    ],
)  # fmt: skip
def test_a_task_that_cannot_be_accepted_is_refused_with_the_place(rig, document, place):
    producer = Producer(rig.layout, max_bytes=4000)
    for put in (producer.put, lambda task_id, doc: producer.put_many([("ok", b"{}"), (task_id, doc)])):
        with pytest.raises(EnvelopeInvalid, match=place):
            put("a1", document)
    assert rig.names("pending") == []


@pytest.mark.parametrize("task_id", ["", "../../evil", "a/b", "-rf", ".a", "a~1x0", "a\n", "x" * 101, "é"])
def test_6_an_id_that_could_be_a_path_is_refused(rig, task_id):
    """Defect 6: path traversal through the id."""
    with pytest.raises(EnvelopeInvalid, match="id"):
        rig.producer.put(task_id, b"{}")


# -- durability -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("due", [None, DUE])
def test_19_a_put_is_on_the_disk_before_it_is_acknowledged(durable, due, monkeypatch):
    """Defect 19: no fsync. File, then its name, then the folder; and nothing is left to do after the last sync."""
    written = []
    monkeypatch.setattr(
        module, "write_new", lambda *given, real=module.write_new: (written.append(given[3]), real(*given))
    )
    synced = []
    monkeypatch.setattr(module, "sync", lambda folder, real=module.sync: (synced.append(folder), real(folder)))
    with Steps() as steps:
        durable.put("a1", due=due)
    layout = durable.layout
    assert written == [True]
    assert steps.calls == ["write_new", "move_new", *["sync"] * (1 + (due is not None))]
    assert synced == ([layout.pending] if due is None else [layout.delayed, layout.pending])


def test_at_level_none_nothing_is_synced(rig):
    with Steps() as steps:
        rig.put("a1")
        rig.producer.put_many(documents(5))
    assert not set(steps.calls) & set(SYNCS)


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("due", [None, DUE])
def test_many_are_put_with_a_constant_number_of_syncs(durable, fresh, due):
    counts = []
    for count in (3, 300):
        with Steps() as steps:
            durable.producer.put_many(documents(count, count), fresh=fresh, due=due)
        counts.append([call for call in steps.calls if call in SYNCS])
        last = len(steps.calls) - 1 - steps.calls[::-1].index("move_new")
        assert set(steps.calls[last + 1 :]) == {"sync"}, "the folder is synced after the last move"
        assert steps.calls.index("sync_filesystem") < steps.calls.index("move_new"), (
            "all is written before any is moved"
        )
    assert counts[0] == counts[1] == ["sync_filesystem", "sync", *["sync"] * (due is not None)]


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/usr/bin/strace"), reason="strace is not installed")
def test_ten_thousand_are_put_with_a_constant_number_of_syncs_by_the_kernels_count(tmp_path):
    code = (
        "import sys; from dspy_supervisor.layout import Layout; from dspy_supervisor.producer import Producer, envelope\n"
        "layout = Layout.open(sys.argv[1], create=True, durability='task')\n"
        "Producer(layout).put_many([(f't{n}', envelope(n, task_id=f't{n}')) for n in range(10000)])"
    )
    trace = tmp_path / "trace"
    command = [
        "strace",
        "-f",
        "-o",
        trace,
        "-e",
        "trace=fsync,fdatasync,syncfs,sync",
        "--",
        os.sys.executable,
        "-c",
        code,
    ]
    subprocess.run(
        [*command, tmp_path / "queue"], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(os.sys.path)}
    )
    assert len(os.listdir(tmp_path / "queue/pending")) == 10_000
    calls = Counter(
        line.split()[1].partition("(")[0] for line in trace.read_text().splitlines() if "(" in line.split()[1]
    )
    assert calls == {"syncfs": 1, "fsync": 3}, "two of these make queue.json"


@pytest.mark.parametrize("many", [False, True])
def test_what_another_producer_left_unsynced_is_synced_before_it_is_acknowledged(durable, many):
    """It died after its rename: repeating the put may only succeed once the name is on the disk."""
    document = envelope(1, task_id="a1")
    with suppress(BaseException), Steps(1, "after"):
        durable.producer.put("a1", document)
    assert durable.names("pending") == ["a1.json"]
    with Steps() as steps:
        durable.producer.put_many([("a1", document)]) if many else durable.producer.put("a1", document)
    assert steps.calls == ["sync_filesystem"]


# -- once -------------------------------------------------------------------------------------------------------------------


def travel(rig, state):
    """Put a1 and bring it to a state."""
    document = rig.put("a1", {"n": 1}, due=DUE if state == "delayed" else None)
    if state in ("claimed", "done", "failed", "retried", "retried often"):
        held = rig.claim("a1.json")
        if state == "done":
            rig.finish(held, b"[" * 200 + b"]" * 200)  # deeper than a task may be
        elif state == "failed":
            rig.fail(held)
        elif state.startswith("retried"):
            for _ in range(40 if state == "retried often" else 1):
                rig.queue.note_attempt(held.name, {"cause": Cause.RAISED, "message": ""})
                rig.queue.retry(held.file, rig.owner(), 0.0, crashed=True)
                held = rig.claim(held.name.charged(crashed=True).file)
            rig.queue.release(held.file, rig.owner())
    elif state == "committed":
        held = rig.claim("a1.json")
        with suppress(BaseException), Steps(1, "after"):
            rig.finish(held)
        assert ".a1.json.won" in rig.names("done")
    return document


STATES = ["pending", "delayed", "claimed", "committed", "done", "failed", "retried", "retried often"]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("many", [False, True])
def test_equal_bytes_are_accepted_again_in_every_state_and_others_refused(rig, state, many):
    document = travel(rig, state)

    def put(content):
        if many:
            rig.producer.put_many([("b1", envelope(2, task_id="b1")), ("a1", content)])
        else:
            rig.producer.put("a1", content)

    before = rig.tree()
    put(document)
    put(document)
    after = rig.tree()
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == ({"pending/b1.json"} if many else set())
    for other in ({"n": 2}, {"n": 1, "m": 1}, None):
        with pytest.raises(DuplicateTask, match="a1"):
            put(envelope(other, task_id="a1"))
    for option in ({"class": "gpu"}, {"priority": 1}, {"note": "another"}, {"resources": {"gpus": 1}}):
        with pytest.raises(DuplicateTask):
            put(envelope({"n": 1}, task_id="a1", **option))
    check(rig.path, ["a1"], may_fail=["a1"])


def test_an_id_twice_in_one_batch_is_refused(rig):
    with pytest.raises(EnvelopeInvalid, match="twice"):
        rig.producer.put_many([("a1", b"{}"), ("a1", b"{}")])
    assert rig.names("pending") == []


@pytest.mark.parametrize("same", [True, False])
def test_a_task_that_runs_while_it_is_put_is_no_duplicate_of_itself(rig, monkeypatch, same):
    """A fast worker claims and ends it before the producer has looked a second time."""
    real = module.find
    looks = []

    def find(layout, task_id, **more):
        looks.append(task_id)
        if len(looks) == 2:  # the look after the move: found where it runs, gone when it is read
            held = rig.claim("a1.json")
            found = list(real(layout, task_id, **more))
            rig.finish(held)
            return iter(found)
        return real(layout, task_id, **more)

    monkeypatch.setattr(module, "find", find)
    rig.put("a1", 1)
    assert len(looks) >= 2
    check(rig.path, ["a1"], drained=True)


@pytest.mark.parametrize("end", ["claim", "finish", "retry"])
def test_a_task_that_moves_on_before_it_is_read_is_still_the_same(rig, monkeypatch, end):
    document = rig.put("a1", 1)
    real, reads = module.read_content, []

    def read(layout, found):
        reads.append(found)
        if len(reads) == 1:
            held = rig.claim("a1.json")
            if end == "finish":
                rig.finish(held)
            elif end == "retry":
                rig.queue.retry(held.file, rig.owner(), DUE)
        return real(layout, found)

    monkeypatch.setattr(module, "read_content", read)
    rig.producer.put("a1", document)
    assert len(reads) == 2
    check(rig.path, ["a1"])


def test_of_many_producers_of_one_id_one_is_accepted(rig):
    for round_number in range(10):
        name, gate, outcomes = f"t{round_number}", threading.Barrier(4), []

        def put(number, name=name, gate=gate, outcomes=outcomes):
            producer = Producer(rig.layout)
            gate.wait(30)
            try:
                producer.put(name, envelope(number, task_id=name), due=None if number % 2 else DUE + number)
                outcomes.append(number)
            except DuplicateTask:
                outcomes.append(None)

        threads = [threading.Thread(target=put, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        accepted = [number for number in outcomes if number is not None]
        assert len(accepted) <= 1 and len(outcomes) == 4
        found = [content for file, content in rig.tree().items() if f"{name}.json" in file]
        assert [orjson.loads(content)["payload"] for content in found] == accepted


def test_of_many_producers_of_one_task_all_are_accepted_and_one_file_stays(rig):
    for round_number in range(10):
        name, gate, failures = f"t{round_number}", threading.Barrier(4), []
        document = envelope(1, task_id=name)

        def put(number, name=name, gate=gate, failures=failures, document=document):
            producer = Producer(rig.layout)
            gate.wait(30)
            try:
                producer.put(name, document, due=None if number % 2 else DUE + number)
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=put, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert failures == []
        assert sum(f"{name}.json" in file for file in rig.tree()) == 1


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("first", [None, DUE])
def test_two_puts_of_one_task_with_different_times_do_not_both_give_way(rig, monkeypatch, at, first):
    """Each moves its file before the other looks: one must stay, or an acknowledged task is gone."""
    other = Rig(rig.path)
    document = envelope(1, task_id="a1")
    second = DUE if first is None else None
    real, done = module.find, []

    def find(layout, task_id, **more):
        done.append(None)
        if len(done) == at:  # before one of our looks the other puts, completely
            other.producer.put("a1", document, due=second)
        return real(layout, task_id, **more)

    monkeypatch.setattr(module, "find", find)
    rig.producer.put("a1", document, due=first)
    check(rig.path, ["a1"])
    other.close()


# -- bounds -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ticking(monkeypatch):
    """A clock by which counting takes no time and a second passes between any two puts."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    real = module.Depth.admit

    def admit(*given):
        now[0] += 1.0
        return real(*given)

    monkeypatch.setattr(module.Depth, "admit", admit)


def test_13_the_bound_in_tasks_is_exact_and_opens_again(tmp_path, ticking):
    """Defect 13: the depth drifted. It is counted from the folders, delayed tasks among them."""
    rig = Rig(tmp_path / "queue", bounds=(5, 0))
    for number in range(4):
        rig.put(f"t{number}")
    rig.put("later", due=DUE)
    for _ in range(3):
        with pytest.raises(QueueFull, match="bound is 5") as full:
            rig.put("one-more")
        assert full.value.exit_code == 75
    with pytest.raises(QueueFull):
        rig.producer.put_many(documents(2, 10))
    assert len(rig.names("pending")) == 4
    rig.claim("t0.json")
    rig.put("one-more")
    rig.put("one-more")  # accepted already: no room needed
    rig.close()


def test_the_bound_in_bytes_counts_what_waits(tmp_path, ticking):
    rig = Rig(tmp_path / "queue", bounds=(0, 1000))
    rig.put("a1", "x" * 700)
    with pytest.raises(QueueFull, match="bytes"):
        rig.put("b1", "x" * 400)
    rig.put("c1", "x" * 100)
    with pytest.raises(QueueFull, match="bytes"):
        rig.producer.put_many(
            [("d1", b'{"payload":"' + b"x" * 100 + b'"}'), ("e1", b'{"payload":"' + b"x" * 100 + b'"}')]
        )
    assert rig.names("pending") == ["a1.json", "c1.json"]
    rig.close()


def test_a_full_queue_is_not_counted_for_every_put(tmp_path, monkeypatch):
    rig = Rig(tmp_path / "queue", bounds=(10, 0))
    counted = []
    real = module.walk_folder

    def slow(folder):
        counted.append(folder)
        clock[0] += 1.0
        return real(folder)

    clock = [1000.0]
    monkeypatch.setattr(module, "walk_folder", slow)
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    for number in range(100):
        with suppress(QueueFull):
            rig.put(f"t{number}")
    assert len(rig.names("pending")) == 10 and len(counted) <= 4
    rig.close()


@pytest.mark.parametrize(("field", "words"), [("f_bavail", "left free on the disk"), ("f_favail", "inodes")])
def test_the_reserve_of_the_disk_is_kept_for_results(rig, monkeypatch, field, words):
    real = os.fstatvfs

    def nearly_full(descriptor):
        values = {
            name: getattr(real(descriptor), name)
            for name in ("f_blocks", "f_frsize", "f_bavail", "f_files", "f_favail")
        }
        return type("Disk", (), values | {"f_files": 10**6, "f_favail": 10**6} | {field: 1})

    monkeypatch.setattr(os, "fstatvfs", nearly_full)
    with pytest.raises(QueueFull, match=words):
        rig.put("a1")
    monkeypatch.undo()
    assert rig.names("pending") == []


# -- deaths, errors, lost replies -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("due", [None, DUE])
@pytest.mark.parametrize("how", ["before", "after"])
def test_a_producer_that_dies_at_any_step_has_put_all_of_a_task_or_nothing(durable, many, due, how):
    def put(prefix):
        tasks = [
            (f"{prefix}{number}", envelope(number, task_id=f"{prefix}{number}")) for number in range(3 if many else 1)
        ]
        durable.producer.put_many(tasks, due=due) if many else durable.producer.put(*tasks[0], due=due)
        return [task_id for task_id, _ in tasks]

    accepted = []
    for at in range(steps_of(lambda: put("warm"))):
        with suppress(BaseException), Steps(at, how):
            put(f"x{at}-")
        accepted += put(f"x{at}-")  # its successor repeats it
        check(durable.path, accepted)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.EIO])
def test_a_put_that_fails_leaves_nothing_behind_or_says_so(durable, error):
    for at in range(steps_of(lambda: durable.put("warm"))):
        name = f"t{at}"
        with suppress(OSError), Steps(at, "error", error):
            durable.put(name)
        assert not [file for file in durable.names("pending") if file.startswith(f".{name}")], at
        durable.put(name)
        check(durable.path, [name])


def test_an_error_names_the_folder_and_no_temporary_file(durable):
    with pytest.raises(OSError) as caught, Steps(0, "error", errno.EACCES):
        durable.put("t")
    assert caught.value.filename == str(durable.path / "pending")


def test_a_batch_that_fails_halfway_is_completed_by_repeating_it(durable):
    tasks = documents(5)
    with pytest.raises(OSError), Steps(8, "error", errno.ENOSPC):
        durable.producer.put_many(tasks)
    assert not [file for file in durable.names("pending") if file.startswith(".")]
    assert 0 < len(durable.names("pending")) < 5
    durable.producer.put_many(tasks)
    check(durable.path, [task_id for task_id, _ in tasks])


@pytest.mark.parametrize("error", [errno.ENOENT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_lost_reply_to_a_put_is_settled_by_the_source(durable, monkeypatch, error):
    durable.layout.filesystem = durable.layout.filesystem._replace(network=True)
    real = module.move_new

    def lost(*given):
        done = real(*given)
        if error == errno.ENOENT or not done:
            return False
        raise OSError(error, "lost")

    monkeypatch.setattr(module, "move_new", lost)
    durable.put("a1")
    durable.producer.put_many(documents(3))
    check(durable.path, ["a1", "t0", "t1", "t2"])


@pytest.mark.parametrize("network", [False, True])
@pytest.mark.parametrize("done", [False, True])
def test_an_error_that_stays_is_believed_only_where_the_source_stayed_too(durable, monkeypatch, network, done):
    durable.layout.filesystem = durable.layout.filesystem._replace(network=network)
    real = module.move_new

    def failing(*given):
        if done:
            real(*given)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(module, "move_new", failing)
    if done:
        durable.put("a1")
    else:
        with pytest.raises(OSError, match="Input/output"):
            durable.put("a1")
    assert durable.names("pending") == ["a1.json"] * done


def test_a_temporary_file_that_somebody_removed_is_not_taken_for_accepted(rig, monkeypatch):
    real, removed = module.move_new, []

    def cleaned(folder, name, *more):
        if not removed:
            removed.append(name)
            os.unlink(name, dir_fd=folder)
        return real(folder, name, *more)

    monkeypatch.setattr(module, "move_new", cleaned)
    rig.put("a1")
    assert removed
    check(rig.path, ["a1"])


def test_one_that_is_removed_again_and_again_is_an_error_and_no_promise(rig, monkeypatch):
    def cleaned(folder, name, *_):
        os.unlink(name, dir_fd=folder)
        return False

    monkeypatch.setattr(module, "move_new", cleaned)
    with pytest.raises(SupervisorError):
        rig.put("a1")
    assert rig.names("pending") == []


# -- again ------------------------------------------------------------------------------------------------------------------


def test_a_failed_task_is_tried_again_under_a_name_of_its_own(rig):
    document = rig.put("a1", 1, note="x")
    held = rig.claim("a1.json")
    rig.queue.note_attempt(held.name, {"cause": Cause.RAISED, "message": ""})
    rig.fail(held)
    put_again(rig.layout, "a1")
    assert rig.names("pending") == ["a1~1x0.json"]
    rig.producer.put("a1", document)  # still the same task
    held = rig.claim("a1~1x0.json")
    assert held.name == TaskName("a1", 1) and rig.queue.history(held.name) == []
    assert rig.finish(held)
    check(rig.path, ["a1"], drained=True)
    with pytest.raises(SupervisorError, match="only a failed one"):
        put_again(rig.layout, "a1")
    with pytest.raises(TaskNotFound):
        put_again(rig.layout, "absent")


def test_a_key_stands_for_one_id():
    assert id_of_key("a") == id_of_key("a") != id_of_key("b")
    assert TaskName.parse(f"{id_of_key('x' * 1000)}.json")


def test_lines_are_numbered_and_blank_ones_passed_over():
    assert list(read_jsonl([b"{}\n", b" \n", b'{"a":1}'])) == [(1, b"{}"), (3, b'{"a":1}')]
