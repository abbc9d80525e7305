"""How many requests a server gets at once: as many as it answers about as fast as a few.

More than that wait in the server's own queue, where they can't be batched together any more and may time out. The rule is
that of TCP Vegas (Brakmo and Peterson, 1994): more while the round trip stays near the shortest one, fewer when it has
doubled, and a third less where the server says that it is overloaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field

START = 4.0
_FAST = 1.5  # times the shortest: there is room for more
_SLOW = 3.0
_FORGET = 1.02  # a day when all was faster is forgotten in some dozens of requests


@dataclass(slots=True)
class Window:
    """Of one server."""

    highest: int
    size: float = field(default=START, init=False)
    _shortest: dict[int, float] = field(default_factory=dict, init=False)  # seconds, by the order of size of a batch

    def __post_init__(self) -> None:
        self.size = min(self.size, float(self.highest))

    @property
    def most(self) -> int:
        """Requests at once, 1 at least."""
        return max(1, int(self.size))

    def answered(self, took_s: float, texts: int, outstanding: int) -> None:
        """A request of so many texts was answered, while so many were under way, itself among them."""
        order = texts.bit_length()
        shortest = min(took_s, self._shortest.get(order, took_s) * _FORGET)
        self._shortest[order] = shortest
        ratio = took_s / shortest if shortest > 0 else 1.0
        if ratio > _SLOW:
            self.size = max(1.0, self.size - 0.5)
        elif ratio < _FAST and outstanding >= self.most:  # else it was not the window that bound
            self.size = min(float(self.highest), self.size + 0.5)

    def overloaded(self) -> None:
        """The server said so, or did not answer in time."""
        self.size = max(1.0, self.size * 0.7)
