"""What runs inside a job, beside its runner: the handler of a task, or a program with the task's variables.

It is a process of its own, so that whatever it does to itself, the runner hears Slurm's signals, keeps its heartbeat and says
how it ended. How a handler's attempt ended is left in ``outcome.R.json`` of the task's folder, its result in ``result.R.json``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import orjson
from dspy_fastpath.envelope import scan

from . import current, proctree
from .attempt import Outcome, run
from .environment import set_variable
from .errors import ConfigError
from .handlers import make
from .jobfolder import write_result
from .layout import replace_json
from .log import configure
from .parts import Task
from .task import Cause
from .taskqueue import DEEPEST, MOST_EXTRAS

#: variables that commands in a job see beside those they see anywhere
COMMAND_ENV = ("SLURM_*", "TASK_*", "DSPY_CHECKPOINT", "DSPY_JOB_FOLDER", "DSPY_JOB_RESTART")
ENVELOPE, VARIABLES, PROGRAM_RESULT = "envelope.json", "environment", "program-result.json"


@dataclass(frozen=True, slots=True)
class Assignment:
    """One attempt, as a job runs it."""

    folder: Path  #: of the task, in the submission
    restart: int  #: how often Slurm restarted this job
    task: Mapping[str, Any]  #: task.json
    deadline: float | None  #: monotonic seconds

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the bridge says of the configuration."""
        found: Mapping[str, Any] = self.task.get("settings") or {}
        return found

    @property
    def home(self) -> Path:
        """The task's folder, which it keeps from job to job."""
        return Path(str(self.task["home"]))

    @property
    def checkpoint(self) -> Path:
        """The file that holds the wish to save."""
        return self.folder / "checkpoint"

    @property
    def outcome(self) -> str:
        """The name of the file that says how a handler's attempt ended."""
        return f"outcome.{self.restart}.json"

    def handler_name(self) -> str | None:
        """Return what runs the task; None: nothing does."""
        settings, kind = self.settings, self.task.get("kind")
        if kind is None:
            return settings.get("handler")
        own: Mapping[str, str] = settings.get("kind_handlers", {})
        return own.get(kind) or (kind if kind in settings.get("kinds", ()) else None)


def live(assignment: Assignment, program: Sequence[str], parent: int) -> NoReturn:
    """Run the program, or the task's handler where there is none. Called in the forked child; ends the process."""
    code = 70
    try:
        _enter(assignment, parent)
        if program:
            for number in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, signal.SIG_DFL)
            try:
                os.execvp(program[0], list(program))
            except OSError as error:
                print(f"{program[0]} can't be run: {error.strerror}", file=sys.stderr)
                code = 127
        else:
            code = _handle(assignment)
    except BaseException:  # the last chance to say anything
        import traceback

        with contextlib.suppress(BaseException):
            traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _enter(assignment: Assignment, parent: int) -> None:
    """Become a process that ends with the runner, and that Slurm's signals don't end while it can save its work."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _heard)  # a handler of ours is not inherited by what a task starts, as SIG_IGN would be
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    proctree.die_with_parent(parent)
    proctree.become_subreaper()
    for name, value in _variables(assignment).items():
        set_variable(name, value)


def _heard(_number: int, _frame: object) -> None:
    """The runner hears it too, and writes down the wish."""


def _variables(assignment: Assignment) -> dict[str, str]:
    found = {
        "TASK_ID": str(assignment.task["id"]),
        "TASK_ATTEMPT": str(assignment.task["attempt"]),
        "TASK_CLASS": str(assignment.task["class"]),
        "TASK_FOLDER": str(assignment.home),
        "TASK_PAYLOAD": str(assignment.folder / "payload.json"),
        "DSPY_JOB_FOLDER": str(assignment.folder),
        "DSPY_JOB_RESTART": str(assignment.restart),
        "DSPY_CHECKPOINT": str(assignment.checkpoint),
        "DSPY_RESULT": str(assignment.folder / PROGRAM_RESULT),
    }
    try:
        written = (assignment.folder / VARIABLES).read_bytes()
    except FileNotFoundError:
        written = b""
    for pair in written.split(b"\0"):
        key, equals, text = pair.partition(b"=")
        if equals:
            found.setdefault(key.decode(), text.decode())
    return {**assignment.settings.get("environment", {}), **found}  # a class hides nothing that the task says


def _handle(assignment: Assignment) -> int:
    settings = assignment.settings
    name = assignment.handler_name()
    if name is None:
        outcome = Outcome(False, cause=Cause.REFUSED, message="this configuration has no handler for the task")
    else:
        if (here := os.getcwd()) not in sys.path:
            sys.path.append(here)
        try:
            handler = make(
                name,
                call_allow=tuple(settings.get("call_allow", ())),
                command_env=(*settings.get("command_env", ()), *settings.get("environment", ()), *COMMAND_ENV),
                command_cwd=tuple(settings.get("command_cwd", ())),
                kill_grace_s=float(settings.get("kill_grace_s", 3.0)),
            )
        except ConfigError as error:
            outcome = Outcome(False, cause=Cause.RAISED, message=str(error), retry=True)
        else:
            task = _task(assignment)
            configure("info")  # standard error is the job's own
            current.begin(task)
            outcome = run(handler, task, max_result_bytes=int(settings.get("max_result_bytes", 64 << 20)))
    if outcome.ok and outcome.result is not None:
        write_result(assignment.folder, assignment.restart, outcome.result)
    facts = {
        "ok": outcome.ok,
        "cause": outcome.cause,
        "message": outcome.message,
        "type": outcome.type,
        "traceback": outcome.traceback,
        "details": outcome.details,
        "retry": outcome.retry,
        "retry_delay_s": outcome.retry_delay_s,
    }
    folder = os.open(assignment.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    replace_json(folder, assignment.outcome, facts, durable=False)
    return 0 if outcome.ok else 1


def _task(assignment: Assignment) -> Task:
    task = assignment.task
    envelope = (assignment.folder / ENVELOPE).read_bytes()
    fields = scan(envelope, DEEPEST, MOST_EXTRAS)
    start, end = fields.payload
    deadline = assignment.deadline
    return Task(
        id=str(task["id"]),
        task_class=str(task["class"]),
        kind=fields.kind,
        attempt=int(task["attempt"]),
        crashes=int(task["crashes"]),
        timeout_s=None if deadline is None else max(0.0, deadline - time.monotonic()),
        raw=envelope[start:end],
        fields=fields,
        envelope=envelope,
        home=assignment.home,
        deadline=deadline,
    )


def program_result(assignment: Assignment) -> tuple[bytes | None, str]:
    """Return the JSON that a program left as its result, None where it left none, and what is wrong with it."""
    limit = int(assignment.settings.get("max_result_bytes", 64 << 20))
    try:
        with (assignment.folder / PROGRAM_RESULT).open("rb") as file:
            found = file.read(limit + 1)
    except FileNotFoundError:
        return None, ""
    if len(found) > limit:
        return None, f"the result in DSPY_RESULT has more than {limit} bytes"
    try:
        orjson.loads(found)
    except orjson.JSONDecodeError as error:
        return None, f"the result in DSPY_RESULT is no JSON: {error}"
    return found, ""
