"""Queues with real supervisors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..conftest import Start
from .gpu_rig import Gpus, Tell
from .rig import Rig
from .twice import Twice


@pytest.fixture
def rig(tmp_path: Path, supervisor: Start) -> Iterator[Rig]:
    """A queue with supervisors."""
    made = Rig(tmp_path, supervisor)
    yield made
    for path in sorted(tmp_path.glob("supervisor.*.log")):
        print(path.name, path.read_text(errors="replace")[-5000:], sep="\n")  # shown where the test failed


@pytest.fixture
def tell(tmp_path: Path) -> Tell:
    """A function that says what telemetry sees from now on."""

    def tell(*gpus: dict[str, Any], **more: Any) -> None:
        new = tmp_path / "gpus.new"
        new.write_text(json.dumps({"gpus": gpus, **more}))
        new.replace(tmp_path / "gpus.json")

    return tell


@pytest.fixture
def gpus(tmp_path: Path, rig: Rig) -> Gpus:
    return Gpus(tmp_path, rig._start)


@pytest.fixture
def twice(rig: Rig, tmp_path: Path) -> Twice:
    return Twice(rig, tmp_path)
