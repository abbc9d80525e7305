"""Every way an attempt can end, and a worker that is as before afterwards."""

import asyncio
import dataclasses
import enum
import fcntl
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
from dspy_supervisor import attempt
from dspy_supervisor.attempt import Outcome, Surroundings
from dspy_supervisor.parts import HandlerFailure, Retry, Task, TaskRefused
from dspy_supervisor.task import Cause

TASK = Task("a1", "cpu_short", None, 0, 0, None, b'{"n": 1}', None, b"", Path("/nonexistent"), None)
BOUND = 1 << 20


def run(handler, bound=BOUND):
    return attempt.run(handler, TASK, max_result_bytes=bound)


def returning(value):
    return run(lambda task: value)


def raising(exception):
    def handler(task):
        raise exception

    return run(handler)


class Colour(enum.Enum):
    RED = "red"
    BROKEN = math.nan


@dataclasses.dataclass
class Point:
    x: float
    y: object = None


# Results


@pytest.mark.parametrize(
    "value",
    [None, True, 3, 2.5, "ä\u2028", [], {}, (1, 2), {"a": [{"b": None}]}, 2**63, -(2**63)],
)
def test_json_is_a_result(value):
    outcome = returning(value)
    assert outcome == Outcome(True, orjson.dumps(value))
    assert outcome.cause is None


def test_dataclasses_and_enums_are_results():
    assert returning({"at": Point(1.0, [Colour.RED])}).result == b'{"at":{"x":1.0,"y":["red"]}}'


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (math.nan, "result is nan"),
        (math.inf, "result is inf"),
        ({"a": [None, {"b": (1.0, -math.inf)}]}, "result['a'][1]['b'][1] is -inf"),
        (Point(1.0, math.nan), "result['y'] is nan"),
        ([Colour.BROKEN], "result[0]['value'] is nan"),
        (b"bytes", "bytes"),
        ({1: 2}, "Dict key must be str"),
        ({"a": {1, 2}}, "set"),
        ("\ud800", "surrogates"),
        ({"\udfff": 1}, "surrogates"),
        (2**64, "64-bit"),
        (object(), "object"),
        ((n for n in "ab"), "generator"),
    ],
)
def test_what_is_no_json_is_an_invalid_result(value, says):
    outcome = returning(value)
    assert (outcome.ok, outcome.cause, outcome.result, outcome.retry) == (False, Cause.INVALID_RESULT, None, False)
    assert says in outcome.message


def test_a_cycle_and_great_depth_are_invalid_results():
    cycle = []
    cycle.append(cycle)
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert returning(cycle).cause is Cause.INVALID_RESULT
    assert returning(deep).cause is Cause.INVALID_RESULT


def test_nulls_beside_finite_numbers_are_a_result():
    assert returning([None, 1.5, "null", {"a": None}]).ok


def test_the_bound_of_a_result_holds_to_the_byte():
    assert run(lambda task: "x" * 8, bound=10).ok
    outcome = run(lambda task: "x" * 9, bound=10)
    assert outcome.cause is Cause.INVALID_RESULT
    assert outcome.message == "the result is 11 bytes of JSON, the bound is 10"


# Exceptions


class HostileStr(Exception):
    def __str__(self):
        raise SystemExit("from str")

    __repr__ = __str__


class HostileMeta(type):
    def __getattribute__(cls, name):
        if name == "__qualname__":
            raise RuntimeError("from the metaclass")
        return super().__getattribute__(name)


class HostileClass(Exception, metaclass=HostileMeta):
    pass


class Silent(BaseException):
    pass


def test_an_exception_is_told_with_the_place_it_came_from():
    def handler(task):
        return task.payload["missing"]

    outcome = run(handler)
    assert (outcome.ok, outcome.cause, outcome.type, outcome.retry) == (False, Cause.RAISED, "KeyError", True)
    assert outcome.message == "'missing'"
    assert 'return task.payload["missing"]' in outcome.traceback
    assert "attempt.py" not in outcome.traceback.replace("test_attempt.py", "")


