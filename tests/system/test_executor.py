"""QueueExecutor with a real supervisor.

The tests in the second part are those of CPython's test_concurrent_futures, by their names there, as far as they speak of
an executor at all: test_executor (submit, submit_keyword, map, map_exception, map_timeout, map_buffersize*), test_wait,
test_as_completed, test_shutdown (run_after_shutdown, hang_issue12364, cancel_futures, cancel_futures_wait_false,
context_manager_shutdown, del_shutdown, shutdown_no_wait, submit_after_interpreter_shutdown), test_thread_pool (saturation).
Left out are those of worker threads, pools of processes, initializers and pickling; and interpreter_shutdown, since
tasks outlive their program here, and nobody waits for them.
"""

import contextlib
import functools
import gc
import itertools
import math
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import pytest
from dspy_supervisor import EnvelopeInvalid, Queue, QueueExecutor, QueueMissing, SupervisorError, TaskFailed
from dspy_supervisor.client import endings
from dspy_supervisor.task import State

from ..conftest import Supervised, clean_environ, supervisors, until
from . import calls

SOON_S = 30.0  #: far more than anything here takes


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    with supervisors(tmp_path_factory.mktemp("executor")) as start:
        allowed = "tests.system.calls:*,tests.system.calls:same,math:*,builtins:pow,builtins:divmod,builtins:str"
        yield start("--workers", "cpu_short=2", settings={"call_allow": allowed})


@pytest.fixture
def make(service: Supervised) -> Iterator[Callable[..., QueueExecutor]]:
    made: list[QueueExecutor] = []

    def make(**options) -> QueueExecutor:
        made.append(QueueExecutor(service.queue, runtime_dir=service.runtime, **options))
        return made[-1]

    yield make
    for executor in made:
        executor.shutdown(wait=False, cancel_futures=True)


@pytest.fixture
def executor(make) -> QueueExecutor:
    return make()


