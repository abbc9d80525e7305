"""Laptop mode in all: what a user starts with one command stays small, and works with nothing else."""

from __future__ import annotations

from dspy_supervisor.bounds import own_bytes
from dspy_supervisor.proctree import trees

from .rig import Rig

MOST_BYTES = 250 * 10**6  # the mode's promise; some 36 MB are measured (python -m bench.laptop)
CLASSES = ("cpu_short", "cpu_long", "gpu")


def test_the_whole_tree_stays_below_250_mb(rig: Rig) -> None:
    workers = [option for name in CLASSES[1:] for option in ("--workers", f"{name}=1")]
    supervisor = rig.start("--mode", "laptop", *workers, workers=1, handlers=dict.fromkeys(CLASSES, "echo"))
    for name in CLASSES:
        rig.drop(name, **{"class": name})
    rig.drain()
    tree = trees([supervisor.pid])[supervisor.pid]
    assert len(tree) == 2 + len(CLASSES)  # the supervisor and its guard: no service where there is nothing to measure
    assert 10**7 < own_bytes(tree) < MOST_BYTES
