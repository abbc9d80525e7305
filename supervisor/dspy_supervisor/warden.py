"""A worker's end of the sandbox: it starts the process that runs tasks behind walls, proves that these hold, and asks it.

Nothing that a task can reach decides here: what it says of itself is bounded, read as JSON and written anew; only this worker
holds descriptors of the queue, and it alone writes the record.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dspy_fastpath
from dspy_fastpath.process import spawn

from . import proctree
from .attempt import Outcome
from .cell import STATUS, outcome_of
from .config import ClassConfig, Config
from .config_sandbox import MECHANISMS
from .environment import chosen_variables, user_home
from .errors import ConfigError
from .parts import Task
from .sandbox import escapes
from .sandbox.filter import supported
from .sandbox.frame import FrameError, Reader, pack, receive
from .sandbox.view import View, look, reaching
from .task import Cause

#: what tasks see of the worker's environment beside what sandbox_env names and what their class sets
ALWAYS = ("PATH", "USER", "LOGNAME", "LANG", "LC_*", "TZ", proctree.MARK, "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER",
          "ROCR_VISIBLE_DEVICES", "XLA_PYTHON_CLIENT_PREALLOCATE", "TF_FORCE_GPU_ALLOW_GROWTH")  # fmt: skip
_EACH_TASK = ("DSPY_GPU_MEMORY_LIMIT",)  # set by the worker from task to task
_READ_BYTES = 1 << 16


class WallsDown(Exception):
    """A sandbox can't be built, or does not hold: in words, why."""


