"""Slurm's own commands: started without a shell, in a scrubbed environment, each with a time-out, each counted.

A command that is stopped, or whose answer is lost, may have taken effect. So what sbatch says has three outcomes, as every
call whose reply can be lost: accepted, refused, unknown.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import shutil
import signal
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from dspy_fastpath.process import spawn

SUBMIT_S = 180.0  #: sbatch itself tries for up to 120 s where the controller's table of jobs is full
ASK_S = 60.0
MAX_OUTPUT = 256 << 20  # bytes

#: answers of sbatch to a request that no cluster in this state will take: it was not accepted, and won't be
_REFUSALS = (
    "invalid partition",
    "invalid account",
    "invalid qos",
    "invalid reservation",
    "requested reservation is invalid",
    "invalid wckey",
    "requested node configuration is not available",
    "invalid job array specification",
    "invalid generic resource",
    "invalid feature specification",
    "invalid constraint",
    "does not look like a batch script",
    "unable to open file",
    "batch script contains dos line breaks",
    "batch script is empty",
    "invalid --",
    "unrecognized option",
    "ambiguous",
    "invalid time specification",
    "invalid number of",
    "invalid numeric value",
    "invalid node count",
    "requested time limit is invalid",
    "user's group not permitted",
    "access/permission denied",
    "node count specification invalid",
    "requires more resources than",
    "invalid trackable resource",
    "memory specification can not be satisfied",
    "job dependency problem",
    "directory or other parameter too long",
    "more processors requested than permitted",
    "invalid directive found in batch script",
    "not a valid signal",
    "invalid argument",
)
#: not accepted either, but a limit that may have room again
_LATER = ("job violates accounting/qos policy", "submit limit", "maximum number of jobs")
#: beside one of these nothing is definite
_TROUBLE = ("unable to contact", "socket timed out", "protocol authentication", "zero bytes", "munge", "try again")
_ACCEPTED = re.compile(r"(\d+)(?:;(\S+))?\n")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command said."""

    program: str
    code: int  #: exit code; negative: the signal that ended it
    out: str
    error: str
    took_s: float
    timed_out: bool = False
    ran: bool = True  #: False: it could not even be started

    @property
    def ok(self) -> bool:
        """Whether it says that it succeeded."""
        return self.code == 0 and not self.timed_out

    @property
    def trouble(self) -> str:
        """Why it did not succeed, in a line."""
        if self.timed_out:
            return f"{self.program} did not answer within {self.took_s:.0f} s"
        lines = [line.strip() for line in self.error.splitlines() if line.strip()]
        text = lines[-1] if lines else f"exit code {self.code}"
        return text if text.startswith(f"{self.program}:") else f"{self.program}: {text}"


@dataclass(frozen=True, slots=True)
class Accepted:
    """sbatch took the job."""

    job_id: str
    cluster: str


@dataclass(frozen=True, slots=True)
class Refused:
    """sbatch did not take this job; why."""

    reason: str
    later: bool = False  #: it may take it some other time


@dataclass(frozen=True, slots=True)
class Unknown:
    """The job may exist, or not; why this is not known."""

    reason: str


def read_submission(answer: Answer) -> Accepted | Refused | Unknown:
    """Return what an answer of sbatch --parsable means."""
    match = _ACCEPTED.fullmatch(answer.out)
    if answer.ok:
        return Accepted(match[1], match[2] or "") if match else Unknown(f"sbatch printed {answer.out[:80]!r}")
    if not answer.ran:
        return Refused(answer.trouble, later=True)
    if answer.timed_out or answer.code < 0 or answer.out.strip():
        return Unknown(answer.trouble)
    said = answer.error.lower()
    if any(text in said for text in _TROUBLE):
        return Unknown(answer.trouble)
    if any(text in said for text in _LATER):
        return Refused(answer.trouble, later=True)
    return Refused(answer.trouble) if any(text in said for text in _REFUSALS) else Unknown(answer.trouble)


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """What the bridge must know of a cluster; the defaults are Slurm's."""

    name: str = ""
    version: str = ""
    max_array_size: int = 1001
    min_job_age_s: float = 300.0
    message_timeout_s: float = 10.0
    kill_wait_s: float = 30.0
    accounting: bool = True

    @property
    def reply_s(self) -> float:
        """After so long no request that was sent before can take effect any more, and no answer to it can come."""
        return 2 * self.message_timeout_s + 10.0


CONFIG = ("scontrol", "show", "config")


def parse_config(text: str) -> ClusterConfig:
    """Return what `scontrol show config` says."""
    found = {}
    for line in text.splitlines():
        name, sign, value = line.partition("=")
        if sign:
            found[name.strip().lower()] = value.strip()
    default = ClusterConfig()

    def number(name: str, otherwise: float) -> float:
        match = re.match(r"\d+", found.get(name, ""))
        return float(match[0]) if match else otherwise

    return ClusterConfig(
        name=found.get("clustername", default.name),
        version=found.get("slurm_version", default.version),
        max_array_size=int(number("maxarraysize", default.max_array_size)),
        min_job_age_s=number("minjobage", default.min_job_age_s),
        message_timeout_s=number("messagetimeout", default.message_timeout_s),
        kill_wait_s=number("killwait", default.kill_wait_s),
        accounting=not found.get("accountingstoragetype", "").lower().startswith(("accounting_storage/none", "(null)")),
    )


