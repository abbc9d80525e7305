"""Queue, with a hand that does a supervisor's work on the files."""

import errno
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dspy_supervisor import (
    DuplicateTask,
    EnvelopeInvalid,
    Queue,
    QueueMissing,
    SupervisorError,
    TaskFailed,
    TaskNotFound,
    WaitTimeout,
)
from dspy_supervisor import producer as producer_module
from dspy_supervisor.client import access as access_module
from dspy_supervisor.client import endings
from dspy_supervisor.client import queue as queue_module
from dspy_supervisor.filesystem import classify
from dspy_supervisor.layout import Layout
from dspy_supervisor.record import Run, done_record
from dspy_supervisor.task import State
from dspy_supervisor.taskqueue import won_file

from tests.conftest import until
from tests.hand import Hand

SOON_S = 20.0  #: far more than anything here takes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue"


@pytest.fixture
def queue(path: Path, tmp_path: Path) -> Iterator[Queue]:
    with Queue(path, create=True, runtime_dir=tmp_path / "run") as queue:
        yield queue


@pytest.fixture
def hand(queue: Queue, path: Path) -> Iterator[Hand]:
    hand = Hand(path)
    yield hand
    hand.close()


@pytest.fixture
def later() -> Iterator[Callable[..., threading.Thread]]:
    """Start a thread; what it raises fails the test."""
    threads: list[threading.Thread] = []
    raised: list[BaseException] = []

    def start(call: Callable[[], object]) -> threading.Thread:
        def run() -> None:
            try:
                call()
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=run)
        threads.append(thread)
        thread.start()
        return thread

    yield start
    for thread in threads:
        thread.join(SOON_S)
        assert not thread.is_alive()
    assert not raised, raised


@pytest.fixture
def asleep(monkeypatch) -> Callable[[], object]:
    """Return a function that waits until somebody sleeps in an Endings: what happens next must wake it."""
    sleeping = threading.Semaphore(0)
    sleep = endings.Endings.sleep

    def noted(self, timeout_s):
        sleeping.release()
        sleep(self, timeout_s)

    monkeypatch.setattr(endings.Endings, "sleep", noted)
    return lambda: sleeping.acquire(timeout=SOON_S)


def envelope(path: Path, task_id: str) -> dict[str, Any]:
    return json.loads((path / "pending" / f"{task_id}.json").read_bytes())


# -- putting ------------------------------------------------------------------------------------------------------------


def test_a_task_lies_in_pending_with_what_was_said_of_it(queue, path):
    task = queue.submit(
        {"x": [1, None]},
        "gpu",
        kind="echo",
        priority=-3,
        timeout=2.5,
        max_attempts=4,
        affinity="a",
        resources={"memory": "1G"},
    )
    assert envelope(path, task) == {
        "id": task,
        "class": "gpu",
        "kind": "echo",
        "priority": -3,
        "timeout_s": 2.5,
        "max_attempts": 4,
        "affinity": "a",
        "resources": {"memory": "1G"},
        "payload": {"x": [1, None]},
    }


def test_what_was_not_said_is_not_written(queue, path):
    assert envelope(path, queue.submit(None, id="a1")) == {"id": "a1", "class": "cpu_short", "payload": None}


def test_ids_made_here_are_in_the_order_of_their_making(queue):
    ids = [queue.submit(n) for n in range(20)] + queue.submit_many(range(20))
    assert ids == sorted(set(ids))


def test_a_delay_is_in_the_name_and_the_same_again_is_the_same_task(queue, path):
    before = time.time()
    assert queue.submit({"n": 1}, id="a1", delay=60) == queue.submit({"n": 1}, id="a1", delay=60)
    [info] = queue.list()
    assert (info.id, info.state) == ("a1", State.DELAYED)
    assert info.due == pytest.approx(before + 60, abs=30)
    assert list((path / "pending").iterdir()) == []


