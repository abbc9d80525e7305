"""The process below a worker that runs its tasks in a sandbox, each in a fork of its own: ``python -m dspy_supervisor.cell``.

It is started by exec with a chosen environment and one descriptor, a socket to its worker (0), so nothing of the supervisor is
in its memory: no configuration, no task of others, no page of counters. It loads the handlers once. For each task the worker
sends a byte with a socket: the fork reads the task from it, locks itself in, calls the handler, and answers how that
ended; this process says the fork's wait status. Of one task nothing is left in memory that the next one's fork would inherit.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import signal
import socket
import struct
import sys
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NoReturn

import orjson
from dspy_fastpath.envelope import scan

from . import current
from .attempt import MAX_DETAILS_BYTES, Outcome, run
from .environment import replace_variables
from .errors import ConfigError
from .handlers import make
from .parts import Handler, Task, TaskRefused
from .proctree import die_with_parent
from .sandbox import escapes, kernel, walls
from .sandbox.filter import program
from .sandbox.frame import pack, receive
from .sandbox.view import View
from .task import MAX_TIMEOUT_S, Cause
from .taskqueue import DEEPEST, MOST_EXTRAS

STATUS = struct.Struct("!i")
_CONTROL = 0
_PROBE = "probe"
_KEEPING = ("embed", "environment")  # built-in handlers that share or keep something outside of their task


class _Stopped(BaseException):
    """SIGTERM: the task's time is up. A BaseException, so that a handler's `except Exception` lets it through."""


class Cell:
    """What the forks of one class have in common."""

    def __init__(self, told: Mapping[str, Any]) -> None:
        self._view = View(*(tuple(map(_plain, told["view"][name])) for name in View.__slots__))
        self._mechanism, self._network = str(told["mechanism"]), bool(told["network"])
        self._tmp_bytes = int(told["tmp_bytes"])
        self._calls = program(network=self._network, shared=self._shares)
        self._most = int(told["max_result_bytes"])
        self._rules: tuple[tuple[str, int], ...] = ()
        self.handlers: dict[str | None, Handler] = {}

    @property
    def _shares(self) -> bool:
        """Whether processes and files of others are in sight."""
        return self._mechanism == "landlock"

    def prepare(self) -> None:
        """Do what is done once for all tasks, while there is one thread. Raises OSError."""
        if self._shares:
            self._rules = walls.rules(self._view)
        else:
            walls.leave_host(network=self._network)

    def load(self, told: Mapping[str, Any]) -> None:
        """Import the handlers. Raises ConfigError."""
        options: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in told["options"].items()
        }
        for kind, name in told["handlers"]:
            self.handlers[kind] = _unfit(name) if name in _KEEPING else make(name, **options)

    def run(self, task: socket.socket, status: int) -> NoReturn:
        """Be the fork of one task. Never returns."""
        try:
            found = receive(task)
            if found is None:
                os._exit(0)
            facts, envelope = found
            # Whatever is between here and the walls is our code, and speaks to nobody.
            nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            for number in (_CONTROL, 1, 2):  # the supervisor's log must not be found in process 1 either
                os.dup2(nothing, number)
            os.close(nothing)
            home, tmp = str(facts["home"]), str(facts["tmp"])
            if self._shares:
                os.close(status)
                os.setsid()
                walls.close_files(self._rules, home, tmp, network=self._network)
            else:
                self._leave(home, status)
            walls.seal(self._calls)
            if not self._shares:
                _attend(status)
            self._handle(task, facts, envelope)
        except BaseException as error:  # the walls don't stand: nothing was called
            with contextlib.suppress(BaseException):
                task.sendall(pack({"walls": f"{type(error).__name__}: {error}"}))
        finally:
            os._exit(70)

    def _leave(self, home: str, status: int) -> None:
        """Go on as process 1 of a pid namespace, in a tree of its own; who is left behind waits for that."""
        walls.leave_others()
        if below := os.fork():
            os.close(status)
            _, ended = os.waitpid(below, 0)
            os._exit(0 if ended == 0 else 70)
        kernel.die_with_parent()
        walls.build_tree(self._view, home, self._tmp_bytes)
        os.setsid()

    def _handle(self, stream: socket.socket, facts: Mapping[str, Any], envelope: bytes) -> NoReturn:
        home, tmp = str(facts["home"]), str(facts["tmp"])
        os.chdir(home)
        replace_variables({"HOME": home, "TMPDIR": tmp, **facts["variables"]})
        output = os.open(
            str(facts["output"]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640
        )
        for number in (1, 2):
            os.dup2(output, number)
        os.close(output)
        signal.signal(signal.SIGTERM, _stop)
        faulthandler.enable()
        if facts.get(_PROBE):
            stream.sendall(pack(escapes.attempt(facts[_PROBE], home)))
            os._exit(0)
        task = _task(facts, envelope)
        current.begin(task)
        outcome = run(self.handlers[task.kind], task, max_result_bytes=self._most)
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        said = asdict(outcome)
        stream.sendall(pack({name: said[name] for name in said if name != "result"}, outcome.result or b""))
        os._exit(0)


def _unfit(name: str) -> Handler:
    def refuse(_task: Task) -> NoReturn:
        raise TaskRefused(f"the handler {name!r} does not run in a sandbox: what it uses lies outside of its task")

    return refuse


def _stop(_number: int, _frame: object) -> None:
    raise _Stopped


def _attend(status: int) -> None:
    """Fork the process that runs the task; this one, process 1, reaps what loses its parent, and says how that one ended."""
    child = os.fork()
    if not child:
        os.close(status)
        kernel.die_with_parent()
        os.setsid()
        return
    while True:
        ended, how = os.wait()
        if ended == child:
            os.write(status, STATUS.pack(how))
            os._exit(0)  # and so all that is left here


def _task(facts: Mapping[str, Any], envelope: bytes) -> Task:
    fields = scan(envelope, DEEPEST, MOST_EXTRAS)
    start, end = fields.payload
    span = facts["span"]
    return Task(
        id=facts["id"],
        task_class=facts["class"],
        kind=fields.kind,
        attempt=facts["attempt"],
        crashes=facts["crashes"],
        timeout_s=facts["timeout_s"],
        raw=envelope[start:end],
        fields=fields,
        envelope=envelope,
        home=facts["home"],
        deadline=facts["deadline"],
        trace=None if span is None else lambda: str(span),
    )


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def outcome_of(facts: Mapping[str, Any], result: bytes) -> Outcome:
    """Return the outcome that a fork tells, whatever code wrote it. Raises ValueError, KeyError or TypeError."""
    if facts["ok"] is True:
        # The task may have written this itself: only what was read and written anew is surely JSON of our kind.
        return Outcome(True, orjson.dumps(orjson.loads(result)))
    details, delay = facts["details"], facts["retry_delay_s"]
    if not isinstance(details, dict) or len(orjson.dumps(details)) > MAX_DETAILS_BYTES:
        raise TypeError("its details")
    if delay is not None and not 0 <= float(delay) <= MAX_TIMEOUT_S:
        raise ValueError("its delay")
    return Outcome(
        False,
        cause=Cause(facts["cause"]),
        message=str(facts["message"])[:1024],
        type=str(facts["type"])[:200],
        traceback=str(facts["traceback"])[:3072],
        details=details,
        retry=bool(facts["retry"]),
        retry_delay_s=None if delay is None else float(delay),
    )


def main() -> int:
    """Serve a worker until it is gone."""
    control = socket.socket(fileno=_CONTROL)
    found = receive(control)
    if found is None:
        return 0
    told, _ = found
    cell = Cell(told)
    try:
        cell.prepare()
        sys.path[:] = told["path"]
        replace_variables({}, drop=("PYTHONPATH",))
        cell.load(told)
    except ConfigError as error:
        control.sendall(pack({"name": error.name, "value": str(error.value), "expected": error.expected}))
        return 78
    except OSError as error:
        control.sendall(pack({"walls": str(error)}))
        return 70
    warnings.simplefilter("ignore")  # of Python 3.12 and later: that a module of a handler made threads before a fork
    gc.collect()
    gc.freeze()  # a fork's collector would copy every page of what is here only to count
    control.sendall(pack({"ready": True}))
    parent = os.getpid()
    while True:
        byte, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not byte:
            return 0
        (number,) = descriptors
        reading, writing = os.pipe2(os.O_CLOEXEC)
        child = os.fork()
        if not child:
            os.close(reading)
            die_with_parent(parent)
            cell.run(socket.socket(fileno=number), writing)
        os.close(writing)
        os.close(number)
        said = os.read(reading, STATUS.size)
        os.close(reading)
        _, status = os.waitpid(child, 0)
        control.sendall(said if len(said) == STATUS.size else STATUS.pack(status))


if __name__ == "__main__":
    sys.exit(main())
