"""One service in a guest, by its unit and its queue; what is asked of it over and over."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import Any

from ..conftest import until
from .machine import Machine, Said

PLACE = "/var/lib/dspy-supervisor"
ETC = "/etc/dspy-supervisor"


@dataclass(frozen=True)
class Service:
    """A service of the machine; who runs it calls the commands."""

    machine: Machine
    unit: str
    settings: str  #: file
    queue: str
    user: str = "alice"

    def shell(self, command: str, timeout_s: float = 120.0) -> Said:
        """Run a line of bash as the service's user."""
        return self.machine.run(f"runuser -u {self.user} -- bash -c {shlex.quote(command)}", timeout_s)

    def ok(self, command: str, timeout_s: float = 120.0) -> str:
        """Return what a line of the user's prints that must succeed."""
        said = self.shell(command, timeout_s)
        assert said.code == 0, f"{command}: exit {said.code}\n{said.out[-3000:]}\n{said.err[-3000:]}"
        return said.out

    def systemctl(self, arguments: str, timeout_s: float = 300.0) -> str:
        """Return what the manager of this service says."""
        return self.machine.ok(f"systemctl {arguments}", timeout_s)

    def submit(self, task_id: str, **payload: object) -> None:
        """Put a task."""
        self.ok(f"dspy-supervisor submit --config {self.settings} --id {task_id} {shlex.quote(json.dumps(payload))}")

    def begun(self, gate: str) -> int:
        """Wait until the task runs that waits for this file, and return its process."""
        return int(self.machine.ok(f"until [ -s {gate}.begun ]; do sleep 0.1; done; cat {gate}.begun", 300))

    def record(self, task_id: str, state: str = "done") -> dict[str, Any]:
        """Wait for a task's end, and return its record."""
        path = f"{self.queue}/{state}/{task_id}.json"
        found = self.machine.ok(f"for i in $(seq 400); do [ -e {path} ] && cat {path} && exit; sleep 0.2; done; "
                                f"ls -R {self.queue}; journalctl -n 30; exit 1", 300)  # fmt: skip
        record: dict[str, Any] = json.loads(found)
        return record

    def status(self) -> dict[str, Any]:
        """Return what the supervisor says of itself."""
        said: dict[str, Any] = json.loads(self.ok(f"dspy-supervisor status --config {self.settings} --json"))
        return said

    def show(self, name: str) -> str:
        """Return a property of the unit."""
        return self.systemctl(f"show {self.unit} --property={name} --value").strip()

    def wait_for(self, name: str, value: str) -> None:
        """Wait until a property of the unit has a value."""
        until(lambda: self.show(name) == value, f"{name} is {value}", 300)

    @property
    def pid(self) -> int:
        """The supervisor's process, or 0."""
        return int(self.show("MainPID"))


class OwnService(Service):
    """A service of a user's own manager, whose user logs in for each command (PAM, as on a terminal)."""

    def shell(self, command: str, timeout_s: float = 120.0) -> Said:
        """Run a line of bash in a session of the user's."""
        return self.machine.run(f"runuser -l {self.user} -c {shlex.quote(command)}", timeout_s)

    def systemctl(self, arguments: str, timeout_s: float = 300.0) -> str:
        """Return what the user's manager says."""
        return self.ok(f"systemctl --user {arguments}", timeout_s)
