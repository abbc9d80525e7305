"""Texts to vectors three ways, and tasks with and without a common batch, on a server without a model and on a real one.

::

    python -m bench.embed [--texts 2000] [--callers 32] [--tasks 300] [--workers 4]

Callers ask for one text at a time. ``origin`` is the way of the client this one stands in for (its Python one: a connection and a
request for each call); ``httpx2`` a pool of connections and as many requests at once as there are callers; ``ours`` the client.
All three by turns, three rounds, the median of each; the server counts requests and bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx2
from dspy_supervisor import Queue
from dspy_supervisor.embedding import AsyncEmbeddingClient

from bench.machine import watch
from tests.conftest import supervisors, until
from tests.embed.minilm import MiniLm

ROUNDS = 3
WORDS = [
    "queue",
    "worker",
    "claim",
    "rename",
    "folder",
    "record",
    "vector",
    "server",
    "batch",
    "token",
    "text",
    "letter",
    "paper",
    "river",
    "stone",
    "light",
]
MODEL = MiniLm.name


class Run(NamedTuple):
    """What one way did in one round."""

    texts_per_s: float
    p50_ms: float
    p99_ms: float
    requests: int
    sent_kb: float  # bodies, to the server
    received_kb: float


@contextmanager
def serving(model: str, dialect: str = "infermesh") -> Iterator[str]:
    """Run a server of its own process; yields its address."""
    command = [
        sys.executable,
        "-m",
        "tests.embed.server",
        "--model",
        model,
        "--dialect",
        dialect,
        "--dimensions",
        "384",
    ]
    environ = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def stats(url: str) -> dict[str, int]:
    with urllib.request.urlopen(f"{url}/stats") as answer:
        found: dict[str, int] = json.load(answer)
        return found


def sentences(count: int) -> list[str]:
    """Return different texts of eight words."""
    return [" ".join(WORDS[(n * k + k) % len(WORDS)] for k in range(1, 8)) + f" {n}" for n in range(count)]


def origin(url: str, texts: list[str], callers: int) -> list[float]:
    """A request for each call, on a connection of its own."""
    times = []

    def call(text: str) -> None:
        begun = time.perf_counter()
        body = json.dumps({"model": MODEL, "inputs": [text]}).encode()
        request = urllib.request.Request(f"{url}/embed", data=body, headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            found = json.loads(answer.read())
        assert len([float(number) for number in found["vectors"][0]]) == 384
        times.append(time.perf_counter() - begun)

    with ThreadPoolExecutor(callers) as threads:
        list(threads.map(call, texts))
    return times


def pooled(url: str, texts: list[str], callers: int) -> list[float]:
    """A request for each call, over kept connections."""

    async def main() -> list[float]:
        async with httpx2.AsyncClient(timeout=60, limits=httpx2.Limits(max_connections=callers)) as http:

            async def call(text: str) -> None:
                answer = await http.post(f"{url}/embed", json={"model": MODEL, "inputs": [text]})
                assert len(answer.json()["vectors"][0]) == 384

            return await _all(call, texts, callers)

    return asyncio.run(main())


def ours(url: str, texts: list[str], callers: int) -> list[float]:
    """The client of this project."""

    async def main() -> list[float]:
        async with AsyncEmbeddingClient(url, model=MODEL) as client:

            async def call(text: str) -> None:
                assert (await client.embed([text])).shape == (1, 384)

            return await _all(call, texts, callers)

    return asyncio.run(main())


async def _all(call: Callable[[str], object], texts: list[str], callers: int) -> list[float]:
    times: list[float] = []
    left = iter(texts)

    async def caller() -> None:
        for text in left:
            begun = time.perf_counter()
            await call(text)  # type: ignore[misc]
            times.append(time.perf_counter() - begun)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return times


WAYS = {"origin": origin, "httpx2": pooled, "ours": ours}


def ways(url: str, texts: list[str], callers: int) -> dict[str, Run]:
    """Return the median run of each way."""
    runs: dict[str, list[Run]] = {name: [] for name in WAYS}
    for _ in range(ROUNDS):
        for name, way in WAYS.items():
            before, begun = stats(url), time.perf_counter()
            times = sorted(way(url, texts, callers))
            took, after = time.perf_counter() - begun, stats(url)
            assert len(times) == len(texts)
            requests, sent, received = (after[key] - before.get(key, 0) for key in ("requests", "bytes", "sent"))
            p50, p99 = (1000 * times[int(len(times) * share)] for share in (0.5, 0.99))
            runs[name].append(Run(len(texts) / took, p50, p99, requests, sent / 1000, received / 1000))
    return {name: Run(*map(statistics.median, zip(*found, strict=True))) for name, found in runs.items()}


def tasks(url: str, count: int, workers: int, *, shared: bool) -> tuple[float, int]:
    """Return tasks a second through a supervisor, four texts each, and the requests that the server got."""
    with tempfile.TemporaryDirectory() as name, supervisors(Path(name)) as start:
        settings = {"embed_urls": url, "embed_model": MODEL, "embed_shared": shared, "durability": "none"}
        one = start("--workers", f"cpu_short={workers}", handlers={"cpu_short": "embed"}, settings=settings)
        if shared:
            until(lambda: [*one.runtime.glob("*.embed")], "the process that batches listens", 60)
        texts = sentences(4 * count)
        with Queue(one.queue) as queue:
            for task in queue.submit_many({"inputs": [f"warm {n}"]} for n in range(4 * workers)):
                queue.result(task, 60)
            before, begun = stats(url)["requests"], time.perf_counter()
            ids = queue.submit_many({"inputs": texts[4 * n : 4 * n + 4]} for n in range(count))
            for task in ids:
                queue.result(task, 120)
            took = time.perf_counter() - begun
        return count / took, stats(url)["requests"] - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--tasks", type=int, default=300)
    parser.add_argument("--workers", type=int, default=4)
    chosen = parser.parse_args()
    with watch() as load:
        for model, share in (("null", 1), ("minilm", 8)):
            with serving(model) as url:
                _warm(url)
                texts = sentences(chosen.texts // share)
                found = ways(url, texts, chosen.callers)
                print(f"\n{model}: {len(texts)} texts, one a call, {chosen.callers} callers")
                print(
                    f"{'':8}{'texts/s':>9}{'ratio':>7}{'p50 ms':>9}{'p99 ms':>9}{'requests':>10}{'sent kB':>9}{'got kB':>9}"
                )
                for name, run in found.items():
                    ratio = run.texts_per_s / found["origin"].texts_per_s
                    print(
                        f"{name:8}{run.texts_per_s:9.0f}{ratio:7.2f}{run.p50_ms:9.1f}{run.p99_ms:9.1f}"
                        f"{run.requests:10.0f}{run.sent_kb:9.0f}{run.received_kb:9.0f}"
                    )
                count = chosen.tasks // (1 if share == 1 else 4)
                print(f"{model}: {count} tasks of four texts, {chosen.workers} workers")
                rates = {}
                for shared in (False, True):
                    rate, requests = tasks(url, count, chosen.workers, shared=shared)
                    rates[shared] = rate
                    name = "one batcher" if shared else "a client each"
                    print(f"{name:14}{rate:9.0f} tasks/s{rate / rates[False]:7.2f}{requests:10} requests")
    print(f"\nothers used {load.others:.0%} of the CPUs meanwhile (the servers among them)")


def _warm(url: str) -> None:
    origin(url, sentences(8), 2)


if __name__ == "__main__":
    assert threading.active_count() == 1
    main()
