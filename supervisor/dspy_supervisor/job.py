"""The runner in a job: ``python -m dspy_supervisor.job FOLDER [-- PROGRAM ARGUMENT...]``, started by a job's script.

It takes the attempt (a second copy of the job finds it taken, and ends at once with success), starts the task's handler or
the program, keeps the heartbeat, and writes how it ended into FOLDER, last of all; jobbook tells the files. Slurm's signals
are for it: SIGUSR1 (``--signal=B:USR1@SECONDS``) and SIGTERM mean that time is up. Both write the wish to save into
``checkpoint``; after SIGTERM what still runs at the end of a grace, shorter than Slurm's own, is killed, so that there is
time to say how it ended.

Exit codes: 0 done, or not ours to do; 85 saved and to be continued; else the program's own, 1, or 128 + the signal's number.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import proctree
from .checkpoint import EXIT_REQUEUE
from .cuda_errors import is_out_of_memory
from .environment import job_variables
from .jobchild import Assignment, live, program_result
from .jobfolder import take_start, write_beat, write_exit, write_result
from .layout import read_json
from .task import Cause

BEAT_S = 30.0
RETRY_WRITE_S = 5.0
_SLACK_S = 2.0  # beyond its deadline: a command ends its program by itself, and a handler may be just ending
_TAIL_BYTES = 4096
_NOT_WANTED = "the task was settled meanwhile: what this job did is not wanted any more"
_WATCHED = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one attempt, and return the exit code of the job."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0].startswith("-") or (len(words) > 1 and words[1] != "--"):
        print("usage: python -m dspy_supervisor.job FOLDER [-- PROGRAM ARGUMENT...]", file=sys.stderr)
        return 2
    # Before anything else: a signal that comes too early would end us with nothing said.
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    folder, job = Path(words[0]).absolute(), job_variables()
    restart = int(job.get("SLURM_RESTART_COUNT") or 0)
    task = _read_task(folder)
    if task is None:
        print(f"there is no task in {folder}: it was settled without this job")
        return 0
    if not take_start(folder, restart, _start_facts(job, restart)):
        print(f"attempt {task.get('attempt')} of {task.get('id')} is taken: this copy of the job has nothing to do")
        return 0
    return Runner(folder, restart, task, words[2:]).run()


class Runner:
    """The attempt that this job has taken."""

    def __init__(self, folder: Path, restart: int, task: Mapping[str, Any], program: Sequence[str]) -> None:
        self._started_at, self._started = time.time(), time.monotonic()
        settings = task.get("settings") or {}
        timeout_s = task.get("timeout_s") or settings.get("timeout_s")
        deadline = self._started + float(timeout_s) if timeout_s else None
        self._run = Assignment(folder, restart, task, deadline)
        self._program = program
        self._grace_s = float(settings.get("stop_grace_s", 20.0))
        self._stopped = False  # SIGTERM came
        self._timed_out = False
        self._kill_grace_s = float(settings.get("kill_grace_s", 3.0))
        #: when what runs is sent a signal, and which
        self._next: tuple[float, signal.Signals] | None = None
        if deadline is not None:
            self._next = (deadline + (0.0 if program else _SLACK_S), signal.SIGTERM)
        self._beats = 0
        self._beat_at = 0.0

    def run(self) -> int:
        """Run it to its end, and return the exit code of the job."""
        self._prepare()
        sys.stdout.flush()
        parent = os.getpid()
        child = os.fork()
        if not child:
            live(self._run, self._program, parent)
        status, max_rss_bytes = self._watch(child)
        with contextlib.suppress(OSError, TimeoutError):  # what it left behind must not write into the next attempt
            proctree.reap_orphans(())
        try:
            facts = self._facts(os.waitstatus_to_exitcode(status))
        except FileNotFoundError:
            print(_NOT_WANTED, file=sys.stderr)
            return 0
        code = _exit_code(facts)
        facts |= {
            "restart": self._run.restart,
            "at": time.time(),
            "started_at": self._started_at,
            "duration_s": time.monotonic() - self._started,
            "max_rss_bytes": max_rss_bytes,
            "host": socket.gethostname(),
            "stopped": self._stopped,
        }
        self._write_exit(facts)
        return code

    def _prepare(self) -> None:
        proctree.become_subreaper()
        folder = self._run.folder
        for name in os.listdir(folder):  # of this job before Slurm restarted it
            if name.startswith("checkpoint.saved.") or name == self._run.outcome:
                (folder / name).unlink(missing_ok=True)
        self._run.checkpoint.write_bytes(b"")
        with contextlib.suppress(OSError):  # who needs it will say what is wrong with it
            self._run.home.mkdir(mode=0o750, exist_ok=True)

    def _watch(self, child: int) -> tuple[int, int]:
        """Hear signals until the child has ended; return its wait status and the most memory it had, in bytes."""
        while True:
            ended, status, usage = os.wait4(child, os.WNOHANG)
            if ended:
                return status, usage.ru_maxrss * 1024
            now = time.monotonic()
            if now >= self._beat_at:
                self._beats += 1
                self._beat_at = now + BEAT_S
                with contextlib.suppress(OSError):
                    write_beat(self._run.folder, self._run.restart, self._beats)
            if self._next is not None and now >= self._next[0]:
                self._end(self._next[1])
            soonest = self._beat_at if self._next is None else min(self._beat_at, self._next[0])
            heard = signal.sigtimedwait(_WATCHED, max(0.0, soonest - now))
            if heard is None or heard.si_signo == signal.SIGCHLD:
                self._reap_others(child)
                continue
            self._wish()
            if heard.si_signo != signal.SIGUSR1 and not self._stopped:
                self._stopped = True
                self._next = (time.monotonic() + self._grace_s, signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        """End what runs: its time is up, by its own limit or by the grace after Slurm's SIGTERM."""
        self._timed_out = not self._stopped
        self._next = (time.monotonic() + self._kill_grace_s, signal.SIGKILL)
        proctree.kill_tree(proctree.children(), number)

    def _reap_others(self, child: int) -> None:
        """Reap what was left to us by dead processes; the child itself is for wait4."""
        for pid in proctree.children() - {child}:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    def _wish(self) -> None:
        # In place: a file that was there from the start is never one that another host takes for absent.
        try:
            with self._run.checkpoint.open("r+b") as file:
                file.write(b"requested\n")
        except OSError as error:
            print(f"the wish to save can't be written: {error}", file=sys.stderr)

    def _facts(self, code: int) -> dict[str, Any]:
        """Return how the attempt ended."""
        said = self._said()
        facts: dict[str, Any] = {
            "ok": False,
            "exit_code": max(0, code),
            "signal": _signal_name(-code) if code < 0 else None,
            "requeue": False,
            "message": "",
            "details": {},
            "retry": True,
        }
        if said is not None and not said.get("ok"):
            facts |= {name: value for name, value in said.items() if value is not None}
            details = facts["details"]
            facts["exit_code"] = int(details.get("exit_code") or 1)
            facts["signal"] = details.get("signal")
        if self._saved(facts):
            message = facts["message"] or "a checkpoint was saved"
            return facts | {"requeue": True, "exit_code": EXIT_REQUEUE, "message": message}
        if said is not None and said.get("ok") and code == 0:
            return facts | {"ok": True, "retry": False}
        if self._timed_out:
            return facts | {"cause": Cause.TIMEOUT, "message": "it did not end within its time"}
        if said is not None and not said.get("ok"):
            return facts
        if code < 0:
            hint = ", perhaps for memory" if facts["signal"] == "SIGKILL" and not self._stopped else ""
            return facts | {"cause": Cause.SIGNAL, "message": f"it was killed by {facts['signal']}{hint}"}
        if self._program:
            return facts | self._program_facts(code)
        return facts | {"cause": Cause.EXIT, "message": f"the handler's process ended with exit code {code}"}

    def _program_facts(self, code: int) -> dict[str, Any]:
        if code == 0:
            result, wrong = program_result(self._run)
            if wrong:
                return {"cause": Cause.INVALID_RESULT, "message": wrong, "retry": False}
            write_result(self._run.folder, self._run.restart, b'{"exit_code":0}' if result is None else result)
            return {"ok": True, "retry": False}
        tail = self._tail()
        lines = tail.strip().splitlines()
        cause = Cause.OUT_OF_MEMORY if is_out_of_memory(tail) else Cause.EXIT
        message = f"{self._program[0]} ended with exit code {code}" + (f": {lines[-1][-200:]}" if lines else "")
        return {"cause": cause, "message": message, "details": {"output_tail": tail}}

    def _saved(self, facts: Mapping[str, Any]) -> bool:
        """Whether a checkpoint was saved, to go on from in the next job: by exit code, or by the word of any rank."""
        if facts["exit_code"] == EXIT_REQUEUE:
            return True
        return any(name.startswith("checkpoint.saved.") for name in os.listdir(self._run.folder))

    def _said(self) -> dict[str, Any] | None:
        """Return what the handler's process left of its outcome; None where there is none."""
        if self._program:
            return None
        folder = os.open(self._run.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return read_json(folder, self._run.outcome)
        finally:
            os.close(folder)

    def _tail(self) -> str:
        """Return the end of what the job printed."""
        with contextlib.suppress(OSError), (self._run.folder / "out").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return file.read().decode("utf-8", "replace")
        return ""

    def _write_exit(self, facts: Mapping[str, Any]) -> None:
        """Write how it ended, for as long as the disk doesn't take it; where the folder is gone nobody waits for it."""
        while True:
            try:
                write_exit(self._run.folder, self._run.restart, facts)
                return
            except (FileNotFoundError, NotADirectoryError):
                print(_NOT_WANTED, file=sys.stderr)
                return
            except OSError as error:
                print(f"how it ended can't be written: {error}", file=sys.stderr, flush=True)
                time.sleep(RETRY_WRITE_S)


def _read_task(folder: Path) -> dict[str, Any] | None:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return read_json(descriptor, "task.json", 1 << 30)
    finally:
        os.close(descriptor)


def _start_facts(job: Mapping[str, str], restart: int) -> dict[str, Any]:
    named = {
        "job_id": "SLURM_JOB_ID",
        "array_job_id": "SLURM_ARRAY_JOB_ID",
        "array_task_id": "SLURM_ARRAY_TASK_ID",
        "nodes": "SLURM_JOB_NODELIST",
        "node": "SLURMD_NODENAME",
    }
    found: dict[str, Any] = {key: job[name] for key, name in named.items() if name in job}
    host = socket.gethostname()
    return {
        **found,
        "restart": restart,
        "host": host,
        "node": found.get("node", host),
        "pid": os.getpid(),
        "at": time.time(),
    }


def _exit_code(facts: Mapping[str, Any]) -> int:
    if facts["ok"]:
        return 0
    if facts["requeue"]:
        return EXIT_REQUEUE
    if facts["signal"]:
        return 128 + getattr(signal, str(facts["signal"]), 0)
    return int(facts["exit_code"]) or 1


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


if __name__ == "__main__":
    sys.exit(main())