def test_one_id_is_one_task(queue):
    assert queue.submit({"n": 1}, id="a1") == queue.submit({"n": 1}, id="a1") == "a1"
    with pytest.raises(DuplicateTask):
        queue.submit({"n": 2}, id="a1")
    assert len(queue.list()) == 1


def test_one_key_is_one_task_also_after_it_is_done(queue, hand):
    task = queue.submit({"n": 1}, idempotency_key="order 7/é")
    assert queue.submit({"n": 1}, idempotency_key="order 7/é") == task
    assert queue.submit({"n": 1}, idempotency_key="order 8") != task
    hand.finish(task, "paid")
    assert queue.submit({"n": 1}, idempotency_key="order 7/é") == task
    assert queue.result(task) == "paid"
    with pytest.raises(DuplicateTask):
        queue.submit({"n": 2}, idempotency_key="order 7/é")


@pytest.mark.parametrize(
    ("payload", "options", "place"),
    [
        (float("nan"), {}, "payload"),
        (b"bytes", {}, "payload"),
        ({1, 2}, {}, "payload"),
        (1, {"task_class": "cpu_shrt"}, "task_class"),
        (1, {"task_class": None}, "task_class"),
        (1, {"id": "../../evil"}, "id"),
        (1, {"id": ""}, "id"),
        (1, {"id": 7}, "id"),
        (1, {"priority": 101}, "priority"),
        (1, {"priority": "high"}, "priority"),
        (1, {"timeout": 0}, "timeout_s"),
        (1, {"timeout": float("nan")}, "timeout nan"),
        (1, {"timeout": float("inf")}, "timeout inf"),
        (1, {"priority": float("nan")}, "priority nan"),
        (1, {"max_attempts": 0}, "max_attempts"),
        (1, {"delay": -1}, "delay"),
        (1, {"delay": float("inf")}, "delay"),
        (1, {"idempotency_key": ""}, "idempotency_key"),
        (1, {"resources": [1]}, "resources"),
        (1, {"resources": {"gpus": float("nan")}}, "resources"),
        (1, {"resources": {"gpus": -1}}, "resources.gpus=-1: expected a whole number"),
        (1, {"resources": {"gpu_memory": "8Q"}, "task_class": "gpu"}, "resources.gpu_memory='8Q': expected bytes"),
    ],
)
def test_what_cannot_be_accepted_is_refused_by_name_and_leaves_nothing(queue, path, payload, options, place):
    with pytest.raises(EnvelopeInvalid, match=place):
        queue.submit(payload, **options)
    with pytest.raises(EnvelopeInvalid, match=place):
        queue.submit_many([1, payload], **options) if not options else queue.submit_many([1, (payload, options)])
    assert [file for folder in ("pending", "delayed") for file in (path / folder).iterdir()] == []


def test_a_queue_that_was_closed_says_so(queue, path):
    task = queue.submit(1)
    queue.close()
    for use in (lambda: queue.submit(2), lambda: queue.result(task, timeout=1), lambda: queue.state(task), queue.list):
        with pytest.raises(RuntimeError, match=f"this Queue of {path} is closed"):
            use()


def test_items_of_many_may_have_options_of_their_own(queue, path):
    ids = queue.submit_many(
        [1, [2, {}], (3, {"priority": 5, "id": "three"}), (4, {"delay": 60})], priority=1, kind="echo"
    )
    assert ids[2] == "three"
    assert [envelope(path, task)["payload"] for task in ids[:3]] == [1, [2, {}], 3]
    assert [envelope(path, task)["priority"] for task in ids[:3]] == [1, 1, 5]
    assert queue.state(ids[3]) is State.DELAYED
    with pytest.raises(EnvelopeInvalid, match="tuple"):
        queue.submit_many([(1, 2, 3)])
    with pytest.raises(TypeError):
        queue.submit_many([(1, {"prioritty": 3})])


