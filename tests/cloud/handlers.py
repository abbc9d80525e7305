"""What runs on the machines of these tests."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from dspy_supervisor import Task, TaskRefused


def note(task: Task) -> dict[str, Any]:
    """Say where it ran, leave a file, and note the run; waits for a file where the payload names one."""
    payload = task.payload or {}
    if log := payload.get("log"):
        with Path(log).open("a") as file:
            file.write(f"{task.id} {task.attempt} {os.environ.get('POD_OF_TEST', 'here')}\n")
    if payload.get("refuse"):
        raise TaskRefused("it was asked to")
    if gate := payload.get("gate"):
        deadline = time.monotonic() + 120
        while not Path(gate).exists() and time.monotonic() < deadline:
            time.sleep(0.02)
    (task.output_folder() / "note.txt").write_text(f"of {task.id}")
    return {"where": os.environ.get("POD_OF_TEST", "here"), "big": 9007199254740993}
