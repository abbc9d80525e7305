"""Callers that are slow, wordy, many or mad, and a gateway that is stopped, hung, killed or short of something."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from dspy_supervisor import Queue
from dspy_supervisor.cli import main

from tests.conftest import END_S, Start, supervisors, until

from .conftest import Gateway, Open, opener
from .test_security import read_all

pytestmark = pytest.mark.xdist_group("gateway-robustness")

PATIENCE_S = 0.5
BODY = 1 << 20  # bytes that a body may have here


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with little patience, for the callers of this module."""
    folder = tmp_path_factory.mktemp("strict")
    settings = {"http_patience_s": PATIENCE_S, "http_max_body_bytes": BODY, "http_max_connections": 60}
    with supervisors(folder) as start:
        one = opener(folder, start)(settings=settings)
        yield one
        assert one.state["restarts"] == 0, one.supervisor.log[-3000:]  # nobody of these brought it down


def head(path: str = "/v1/tasks", *lines: str, method: str = "POST") -> bytes:
    """Return the head of a request."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


def drip(connections: list[socket.socket], deadline: float) -> dict[socket.socket, bytes]:
    """Send a byte on each now and then until it is ended, and return what each was told."""
    told = dict.fromkeys(connections, b"")
    live = set(connections)
    for connection in connections:
        connection.setblocking(False)
    while live:
        assert time.monotonic() < deadline, f"{len(live)} are still served"
        readable, _, _ = select.select(live, [], [], 0.1)
        for connection in readable:
            with contextlib.suppress(ConnectionError):
                if piece := connection.recv(65536):
                    told[connection] += piece
                    continue
            live.discard(connection)
        for connection in live:
            with contextlib.suppress(OSError):
                connection.send(b"x")
    return told


@pytest.mark.parametrize("first", [head()[:-2] + b"X-Slow: ", b"GET /", head("/v1/tasks", "Content-Length: 99999")])
def test_callers_who_send_a_byte_now_and_then_are_cut_and_keep_nobody_out(strict: Gateway, first: bytes) -> None:
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(strict.connect()) for _ in range(25)]  # twice that is less than it takes
        for connection in slow:
            connection.sendall(first)
        assert strict.get("/health").status == 200
        told = drip(slow, time.monotonic() + END_S)
    assert {answer[:12] for answer in told.values()} == {b"HTTP/1.1 408"}


def test_a_caller_who_says_nothing_is_cut(strict: Gateway) -> None:
    with strict.connect() as connection:
        assert connection.recv(100) == b""


def test_a_caller_who_takes_no_answer_is_cut(strict: Gateway) -> None:
    with Queue(strict.queue) as queue:
        task = queue.submit("x" * (4 << 20))
        queue.result(task, timeout=END_S)
    before = strict.state["cut"]
    with strict.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(head(f"/v1/tasks/{task}/result", method="GET"))
        until(lambda: strict.state["cut"] > before, "it is cut")
    assert len(strict.get(f"/v1/tasks/{task}/result").body) > 4 << 20


def test_a_caller_who_asks_on_and_on_before_an_answer_is_cut(strict: Gateway) -> None:
    with strict.connect() as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(head("/health", method="GET") * 5000)
        with contextlib.suppress(ConnectionError):
            assert read_all(connection).count(b"HTTP/1.1 200 ") < 5000


def test_a_body_of_a_gigabyte_is_refused_before_it_is_read(strict: Gateway) -> None:
    with strict.connect() as connection:
        connection.sendall(head("/v1/tasks", "Content-Length: 1073741824", "Expect: 100-continue"))
        assert read_all(connection).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_streamed_without_end_is_cut_and_its_sender_told_why(strict: Gateway, announced: bool) -> None:
    process = psutil.Process(strict.pid)
    before = process.memory_info().rss
    with strict.connect() as connection:
        length = "Content-Length: 1073741824" if announced else "Transfer-Encoding: chunked"
        connection.sendall(head("/v1/tasks", length))
        piece = b"x" * 65536 if announced else b"10000\r\n" + b"x" * 65536 + b"\r\n"
        sent = 0
        while not select.select([connection], [], [], 0)[0]:
            connection.sendall(piece)
            sent += 65536
            assert sent < 1 << 30, "all of it was taken"
        told = read_all(connection)
    assert told.startswith(b"HTTP/1.1 413 "), told
    assert b"connection: close" in told
    assert process.memory_info().rss - before < 64 << 20


def test_a_caller_who_leaves_in_the_middle_of_a_body_is_no_trouble_of_ours(strict: Gateway) -> None:
    def left() -> int:
        return int(strict.state["requests"].get("0", 0))

    before = left()
    with strict.connect() as connection:
        connection.sendall(head("/v1/tasks", "Content-Length: 100") + b"{")
        assert strict.get("/health").status == 200
    until(lambda: left() > before, "that is noticed")
    assert "request_failed" not in strict.supervisor.log
    assert "gateway_trouble" not in strict.supervisor.log


def test_a_refusal_of_a_small_body_leaves_the_connection_as_it_is(strict: Gateway) -> None:
    with strict.connect() as connection:
        connection.sendall(head("/nothing", "Content-Length: 9") + b"some")
        connection.sendall(b"thing" + head("/health", "Connection: close", method="GET"))
        told = read_all(connection)
    assert told.startswith(b"HTTP/1.1 404 ")
    assert told.endswith(b'{"status":"ok"}\n')


@pytest.mark.parametrize(
    "lines", [["X: " + "y" * 70_000], ["X: y"] * 300, [f"X-{number}: " + "y" * 1000 for number in range(100)]]
)
def test_a_head_that_says_too_much_is_refused(strict: Gateway, lines: list[str]) -> None:
    with strict.connect() as connection:
        connection.sendall(head("/health", *lines, method="GET"))
        assert read_all(connection).startswith(b"HTTP/1.1 431 ")


def test_a_head_that_never_ends_is_refused(strict: Gateway) -> None:
    with strict.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX: ")
        sent = 0
        while not select.select([connection], [], [], 0)[0]:
            connection.sendall(b"y" * 65536)
            sent += 65536
            assert sent < 1 << 30, "all of it was taken"
        assert read_all(connection).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20,
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET http://[::1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n",
        bytes(range(256)) * 10,
    ],
)
def test_what_is_no_request_is_answered_400(strict: Gateway, garbage: bytes) -> None:
    with strict.connect() as connection:
        connection.sendall(garbage)
        assert read_all(connection).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "path",
    ["/v1/tasks/..%2f..%2fevil", "/v1/tasks/%2e%2e", "/v1/tasks/a%00b", "/v1/tasks/" + "x" * 9000, "/v1/tasks/%ff%fe"],
)
def test_an_id_that_is_none_reaches_no_file(strict: Gateway, path: str) -> None:
    for end in ("", "/result", "/logs", "/story", "/explain"):
        answer = strict.get(path + end)
        assert answer.status in (400, 404, 422), answer.body
    for end in ("/cancel", "/retry"):
        assert strict.ask("POST", path + end).status in (400, 404, 422)


def test_callers_beyond_the_bound_are_told_to_come_again(strict: Gateway) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            connection = stack.enter_context(strict.connect())
            connection.sendall(b"GET")
        answer = strict.get("/health")
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    until(lambda: strict.get("/health").status == 200, "there is room again")


def test_a_port_that_is_taken_is_said_and_served_as_soon_as_it_is_free(
    supervisor: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        one = supervisor("--http", settings={"http_port": port})
        problem = until(lambda: one.status()["services"]["gateway"].get("problem"), "it says what is wrong")
        assert problem.startswith(f"http_port: 127.0.0.1:{port} is taken by another program")
        with Queue(one.queue) as queue:
            assert queue.result(queue.submit(1), timeout=END_S) == 1
    assert Gateway(one, tmp_path).get("/health").status == 200
    assert one.status()["services"]["gateway"]["problem"] is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path))
        assert main(["status", "--queue-dir", str(one.queue), "--runtime-dir", str(one.runtime)]) == 0
    assert f", http://127.0.0.1:{port}\n" in capsys.readouterr().out


def test_without_its_packages_the_rest_works_and_the_remedy_is_said(supervisor: Start, tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code/uvicorn.py").write_text("raise ImportError('not here')\n")
    one = supervisor("--http", settings={"http_port": 0})
    problem = until(lambda: one.status()["services"]["gateway"].get("problem"), "it says what is wrong")
    assert problem == "there is no uvicorn to serve HTTP with: pip install 'dspy-supervisor[api]'"
    with Queue(one.queue) as queue:
        assert queue.result(queue.submit(1), timeout=END_S) == 1
    assert one.stop() == 0


@pytest.mark.slow
def test_a_gateway_that_hangs_is_replaced_and_no_task_notices(gateway: Open) -> None:
    one = gateway()
    pid, workers = one.pid, one.supervisor.status()["classes"]["cpu_short"]["workers"]
    os.kill(pid, signal.SIGSTOP)
    with Queue(one.queue) as queue:
        ids = []
        deadline = time.monotonic() + 60
        while one.pid in (pid, 0):
            assert time.monotonic() < deadline
            ids.append(queue.submit(len(ids)))
            assert queue.result(ids[-1], timeout=END_S) == len(ids) - 1
            assert queue.record(ids[-1])["attempt"] == 0
    until(lambda: one.state.get("listening"), "the new one listens")
    status = one.supervisor.status()
    assert status["classes"]["cpu_short"]["retried"] == status["classes"]["cpu_short"]["failed"] == 0
    assert status["classes"]["cpu_short"]["workers"] == workers
    assert status["services"]["gateway"]["restarts"] == 1


def test_a_gateway_that_is_killed_is_back_on_its_port(supervisor: Start, tmp_path: Path) -> None:
    port = free_port()
    one = Gateway(supervisor("--http", settings={"http_port": port}), tmp_path)
    with one.connect() as kept:
        kept.sendall(head("/health", method="GET"))
        assert kept.recv(1000)
        pid = one.pid
        os.kill(pid, signal.SIGKILL)
        until(lambda: one.pid not in (pid, 0) and one.state.get("listening"), "another one listens")

    def answers() -> bool:
        with contextlib.suppress(ConnectionError):
            return one.get("/health").status == 200
        return False

    until(answers, "it answers on the same port")


def test_a_drain_is_said_until_what_runs_has_ended(gateway: Open, tmp_path: Path) -> None:
    one = gateway(handlers={"cpu_short": "tests.system.handlers:play"})
    gate = {
        "do": "gate",
        "begun": str(tmp_path / "begun"),
        "gate": str(tmp_path / "gate"),
        "log": str(tmp_path / "log"),
    }
    with Queue(one.queue) as queue:
        task = queue.submit(gate)
        until((tmp_path / "begun").exists, "it runs")
        assert one.get("/readyz").status == 200
        one.supervisor.signal(signal.SIGTERM)
        answer = until(lambda: (got := one.get("/readyz")).status == 503 and got, "it says that it drains")
        assert "the supervisor is stopping" in answer.text
        assert one.get("/livez").status == one.get("/health").status == 200
        (tmp_path / "gate").touch()
        assert one.supervisor.wait() == 0
        assert queue.state(task) == "done"
    with pytest.raises(ConnectionRefusedError):
        one.connect()


def test_new_settings_are_served_after_a_reload(gateway: Open, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a" * 32)
    one = gateway(settings={"http_token_file": token, "http_port": free_port()})
    asked: dict[str, Any] = {"method": "POST", "path": "/v1/nothing"}
    assert one.ask(**asked, headers={"Authorization": "Bearer " + "a" * 32}).status in (404, 405)
    token.write_text("b" * 32)
    one.supervisor.ask("reload")

    def renewed() -> bool:
        with contextlib.suppress(ConnectionError):
            return one.ask(**asked, headers={"Authorization": "Bearer " + "b" * 32}).status in (404, 405)
        return False

    until(renewed, "the new token opens")
    assert one.ask(**asked, headers={"Authorization": "Bearer " + "a" * 32}).status == 401


def free_port() -> int:
    """Return a port that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_five_hundred_listeners_hear_of_tasks_and_are_let_go_at_the_end(gateway: Open) -> None:
    one = gateway()
    with contextlib.ExitStack() as stack, Queue(one.queue) as queue:
        heard: dict[socket.socket, bytes] = {stack.enter_context(one.connect()): b"" for _ in range(500)}

        def listen(enough: Callable[[bytes], bool], what: str) -> None:
            waiting = [connection for connection, told in heard.items() if not enough(told)]
            poll = select.poll()
            known = {connection.fileno(): connection for connection in waiting}
            for connection in waiting:
                poll.register(connection, select.POLLIN)
            deadline = time.monotonic() + 2 * END_S
            while known:
                assert time.monotonic() < deadline, f"{len(known)} of {len(heard)} were not told {what}"
                for number, _ in poll.poll(1000):
                    piece = known[number].recv(1 << 16)
                    heard[known[number]] += piece
                    if not piece or enough(heard[known[number]]):
                        poll.unregister(number)
                        del known[number]

        for connection in heard:
            connection.sendall(head("/v1/events", method="GET"))
        listen(lambda told: b"retry: " in told, "that it begins")
        ids = [queue.submit(number) for number in range(30)]
        assert queue.wait(ids, END_S).not_done == set()  # the listeners keep nobody from his work
        assert queue.record(ids[-1])["attempt"] == 0
        for task in ids:
            done = f'"event":"done","id":"{task}"'.encode()
            listen(lambda told, done=done: done in told, f"of {task}")  # type: ignore[misc]
        assert one.get("/health").status == 200  # nor other callers
        one.supervisor.signal(signal.SIGTERM)
        listen(lambda told: told.endswith(b"0\r\n\r\n"), "that it ends")  # the end of the last chunk, and not a cut
        assert one.supervisor.wait() == 0