def test_many_tasks_cost_as_many_syncs_as_few(tmp_path, monkeypatch):
    syncs: list[str] = []
    for name in ("sync", "sync_filesystem"):
        real = getattr(producer_module, name)
        monkeypatch.setattr(producer_module, name, lambda fd, real=real, name=name: (syncs.append(name), real(fd)))
    written = producer_module.write_new
    monkeypatch.setattr(
        producer_module, "write_new", lambda *arguments: (syncs.extend(["write"] * arguments[3]), written(*arguments))
    )
    with Queue(tmp_path / "queue", create=True) as queue:
        assert queue.access.layout.syncs == (not queue.access.layout.filesystem.volatile)
        counts = []
        for many in (2, 300):
            syncs.clear()
            queue.submit_many(range(many))
            counts.append(len(syncs))
    assert counts[0] == counts[1]


def test_an_error_in_a_later_batch_tells_what_was_accepted(queue, monkeypatch):
    monkeypatch.setattr(queue_module, "_BATCH", 10)
    with pytest.raises(EnvelopeInvalid) as caught:
        queue.submit_many([*range(25), {1}])
    assert "20 tasks were accepted" in caught.value.__notes__[0]
    assert len(queue.list()) == 20


# -- waiting ------------------------------------------------------------------------------------------------------------


def test_a_result_that_is_there_is_returned_at_once(queue, hand):
    task = queue.submit(1)
    hand.finish(task, {"sum": 3})
    assert queue.result(task, timeout=0) == {"sum": 3}
    assert queue.state(task) is State.DONE
    assert queue.record(task)["runner_result"] == {"sum": 3}


@pytest.fixture
def never_looks(monkeypatch):
    """Only events can wake: the next look is an hour away, and there is none when the time is up."""
    monkeypatch.setattr(Queue, "state", lambda *_: pytest.fail("no event came"))
    monkeypatch.setattr(endings, "_LOOK_S", 3600.0)
    monkeypatch.setattr(endings, "_LOOK_SILENT_S", 3600.0)
    monkeypatch.setattr(endings, "_DOUBT_S", 3600.0)


def test_a_wait_is_woken_by_the_event_of_the_result(queue, hand, later, asleep, never_looks):
    task = queue.submit(1)
    later(lambda: (asleep(), hand.finish(task, "woken")))
    assert queue.result(task, timeout=SOON_S) == "woken"


def test_a_wait_is_woken_by_the_event_of_a_failure(queue, hand, later, asleep, never_looks):
    task = queue.submit(1)
    later(lambda: (asleep(), hand.fail(task, type="ValueError", traceback="Traceback: in the handler")))
    with pytest.raises(TaskFailed, match="in the handler") as caught:
        queue.result(task, timeout=SOON_S)
    assert f"task {task} failed (raised): ValueError: " in str(caught.value)
    assert caught.value.cause == "raised"
    assert caught.value.record["task_id"] == task


def test_a_wait_is_woken_by_the_event_of_a_refusal(queue, hand, later, asleep, never_looks):
    task = queue.submit(1)
    later(lambda: (asleep(), hand.refuse(task, "too deep for this supervisor")))
    with pytest.raises(EnvelopeInvalid, match="too deep for this supervisor"):
        queue.result(task, timeout=SOON_S)


class Deaf:
    """A watcher that tells nothing but, once, that events were lost."""

    def __init__(self) -> None:
        self.real, self.told = endings_watcher(), False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def take(self) -> Any:
        events, _, _ = self.real.take()
        return [], [], bool(events)


endings_watcher = endings.Watcher


def test_a_wait_looks_when_events_were_lost(queue, hand, later, asleep, never_looks, monkeypatch):
    monkeypatch.setattr(endings, "Watcher", Deaf)
    task = queue.submit(1)
    later(lambda: (asleep(), hand.finish(task, "found")))
    assert queue.result(task, timeout=SOON_S) == "found"


