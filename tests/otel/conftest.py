"""A collector beside a queue with supervisors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..system.conftest import rig  # noqa: F401 (a fixture)
from .collector import Collector, collectors


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector that keeps what it is sent."""
    with collectors() as one:
        yield one
