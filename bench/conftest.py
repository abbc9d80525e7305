"""Where the suites of pytest-benchmark measure: `pytest bench --benchmark-only`, on the disk and in memory.

A suite that goes through a supervisor measures the C floor beside it; the ratios are printed below the tables.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.player import ROOT

_ratios: list[str] = []


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder on the repository's disk, then one in memory; both go at the end."""
    base = ROOT / "build" / "bench" if request.param == "disk" else Path("/dev/shm")
    base.mkdir(parents=True, exist_ok=True)
    # short, since it may hold a unix socket
    with tempfile.TemporaryDirectory(dir=base, prefix="b") as path:
        yield Path(path)


@pytest.fixture
def tell(benchmark: Any, request: pytest.FixtureRequest) -> Callable[[str, float, float], None]:
    """Keep a figure of ours and the floor's with the benchmark, and print their ratio at the end."""

    def keep(name: str, ours: float, floor: float) -> None:
        benchmark.extra_info |= {name: ours, f"floor_{name}": floor}
        _ratios.append(
            f"{request.node.name:28}{name:16}{ours:>12,.0f}  floor{floor:>12,.0f}  ratio{ours / floor:>8,.2f}"
        )

    return keep


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what was told."""
    if _ratios:
        terminalreporter.section("beside the C floor")
        for line in _ratios:
            terminalreporter.write_line(line)
