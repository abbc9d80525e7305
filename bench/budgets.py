"""Processes that share a budget, against a provider that refuses what comes too fast.

    python -m bench.budgets [--processes 32] [--rpm 3000] [--seconds 30]

The provider is a real HTTP server with a token bucket of one second, and answers after a fifth of a second. Its rate is what the
budget is set to. Beside it: the same processes without a budget, which wait for what Retry-After says.
"""

from __future__ import annotations

import argparse
import http.client
import multiprocessing
import os
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dspy_fastpath.counters import Page
from dspy_supervisor import budget

from tests.dspy.provider import Provider

BODY = b'{"model": "m", "messages": [{"role": "user", "content": "capital of Peru?"}]}'


def serve(channel: Connection, rpm: float, delay_s: float) -> None:
    """Be the provider until told to end, and say what came."""
    with Provider(requests_per_minute=rpm, delay_s=delay_s) as provider:
        channel.send(provider.server_address)
        channel.recv()
        channel.send((provider.answered_at, provider.refused))


def send(address: tuple[str, int], page: Path | None, rpm: int, until: float) -> None:
    """Be one of the processes."""
    if page is not None:
        budget.use(Page.attach(page, writable=True), {"m": f"{rpm}rpm"})
    connection = http.client.HTTPConnection(*address)
    while True:
        budget.acquire("m")
        if time.monotonic() >= until:
            return
        connection.request("POST", "/v1/chat/completions", BODY, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        if answer.status == 429:
            budget.report("m", 429, answer.headers)
            if page is None:
                time.sleep(float(answer.headers["Retry-After"]))


def run(processes: int, rpm: int, seconds: float, *, shared: bool) -> dict[str, Any]:
    """Return what one run came to."""
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(theirs, rpm, 0.2))
    server.start()
    address = ours.recv()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.page"
        with Page.create(path, "bench", ("cpu_short",), 1) as page:
            budget.configure(page, {"m": f"{rpm}rpm"})
            until = time.monotonic() + seconds
            workers = [
                multiprocessing.Process(target=send, args=(address, path if shared else None, rpm, until))
                for _ in range(processes)
            ]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
    ours.send("end")
    answered_at, refused = ours.recv()
    server.join()
    # From the first answer to the last: what the start of the processes takes says nothing of the schedule.
    rate = (len(answered_at) - 1) / (answered_at[-1] - answered_at[0]) * 60
    return {
        "answered": len(answered_at),
        "rate_of_allowed": rate / rpm,
        "refused": refused,
        "refused_share": refused / (refused + len(answered_at)),
    }


def main() -> None:
    """Run both ways and print them side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=32)
    parser.add_argument("--rpm", type=int, default=3000)
    parser.add_argument("--seconds", type=float, default=30)
    given = parser.parse_args()
    print(
        f"{given.processes} processes, {given.rpm} requests a minute allowed, {given.seconds:g} s, {os.cpu_count()} cores"
    )
    for name, shared in (("shared budget", True), ("Retry-After alone", False)):
        found = run(given.processes, given.rpm, given.seconds, shared=shared)
        print(
            f"{name:>18}: {found['rate_of_allowed']:6.1%} of the rate, {found['refused']:5} of "
            f"{found['refused'] + found['answered']:5} requests refused ({found['refused_share']:.1%})"
        )


if __name__ == "__main__":
    main()
