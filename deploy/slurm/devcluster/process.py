"""Daemons that outlive the command that started them, found again by pid and start time.

``run/NAME.pid`` holds ``PID START``, where START is field 22 of /proc/PID/stat: a number that was given to another
process since is never signalled.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path


def start_time(pid: int) -> str | None:
    """Return when a process started, in clock ticks since boot, or None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def below(pid: int) -> list[int]:
    """Return the descendants of a process, parents first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.parent.name))
    found = list(children.get(pid, ()))
    for one in found:  # grows while it is walked
        found += children.get(one, ())
    return found


def command_of(pid: int) -> str:
    """Return the name of the program that a process runs, '' if it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def marked(mark: str) -> set[int]:
    """Return the processes with ``mark`` (NAME=VALUE) in their environment, and all below them."""
    found: set[int] = set()
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in entry.read_bytes().split(b"\0"):
                found |= {int(entry.parent.name), *below(int(entry.parent.name))}
    return found - {os.getpid()}


class Daemon:
    """One daemon of the cluster, running or not."""

    def __init__(self, name: str, program: str, folder: Path) -> None:
        self.name, self.program = name, program
        self._record, self._log = folder / "run" / f"{name}.pid", folder / "log" / f"{name}.out"

    @property
    def pid(self) -> int | None:
        """The process that was started, None if it has ended."""
        try:
            pid, _, started = self._record.read_text().partition(" ")
            return int(pid) if start_time(int(pid)) == started else None
        except (OSError, ValueError):
            return None

    @property
    def daemon(self) -> int | None:
        """The daemon itself: the process that was started, or the one below it that runs the program."""
        top = self.pid
        if top is None:
            return None
        return next((pid for pid in (top, *below(top)) if command_of(pid) == self.program), None)

    @property
    def state(self) -> str:
        """One of running, paused, dead."""
        pid = self.daemon
        if pid is None:
            return "dead"
        try:
            stopped = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        except OSError:
            return "dead"
        return "paused" if stopped else "running"

    def start(self, command: list[str], environ: Mapping[str, str]) -> None:
        """Start it, unless it runs. It belongs to no terminal and holds none of our descriptors or folders."""
        if self.pid is not None:
            return
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={**environ},
                start_new_session=True,
            )
        self._record.write_text(f"{process.pid} {start_time(process.pid)}")
        process.returncode = 0  # its end is watched by pid: no warning that it still runs

    def signal(self, number: int) -> bool:
        """Send a signal to the daemon, and tell whether there was one."""
        pid = self.daemon
        if pid is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        return True

    def kill(self) -> None:
        """End it at once, and wait until it is gone."""
        pid = self.pid
        if pid is not None:
            _end(pid, signal.SIGKILL, 10.0)

    def stop(self, timeout_s: float) -> None:
        """Let it end by itself, or kill it after timeout_s."""
        pid = self.daemon
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
            _end(pid, signal.SIGTERM, timeout_s)
        self.kill()

    def last_words(self) -> str:
        """Return the end of what it wrote to its standard error."""
        try:
            return self._log.read_text(errors="replace")[-1500:]
        except OSError:
            return ""


def _end(pid: int, number: int, timeout_s: float) -> None:
    """Signal a process and wait for its end; the wait reaps it where it is our child."""
    try:
        watch = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(watch, number)
        select.select([watch], [], [], timeout_s)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    except ProcessLookupError:
        pass
    finally:
        os.close(watch)


def wait_until(look: Callable[[], object], what: str, timeout_s: float) -> None:
    """Call look() until it is true; SystemExit after timeout_s, naming what was waited for."""
    deadline = time.monotonic() + timeout_s
    while not look():
        if time.monotonic() > deadline:
            raise SystemExit(f"dev-cluster: {what}: not within {timeout_s:g} s")
        time.sleep(0.03)
