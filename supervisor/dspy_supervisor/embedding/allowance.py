"""How much may be tried again: a share of what succeeds, so that an overloaded server is not asked twice as much.

The rule is gRPC's retry throttling (proposal A6): a failure takes a token, a success gives back a tenth of one, and nothing is
tried again while less than half of the tokens are left.
"""

from __future__ import annotations

from dataclasses import dataclass, field

TOKENS = 100.0
_BACK = 0.1


@dataclass(slots=True)
class Allowance:
    """Of one client."""

    tokens: float = field(default=TOKENS, init=False)

    def succeeded(self) -> None:
        """A request was answered."""
        self.tokens = min(TOKENS, self.tokens + _BACK)

    def failed(self) -> bool:
        """A request failed; return whether one may be tried again."""
        self.tokens = max(0.0, self.tokens - 1.0)
        return self.tokens >= TOKENS / 2
