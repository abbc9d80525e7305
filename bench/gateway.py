"""The gateway beside what it stands for: submits and round trips over HTTP, and the same through the folder, in one run.

::

    python -m bench.gateway [--submits 2000] [--clients 8] [--calls 300] [--listeners 500] [--sync 1]

Clients are processes with a connection each that is kept, all let go at once; a direct client is `Queue.submit`. The worker
is paused while submits are measured, so that both find the CPUs alike. The older orchestrator took 0.50 ms (p50) for a
submit, 1.3 ms from submit to done, and 630 submits a second from 8 clients: in Go, with a stub for its runner, nothing
synced, and on a machine of which no more is known. Ratios of one run are what counts here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import select
import socket
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path
from urllib.parse import urlsplit

from dspy_supervisor import Queue
from dspy_supervisor.control_client import ask

from bench import script
from bench.compare import percentile
from bench.ours import CLASS, Ours
from bench.player import PAYLOAD, TIMEOUT_S, wait_until

_BODY = json.dumps({"class": CLASS, "payload": PAYLOAD}).encode()
_WARM = 20  # calls before those that are counted
_ROUNDS = 5


class Served(Ours):
    """A supervisor with its gateway."""

    options = ("--http", "--set", "http_port=0")

    def __init__(self, folder: Path, sync: bool) -> None:
        super().__init__(folder, sync)
        self.port = 0

    def start(self, workers: int) -> None:
        super().start(workers)
        wait_until(self._listens, f"the gateway did not start: {self.said}")

    def ask(self, do: str, **more: object) -> dict[str, object]:
        """Return the supervisor's answer."""
        return ask(next(self.runtime.glob("*.sock")), {"do": do, **more})

    def _listens(self) -> bool:
        if not list(self.runtime.glob("*.sock")):
            return False
        services = self.ask("status")["services"]
        assert isinstance(services, dict)
        for address in services.get("gateway", {}).get("listening", ()):
            self.port = urlsplit(address).port or 0
        return self.port > 0


