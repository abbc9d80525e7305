"""A queue whose supervisor has GPUs, or believes so: what telemetry sees is what a test says (gpu_crew.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..conftest import Supervised, until
from .rig import Gate, Rig

GIB = 1 << 30
A, B, C, D = (f"GPU-{letter * 8}" for letter in "abcd")
Tell = Callable[..., None]


def gpu(uuid: str, free: float = 23.5, **more: Any) -> dict[str, Any]:
    return {"uuid": uuid, "total": 24.0, "free": free, **more}


class Gpus(Rig):
    """A queue whose supervisor has GPUs."""

    def begin(
        self, workers: int = 2, *options: str, settings: dict[str, object] | None = None, **more: Any
    ) -> Supervised:
        handlers = {"cpu_short": "tests.system.handlers:play", "gpu": "tests.system.gpu_handlers:play"}
        chosen = {"enable_gpu": "true", "policy": "fixed", **(settings or {})}
        return self.start(
            *options, "--workers", f"gpu={workers}", workers=1, handlers=handlers, settings=chosen,
            program="tests.system.gpu_crew", **more,
        )  # fmt: skip

    def ask(self, task_id: str, payload: dict[str, Any] | None = None, **resources: Any) -> str:
        """Put a task that asks for these resources."""
        more = {"resources": resources} if resources else {}
        return self.drop(task_id, payload or {}, **{"class": "gpu", **more})

    def wait_in(self, task_id: str, **resources: Any) -> Gate:
        """Put a task that begins, and waits to be let through."""
        more = {"resources": resources} if resources else {}
        return self.gate(task_id, **{"class": "gpu", **more})

    def result(self, task_id: str) -> dict[str, Any]:
        record = self.record(task_id)
        assert record["status"] == "done", record.get("error")
        found: dict[str, Any] = record["runner_result"]
        return found


def let_through(*gates: Gate) -> None:
    """Let tasks end that have all begun, so that they ran at the same time."""
    for gate in gates:
        gate.wait()
    for gate in gates:
        gate.open()


def why(one: Supervised, task_id: str) -> str:
    """Return why a task waits."""
    found: str = one.ask("explain", id=task_id)["explanation"]
    return found


def until_it_waits(one: Supervised, task_id: str, reason: str) -> None:
    until(lambda: reason in why(one, task_id), f"{task_id} waits: {reason}")
