"""What runs once per task or event, compiled, beside its plain twin in tests/reference."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import orjson
import pytest
from dspy_fastpath import claim, counters, envelope, ids, inotify, process

from tests.reference import claim as plain_claim
from tests.reference import counters as plain_counters
from tests.reference import envelope as plain_envelope
from tests.reference import ids as plain_ids
from tests.reference import inotify as plain_inotify
from tests.reference import process as plain_process

MAX_BYTES = 64 << 20
BOTH = ["compiled", "plain"]


def task(payload_bytes: int) -> bytes:
    """Return a task with a payload of many small values, as JSON."""
    item = {"name": "variable", "value": 0.125, "flags": [1, 2, True, None]}
    items = max(1, payload_bytes // len(orjson.dumps(item)))
    return orjson.dumps({"id": "a1", "class": "cpu_short", "priority": 5, "payload": [item] * items})


@pytest.mark.benchmark(group="scan an envelope of 200 bytes")
@pytest.mark.parametrize("scan", [envelope.scan, plain_envelope.scan, orjson.loads], ids=[*BOTH, "orjson.loads"])
def test_scan_small(benchmark: Any, scan: Callable[[bytes], object]) -> None:
    benchmark(scan, task(200))


@pytest.mark.benchmark(group="scan an envelope of 20 kB")
@pytest.mark.parametrize("scan", [envelope.scan, plain_envelope.scan, orjson.loads], ids=[*BOTH, "orjson.loads"])
def test_scan_medium(benchmark: Any, scan: Callable[[bytes], object]) -> None:
    benchmark(scan, task(20_000))


@pytest.mark.benchmark(group="scan an envelope of 1 MB")
@pytest.mark.parametrize("scan", [envelope.scan, orjson.loads], ids=["compiled", "orjson.loads"])
def test_scan_large(benchmark: Any, scan: Callable[[bytes], object]) -> None:
    benchmark(scan, task(1_000_000))


@pytest.fixture
def descriptors(folder: Path) -> Iterator[tuple[int, int]]:
    """pending/ and claimed/, open."""
    found = []
    for name in ("pending", "claimed"):
        (folder / name).mkdir()
        found.append(os.open(folder / name, os.O_RDONLY | os.O_DIRECTORY))
    yield found[0], found[1]
    for descriptor in found:
        os.close(descriptor)


@pytest.mark.benchmark(group="claim: rename, open, check, read, scan")
@pytest.mark.parametrize("module", [claim, plain_claim], ids=BOTH)
def test_claim(benchmark: Any, module: Any, descriptors: tuple[int, int]) -> None:
    pending, claimed = descriptors
    numbers = count()
    content = task(200)

    def put() -> tuple[tuple[object, ...], dict[str, object]]:
        name = b"t%d.json" % next(numbers)
        claim.write_new(pending, name, content, False)
        return (pending, name, claimed, MAX_BYTES, ()), {}

    benchmark.pedantic(module.claim, setup=put, rounds=2000)


@pytest.mark.benchmark(group="peek: open, check, read, scan")
@pytest.mark.parametrize("module", [claim, plain_claim], ids=BOTH)
def test_peek(benchmark: Any, module: Any, descriptors: tuple[int, int]) -> None:
    claim.write_new(descriptors[0], b"a1.json", task(200), False)
    benchmark(module.peek, descriptors[0], b"a1.json", MAX_BYTES, ())


@pytest.mark.benchmark(group="write a file whole")
@pytest.mark.parametrize("module", [claim, plain_claim], ids=BOTH)
def test_write(benchmark: Any, module: Any, descriptors: tuple[int, int]) -> None:
    numbers = count()
    content = task(200)
    benchmark.pedantic(
        module.write_new, setup=lambda: ((descriptors[0], b"t%d.json" % next(numbers), content, False), {}), rounds=2000
    )


@pytest.mark.benchmark(group="take 100 events")
@pytest.mark.parametrize("module", [inotify, plain_inotify], ids=BOTH)
def test_take(benchmark: Any, module: Any, descriptors: tuple[int, int], folder: Path) -> None:
    pending, claimed = descriptors
    names = [b"t%d.json" % number for number in range(100)]
    for name in names:
        claim.write_new(claimed, name, b"{}", False)
    places = [claimed, pending]
    with module.Watcher() as watcher:
        for name in ("pending", "claimed"):
            watcher.add(folder / name if module is inotify else str(folder / name))

        def move() -> None:
            for name in names:
                claim.move(places[0], name, places[1], name)
            places.reverse()

        events, _, _ = benchmark.pedantic(watcher.take, setup=move, rounds=300)
    assert len(events) == len(names)


@pytest.mark.benchmark(group="add one to a shared counter")
@pytest.mark.parametrize("module", [counters, plain_counters], ids=BOTH)
def test_add(benchmark: Any, module: Any, tmp_path: Path) -> None:
    with module.Page.create(tmp_path / "page", "bench", ["cpu_short"], 4) as page:
        benchmark(page.add, 0, counters.Counter.DONE)


@pytest.mark.benchmark(group="observe a duration")
@pytest.mark.parametrize("module", [counters, plain_counters], ids=BOTH)
def test_observe(benchmark: Any, module: Any, tmp_path: Path) -> None:
    with module.Page.create(tmp_path / "page", "bench", ["cpu_short"], 4) as page:
        benchmark(page.observe, 0, counters.Histogram.RUN, 0.0123)


@pytest.mark.benchmark(group="make an id")
@pytest.mark.parametrize("make", [ids.uuid7, plain_ids.uuid7], ids=BOTH)
def test_uuid7(benchmark: Any, make: Callable[[], str]) -> None:
    benchmark(make)


def run_by(spawn: Callable[..., int]) -> Callable[[int], object]:
    """Return what starts /bin/true with three descriptors on null, and waits for it."""
    return lambda null: os.waitpid(spawn([b"/bin/true"], [], None, null, null, null), 0)


def posix_spawn(null: int) -> object:
    actions = [(os.POSIX_SPAWN_DUP2, null, number) for number in range(3)]
    return os.waitpid(os.posix_spawn("/bin/true", ["/bin/true"], {}, file_actions=actions, setsid=True), 0)


def subprocess_run(null: int) -> object:
    three = {"stdin": null, "stdout": null, "stderr": null}
    return subprocess.run(["/bin/true"], env={}, start_new_session=True, check=True, **three)


@pytest.mark.benchmark(group="run /bin/true")
@pytest.mark.parametrize(
    "run",
    [run_by(process.spawn), run_by(plain_process.spawn), posix_spawn, subprocess_run],
    ids=[*BOTH, "os.posix_spawn", "subprocess.run"],
)
def test_run_true(benchmark: Any, run: Callable[[int], object]) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    benchmark.pedantic(run, (null,), rounds=300, warmup_rounds=10)
    os.close(null)
