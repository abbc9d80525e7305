"""When something that died at its start is started again, and when no more."""

from __future__ import annotations

from dataclasses import dataclass

_FIRST_S = 0.1


@dataclass(slots=True)
class Breaker:
    """Counts deaths in a row: each doubles the wait, and after ``starts`` of them it opens."""

    starts: int
    cap_s: float  #: longest wait, seconds
    failures: int = 0
    failed: str = ""  #: why it is open: nothing is started any more

    def trip(self, why: str) -> float:
        """Note a death; return the seconds until the next start, which means nothing once `failed` is set."""
        self.failures += 1
        if self.failures >= self.starts:
            self.failed = f"{self.failures} in a row died at their start; the last: {why}"
        return min(self.cap_s, _FIRST_S * 2.0 ** min(self.failures - 1, 60))

    def allow_one(self) -> None:
        """Let one more start be tried: it opens again at the next death, unless `reset` comes before."""
        self.failures, self.failed = self.starts - 1, ""

    def reset(self) -> None:
        """Begin anew: it worked, or somebody asks to try again."""
        self.failures, self.failed = 0, ""