class Caller:
    """A connection that says what HTTP needs and no more."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        """Return the body of the answer."""
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        self._socket.sendall(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{length}\r\n".encode() + body)
        got = b""
        while b"\r\n\r\n" not in got:
            got += self._more()
        head, _, rest = got.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 20"):
            raise RuntimeError(head.decode())
        size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while len(rest) < size:
            rest += self._more()
        return rest

    def _more(self) -> bytes:
        got = self._socket.recv(65536)
        if not got:
            raise ConnectionError("the gateway hung up")
        return got


def over_http(port: int) -> Callable[[], object]:
    """Return what submits a task over HTTP."""
    caller = Caller(port)
    return lambda: caller.ask("POST", "/v1/tasks", _BODY)


def through_folder(path: Path) -> Callable[[], object]:
    """Return what puts a task."""
    queue = Queue(path)
    return lambda: queue.submit(PAYLOAD, task_class=CLASS)


def crowd(clients: int, each: int, make: Callable[[], Callable[[], object]]) -> tuple[list[float], float]:
    """Return the milliseconds of every call of many processes that begin together, and calls a second."""
    gate, times = multiprocessing.Barrier(clients + 1), multiprocessing.SimpleQueue()

    def live() -> None:
        call = make()
        for _ in range(_WARM):
            call()
        gate.wait()
        took = []
        for _ in range(each):
            begun = time.monotonic_ns()
            call()
            took.append((time.monotonic_ns() - begun) / 1e6)
        times.put(took)

    processes = [multiprocessing.get_context("fork").Process(target=live, daemon=True) for _ in range(clients)]
    for process in processes:
        process.start()
    gate.wait()
    begun = time.monotonic()
    took = [one for _ in processes for one in times.get()]
    rate = len(took) / (time.monotonic() - begun)
    for process in processes:
        process.join()
    return took, rate


def round_trips(calls: int, submit: Callable[[], str], wait: Callable[[str], object]) -> list[float]:
    """Return the milliseconds from before the submit until the result is here."""
    took = []
    for _ in range(calls + _WARM):
        begun = time.monotonic_ns()
        wait(submit())
        took.append((time.monotonic_ns() - begun) / 1e6)
    return took[_WARM:]


def listen(port: int, number: int, ready: Event, ending: Event) -> None:
    """Follow the events on so many connections until told to end."""
    poll, known = select.epoll(), {}
    for _ in range(number):
        one = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        one.sendall(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        one.recv(1 << 16)
        one.setblocking(False)
        poll.register(one, select.EPOLLIN)
        known[one.fileno()] = one
    ready.set()
    while not ending.is_set():
        for descriptor, _ in poll.poll(0.1):
            if not known[descriptor].recv(1 << 16):
                raise ConnectionError("the gateway cut a listener off")


@contextlib.contextmanager
def listeners(port: int, number: int) -> Iterator[None]:
    """Let a process follow the events on so many connections meanwhile."""
    ready, ending = multiprocessing.Event(), multiprocessing.Event()
    process = multiprocessing.Process(target=listen, args=(port, number, ready, ending), daemon=True)
    process.start()
    if not ready.wait(TIMEOUT_S):
        raise TimeoutError(f"{number} listeners did not begin")
    yield
    ending.set()
    process.join()
    if process.exitcode:
        raise RuntimeError("the listeners failed")


def measure(folder: Path, options: argparse.Namespace) -> script.Facts:
    """Return the facts: milliseconds, calls a second, and ratios of HTTP to the folder."""
    facts: dict[str, float] = {}
    each = options.submits // options.clients
    with Served(folder, bool(options.sync)) as served:
        served.start(1)
        served.ask("pause")
        for clients, calls in ((1, each), (options.clients, each)):
            http, http_rate = crowd(clients, calls, lambda: over_http(served.port))
            direct, direct_rate = crowd(clients, calls, lambda: through_folder(served.path))
            named = f"{clients}_client" + ("s" if clients > 1 else "")
            for how, took, rate in (("http", http, http_rate), ("folder", direct, direct_rate)):
                facts[f"submit_{how}_{named}_p50_ms"] = percentile(took, 0.5)
                facts[f"submit_{how}_{named}_p99_ms"] = percentile(took, 0.99)
                facts[f"submit_{how}_{named}_per_s"] = rate
            facts[f"rate_of_folder_{named}"] = http_rate / direct_rate
        served.ask("resume")
        wait_until(lambda: not list((served.path / "pending").glob("*.json")), "the backlog did not end")
        caller, queue = Caller(served.port), Queue(served.path)

        def submit_http() -> str:
            return str(json.loads(caller.ask("POST", "/v1/tasks", _BODY))["id"])

        def submit() -> str:
            return queue.submit(PAYLOAD, task_class=CLASS)

        def direct() -> list[float]:
            return round_trips(each_round, submit, lambda task: queue.result(task, timeout=TIMEOUT_S))

        each_round = options.calls // _ROUNDS
        http, alone, watched = [], [], []
        for _ in range(_ROUNDS):  # by turns: what else the machine does falls on all alike
            alone += direct()
            http += round_trips(
                each_round, submit_http, lambda task: caller.ask("GET", f"/v1/tasks/{task}/result?wait_s=30")
            )
            with listeners(served.port, options.listeners):
                watched += direct()
        for how, took in (("http", http), ("folder", alone), ("folder_with_listeners", watched)):
            facts[f"result_{how}_p50_ms"] = percentile(took, 0.5)
            facts[f"result_{how}_p99_ms"] = percentile(took, 0.99)
        facts["result_http_of_folder"] = percentile(http, 0.5) / percentile(alone, 0.5)
        facts["with_listeners_of_without"] = percentile(watched, 0.5) / percentile(alone, 0.5)
    return facts


if __name__ == "__main__":
    script.main(__doc__, measure, submits=2000, clients=8, calls=300, listeners=500, sync=0)
