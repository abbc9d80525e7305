"""A random walk as an environment: it ends ten steps away from where it began."""

from __future__ import annotations

import random
from typing import Any

GOAL = 10


class Walk:
    """Moves by the action, -1 or 1, and sometimes slips."""

    def __init__(self, slip: float = 0.1) -> None:
        self._slip, self._chance, self._place = slip, random.Random(), 0

    def reset(self, seed: int | None = None) -> tuple[list[int], dict[str, Any]]:
        """Go back to the middle."""
        self._chance.seed(seed)
        self._place = 0
        return [self._place], {}

    def step(self, action: int) -> tuple[list[int], float, bool, bool, dict[str, Any]]:
        """Move."""
        slipped = self._chance.random() < self._slip
        self._place += -action if slipped else action
        at_end = abs(self._place) >= GOAL
        return [self._place], 1.0 if at_end else -0.1, at_end, False, {"slipped": slipped}

    def close(self) -> None:
        """Nothing to give back."""
