"""How much a server takes in one request, and how many tokens a text is taken to have."""

from __future__ import annotations

from dataclasses import dataclass

_BYTES_A_TOKEN = 3  # English has 4 or 5, code and other languages less: rather a smaller batch than a refused one


@dataclass(slots=True)
class Limits:
    """The most of one request; what a server refused for its size lowers them."""

    texts: int
    bytes: int
    tokens: int

    def lowest(self, other: Limits) -> Limits:
        """Return what both take."""
        return Limits(min(self.texts, other.texts), min(self.bytes, other.bytes), min(self.tokens, other.tokens))

    def learn(self, texts: int, size: int) -> None:
        """Remember that a request of so many texts and bytes was too large."""
        if size > self.bytes // 2:
            self.bytes = min(self.bytes, max(1024, size // 2))
        else:
            self.texts = max(1, min(self.texts, texts // 2))


def tokens_of(size: int) -> int:
    """Return how many tokens a text of so many bytes may have, with those that mark its beginning and end."""
    return size // _BYTES_A_TOKEN + 2
