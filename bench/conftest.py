"""Where the suites of pytest-benchmark measure: `pytest bench --benchmark-only`, on the disk and in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.player import ROOT


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder on the repository's disk, then one in memory; both go at the end."""
    base = ROOT / "build" / "bench" if request.param == "disk" else Path("/dev/shm")
    base.mkdir(parents=True, exist_ok=True)
    # short, since it may hold a unix socket
    with tempfile.TemporaryDirectory(dir=base, prefix="b") as path:
        yield Path(path)