class Warden:
    """The process below this worker that runs its tasks in a sandbox."""

    program = "dspy_supervisor.cell"  #: the module it runs

    def __init__(
        self,
        settings: ClassConfig,
        config: Config,
        queue: Path,
        handlers: Sequence[tuple[str | None, str]],
        options: Mapping[str, Any],
    ) -> None:
        """handlers: kinds, and what runs them; options: those of `handlers.make`."""
        self._settings, self._config, self._queue = settings, config, os.path.realpath(queue)
        self._handlers, self._options = handlers, options
        self.mechanism = ""  #: the one that is used
        self.stopped: tuple[str, ...] = ()  #: what was tried from inside, and could not be done
        self.pid = 0  #: of the process that runs the tasks

    def start(self) -> None:
        """Start it, behind the first walls that are proved to hold.

        Raises ConfigError where none do, or a handler can't be imported: then no task of this class may run.
        """
        wanted = self._settings.sandbox
        name = f"class.{self._settings.name}.sandbox"
        private = (self._queue, str(self._config.runtime_dir))
        for setting in ("sandbox_read", "sandbox_write"):
            paths = _expanded(getattr(self._settings, setting))
            if found := reaching(paths, private):
                expected = "paths that do not lead to the queue or to the supervisor's runtime folder"
                raise ConfigError(f"class.{self._settings.name}.{setting}", found, expected)
        why = []
        for mechanism in MECHANISMS if wanted == "on" else (wanted,):
            try:
                self._start(mechanism)
                self._prove()
                return
            except WallsDown as down:
                why.append(f"{mechanism}: {down}")
                self.close()
        raise ConfigError(name, wanted, "off, or a host where a sandbox holds; here " + "; ".join(why))

    def close(self) -> None:
        """End it, and what it runs."""
        if self.pid:
            self._control.close()
            proctree.kill_tree([self.pid], signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
            self.pid = 0

    @property
    def leaves_strays(self) -> bool:
        """Whether what a task started may outlive it: not where it dies with the first process of its namespace."""
        return self.mechanism != "namespaces"

    def run(self, task: Task) -> Outcome:
        """Run one attempt of a task, and return how it ended."""
        folder = os.path.realpath(task.output_folder())
        output = f"{folder}/output.{task.attempt}.txt"
        with contextlib.ExitStack() as stack:
            stack.callback(_tidy, folder, output)
            facts = {
                "id": task.id,
                "class": task.task_class,
                "attempt": task.attempt,
                "crashes": task.crashes,
                "timeout_s": task.timeout_s,
                "deadline": task.deadline,
                "span": task.traceparent,
                "variables": chosen_variables(_EACH_TASK),
                **self._places(folder, output, stack),
            }
            found, status = self._ask(facts, task.envelope)
        if isinstance(found, str):
            return Outcome(
                False, cause=Cause.INVALID_RESULT, message=f"the task's own account of its end is unusable: {found}"
            )
        if found is None:
            return _died(status)
        if why := found[0].get("walls"):
            return Outcome(False, cause=Cause.LOST, message=f"its sandbox could not be built: {why}"[:1024], retry=True)
        try:
            return outcome_of(*found)
        except (ValueError, KeyError, TypeError) as error:
            message = f"the task's own account of its end is unusable: {type(error).__name__}: {error}"
            return Outcome(False, cause=Cause.INVALID_RESULT, message=message[:1024])

    # -- below ---------------------------------------------------------------------------------------------------------------

    def _start(self, mechanism: str) -> None:
        """Start it behind these walls. Raises WallsDown, or ConfigError for a handler that can't be imported."""
        if not supported():
            raise WallsDown(f"there is no filter of system calls for {os.uname().machine}")
        ours, theirs = socket.socketpair()
        settings = self._settings
        variables = chosen_variables((*ALWAYS, *settings.sandbox_env, *settings.environment))
        view = self._view()
        if "PATH" in variables:  # a folder that can't be read would hide the same program in a later one
            variables["PATH"] = ":".join(place for place in variables["PATH"].split(":") if view.shows(place))
        variables |= {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}
        with theirs:
            argv = [sys.executable, "-P", "-m", self.program]
            words = [os.fsencode(word) for word in argv]
            environ = [os.fsencode(f"{name}={value}") for name, value in variables.items()]
            self.pid = spawn(words, environ, None, theirs.fileno(), 1, 2)
        self._control = ours
        told = {
            "mechanism": mechanism,
            "network": settings.sandbox_network,
            "tmp_bytes": settings.sandbox_tmp_bytes,
            "max_result_bytes": self._config.max_result_bytes,
            "view": {name: getattr(view, name) for name in View.__slots__},
            "path": sys.path,
            "handlers": self._handlers,
            "options": self._options,
        }
        try:
            ours.sendall(pack(told))
            answer = receive(ours)
        except ConnectionError:
            answer = None
        if answer is None:
            raise WallsDown("the process that runs the tasks ended at its start")
        said, _ = answer
        if "walls" in said:
            raise WallsDown(said["walls"])
        if "expected" in said:
            raise ConfigError(said["name"], said["value"], said["expected"])
        self.mechanism = mechanism

    def _view(self) -> View:
        settings, config = self._settings, self._config
        code = [sys.prefix, sys.base_prefix, sys.exec_prefix, *filter(None, sys.path)]
        code += [str(Path(str(package.__file__)).parents[1]) for package in (dspy_fastpath, sys.modules[__package__])]
        return look(
            code=code,
            private=(self._queue, str(config.runtime_dir)),
            home=user_home(),
            read=_expanded(settings.sandbox_read),
            write=_expanded(settings.sandbox_write),
            gpu=settings.name == "gpu",
            network=settings.sandbox_network,
        )

    def _prove(self) -> None:
        """Try from inside what must not be possible. Raises WallsDown that names what was."""
        with contextlib.ExitStack() as stack:
            targets = stack.enter_context(escapes.targets(self._queue, network=self._settings.sandbox_network))
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="dspy-probe-home-"))
            places = self._places(folder, f"{folder}/output.0.txt", stack)
            found, status = self._ask({"probe": targets, "variables": {}, **places}, b"")
        if not isinstance(found, tuple):
            raise WallsDown(found or _died(status).message)
        said = found[0]
        if "walls" in said:
            raise WallsDown(said["walls"])
        self.stopped = tuple(said["stopped"])
        if escaped := said["escaped"]:
            raise WallsDown("it is not stopped from doing this: " + ", ".join(escaped))

    def _places(self, folder: str, output: str, stack: contextlib.ExitStack) -> dict[str, str]:
        tmp = "/tmp"
        if self.mechanism == "landlock":  # which can't give each its own /tmp under the same name
            tmp = tempfile.mkdtemp(prefix="dspy-tmp-")
            stack.callback(shutil.rmtree, tmp, ignore_errors=True)
        return {"home": folder, "output": output, "tmp": tmp}

    def _ask(self, facts: Mapping[str, Any], envelope: bytes) -> tuple[tuple[dict[str, Any], bytes] | str | None, int]:
        """Have a fork run this; return what it told, words where that is unusable, None for nothing, and its wait status."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                socket.send_fds(self._control, [b"t"], [theirs.fileno()])
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                ours.sendall(pack(facts, envelope))
            reader = Reader(self._config.max_result_bytes)
            poll = select.poll()
            poll.register(ours, select.POLLIN)
            poll.register(self._control, select.POLLIN)
            found: tuple[dict[str, Any], bytes] | str | None = None
            while True:
                ready = {descriptor for descriptor, _ in poll.poll()}
                if ours.fileno() in ready:
                    chunk = b""
                    with contextlib.suppress(ConnectionResetError):
                        chunk = ours.recv(_READ_BYTES)
                    try:
                        found = found or reader.feed(chunk)
                    except FrameError as error:
                        found = str(error)
                    if not chunk or found:
                        poll.unregister(ours)
                elif self._control.fileno() in ready:
                    said = self._control.recv(STATUS.size)
                    if len(said) != STATUS.size:
                        raise RuntimeError(f"process {self.pid}, which runs the tasks in a sandbox, is gone")
                    return found, STATUS.unpack(said)[0]


def _died(status: int) -> Outcome:
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        name = signal.Signals(-code).name
        return Outcome(False, cause=Cause.SIGNAL, message=f"the task's process was killed by {name}", retry=True)
    return Outcome(False, cause=Cause.EXIT, message=f"the task's process ended with exit code {code}", retry=True)


def _tidy(folder: str, output: str) -> None:
    """Remove what the task left empty."""
    with contextlib.suppress(OSError):
        if not os.lstat(output).st_size:
            os.unlink(output)
    with contextlib.suppress(OSError):
        os.rmdir(folder)


def _expanded(paths: Sequence[str]) -> list[str]:
    return [os.path.abspath(os.path.expanduser(path)) for path in paths]