class Gate:
    """What holds a call in its worker until the test opens it."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path, self.opened = path, False

    def open(self) -> None:
        """Let the call go on; waits for it to come to the gate."""
        if not self.opened:
            os.close(os.open(self.path, os.O_WRONLY))
            self.opened = True

    def leave(self) -> None:
        """Let the call go on if it ever came."""
        if not self.opened:
            with contextlib.suppress(OSError):
                os.close(os.open(self.path, os.O_WRONLY | os.O_NONBLOCK))


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Callable[[], Gate]]:
    gates: list[Gate] = []

    def make() -> Gate:
        gates.append(Gate(tmp_path / f"gate{len(gates)}"))
        return gates[-1]

    yield make
    for one in gates:
        one.leave()


def held(executor: QueueExecutor, gate: Gate, result=None):
    """Submit a call that waits at the gate, and return its future when a worker has it."""
    future = executor.submit(calls.hold, str(gate.path), result)
    until(future.running, "a worker has the call")
    return future


# -- what is ours -------------------------------------------------------------------------------------------------------


def test_a_function_is_called_in_a_worker_by_its_import_path(executor):
    assert executor.submit(math.factorial, 20).result(SOON_S) == math.factorial(20)
    assert executor.submit(calls.Box.twice, 4).result(SOON_S) == 8
    assert executor.submit("tests.system.calls:multiply", 2, b=5).result(SOON_S) == 10
    assert executor.submit(calls.process).result(SOON_S) != os.getpid()


def test_a_call_that_raises_raises_with_the_traceback_of_the_worker(executor):
    future = executor.submit(calls.divide, 1, 0)
    with pytest.raises(TaskFailed, match="ZeroDivisionError") as caught:
        future.result(SOON_S)
    assert "return a / b" in caught.value.remote_traceback
    assert caught.value.task_id == future.task_id
    assert isinstance(future.exception(), TaskFailed)


def test_a_call_is_tried_once_unless_more_is_asked_for(make, service):
    with make() as once, make(max_attempts=2) as twice:
        first, second = once.submit(calls.divide, 1, 0), twice.submit(calls.divide, 1, 0)
        assert first.exception(SOON_S).record["attempt"] == 0
        assert second.exception(SOON_S).record["attempt"] == 1


def test_a_call_that_takes_too_long_is_ended(make, gate):
    with make(timeout=0.2) as executor, pytest.raises(TaskFailed) as caught:
        executor.submit(calls.hold, str(gate().path)).result(SOON_S)
    assert caught.value.cause == "timeout"


def test_what_the_supervisor_does_not_allow_is_refused(executor):
    with pytest.raises(TaskFailed, match="may not be called") as caught:
        executor.submit(os.getcwd).result(SOON_S)
    assert caught.value.cause == "refused"


def here():
    def local():
        pass

    return local


class Callable_:
    def __call__(self):
        pass

    def method(self):
        pass


@pytest.mark.parametrize(
    ("function", "advice"),
    [
        (lambda: 1, "a lambda can't be imported by a worker: define it at the top of a module"),
        (here(), r"local\(\), defined inside a function, can't be imported"),
        (functools.partial(math.factorial, 3), "give its function and its arguments"),
        (Callable_(), "no name that a worker could import"),
        (Callable_().method, "a worker would import another"),
        ("math.factorial", "write 'module:function'"),
        (3, "no name that a worker could import"),
    ],
)
def test_what_no_worker_can_import_is_refused_with_advice(executor, function, advice):
    with pytest.raises(TypeError, match=advice):
        executor.submit(function)
    with pytest.raises(TypeError, match=advice):
        executor.map(function, [1])


def test_a_function_of_the_program_itself_is_refused_with_advice(service, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\nfrom dspy_supervisor import QueueExecutor\n"
        "def work():\n    pass\n"
        "with QueueExecutor(sys.argv[1]) as executor:\n"
        "    try:\n        executor.submit(work)\n"
        "    except TypeError as error:\n        print(error)\n"
    )
    ended = subprocess.run(
        [sys.executable, program, service.queue], capture_output=True, text=True, env=clean_environ(tmp_path)
    )
    assert "move it into a module" in ended.stdout, ended.stderr


def test_arguments_that_are_no_json_are_refused_and_nothing_is_put(executor, service):
    with Queue(service.queue) as queue:
        before = len(queue.list())
        with pytest.raises(EnvelopeInvalid):
            executor.submit(calls.capture, {1, 2})
        with pytest.raises(EnvelopeInvalid):
            executor.map(calls.capture, [1, object()])
        assert len(queue.list()) == before
    assert not executor._listener.open_futures()


def test_a_cancelled_future_is_a_cancelled_task_that_never_ran(executor, service, gate):
    with Queue(service.queue) as queue:
        gates = [gate(), gate()]
        running = [held(executor, one) for one in gates]
        waiting = executor.submit(calls.process)
        told = []
        waiting.add_done_callback(told.append)
        assert not waiting.running()
        assert waiting.cancel()
        assert waiting.cancelled() and told == [waiting]
        assert waiting.cancel()
        with pytest.raises(futures.CancelledError):
            waiting.result()
        assert queue.record(waiting.task_id)["error"]["cause"] == "cancelled"
        assert not running[0].cancel()
        for one in gates:
            one.open()
        assert [future.result(SOON_S) for future in running] == [None, None]
        assert not running[0].cancel()


def test_a_task_cancelled_by_another_program_cancels_its_future(executor, service, gate):
    gates = [gate(), gate()]
    for one in gates:
        held(executor, one)
    waiting = executor.submit(calls.process)
    with Queue(service.queue, runtime_dir=service.runtime) as queue:
        assert queue.cancel(waiting.task_id) == "waiting"
    with pytest.raises(futures.CancelledError):
        waiting.result(SOON_S)
    for one in gates:
        one.open()


def test_a_running_task_is_ended_by_cancel_of_the_queue(executor, service, gate):
    future = held(executor, gate())
    with Queue(service.queue, runtime_dir=service.runtime) as queue:
        assert queue.cancel(future.task_id) == "running"
        with pytest.raises(futures.CancelledError):
            future.result(SOON_S)
        assert queue.state(future.task_id) is State.FAILED


def test_a_failed_task_is_retried_by_a_real_supervisor(executor, service, tmp_path):
    gate = tmp_path / "absent"
    future = executor.submit(calls.hold, str(gate), "second time")
    assert "FileNotFoundError" in str(future.exception(SOON_S))
    gate.write_bytes(b"")
    with Queue(service.queue, runtime_dir=service.runtime) as queue:
        queue.retry(future.task_id)
        assert queue.result(future.task_id, SOON_S) == "second time"
        assert queue.record(future.task_id)["attempt"] == 1


def test_one_thread_sleeps_until_an_event_wakes_it(make, gate, monkeypatch):
    monkeypatch.setattr(endings, "_LOOK_S", 3600.0)
    with make() as executor:
        before = set(threading.enumerate())
        many = [executor.submit(calls.multiply, n) for n in range(20)]
        assert set(threading.enumerate()) - before == {executor._listener._thread}
        assert [future.result(SOON_S) for future in many] == [3 * n for n in range(20)]


def test_a_callback_may_submit_and_shut_down(make):
    executor = make()
    second: list[futures.Future[int]] = []
    ended = threading.Event()

    def more(future: futures.Future[int]) -> None:
        second.append(executor.submit(calls.multiply, future.result()))
        executor.shutdown()
        ended.set()

    executor.submit(calls.multiply, 1).add_done_callback(more)
    assert ended.wait(SOON_S)
    assert second[0].result(SOON_S) == 9


def test_a_folder_that_goes_ends_every_future(supervisor, tmp_path, monkeypatch):
    for name in ("_LOOK_S", "_LOOK_SILENT_S", "_GONE_S"):
        monkeypatch.setattr(endings, name, 0.05)
    Queue(tmp_path / "queue", create=True).close()
    with QueueExecutor(tmp_path / "queue") as executor:
        many = list(itertools.starmap(executor.submit, [(calls.process,)] * 3))
        (tmp_path / "queue").rename(tmp_path / "away")
        assert {type(future.exception(SOON_S)) for future in many} == {QueueMissing}
    assert issubclass(QueueMissing, SupervisorError)


# -- those of CPython ---------------------------------------------------------------------------------------------------


def test_submit(executor):
    assert executor.submit(pow, 2, 8).result(SOON_S) == 256


def test_submit_keyword(executor):
    assert executor.submit(calls.multiply, 2, b=8).result(SOON_S) == 16
    assert executor.submit(calls.capture, 1, self=2, fn=3).result(SOON_S) == [[1], {"self": 2, "fn": 3}]
    with pytest.raises(TypeError):
        executor.submit(fn=calls.capture, arg=1)
    with pytest.raises(TypeError):
        executor.submit(arg=1)


def test_map(executor):
    assert list(executor.map(pow, range(10), range(10))) == list(map(pow, range(10), range(10)))
    assert list(executor.map(pow, range(10), range(10), chunksize=3)) == list(map(pow, range(10), range(10)))
    with pytest.raises(ValueError, match="chunksize"):
        executor.map(pow, [1], [1], chunksize=0)


def test_map_exception(executor):
    results = executor.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5])
    assert next(results) == [0, 1]
    assert next(results) == [0, 1]
    with pytest.raises(TaskFailed, match="ZeroDivisionError"):
        next(results)


def test_map_timeout(executor, gate):
    held_at = gate()
    results = []
    with pytest.raises(futures.TimeoutError):
        for result in executor.map(calls.hold, ["/dev/null", "/dev/null", str(held_at.path)], timeout=1.0):
            results.append(result)
    assert results == [None, None]
    held_at.open()


@pytest.mark.parametrize("size", [1, 2, 100, None])
def test_map_buffersize(executor, size):
    asked = []
    items = (asked.append(n) or n for n in range(8))
    results = executor.map(calls.multiply, items, buffersize=size)
    assert len(asked) == min(8, size or 8)
    assert next(results) == 0
    assert len(asked) == min(8, (size or 8) + 1)
    assert list(results) == [3 * n for n in range(1, 8)]
    assert list(executor.map(calls.multiply, [], buffersize=size)) == []
    with pytest.raises(ValueError, match="buffersize"):
        executor.map(calls.multiply, [1], buffersize=0)


def test_map_that_is_given_up_cancels_the_rest(executor, service, gate):
    gates = [gate(), gate()]
    for one in gates:
        held(executor, one)
    results = executor.map(calls.multiply, range(5))
    waiting = [future for future in executor._listener.open_futures() if not future.running()]
    assert len(waiting) == 5
    with pytest.raises(futures.TimeoutError):
        list(executor.map(calls.multiply, [1], timeout=0))
    del results
    gc.collect()  # a generator that never began has nothing to clean up, in CPython too
    for one in gates:
        one.open()


def test_first_completed(executor, gate):
    slow = held(executor, gate())
    quick = executor.submit(calls.multiply, 21, 2)
    done, not_done = futures.wait([quick, slow], timeout=SOON_S, return_when=futures.FIRST_COMPLETED)
    assert (done, not_done) == ({quick}, {slow})


def test_first_exception(executor, gate):
    slow = held(executor, gate())
    good, bad = executor.submit(calls.multiply, 2, 21), executor.submit(calls.divide, 1, 0)
    done, not_done = futures.wait([good, bad, slow], timeout=SOON_S, return_when=futures.FIRST_EXCEPTION)
    assert bad in done and slow in not_done


def test_all_completed_and_duplicates(executor):
    one, two = executor.submit(calls.divide, 2, 0), executor.submit(calls.multiply, 2, 21)
    assert futures.wait([one, two, one], timeout=SOON_S) == ({one, two}, set())
    assert set(futures.as_completed([one, two, one], timeout=SOON_S)) == {one, two}


def test_timeout(executor, gate):
    held_at = gate()
    slow, quick = held(executor, held_at), executor.submit(calls.multiply, 6, 7)
    assert quick.result(SOON_S) == 42
    assert futures.wait([quick, slow], timeout=0.05) == ({quick}, {slow})
    with pytest.raises(futures.TimeoutError):
        list(futures.as_completed([slow], timeout=0.05))
    with pytest.raises(futures.TimeoutError):
        slow.result(0.05)
    held_at.open()
    assert slow.result(SOON_S) is None


def test_a_cancelled_future_is_done_for_wait(executor, gate):
    gates = [gate(), gate()]
    for one in gates:
        held(executor, one)
    waiting = executor.submit(calls.process)
    thread = threading.Thread(target=waiting.cancel)
    thread.start()
    assert futures.wait([waiting], timeout=SOON_S) == ({waiting}, set())
    thread.join()
    for one in gates:
        one.open()


def test_saturation(executor):
    many = [executor.submit(calls.multiply, n) for n in range(100)]
    assert [future.result(SOON_S) for future in many] == [3 * n for n in range(100)]


def test_run_after_shutdown(executor):
    executor.shutdown()
    with pytest.raises(RuntimeError):
        executor.submit(pow, 2, 5)
    with pytest.raises(RuntimeError):
        executor.map(pow, [2], [5])
    executor.shutdown()


def test_hang_issue12364(executor):
    many = [executor.submit(calls.multiply, 1) for _ in range(10)]
    executor.shutdown()
    assert [future.result() for future in many] == [3] * 10


def test_cancel_futures(executor, gate):
    gates = [gate(), gate()]
    running = [held(executor, one, "held") for one in gates]
    many = [executor.submit(calls.process) for _ in range(10)]
    opener = threading.Thread(target=lambda: (futures.wait(many), [one.open() for one in gates]))
    opener.start()
    executor.shutdown(cancel_futures=True)
    opener.join(SOON_S)
    assert all(future.cancelled() for future in many)
    assert [future.result() for future in running] == ["held", "held"]


def test_cancel_futures_wait_false(executor):
    many = [executor.submit(calls.multiply, 2) for _ in range(5)]
    executor.shutdown(wait=False, cancel_futures=True)
    done, not_done = futures.wait(many, timeout=SOON_S)
    assert not not_done
    assert {future.result() for future in done if not future.cancelled()} <= {6}


def test_context_manager_shutdown(make):
    with make() as executor:
        assert list(executor.map(calls.multiply, range(-3, 3))) == [-9, -6, -3, 0, 3, 6]
        thread = executor._listener._thread
    assert thread is not None and not thread.is_alive()


def test_shutdown_no_wait(executor):
    results = executor.map(calls.multiply, range(5))
    thread = executor._listener._thread
    executor.shutdown(wait=False)
    assert list(results) == [0, 3, 6, 9, 12]
    assert thread is not None
    thread.join(SOON_S)
    assert not thread.is_alive()


def test_del_shutdown(service):
    executor = QueueExecutor(service.queue, runtime_dir=service.runtime)
    future = executor.submit(calls.multiply, 4)
    thread, gone = executor._listener._thread, weakref.ref(executor)
    del executor
    gc.collect()
    assert gone() is None
    assert future.result(SOON_S) == 12
    assert thread is not None
    thread.join(SOON_S)
    assert not thread.is_alive()


def test_a_program_that_ends_leaves_its_tasks_to_the_queue(service, tmp_path):
    program = (
        "import sys, math\nfrom dspy_supervisor import QueueExecutor\n"
        "print(QueueExecutor(sys.argv[1]).submit(math.factorial, 5).task_id)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, service.queue], capture_output=True, text=True, env=clean_environ(tmp_path)
    )
    assert ended.returncode == 0 and not ended.stderr, ended.stderr
    with Queue(service.queue) as queue:
        assert queue.result(ended.stdout.strip(), SOON_S) == 120
