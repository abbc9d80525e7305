"""A handler that runs the Python code of its payload, as agents have it: what it finds in ``out`` is the result."""

from __future__ import annotations

import errno
from typing import Any

from dspy_supervisor.parts import JSON, Task


def run(task: Task) -> JSON:
    """Return what the code found, or how the kernel refused it."""
    names: dict[str, Any] = {"task": task, "give": task.payload.get("give"), "out": None}
    try:
        exec(task.payload["code"], names)
    except OSError as error:
        return {"refused": errno.errorcode.get(error.errno or 0, str(error))}
    return {"out": names["out"]}
