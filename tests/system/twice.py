"""A class whose late tasks run twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..conftest import Supervised, until
from .rig import Rig, klass

_TWICE = """
import os, time
from tests.system.handlers import note, wait_for
def run(task):
    told = task.payload
    if told is None:
        return None
    note(told["log"], f"{task.id} {task.attempt} {os.getpid()}\\n")
    try:
        os.close(os.open(told["first"], os.O_CREAT | os.O_EXCL))
        gate = told.get("first_gate")
    except FileExistsError:
        gate = told.get("second_gate")
    if gate:
        wait_for(gate)
    return os.getpid()
"""


class Twice:
    """A class that knows how long its tasks take, and one task that takes longer."""

    def __init__(self, rig: Rig, tmp_path: Path) -> None:
        self.rig, self.path = rig, tmp_path
        (tmp_path / "code").mkdir()
        (tmp_path / "code" / "twice.py").write_text(_TWICE)
        self.supervisor = self.start()
        for number in range(20):
            rig.drop(f"quick{number}", kind="twice")
        rig.drain(20)
        until(lambda: klass(self.supervisor)["hedges"]["after_s"] is not None, "it is known how long tasks take")

    def start(self, **settings: object) -> Supervised:
        environments = {"kinds": "environment", "environments": "counting=tests.system.environments:Counting"}
        chosen = {"class.cpu_short.hedge": True, "kind_handlers": "twice=twice:run", **environments, **settings}
        return self.rig.start(workers=3, settings=chosen)

    def put(self, *gates: str, task_id: str = "long", **envelope: Any) -> None:
        """Put a long task, whose runs wait at these gates."""
        told = {f"{gate}_gate": str(self.path / gate) for gate in gates}
        told |= {"log": str(self.rig.log), "first": str(self.path / f"{task_id}.began")}
        self.rig.drop(task_id, kind="twice", payload=told, **{"idempotent": True, **envelope})

    def pids(self) -> list[int]:
        """Return who ran the long task, in the order they began."""
        if not self.rig.log.exists():
            return []
        lines = [line.split() for line in self.rig.log.read_text().splitlines()]
        return [int(pid) for task_id, _, pid in lines if task_id == "long"]

    def both(self) -> list[int]:
        """Wait until it runs twice."""
        until(lambda: len(self.pids()) == 2, "the task runs twice")
        return self.pids()