Then = Callable[[Answer], None]


@dataclass(slots=True, eq=False)
class _Call:
    program: str
    pid: int
    pidfd: int
    out: int
    error: int
    started: float  # monotonic seconds
    timeout_s: float
    then: Then
    killed: bool = False


class Slurm:
    """Runs Slurm's commands, several at a time, without waiting for them."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)  #: of sbatch, and so of jobs
        self.calls: Tally[str] = Tally()  #: by program
        self.errors: Tally[str] = Tally()
        self._running: dict[int, _Call] = {}  # by pidfd

    @property
    def running(self) -> int:
        """Commands that were started and did not answer yet."""
        return len(self._running)

    def descriptors(self) -> list[int]:
        """Return descriptors that are readable when a command has ended: then `collect`."""
        return list(self._running)

    def start(
        self,
        argv: Sequence[str],
        then: Then,
        *,
        stdin: bytes = b"",
        timeout_s: float = ASK_S,
        environment: Iterable[tuple[str, str]] = (),
    ) -> None:
        """Start a command; ``then`` gets its answer, also where it can't be run at all."""
        program = argv[0]
        self.calls[program] += 1
        variables = self.environment | dict(environment)
        if program != "sbatch":  # a job would inherit it
            variables["SLURM_TIME_FORMAT"] = "%s"
        path = shutil.which(program, path=variables.get("PATH", os.defpath))
        if path is None:
            self._answered(Answer(program, 127, "", f"{program}: not found on PATH", 0.0, ran=False), then)
            return
        with contextlib.ExitStack() as stack:
            files = [os.memfd_create(f"{program}.{what}", os.MFD_CLOEXEC) for what in ("in", "out", "err")]
            for descriptor in files[:1]:
                stack.callback(os.close, descriptor)
            undo = contextlib.ExitStack()
            for descriptor in files[1:]:
                undo.callback(os.close, descriptor)
            with undo:
                given = memoryview(stdin)
                while given:
                    given = given[os.write(files[0], given) :]
                os.lseek(files[0], 0, os.SEEK_SET)
                words = [os.fsencode(word) for word in (path, *argv[1:])]
                env = [os.fsencode(f"{name}={value}") for name, value in variables.items()]
                try:
                    pid = spawn(words, env, b"/", *files)
                except (OSError, ValueError) as error:
                    self._answered(Answer(program, 126, "", f"{program}: {error}", 0.0, ran=False), then)
                    return
                undo.pop_all()
            pidfd = os.pidfd_open(pid)
            self._running[pidfd] = _Call(program, pid, pidfd, files[1], files[2], time.monotonic(), timeout_s, then)

    def collect(self, now: float) -> None:
        """Hand over the answers of commands that ended, and end those whose time is up (``now``: monotonic)."""
        for call in list(self._running.values()):
            if _has_ended(call.pidfd):
                self._collect(call)
            elif now - call.started > call.timeout_s and not call.killed:
                call.killed = True
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(call.pid, signal.SIGKILL)  # it leads a session of its own: a wrapper's child goes too

    def kill_all(self) -> None:
        """End every command; no answer is handed over."""
        for call in list(self._running.values()):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(call.pid, signal.SIGKILL)
            os.waitpid(call.pid, 0)
            self._close(call)

    def call(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = ASK_S,
        environment: Iterable[tuple[str, str]] = (),
    ) -> Answer:  # fmt: skip
        """Run one command and wait for its answer: for programs that do nothing else meanwhile."""
        answers: list[Answer] = []
        self.start(argv, answers.append, stdin=stdin, timeout_s=timeout_s, environment=environment)
        poll = select.poll()
        for descriptor in self.descriptors():
            poll.register(descriptor, select.POLLIN)
        while not answers:
            poll.poll(500)
            self.collect(time.monotonic())
        return answers[0]

    def _collect(self, call: _Call) -> None:
        _, status = os.waitpid(call.pid, 0)
        took_s = time.monotonic() - call.started
        out, error = _text(call.out), _text(call.error)
        self._close(call)
        code = os.waitstatus_to_exitcode(status)
        self._answered(Answer(call.program, code, out, error, took_s, call.killed), call.then)

    def _answered(self, answer: Answer, then: Then) -> None:
        if not answer.ok:
            self.errors[answer.program] += 1
        then(answer)

    def _close(self, call: _Call) -> None:
        self._running.pop(call.pidfd, None)
        for descriptor in (call.pidfd, call.out, call.error):
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _text(descriptor: int) -> str:
    """Return what a command wrote. Raises OSError (EFBIG) for more than any listing has."""
    size = os.fstat(descriptor).st_size
    if size > MAX_OUTPUT:
        raise OSError(errno.EFBIG, f"a command printed {size} bytes")
    parts, at = [], 0
    while part := os.pread(descriptor, 1 << 20, at):
        parts.append(part)
        at += len(part)
    return b"".join(parts).decode("utf-8", "replace")