def test_a_wait_looks_where_the_user_has_no_watcher_left_and_listens_when_it_has(
    queue, hand, later, asleep, monkeypatch
):
    def none_left():
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    first, second = queue.submit(1), queue.submit(2)
    with monkeypatch.context() as patched:
        patched.setattr(endings, "Watcher", none_left)
        later(lambda: (asleep(), hand.finish(first, "found")))
        assert queue.result(first, timeout=SOON_S) == "found"
        assert queue._endings.fileno() is None
    monkeypatch.setattr(endings, "_LOOK_BLIND_S", 3600.0)
    later(lambda: (asleep(), hand.finish(second, "heard")))
    assert queue.result(second, timeout=SOON_S) == "heard"


def test_a_wait_lists_anew_on_a_filesystem_that_tells_nothing(queue, hand, later, asleep, monkeypatch):
    queue.access.layout.filesystem = classify("nfs4")
    monkeypatch.setattr(endings, "_LOOK_SILENT_S", 0.05)
    monkeypatch.setattr(endings.Endings, "take", without_events(endings.Endings.take))
    monkeypatch.setattr(endings, "exists", lambda *_: pytest.fail("a name alone proves nothing here"))
    done, failed = queue.submit(1), queue.submit(2)
    later(lambda: (asleep(), hand.finish(done, "listed"), hand.fail(failed)))
    assert queue.result(done, timeout=SOON_S) == "listed"
    assert queue.wait([failed], timeout=SOON_S).done == {failed}


def without_events(take):
    def deaf(self):
        if self._watcher is not None:
            self._watcher.take()
        take(self)

    return deaf


def test_a_wait_that_is_too_short_says_so_and_the_task_goes_on(queue, hand):
    task = queue.submit(1)
    with pytest.raises(WaitTimeout, match=r"0\.01 s"):
        queue.result(task, timeout=0.01)
    with pytest.raises(TimeoutError):
        queue.result(task, timeout=0)
    hand.finish(task, "late")
    assert queue.result(task, timeout=0) == "late"


@pytest.mark.parametrize("timeout", [None, SOON_S, 0])
def test_a_task_that_is_nowhere_is_not_waited_for(queue, timeout):
    with pytest.raises(TaskNotFound, match="nobody"):
        queue.result("nobody", timeout=timeout)


def test_a_refused_file_of_a_later_attempt_is_a_refusal_too(queue, hand):
    task = queue.submit(1)
    os.rename(f"{task}.json", f"{task}~1x0.json", src_dir_fd=hand.layout.pending, dst_dir_fd=hand.layout.pending)
    assert hand.queue.quarantine(hand.layout.pending, f"{task}~1x0.json", "spoiled")
    with pytest.raises(EnvelopeInvalid, match="spoiled"):
        queue.result(task)
    with pytest.raises(EnvelopeInvalid, match="spoiled"):
        queue.state(task)


def test_a_second_file_that_is_refused_ends_no_wait_for_the_first(queue, hand, path, later, asleep, never_looks):
    task = queue.submit(1)
    held = hand.claim(task)
    (path / "pending" / f"{task}.json").write_text("not JSON")

    def refuse_then_finish():
        asleep()
        hand.refuse(task, "not JSON")
        asleep()
        run = Run(None, time.time(), 0.0, os.getpid(), "hand.1.0")
        hand.queue.finish(held, hand.owner, done_record(held, b"1", run))

    later(refuse_then_finish)
    assert queue.result(task, timeout=SOON_S) == 1


def test_an_attempt_between_commit_and_publication_is_still_there(queue, hand, later, asleep):
    task = queue.submit(1)
    held = hand.claim(task)
    run = Run(None, time.time(), 0.0, os.getpid(), "hand.1.0")
    record = done_record(held, b"1", run)
    with open(os.open(f"{task}~0.json", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=hand.layout.results), "wb") as file:
        file.write(record)
    os.rename(held.file, won_file(held.name), src_dir_fd=hand.owner, dst_dir_fd=hand.layout.done)
    assert queue.state(task) is State.CLAIMED
    with pytest.raises(WaitTimeout):
        queue.result(task, timeout=0.2)
    hand.queue.publish(held.name, hand.layout.done)
    assert queue.result(task) == 1