@pytest.mark.parametrize(
    ("exception", "cause", "retry", "says"),
    [
        (ValueError("no"), Cause.RAISED, True, "no"),
        (ValueError(), Cause.RAISED, True, "ValueError"),
        (KeyboardInterrupt(), Cause.RAISED, True, "KeyboardInterrupt"),
        (GeneratorExit("x"), Cause.RAISED, True, "x"),
        (StopIteration(3), Cause.RAISED, True, "3"),
        (asyncio.CancelledError("c"), Cause.RAISED, True, "c"),
        (Silent("own"), Cause.RAISED, True, "own"),
        (MemoryError("big"), Cause.OUT_OF_MEMORY, True, "big"),
        (RecursionError("deep"), Cause.RAISED, True, "deep"),
        (TypeError("not from orjson"), Cause.RAISED, True, "not from orjson"),
        (TaskRefused("never"), Cause.REFUSED, False, "never"),
        (Retry("soon", 2.5), Cause.RAISED, True, "soon"),
        (HandlerFailure(Cause.SIGNAL, "by SIGKILL"), Cause.SIGNAL, True, "by SIGKILL"),
        (HandlerFailure(Cause.REFUSED, "not allowed"), Cause.REFUSED, False, "not allowed"),
        (ExceptionGroup("many", [ValueError(1)]), Cause.RAISED, True, "many"),
        (HostileStr(), Cause.RAISED, True, "whose str() raises SystemExit"),
        (HostileClass(), Cause.RAISED, True, "cannot be described"),
        (ValueError("\ud800 \x00"), Cause.RAISED, True, "\\ud800 \x00"),
    ],
)
def test_each_exception_has_its_cause(exception, cause, retry, says):
    outcome = raising(exception)
    assert (outcome.ok, outcome.cause, outcome.retry) == (False, cause, retry)
    assert says in outcome.message
    orjson.dumps(dataclasses.asdict(outcome))


@pytest.mark.parametrize(("code", "exit_code"), [(None, 0), (0, 0), (3, 3), ("bye", 1)])
def test_sys_exit_fails_the_attempt_with_its_code(code, exit_code):
    outcome = run(lambda task: sys.exit(code))
    assert (outcome.ok, outcome.cause, outcome.details) == (False, Cause.EXIT, {"exit_code": exit_code})


def test_a_retry_says_when():
    assert raising(Retry("later", 60)).retry_delay_s == 60
    assert raising(Retry()).retry_delay_s is None


def test_a_handler_failure_hands_on_its_details_and_no_traceback_of_ours():
    outcome = raising(HandlerFailure(Cause.EXIT, "ended with 3", {"exit_code": 3}))
    assert outcome.details == {"exit_code": 3}
    assert outcome.traceback == ""


@pytest.mark.parametrize("details", [{"a": object()}, {"a": "x" * 100_000}])
def test_details_that_cannot_be_kept_are_dropped_in_words(details):
    assert list(raising(HandlerFailure(Cause.EXIT, "m", details)).details) == ["details_dropped"]


def test_what_is_kept_of_an_error_is_4_kib_with_head_and_tail():
    def dive(n):
        if n:
            dive(n - 1)
        raise ValueError("first words " + "\u20ac" * 1_000_000 + " last words")

    outcome = run(lambda task: dive(50))
    assert len(outcome.message.encode()) <= 1024
    assert len(outcome.message.encode()) + len(outcome.traceback.encode()) <= 4096
    assert outcome.message.startswith("first words")
    assert outcome.message.endswith("last words")
    assert "left out" in outcome.message
    assert outcome.traceback.startswith("Traceback")
    assert outcome.traceback.rstrip().endswith("last words")


@pytest.mark.parametrize("length", [1023, 1024, 1025, 2047, 2048, 2049, 5000])
def test_a_clipped_text_fits_at_every_length(length):
    for letter in "x", "\u20ac", "\U0001f600":
        clipped = raising(ValueError(letter * length)).message.encode()
        assert len(clipped) <= 1024
        assert (clipped == (letter * length).encode()) == (len(letter.encode()) * length <= 1024)


def test_a_real_lack_of_memory_is_out_of_memory():
    assert run(lambda task: bytearray(1 << 62)).cause is Cause.OUT_OF_MEMORY


# Coroutines


def test_a_coroutine_is_awaited_on_a_loop_that_is_kept():
    loops = []

    async def handler(task):
        await asyncio.sleep(0)
        loops.append(asyncio.get_running_loop())
        return task.payload

    assert run(handler).result == b'{"n":1}'
    assert run(handler).ok
    assert loops[0] is loops[1]


def test_any_awaitable_will_do():
    class Later:
        def __await__(self):
            yield from asyncio.sleep(0).__await__()
            return 7

    assert run(lambda task: Later()).result == b"7"


