"""When a server is left alone: after failures in a row, for a time that doubles; then one request tries whether it is back."""

from __future__ import annotations

from dataclasses import dataclass, field

LONGEST_S = 60.0  #: that a server is left alone


@dataclass(slots=True)
class Breaker:
    """Of one server. Times are of the monotonic clock."""

    failures: int  #: in a row, that open it
    pause_s: float  #: the first pause
    failed: int = field(default=0, init=False)  #: in a row
    opened: int = field(default=0, init=False)  #: times so far
    until: float = field(default=0.0, init=False)  #: nothing is asked before
    trying: bool = field(default=False, init=False)  #: one request is under way to see whether it is back
    _next_s: float = field(default=0.0, init=False)

    def state(self, now: float) -> str:
        """Return closed, open or half_open."""
        if self.failed < self.failures:
            return "closed"
        return "open" if now < self.until else "half_open"

    def lets(self, now: float) -> bool:
        """Whether a request may go now."""
        state = self.state(now)
        return state == "closed" or (state == "half_open" and not self.trying)

    def begun(self, now: float) -> None:
        """A request goes."""
        self.trying = self.state(now) == "half_open"

    def abandoned(self) -> None:
        """The request was given up by its caller: that says nothing about the server."""
        self.trying = False

    def succeeded(self) -> None:
        """The server answered as it should."""
        self.failed, self.trying, self._next_s = 0, False, 0.0

    def erred(self, now: float) -> None:
        """The server failed."""
        self.failed += 1
        self.trying = False
        if self.failed >= self.failures and now >= self.until:
            self._next_s = min(LONGEST_S, 2 * self._next_s or self.pause_s)
            self.until = now + self._next_s
            self.opened += 1
