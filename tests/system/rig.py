"""A queue with real supervisors, for the tests of whole programs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

from dspy_supervisor import ServiceUnavailable, __version__
from dspy_supervisor.proctree import look

from ..conftest import START_S, Start, Supervised, until
from .invariants import check

PLAY = "tests.system.handlers:play"
PATIENCE_S = 20.0  #: what a test waits for comes much sooner, or not at all


class Rig:
    """A queue, its supervisors, and what was put into it."""

    def __init__(self, folder: Path, start: Start) -> None:
        self.folder, self._start = folder, start
        self.queue, self.log = folder / "queue", folder / "runs.log"
        self.put_ids: list[str] = []
        self.started: list[Supervised] = []

    def start(
        self, *options: str, workers: int = 2, settings: dict[str, object] | None = None, **more: Any
    ) -> Supervised:
        """Start a supervisor of the queue, which ends with the test. Tasks of class cpu_short are played."""
        more.setdefault("queue", self.queue)
        more.setdefault("handlers", {"cpu_short": PLAY})
        chosen = {"retry_base_s": 0.01, **(settings or {})}
        self.started.append(self._start(*options, "--workers", f"cpu_short={workers}", settings=chosen, **more))
        return self.started[-1]

    def drop(self, task_id: str, payload: dict[str, Any] | None = None, **envelope: Any) -> str:
        """Put a task as a producer does that knows nothing of us: a temporary file, and a rename."""
        pending = self.queue / "pending"
        if not pending.exists():
            pending.mkdir(parents=True)
            self.queue.chmod(0o700)
        if "kind" not in envelope:  # it is played
            payload = {"do": "echo", "log": str(self.log), **(payload or {})}
        temporary = pending / f".{task_id}.tmp"
        temporary.write_bytes(json.dumps({"id": task_id, "payload": payload, **envelope}).encode())
        os.rename(temporary, pending / f"{task_id}.json")
        self.put_ids.append(task_id)
        return task_id

    def gate(
        self, task_id: str, do: str = "gate", /, *, payload: dict[str, Any] | None = None, **envelope: Any
    ) -> Gate:
        """Put a task that says when it has begun, and then waits to be let through."""
        gate = Gate(self.folder / f"{task_id}.begun", self.folder / f"{task_id}.gate")
        paths = {"do": do, "begun": str(gate.begun), "gate": str(gate.path)}
        self.drop(task_id, paths | (payload or {}), **envelope)
        return gate

    def record(self, task_id: str, within_s: float = PATIENCE_S) -> dict[str, Any]:
        """Wait until the task has ended, and return its record."""
        paths = [self.queue / state / f"{task_id}.json" for state in ("done", "failed")]
        path = until(lambda: next((path for path in paths if path.exists()), None), f"{task_id} ends", within_s)
        found: dict[str, Any] = json.loads(path.read_bytes())
        return found

    def ended(self) -> int:
        """Return how many tasks have a record."""
        folders = [self.queue / state for state in ("done", "failed")]
        return sum(not name.startswith(".") for folder in folders if folder.exists() for name in os.listdir(folder))

    def drain(self, number: int | None = None, within_s: float = 60.0) -> None:
        """Wait until all that was put has ended."""
        number = len(set(self.put_ids)) if number is None else number
        until(lambda: self.ended() >= number, f"{number} tasks end", within_s)

    def check(self, **more: Any) -> None:
        """Check the invariants for all that was put."""
        check(self.queue, self.put_ids, **more)

    def claims(self) -> list[str]:
        """Return the names of what is claimed."""
        return sorted(path.name for path in self.queue.glob("claimed/*/*"))

    def quarantined(self) -> dict[str, str]:
        """Return what was refused, by the name it came with, and why."""
        notes = [json.loads(path.read_bytes()) for path in self.queue.glob("quarantine/*.reason")]
        return {note["file"]: note["reason"] for note in notes}


class Gate:
    """Where a task waits."""

    def __init__(self, begun: Path, path: Path) -> None:
        self.begun, self.path = begun, path

    def wait(self) -> None:
        """Wait until the task runs."""
        until(self.begun.exists, f"{self.begun.stem} begins", PATIENCE_S)

    def open(self) -> None:
        """Let it end."""
        self.path.touch()


def workers(supervisor: Supervised) -> list[int]:
    """Return the pids of its workers."""
    children = [
        child.pid for child in supervisor.children() if (one := look(child.pid)) and one.parent == supervisor.pid
    ]
    return [pid for pid in children if pid != guard(supervisor)]


def guard(supervisor: Supervised) -> int | None:
    """Return the pid of its guard."""
    for child in supervisor.children():
        with contextlib.suppress(OSError):
            if b": guard" in Path(f"/proc/{child.pid}/cmdline").read_bytes():
                return child.pid
    return None


def is_alive(pid: int) -> bool:
    """Whether a process runs."""
    process = look(pid)
    return process is not None and process.alive


def kill_whole(supervisor: Supervised) -> None:
    """Kill a supervisor, and see its workers go."""
    below = workers(supervisor)
    supervisor.kill()
    until(lambda: not any(map(is_alive, below)), "the workers die with their supervisor")


def klass(supervisor: Supervised, name: str = "cpu_short") -> dict[str, Any]:
    """Return the status of one class."""
    found: dict[str, Any] = supervisor.status()["classes"][name]
    return found


def events(supervisor: Supervised, *names: str) -> list[dict[str, Any]]:
    """Return the lines of its log about these events."""
    lines = [json.loads(line) for line in supervisor.log.splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] in names]


def cpu_s(pid: int) -> float:
    """Return the processor time a process has used, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_now(one: Supervised, version: str, number: int) -> None:
    """Wait until a supervisor is another program."""

    def look() -> bool:
        try:
            found = one.status()
        except ServiceUnavailable:  # asked at the moment of the exec
            return False
        facts = found["upgrade"]
        assert facts["refused"] is None, facts
        return bool(facts["number"] == number and found["version"] == version and found["pid"] == one.pid)

    until(look, f"it is {version}", START_S)


def turn(one: Supervised, number: int = 1) -> None:
    """Let the supervisor become the same program once more."""
    one.signal(signal.SIGUSR2)
    is_now(one, __version__, number)
