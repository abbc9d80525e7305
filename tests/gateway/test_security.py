"""Who may ask what."""

from __future__ import annotations

import asyncio
import socket
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dspy_supervisor.config import load
from dspy_supervisor.errors import ConfigError
from dspy_supervisor.services.gateway import service
from dspy_supervisor.services.gateway.guarding import Guard, is_local
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tests.conftest import until

from .conftest import TOKEN, Gateway, Open

pytestmark = pytest.mark.xdist_group("gateway-security")

BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:9097",
        "127.0.0.1.evil.example",
        "10.0.0.1",
        "0.0.0.0",
        "[::1]",
        "localhost.evil",
        "",
    ],
)
def test_a_name_that_was_made_to_point_here_is_not_answered(shared: Gateway, host: str) -> None:
    answer = shared.ask("GET", "/v1/status", headers={"Host": host})
    assert answer.status == 421
    assert b"classes" not in answer.body


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:80", socket.gethostname()])
def test_the_names_and_addresses_of_this_host_are_answered(shared: Gateway, host: str) -> None:
    assert shared.ask("GET", "/v1/status", headers={"Host": host}).status == 200


def test_a_request_has_one_host(shared: Gateway) -> None:
    for hosts in (b"", b"Host: localhost\r\nHost: evil.example\r\n"):
        with shared.connect() as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\n" + hosts + b"Connection: close\r\n\r\n")
            assert read_all(connection).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Origin": "file://"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_page_of_another_site_can_neither_read_nor_write(
    shared: Gateway, method: str, headers: dict[str, str]
) -> None:
    body = b'{"id":"evil"}' if method == "POST" else None
    answer = shared.ask(method, "/v1/status" if body is None else "/queue/submit", body, headers)
    assert answer.status == 403
    assert not (shared.queue / "pending/evil.json").exists()
    assert not (shared.queue / "done/evil.json").exists()
    assert not any(name.lower().startswith("access-control") for name in answer.headers)


def test_our_own_page_and_a_link_that_is_followed_are_answered(shared: Gateway) -> None:
    own = f"http://{shared.host}:{shared.port}"
    assert shared.ask("GET", "/v1/status", headers={"Origin": own, "Sec-Fetch-Site": "same-origin"}).status == 200
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert shared.ask("GET", "/", headers=link).status == 200
    assert shared.ask("POST", "/", b"", headers=link).status == 403


def test_browsers_are_kept_in_bounds(shared: Gateway) -> None:
    for path in ("/", "/v1/status", "/health", "/nothing", "/v1/nothing"):
        headers = {name.lower(): value for name, value in shared.get(path).headers.items()}
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert "server" not in headers


def test_every_answer_has_the_id_of_its_request(shared: Gateway) -> None:
    assert shared.get("/health", X_Request_Id="mine-1").headers["x-request-id"] == "mine-1"
    made = shared.get("/health").headers["x-request-id"]
    assert made != shared.get("/health").headers["x-request-id"]
    for foul in ("a b", "x" * 65, "a/../b", "\u00e9"):
        assert shared.ask("GET", "/health", headers={"X-Request-Id": foul}).headers["x-request-id"] != foul


def test_without_a_token_this_host_may_do_all(shared: Gateway) -> None:
    assert shared.ask("POST", "/v1/queue/resume", {"classes": ["gpu"]}).status != 401


WRITES = [
    ("POST", "/v1/tasks"),
    ("POST", "/v1/tasks/batch"),
    ("POST", "/v1/tasks/a1/cancel"),
    ("POST", "/v1/tasks/a1/retry"),
    ("POST", "/v1/queue/pause"),
    ("POST", "/v1/queue/drain"),
    ("PUT", "/v1/classes/gpu/limit"),
    ("POST", "/queue/submit"),
    ("POST", "/api/env-queue/submit"),
    ("POST", "/api/env-queue/config"),
    ("DELETE", "/v1/anything"),
    ("PATCH", "/health2"),
]


@pytest.mark.parametrize(
    "given",
    ["", "Bearer", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, "Bearer " + "x" * 60_000],
)
def test_with_a_token_nothing_changes_without_it(locked: Gateway, given: str) -> None:
    for method, path in WRITES:
        answer = locked.ask(method, path, b'{"id":"a1"}', {"Authorization": given} if given else {})
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer"), path
    assert not (locked.queue / "pending/a1.json").exists()


def test_with_a_token_reading_here_needs_none_and_its_holder_may_do_all(locked: Gateway) -> None:
    assert locked.get("/v1/status").status == 200
    assert locked.ask("POST", "/queue/status").status == 200  # older callers ask so
    for given in (f"Bearer {TOKEN}", f"bearer  {TOKEN} "):
        assert locked.ask("POST", "/v1/queue/resume", {"classes": ["gpu"]}, {"Authorization": given}).status != 401
    # A page elsewhere can't know it, so who presents it may call this host by any name.
    assert locked.ask("GET", "/v1/status", headers={"Host": "a.name.of.a.proxy", **BEARER}).status == 200


