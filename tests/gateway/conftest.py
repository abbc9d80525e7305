"""A supervisor with its gateway on a free port, and a caller that says no more than it is told to."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.conftest import END_S, Start, Supervised, supervisors, until

TOKEN = "0123456789abcdef-a-token"


class Answer:
    """What came back."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()


class Gateway:
    """A gateway that was started for a test."""

    def __init__(self, supervisor: Supervised, folder: Path) -> None:
        self.supervisor, self.folder = supervisor, folder
        self.queue = supervisor.queue
        first = until(lambda: self.state.get("listening"), "the gateway listens")[0]
        self.host, self.port = urlsplit(first).hostname or "", urlsplit(first).port or 0

    @property
    def state(self) -> dict[str, Any]:
        """What `status` says of it."""
        found: dict[str, Any] = self.supervisor.status()["services"].get("gateway", {})
        return found

    @property
    def pid(self) -> int:
        """Its process."""
        return int(self.state["pid"] or 0)

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, *, port: int = 0
    ) -> Answer:
        """Return the answer to one request; a body that is no bytes is sent as JSON."""
        connection = http.client.HTTPConnection(self.host, port or self.port, timeout=END_S)
        try:
            sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, sent, dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        """Return the answer to a GET."""
        return self.ask("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})

    def connect(self) -> socket.socket:
        """Return a connection that nothing was said on yet."""
        return socket.create_connection((self.host, self.port), timeout=END_S)


Open = Callable[..., Gateway]


def opener(folder: Path, start: Start) -> Open:
    """Return what starts gateways in a folder."""

    def open_(*options: str, settings: Mapping[str, object] | None = None, **more: Any) -> Gateway:
        chosen = {"http_port": 0, **(settings or {})}
        return Gateway(start("--http", *options, settings=chosen, **more), folder)

    return open_


@pytest.fixture
def gateway(tmp_path: Path, supervisor: Start) -> Open:
    """A function that starts a supervisor with a gateway, as `supervisor` does, and returns it when it listens."""
    return opener(tmp_path, supervisor)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that the tests of a module share, with an echo for cpu_short: they leave it as they found it."""
    folder = tmp_path_factory.mktemp("shared")
    with supervisors(folder) as start:
        yield opener(folder, start)()


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The same with a token."""
    folder = tmp_path_factory.mktemp("locked")
    (folder / "token").write_text(TOKEN + "\n")
    with supervisors(folder) as start:
        yield opener(folder, start)(settings={"http_token_file": folder / "token"})