def test_garbage_in_done_is_no_result(queue, path):
    task = queue.submit(1)
    os.mkfifo(path / "done" / f"{task}.json")
    os.unlink(path / "pending" / f"{task}.json")
    with pytest.raises(TaskNotFound):
        queue.result(task, timeout=SOON_S)
    (path / "done" / "folder.json").mkdir()
    assert queue.record("folder") is None
    (path / "done" / "torn.json").write_text('{"id": ')
    assert queue.record("torn") is None


def test_a_wait_for_several_ends_as_it_was_asked_to(queue, hand):
    a, b, c = (queue.submit(n) for n in range(3))
    assert queue.wait([a, b, c], timeout=0) == (set(), {a, b, c})
    hand.finish(b)
    assert queue.wait([a, b, c], return_when="FIRST_COMPLETED") == ({b}, {a, c})
    assert queue.wait([a, b, c], 0.01, "FIRST_EXCEPTION") == ({b}, {a, c})
    hand.fail(a)
    assert queue.wait([a, b, c], return_when="FIRST_EXCEPTION") == ({a, b}, {c})
    hand.finish(c)
    assert queue.wait([a, b, c]) == ({a, b, c}, set())
    assert queue.wait([]) == (set(), set())
    with pytest.raises(TaskNotFound):
        queue.wait([a, "nobody"])
    with pytest.raises(ValueError, match="ALL_COMPLETED"):
        queue.wait([a], return_when="SOMETIMES")


def test_a_success_is_no_exception():
    wait = endings.Wait(["a", "b"], "FIRST_EXCEPTION")
    wait.tell("a", endings.Ending.DONE)
    assert not wait.over
    wait.tell("b", endings.Ending.FAILED)
    assert wait.over


def test_a_wait_for_very_many_lists_instead_of_asking_for_each(queue, hand, later, asleep, monkeypatch):
    ids = queue.submit_many(range(200))
    for task in ids[:100]:
        hand.finish(task)
    later(lambda: (asleep(), [hand.finish(task) for task in ids[100:]]))
    with monkeypatch.context() as patched:
        patched.setattr(endings, "exists", lambda *_: pytest.fail("asked for one by one"))
        assert queue.wait(ids, timeout=SOON_S) == (set(ids), set())
    with pytest.raises(TaskNotFound, match="nobody"):
        queue.wait([*queue.submit_many(range(100)), "nobody"], timeout=SOON_S)


def inotify_descriptors() -> int:
    count = 0
    for number in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{number}") == "anon_inode:inotify"
        except FileNotFoundError:
            continue
    return count


def test_threads_share_one_watcher_and_each_gets_its_own_result(queue, hand, later, asleep, never_looks):
    before = inotify_descriptors()
    ids = [queue.submit(n) for n in range(8)]
    results: dict[str, Any] = {}
    threads = [later(lambda task=task: results.__setitem__(task, queue.result(task, timeout=SOON_S))) for task in ids]
    asleep()
    assert inotify_descriptors() == before + 1
    for number, task in enumerate(reversed(ids)):
        hand.finish(task, number)
    for thread in threads:
        thread.join(SOON_S)
    assert results == {task: number for number, task in enumerate(reversed(ids))}


def test_a_thread_whose_time_is_up_leaves_the_others_waiting(queue, hand, later, asleep, never_looks):
    first, second = queue.submit(1), queue.submit(2)
    results = []
    waiting = later(lambda: results.append(queue.result(second, timeout=SOON_S)))
    asleep()
    assert queue.wait([first], timeout=0.05) == (set(), {first})
    hand.finish(second, 2)
    waiting.join(SOON_S)
    assert results == [2]


def test_a_thread_that_does_not_listen_itself_is_told_at_once(queue, hand, later, asleep, never_looks):
    first, second = queue.submit(1), queue.submit(2)
    results = []
    listening = later(lambda: results.append(queue.result(first)))
    asleep()
    told = later(lambda: results.append(queue.result(second)))
    until(lambda: second in queue._endings._waits, "the second thread waits")
    hand.finish(second, 2)
    told.join(SOON_S)
    hand.finish(first, 1)
    listening.join(SOON_S)
    assert results == [2, 1]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # a child of a program with threads is what is meant
