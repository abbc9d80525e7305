"""Wall clocks that jump: no time-out and no lease depends on them, and no task waits for a time that went."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from ..conftest import Supervised, until
from .invariants import runs
from .rig import Rig, events, klass

YEARS, HOURS = 10 * 366 * 86400, -2 * 3600

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is loaded before the C library to shift the clock of one program."""
    path = tmp_path_factory.mktemp("clock") / "shift_clock.so"
    source = Path(__file__).with_name("shift_clock.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(path), str(source), "-ldl"], check=True)
    return path


class Clock:
    """The wall clock of the programs under test."""

    def __init__(self, path: Path, library: Path) -> None:
        self._path = path
        self.environ = {"LD_PRELOAD": str(library), "CLOCK_SHIFT": str(path)}
        self.jump(0)

    def jump(self, seconds: int) -> None:
        """Set it off by so much from now on."""
        new = self._path.with_suffix(".new")
        new.write_text(str(seconds))
        new.rename(self._path)


@pytest.fixture
def clock(tmp_path: Path, library: Path) -> Clock:
    """A clock that a test can set."""
    return Clock(tmp_path / "shift", library)


def _time_of(supervisor: Supervised, *names: str) -> float:
    found: float = events(supervisor, *names)[-1]["time"]
    return found


@pytest.mark.parametrize("shift", [YEARS, HOURS], ids=["ten years on", "two hours back"])
def test_a_jump_ends_no_task_and_stops_none(rig: Rig, clock: Clock, tmp_path: Path, shift: int) -> None:
    settings: dict[str, object] = {
        "take_after_s": 1,
        "heartbeat_s": 0.1,
        "sweep_s": 0.2,
        "class.cpu_short.timeout_s": 30,
    }
    supervisor = rig.start(workers=1, settings=settings, environ=clock.environ)
    other = rig.start(workers=1, settings=settings, environ=clock.environ, runtime=tmp_path / "run2")
    running = [rig.gate("a"), rig.gate("b")]
    for gate in running:
        gate.wait()
    rig.drop("waits")
    clock.jump(shift)
    supervisor.ask("reopen")
    assert abs(_time_of(supervisor, "logs_reopened") - time.time() - shift) < 60  # it believes the new time
    rig.drop("retried", {"do": "raise_until", "until": 2})
    began = time.monotonic()
    until(lambda: time.monotonic() - began > 2.5, "more time passes than a lease lasts")
    assert all(runs(rig.log)[name] == 1 for name in "ab")
    for gate in running:
        gate.open()
    rig.drain(within_s=20.0)
    assert all(rig.record(name)["attempt"] == 0 for name in ("a", "b", "waits"))
    assert 2000 < rig.record("a")["duration_ms"] < 60_000
    for one in (supervisor, other):
        assert not events(one, "took_from_dead", "worker_died", "heartbeat_lost")
        assert klass(one)["failed"] == 0
        assert one.stop() == 0
    rig.check(drained=True)


def test_a_retry_that_waits_when_the_clock_is_set_back_is_not_held_up(rig: Rig, clock: Clock) -> None:
    supervisor = rig.start(workers=1, environ=clock.environ)
    rig.drop("later", {"do": "later", "delay_s": 1.0})
    until(lambda: supervisor.status()["delayed"] == 1, "it waits")
    clock.jump(HOURS)
    assert rig.record("later")["attempt"] == 1
