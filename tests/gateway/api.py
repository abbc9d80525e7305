"""A gateway whose tasks are played, and what the tests of its routes ask it for."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.conftest import END_S, supervisors, until

from .conftest import Answer, Gateway, opener

PLAY = "tests.system.handlers:play"
SETTINGS: dict[str, object] = {
    "kinds": "echo,call,command",
    "retry_base_s": 0.01,
    "partial_grace_s": 0.4,
    "sweep_s": 0.2,
    "metrics_port": 0,
    "class.cpu_short.max_attempts": 2,
}


class Api(Gateway):
    """A gateway, by its routes."""

    made = 0

    def name(self) -> str:
        """Return an id that no other test has."""
        type(self).made += 1
        return f"t{self.made}"

    @property
    def runner_port(self) -> int:
        """Where the older runner's routes are."""
        return urlsplit(self.state["listening"][1]).port or 0

    def post(self, path: str, body: Any = None, **headers: str) -> Answer:
        """Return the answer to a POST."""
        return self.ask("POST", path, body, {name.replace("_", "-"): value for name, value in headers.items()})

    def put(self, payload: Any = None, **envelope: Any) -> str:
        """Put a task, which is played, and return its id."""
        answer = self.post("/v1/tasks", {"id": self.name(), "payload": payload or {}, **envelope})
        assert answer.status == 201, answer.body
        return str(answer.json["id"])

    def gate(self, **envelope: Any) -> tuple[str, Path]:
        """Put a task that runs until a file is there, and return its id and that file once it runs."""
        task_id = self.name()
        begun, gate = self.folder / f"{task_id}.begun", self.folder / f"{task_id}.gate"
        self.put({"do": "gate", "begun": str(begun), "gate": str(gate)}, id=task_id, **envelope)
        until(begun.exists, "it runs")
        return task_id, gate

    def shell(self, script: str, **envelope: Any) -> str:
        """Put a task that runs a shell script."""
        return self.put({"argv": ["sh", "-c", script]}, kind="command", **envelope)

    def result(self, task_id: str) -> dict[str, Any]:
        """Wait for a task, and return what the answer says."""
        answer = self.get(f"/v1/tasks/{task_id}/result?wait_s=60")
        assert answer.status == 200, answer.body
        found: dict[str, Any] = answer.json
        return found

    def read(self, path: str) -> dict[str, Any]:
        """Return the JSON of a GET that goes well."""
        answer = self.get(path)
        assert answer.status == 200, answer.body
        found: dict[str, Any] = answer.json
        return found

    @contextmanager
    def stream(self, path: str, **headers: str) -> Iterator[http.client.HTTPResponse]:
        """Open an answer that goes on."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=END_S)
        try:
            connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
            yield connection.getresponse()
        finally:
            connection.close()


@contextmanager
def served(folder: Path, *options: str, **more: Any) -> Iterator[Api]:
    """Serve a queue whose short tasks are played."""
    chosen = {"handlers": {"cpu_short": PLAY}, **more}
    with supervisors(folder) as start:
        chosen["settings"] = SETTINGS | more.get("settings", {})
        gateway = opener(folder, start)("--workers", "cpu_short=2", *options, **chosen)
        yield Api(gateway.supervisor, folder)


def next_event(stream: http.client.HTTPResponse) -> tuple[str, str, Any]:
    """Return id, kind and data of the next event of a stream."""
    found = {"id": "", "event": "message", "data": ""}
    while True:
        line = stream.readline().decode()
        assert line, "the stream goes on"
        key, _, value = line.rstrip("\n").partition(": ")
        if line == "\n":
            if found["data"]:
                return found["id"], found["event"], json.loads(found["data"])
            found = {"id": "", "event": "message", "data": ""}
        elif key in found:
            found[key] = value