def test_parent_and_child_listen_for_themselves(queue, hand, later, asleep, never_looks):
    task = queue.submit(1)
    results = []
    waiting = later(lambda: results.append(queue.result(task, timeout=SOON_S)))
    asleep()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            assert queue.wait([task], timeout=0.01).not_done
            os.write(write, b"!")
            os._exit(0 if queue.result(task, timeout=SOON_S) == "for both" else 1)
        except BaseException:
            os._exit(2)
    os.close(write)
    assert os.read(read, 1) == b"!"
    os.close(read)
    hand.finish(task, "for both")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    waiting.join(SOON_S)
    assert results == ["for both"]


# -- the folder ---------------------------------------------------------------------------------------------------------


def test_a_queue_is_made_only_when_that_is_asked_for(path):
    with pytest.raises(QueueMissing):
        Queue(path)
    Queue(path, create=True).close()
    Queue(path).close()


def replace(path: Path) -> None:
    path.rename(path.with_name("old"))
    Layout.open(path, create=True).close()


def test_what_is_put_goes_into_the_folder_that_is_there_now(queue, path):
    queue.submit(1, id="before")
    replace(path)
    queue.submit(2, id="after")
    assert [info.id for info in queue.list()] == ["after"]
    assert (path / "pending" / "after.json").exists()
    assert [file.name for file in path.with_name("old").joinpath("pending").iterdir()] == ["before.json"]


def test_a_folder_that_goes_while_a_task_is_put_is_noticed(queue, path, monkeypatch):
    real = access_module.Access._put

    def replaced_first(producer, *arguments):
        monkeypatch.setattr(access_module.Access, "_put", staticmethod(real))
        import shutil

        shutil.rmtree(path)
        Layout.open(path, create=True).close()
        real(producer, *arguments)

    monkeypatch.setattr(access_module.Access, "_put", staticmethod(replaced_first))
    queue.submit(1, id="a1")
    assert (path / "pending" / "a1.json").exists()


def test_a_wait_notices_that_the_folder_was_replaced(queue, path, later, asleep, monkeypatch):
    monkeypatch.setattr(endings, "_LOOK_S", 0.05)
    monkeypatch.setattr(endings, "_LOOK_SILENT_S", 0.05)
    task = queue.submit(1)
    later(lambda: (asleep(), replace(path)))
    with pytest.raises(TaskNotFound):
        queue.result(task, timeout=SOON_S)
    again = queue.submit(1)
    other = Hand(path)
    later(lambda: (asleep(), other.finish(again, "in the new one"), other.close()))
    assert queue.result(again, timeout=SOON_S) == "in the new one"


def test_a_folder_that_is_gone_ends_waits_and_puts_until_it_is_back(queue, path, later, asleep, monkeypatch):
    monkeypatch.setattr(endings, "_LOOK_S", 0.05)
    monkeypatch.setattr(endings, "_LOOK_SILENT_S", 0.05)
    monkeypatch.setattr(endings, "_GONE_S", 0.2)
    monkeypatch.setattr(queue.access, "_create", False)
    task = queue.submit(1)
    away = path.with_name("away")
    later(lambda: (asleep(), path.rename(away)))
    with pytest.raises(QueueMissing):
        queue.result(task, timeout=SOON_S)
    with pytest.raises(QueueMissing):
        queue.submit(2)
    away.rename(path)
    assert queue.state(task) is State.PENDING
    queue.submit(2)


# -- looking and changing -----------------------------------------------------------------------------------------------