@pytest.mark.parametrize("exception", [ValueError("no"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()])
def test_a_coroutine_fails_as_a_function_does_and_the_next_one_runs(exception):
    async def bad(task):
        await asyncio.sleep(0)
        raise exception

    async def good(task):
        return 1

    assert run(bad).cause is raising(exception).cause
    assert run(good).ok


def test_what_a_coroutine_left_running_is_cancelled_before_the_next():
    seen = []

    async def left():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise ValueError("in its last words") from None

    async def handler(task):
        handler.left = asyncio.create_task(left())
        await asyncio.sleep(0)
        return "done"

    assert run(handler).ok
    assert seen == ["cancelled"]


def test_a_left_task_that_ignores_its_end_takes_the_loop_with_it(monkeypatch, caplog):
    monkeypatch.setattr(attempt, "LEFTOVER_TASKS_S", 0.01)

    async def stubborn():
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue

    async def handler(task):
        handler.left = asyncio.create_task(stubborn())
        handler.loop = asyncio.get_running_loop()
        await asyncio.sleep(0)
        return "done"

    async def good(task):
        return asyncio.get_running_loop() is not handler.loop

    assert run(handler).ok
    assert run(good).result == b"true"
    handler.left._log_destroy_pending = False
    handler.left.get_coro().close  # noqa: B018  # it cannot be closed: it ignores that, too


# Surroundings


@pytest.fixture
def surroundings():
    kept = Surroundings()
    yield kept
    kept.restore()
    kept.close()


def test_the_folder_comes_back_also_when_it_was_removed(surroundings, tmp_path):
    before = os.getcwd()
    (tmp_path / "gone").mkdir()
    os.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    surroundings.restore()
    assert os.getcwd() == before


def test_umask_and_environment_come_back(surroundings):
    def environment():  # pytest itself changes one variable between the fixture and the test
        return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}

    before = environment()
    mask = os.umask(0o22)
    os.umask(mask)
    os.umask(0o777)
    os.environ["PLANTED"] = "1"
    os.environ["PATH"] = "/evil"
    del os.environ["HOME"]
    surroundings.restore()
    assert environment() == before
    assert subprocess.run(["/usr/bin/env"], capture_output=True, text=True, check=True).stdout.count("PLANTED") == 0
    assert os.umask(mask) == mask


def test_an_environment_object_that_was_replaced_comes_back(surroundings):
    before = os.environ
    os.environ = {"PATH": "/evil"}  # noqa: B003
    surroundings.restore()
    assert os.environ is before


def test_signal_handlers_mask_and_alarm_come_back(surroundings):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1), signal.pthread_sigmask(0, ())
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    signal.alarm(1000)
    surroundings.restore()
    after = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1), signal.pthread_sigmask(0, ())
    assert after == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


IN_A_FRESH_PROCESS = """
import fcntl, os, sys
from dspy_supervisor.attempt import Surroundings
kept = Surroundings()
{}
kept.restore()
print("out")
print("err", file=sys.stderr)
sys.stdout.flush()
os.write(1, b"raw")
assert fcntl.fcntl(0, fcntl.F_GETFD) == 0, "not inheritable"
assert sys.stdin.read() == "in"
"""


@pytest.mark.parametrize(
    "harm",
    [
        "",
        "os.close(0); os.close(1); os.close(2)",
        "os.closerange(0, 100)",
        "sys.stdout.close(); sys.stderr.close(); sys.stdin.close()",
        "sys.stdout = open(os.devnull, 'w'); sys.stderr = None; sys.stdin = None",
        "os.dup2(os.open(os.devnull, os.O_RDWR), 1); os.dup2(1, 2); os.dup2(1, 0)",
        "fcntl.fcntl(0, fcntl.F_SETFD, fcntl.FD_CLOEXEC)",
    ],
)
def test_the_standard_streams_come_back(harm):
    program = IN_A_FRESH_PROCESS.format(harm)
    ended = subprocess.run([sys.executable, "-c", program], input="in", capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) == ("out\nraw", "err\n")
    assert ended.returncode == 0


def test_a_worker_whose_own_descriptors_were_closed_is_told_so():
    program = (
        "import os\nfrom dspy_supervisor.attempt import Surroundings\ns = Surroundings()\nos.closerange(3, 1000)\n"
    )
    program += "try: s.restore()\nexcept OSError as exc: print(exc.errno)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "9\n"


def test_a_worker_started_without_standard_streams_has_surroundings():
    program = "import os\nfrom dspy_supervisor.attempt import Surroundings\nfor n in (0, 1, 2): os.close(n)\n"
    program += "s = Surroundings(); s.restore(); s.close()"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_closing_gives_every_descriptor_back():
    before = len(os.listdir("/proc/self/fd"))
    Surroundings().close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert fcntl.fcntl(0, fcntl.F_GETFD) >= 0


def test_records_of_outcomes_are_json():
    assert json.loads(orjson.dumps(raising(ValueError("x"))))["cause"] == "raised"
