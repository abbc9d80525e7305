"""Environments of the system tests: they count their steps, and say where they live."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from .handlers import note, wait_for


class Counting:
    """Counts up to a goal; an action may be a word that it obeys."""

    def __init__(self, goal: int = 1000, log: str = "") -> None:
        self.goal, self.log, self.count = goal, log, 0
        self._note("made")

    def reset(self, seed: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin anew."""
        self.count = seed or 0
        return self._state(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Count, or do as the action says."""
        if action == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if action == "raise":
            raise ValueError("this step raises")
        if isinstance(action, dict) and "child" in action:
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdin=subprocess.DEVNULL)
        if isinstance(action, dict) and "gate" in action:
            Path(action["begun"]).touch()
            wait_for(action["gate"])
        self.count += 1
        return self._state(), 1.0, self.count >= self.goal, False, {"action": action}

    def close(self) -> None:
        """Note it."""
        self._note("closed")

    def _state(self) -> dict[str, Any]:
        return {"count": self.count, "pid": os.getpid()}

    def _note(self, what: str) -> None:
        if self.log:
            note(self.log, f"{what} {os.getpid()} {self.count}\n")