def test_a_list_tells_where_each_task_is(queue, hand):
    for task in ("a", "b", "c", "d"):
        queue.submit(1, id=task)
    queue.submit(1, id="e", delay=60)
    hand.claim("a")
    hand.finish("b")
    hand.fail("c")
    assert {info.id: str(info.state) for info in queue.list()} == {
        "a": "claimed",
        "b": "done",
        "c": "failed",
        "d": "pending",
        "e": "delayed",
    }
    assert [info.id for info in queue.list("done")] == ["b"]
    assert [info.id for info in queue.list(State.CLAIMED)] == ["a"]
    assert queue.list("claimed")[0].owner == "hand.1.0"
    assert [info.id for info in queue.list(limit=2)] == ["d", "e"]
    assert queue.list(limit=0) == []
    with pytest.raises(ValueError, match="nowhere"):
        queue.list("nowhere")


def test_a_record_is_none_until_the_end(queue, hand):
    task = queue.submit({"n": 1})
    assert queue.record(task) is None
    hand.fail(task)
    assert queue.record(task)["error"]["message"] == "no luck"
    with pytest.raises(TaskNotFound):
        queue.record("nobody")


@pytest.mark.parametrize("delay", [None, 60])
def test_a_waiting_task_is_cancelled_without_a_supervisor_and_leaves_no_trace_of_us(queue, path, tmp_path, delay):
    task = queue.submit(1, delay=delay)
    assert queue.cancel(task) == "waiting"
    with pytest.raises(TaskFailed) as caught:
        queue.result(task, timeout=0)
    assert caught.value.cause == "cancelled"
    left = [list((path / folder).iterdir()) for folder in ("pending", "delayed", "claimed", "nodes")]
    assert left == [[], [], [], []]
    assert list((tmp_path / "run").iterdir()) == []


def test_what_cannot_be_cancelled_is_said(queue, hand):
    done, held = queue.submit(1), queue.submit(2)
    hand.finish(done)
    hand.claim(held)
    with pytest.raises(SupervisorError, match="nothing is left"):
        queue.cancel(done)
    with pytest.raises(SupervisorError, match="another host"):
        queue.cancel(held)
    with pytest.raises(TaskNotFound):
        queue.cancel("nobody")


def test_a_retried_task_has_all_its_attempts_again(queue, hand, path):
    task = queue.submit({"n": 1}, priority=3, max_attempts=2)
    held = hand.claim(task)
    hand.queue.note_attempt(held.name, {"cause": "raised", "message": "first"})
    assert hand.queue.retry(held.file, hand.owner, 0.0)
    hand.fail(task, attempt=1)
    queue.retry(task)
    assert queue.state(task) is State.PENDING
    again = hand.claim(task, attempt=2)
    assert (again.payload, again.fields.priority, again.fields.max_attempts) == (b'{"n":1}', 3, 2)
    assert hand.queue.history(again.name) == []
    run = Run(None, time.time(), 0.0, os.getpid(), "hand.1.0")
    hand.queue.finish(again, hand.owner, done_record(again, b'"at last"', run))
    assert queue.result(task) == "at last"
    assert queue.record(task).keys() >= {"id", "class", "payload", "priority"}
    assert "error" not in queue.record(task)
    assert "producer" not in queue.record(task)


def test_only_a_failed_task_is_retried(queue, hand):
    task = queue.submit(1)
    with pytest.raises(SupervisorError, match="pending"):
        queue.retry(task)
    hand.finish(task)
    with pytest.raises(SupervisorError, match="done"):
        queue.retry(task)
    with pytest.raises(TaskNotFound):
        queue.retry("nobody")


def test_a_task_that_is_still_being_put_is_not_missed(queue, monkeypatch):
    for name in ("_LOOK_S", "_LOOK_SILENT_S", "_COST"):
        monkeypatch.setattr(endings, name, 0.0)  # every take searches
    told = endings.Endings(queue.access)
    wait = endings.Wait(["a1"])
    told.expect(wait, ["a1"], fresh=True)
    told.take()
    assert not wait.over
    told.placed(["a1"])
    told.take()
    assert wait.ended == {"a1": endings.Ending.MISSING}
    told.close()