def test_the_token_is_in_no_log_and_no_answer(locked: Gateway) -> None:
    locked.ask("POST", "/v1/queue/pause", {"classes": ["nonsense"]}, BEARER)
    locked.ask("POST", "/queue/submit", b"\xff", BEARER)
    for path in ("/v1/status", "/metrics", "/v1/openapi.json"):
        assert TOKEN not in locked.ask("GET", path, headers=BEARER).text
    assert TOKEN not in locked.supervisor.log
    assert TOKEN not in str(locked.supervisor.status())
    cmdlines = [child.cmdline() for child in locked.supervisor.children()]
    assert TOKEN not in str(cmdlines)


@pytest.mark.parametrize("host", ["192.0.2.1", "0.0.0.0", "::", "[2001:db8::1]"])
def test_an_address_that_others_reach_is_refused_at_the_start_without_a_token(host: str) -> None:
    for flags in ({"http": True}, {"metrics_port": 0}, {"http": True, "http_port": "none", "metrics_port": 0}):
        with pytest.raises(ConfigError, match="http_host") as refused:
            load({"http_host": host, **flags}, {"HOME": "/nowhere"})
        assert (refused.value.exit_code, "http_token" in str(refused.value)) == (78, True)
        load({"http_host": host, "http_token": TOKEN, **flags}, {"HOME": "/nowhere"})
    load({"http_host": host, "http": True, "http_port": "none"}, {"HOME": "/nowhere"})  # the Unix socket alone


def test_a_name_with_an_address_that_others_reach_is_not_served_without_a_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = load({"http_host": "myhost", "http": True, "http_port": "none"}, {"HOME": "/nowhere"}).config
    monkeypatch.setattr(service, "resolve", lambda _: ["127.0.0.1", "192.0.2.1"])
    monkeypatch.setattr(service, "_router", lambda *_: None)
    post: Any = SimpleNamespace(config=config)
    gateway = service._Gateway.__new__(service._Gateway)
    gateway._post, gateway._problem = post, ""
    assert gateway._wanted(post) == []
    assert "192.0.2.1 is reached by other hosts, and there is no http_token" in gateway._problem


@pytest.mark.parametrize("open_reads", [False, True])
def test_from_elsewhere_everything_needs_the_token_but_health_metrics_and_the_page(open_reads: bool) -> None:
    config = load({"http_token": TOKEN, "http_open_reads": open_reads}, {"HOME": "/nowhere"}).config
    context: Any = SimpleNamespace(config=config, answered=lambda *_: None)
    asked: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append(scope["may_write"])
        await Response()(scope, receive, send)

    guard = Guard(app, context, local=False, names=["0.0.0.0", "::"])

    def ask(method: str, path: str, **more: str) -> int:
        told: list[Any] = []

        async def send(message: Any) -> None:
            told.append(message)

        scope = {"type": "http", "http_version": "1.1", "method": method, "path": path, "server": ("10.0.0.1", 9097)}
        raw = [(name.encode(), value.encode()) for name, value in ({"host": "10.0.0.1:9097"} | more).items()]
        asyncio.run(guard({**scope, "headers": raw}, _nothing, send))
        return int(told[0]["status"])

    for path in ("/livez", "/readyz", "/health", "/version", "/metrics", "/prometheus", "/", "/static/app.js"):
        assert ask("GET", path) == 200
    for path in ("/v1/status", "/v1/tasks/a1", "/queue/status", "/livez/../v1/status", "//v1/status", "/static"):
        assert ask("GET", path) == (200 if open_reads else 401)
        assert ask("GET", path, authorization=f"Bearer {TOKEN}") == 200
    assert not any(asked[:8])  # nobody who did not present it may write
    for host in ("0.0.0.0:9097", "[::]:9097", "evil.example"):  # a page elsewhere can name us so
        assert ask("GET", "/metrics", host=host) == 421
    for method, path in (("POST", "/v1/tasks"), ("POST", "/queue/submit"), ("PUT", "/v1/classes/gpu/limit")):
        assert ask(method, path) == ask(method, path, authorization="Bearer x") == 401
        assert ask(method, path, authorization=f"Bearer {TOKEN}") == 200
        assert asked[-1]


def test_which_addresses_only_this_host_reaches() -> None:
    local = ["127.0.0.1", "127.8.9.1", "::1"]
    assert [one for one in (*local, "0.0.0.0", "::", "10.0.0.1", "fe80::1%eth0", "localhost") if is_local(one)] == local


def test_a_unix_socket_is_reached_by_this_user_alone_and_a_stale_one_replaced(gateway: Open, tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))  # and nobody serves it
    one = gateway(settings={"http_socket": path})
    until(lambda: str(path) in one.state["listening"], "it serves the socket")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: whatever\r\nConnection: close\r\n\r\n")
        assert read_all(connection).endswith(b'{"status":"ok"}\n')
    one.supervisor.stop()
    assert not path.exists()


def read_all(connection: socket.socket) -> bytes:
    """Return all that comes until the end."""
    found = b""
    while piece := connection.recv(1 << 16):
        found += piece
    return found


async def _nothing() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}
