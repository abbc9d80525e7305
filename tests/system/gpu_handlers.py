"""What tasks of class gpu do in the system tests; no GPU is needed to look at one's environment."""

import json
import os
import re
import time
from typing import Any

from dspy_supervisor.parts import JSON, Task

from .handlers import note, wait_for

NAMES = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "DSPY_GPU_MEMORY_LIMIT", "XLA_PYTHON_CLIENT_PREALLOCATE")
TORCH = type("OutOfMemoryError", (RuntimeError,), {"__module__": "torch"})  # as torch has it


def play(task: Task) -> JSON:
    """Tell what a task sees; ``gate`` lets it wait, and ``short`` counts the attempts that run out of memory."""
    wanted: dict[str, Any] = task.payload or {}
    if "begun" in wanted:
        open(wanted["begun"], "w").close()
        wait_for(wanted["gate"])
    if "spans" in wanted:
        began = time.monotonic()
        time.sleep(wanted["s"])
        line = {"task": task.id, "from": began, "to": time.monotonic(), "gpus": os.environ["CUDA_VISIBLE_DEVICES"]}
        note(wanted["spans"], json.dumps(line) + "\n")
    if task.attempt < wanted.get("short", 0):
        raise TORCH(wanted.get("says", "CUDA out of memory."))
    if task.attempt < wanted.get("breaks", 0):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    return {"pid": os.getpid(), "attempt": task.attempt, **{name: os.environ.get(name) for name in NAMES}}


def devices(result: dict[str, Any]) -> list[str]:
    """Return the devices that a task saw."""
    return re.findall(r"[^,]+", result["CUDA_VISIBLE_DEVICES"])
