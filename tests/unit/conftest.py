"""Fixtures of the unit tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.queues import Rig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A queue of durability none, with nothing in it."""
    made = Rig(tmp_path / "queue")
    yield made
    made.close()


@pytest.fixture
def durable(tmp_path: Path) -> Iterator[Rig]:
    """A queue of durability task, with nothing in it."""
    made = Rig(tmp_path / "queue", durability="task")
    yield made
    made.close()
