"""Fixtures for tests that need a supervisor: a real process on a queue in tmp_path, gone with all it started at the end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import dspy_fastpath
import dspy_supervisor
import psutil
import pytest
from dspy_supervisor.control_client import ask, socket_path
from dspy_supervisor.layout import Layout

from tests.nvml import nvml, nvml_library, nvml_script  # noqa: F401 (fixtures)

ROOT = Path(__file__).parents[1]
START_S = 60.0  #: the longest start, on a machine that does other things too
END_S = 30.0
GUARD_S = 2.0  # the guard of a killed supervisor is through with its work long before

_T = TypeVar("_T")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let one process run all tests of the one cluster, where several share the work."""
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            if "slurm" in item.path.parent.parts:
                item.add_marker(pytest.mark.xdist_group("slurm"))


def until(look: Callable[[], _T], what: str, timeout_s: float = END_S) -> _T:
    """Return what look() returns as soon as that is true; fails after timeout_s, naming what it waited for.

    For states that send no event. Where there is a byte, a pidfd or a file event to wait for, wait for that.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := look()):
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s"
        time.sleep(0.005)
    return value


def processes_below(pid: int) -> list[psutil.Process]:
    """Return the descendants of a process; psutil tells each from a later process of the same number."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


class Supervised:
    """A supervisor that was started for a test."""

    def __init__(
        self, queue: Path, runtime: Path, instance: str, process: subprocess.Popen[bytes], output: Path
    ) -> None:
        self.queue, self.runtime, self.instance = queue, runtime, instance
        self.process, self.output = process, output
        self.pid = process.pid
        self._known: list[psutil.Process] = []

    @property
    def socket(self) -> Path:
        """The control socket."""
        with Layout.open(self.queue, insecure=True) as layout:
            return socket_path(self.runtime, layout.queue_id, self.instance)

    @property
    def log(self) -> str:
        """What it wrote to standard output and standard error."""
        return self.output.read_text(errors="replace")

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Return its answer on the control socket."""
        return ask(self.socket, {"do": do, **request}, END_S)

    def status(self) -> dict[str, Any]:
        """Return its own account of itself."""
        return self.ask("status")

    def children(self) -> list[psutil.Process]:
        """Return the processes below it: workers, and what these started."""
        return processes_below(self.pid)

    def signal(self, number: int) -> None:
        """Send a signal to the supervisor alone."""
        self.process.send_signal(number)

    def wait(self, timeout_s: float = END_S) -> int:
        """Wait for its end and return its exit code (negative: the signal)."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"supervisor {self.pid} still runs after {timeout_s:g} s; it said:\n{self.log[-3000:]}")

    def stop(self, timeout_s: float = END_S) -> int:
        """End it as systemd does, with TERM, and return its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def kill(self) -> None:
        """Kill it, and it alone, with SIGKILL; its workers must find out by themselves."""
        self._known += self.children()
        self.process.kill()
        self.process.wait(END_S)

    def clear(self) -> None:
        """End it and whatever it left, at once."""
        self._known += self.children()
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait(END_S)
        # Its guard ends what its tasks started, also what was forked after the listing: so it goes last, by itself.
        with contextlib.suppress(AssertionError):
            until(lambda: not any(map(_runs, self._known)), "what it started is gone", GUARD_S)
        for left in self._known:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        until(lambda: not any(map(_runs, self._known)), "what it started is gone")

    def until_ready(self, notices: socket.socket) -> None:
        """Wait for READY, or fail with what it said when it ended before."""
        deadline = time.monotonic() + START_S
        ended = os.pidfd_open(self.pid)
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        poll.register(notices, select.POLLIN)
        try:
            while True:
                found = {number for number, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000)}
                if notices.fileno() in found and b"READY=1" in notices.recv(4096).split(b"\n"):
                    return
                if ended in found:
                    pytest.fail(f"the supervisor ended with {self.process.wait()} at its start; it said:\n{self.log}")
                if not found:
                    pytest.fail(f"the supervisor was not ready after {START_S:g} s; it said:\n{self.log}")
        finally:
            os.close(ended)


def _runs(process: psutil.Process) -> bool:
    """Whether it still runs; a zombie doesn't, and whoever inherited it may take its time to reap it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


Start = Callable[..., Supervised]


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Start]:
    """A function that starts supervisors in this test's folder: see `supervisors`."""
    with supervisors(tmp_path) as start:
        yield start


@contextlib.contextmanager
def supervisors(folder: Path) -> Iterator[Start]:
    """A function that starts a supervisor and returns it when it is ready; at the end nothing of them is left.

    ::

        one = supervisor("--workers", "cpu_short=2", handlers={"cpu_short": "echo"}, settings={"sweep_s": 0.1})

    Options are those of `start`, as they are; handlers and settings become --handler and --set. The queue is
    folder/queue unless ``queue`` says otherwise, the runtime folder folder/run. Only cpu_short has a worker unless the
    options say otherwise. Handlers are imported from the repository (tests.system.handlers:...), and from folder/code
    if a test writes a module there. ``ready=False`` returns at once, ``plain=True`` leaves the numbers of workers to
    the mode.
    """
    started: list[Supervised] = []

    def start(
        *options: str,
        handlers: Mapping[str, str] | None = None,
        settings: Mapping[str, object] | None = None,
        queue: Path | None = None,
        runtime: Path | None = None,
        instance: str = "main",
        environ: Mapping[str, str] | None = None,
        prefix: tuple[str, ...] = (),  # a program that runs it, as ("strace", "-f")
        ready: bool = True,
        program: str = "dspy_supervisor",  # the module that is run
        plain: bool = False,
    ) -> Supervised:
        queue, runtime = queue or folder / "queue", runtime or folder / "run"
        command = [*prefix, sys.executable, "-m", program, "start"]
        command += ["--queue-dir", str(queue), "--runtime-dir", str(runtime), "--instance", instance]
        for name, handler in (handlers or {"cpu_short": "echo"}).items():
            command += ["--handler", f"{name}={handler}"]
        workers = {} if plain else {"cpu_short": 1, "cpu_long": 0, "gpu": 0}
        chosen = {name for name in workers if any(option.startswith(f"{name}=") for option in options)}
        for name in workers.keys() - chosen:
            command += ["--workers", f"{name}={1 if name in (handlers or {}) else workers[name]}"]
        for name, value in (settings or {}).items():
            command += ["--set", f"{name}={value}"]
        output = folder / f"supervisor.{len(started)}.log"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices, output.open("wb") as log:
            address = f"dspy-{uuid4().hex}"
            notices.bind("\0" + address)
            process = subprocess.Popen(
                [*command, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                env=clean_environ(folder) | {"NOTIFY_SOCKET": f"@{address}", **(environ or {})},
                start_new_session=True,
            )
            one = Supervised(queue, runtime, instance, process, output)
            started.append(one)
            if ready:
                one.until_ready(notices)
        return one

    try:
        yield start
    finally:
        for one in started:
            one.clear()


def clean_environ(folder: Path) -> dict[str, str]:
    """Return the environment of a program under test: none of this machine's settings, and our modules to import."""
    ours = ("DSPY_", "ENV_", "XDG_", "NOTIFY_", "WATCHDOG_", "PYTHONPATH")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    packages = [Path(str(package.__file__)).parents[1] for package in (dspy_supervisor, dspy_fastpath)]
    environ["PYTHONPATH"] = os.pathsep.join(map(str, [folder / "code", ROOT, *packages]))
    environ["HOME"] = str(folder)
    environ["DSPY_LOG_LEVEL"] = "info"
    return environ
