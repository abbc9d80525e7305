"""DSPy in the process of the tests."""

from __future__ import annotations

from collections.abc import Iterator

import dspy
import pytest


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache that no earlier run has filled, and none that a user has."""
    dspy.configure_cache(disk_cache_dir=str(tmp_path_factory.mktemp("dspy-cache")))
    yield
    dspy.configure_cache(enable_disk_cache=False)
