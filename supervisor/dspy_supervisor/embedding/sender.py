"""From texts to vectors: which server is asked, what is asked again, and what is asked in halves.

Tried again, after a wait with full jitter, is only what may go better: no answer, 408, 424, 425, 429 and 5xx. A batch that is
too large or holds a text that the model won't take is halved until the text stands alone: the others get their vectors.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import stamina

from ..config_embed import EmbedSettings
from ..errors import EmbeddingError, EmbeddingInvalid, EmbeddingRefused, EmbeddingUnavailable
from .allowance import Allowance
from .counts import Counts
from .dialect import Vectors
from .endpoint import SIZE, TEXT, Endpoint, TooMany
from .limits import Limits

Row: TypeAlias = "Vectors | EmbeddingError"
_PROOFS = 8  # texts refused one by one, and none taken: perhaps it is not the texts that are at fault
_HARMLESS = "text"


@dataclass(slots=True)
class _TooLarge:
    error: EmbeddingRefused
    texts: int
    by_itself: bool = False  # no text of it was refused alone


@dataclass(slots=True)
class _Halving:
    taken: int = 0
    refused: int = 0
    too_large: list[_TooLarge] = field(default_factory=list)  # the largest first


class Sender:
    """Of one client."""

    def __init__(self, settings: EmbedSettings, endpoints: Sequence[Endpoint], counts: Counts) -> None:
        self._settings, self._endpoints, self._counts = settings, endpoints, counts
        self._allowance = Allowance()
        self.dimensions = settings.embed_dimensions  #: of every vector; 0: not known yet

    @property
    def limits(self) -> Limits:
        """What every server that is known takes in one request."""
        settings = self._settings
        found = Limits(settings.embed_batch_size, 1 << 40, 1 << 40)
        for endpoint in self._endpoints:
            found = found.lowest(endpoint.limits)
        return found

    @property
    def room(self) -> int:
        """How many requests may be under way at once; 1 where no server can be asked, to find out when one can."""
        now = time.monotonic()
        open_now = sum(endpoint.window.most for endpoint in self._endpoints if endpoint.opens_at(now) <= now)
        return min(self._settings.embed_max_requests, max(1, open_now))

    async def rows(self, texts: Sequence[str]) -> list[Row]:
        """Return a vector for each text, or why the server won't take this one.

        Raises EmbeddingError for what is the fault of no text.
        """
        halving = _Halving()
        rows = await self._rows(texts, halving)
        for one in halving.too_large:
            if one.by_itself:
                self._learn(one)
        return rows

    async def _rows(self, texts: Sequence[str], halving: _Halving) -> list[Row]:
        large: _TooLarge | None = None
        try:
            vectors = await self._send(texts)
        except TooMany:
            parts = self._parts(texts, min(self.limits.texts, len(texts) - 1))
        except EmbeddingRefused as error:
            if error.status not in SIZE | TEXT:
                raise
            if halving.refused >= _PROOFS and not halving.taken and not await self._takes_anything(halving):
                raise
            if len(texts) == 1:
                halving.refused += 1
                return [error]
            self._counts.halved += 1
            parts = self._parts(texts, (len(texts) + 1) // 2)
            if error.status in SIZE:
                large = _TooLarge(error, len(texts))
                halving.too_large.append(large)
        else:
            halving.taken += len(texts)
            return list(vectors)
        rows = [row for part in parts for row in await self._rows(part, halving)]
        if large is not None:
            large.by_itself = not any(isinstance(row, EmbeddingError) for row in rows)
        return rows

    def _learn(self, large: _TooLarge) -> None:
        """Remember what a server did not take for its size; some say 413 of a single text that is too long, too."""
        for endpoint in self._endpoints:
            if endpoint.name == large.error.endpoint:
                endpoint.limits.learn(large.texts, large.error.sent_bytes)

    async def _takes_anything(self, halving: _Halving) -> bool:
        """Whether the server takes a text that no model can mind: else it is not the texts that are at fault."""
        try:
            await self._send([_HARMLESS])
        except EmbeddingRefused:
            return False
        halving.taken += 1
        return True

    @staticmethod
    def _parts(texts: Sequence[str], size: int) -> list[Sequence[str]]:
        return [texts[start : start + size] for start in range(0, len(texts), size)]

    async def _send(self, texts: Sequence[str]) -> Vectors:
        """Return the vectors of one batch, however often that must be tried."""
        tries = 0

        def wait_s(error: Exception) -> float | bool:
            """Return how long to wait before the next try, or False where there should be none."""
            if not isinstance(error, EmbeddingUnavailable) or not self._allowance.failed():
                return False
            now = time.monotonic()
            soonest_s = max(0.0, min(endpoint.opens_at(now) for endpoint in self._endpoints) - now)
            if soonest_s > self._settings.embed_retry_cap_s:
                error.retry_after_s = soonest_s
                return False
            longest_s = min(self._settings.embed_retry_cap_s, self._settings.embed_retry_base_s * 2 ** (tries - 1))
            return max(random.uniform(0, longest_s), soonest_s * random.uniform(1, 1.1))

        attempts: Any = stamina.retry_context(on=wait_s, attempts=self._settings.embed_retries + 1, timeout=None)
        async for attempt in attempts:
            with attempt:
                tries += 1
                self._counts.retried += tries > 1
                vectors = self._checked(await self._choose().embed(texts))
        self._allowance.succeeded()
        return vectors

    def _choose(self) -> Endpoint:
        """Return the server that has the least to do. Raises EmbeddingUnavailable where none can be asked now."""
        now = time.monotonic()
        able = [endpoint for endpoint in self._endpoints if endpoint.opens_at(now) <= now]
        if not able:
            soonest_s = min(endpoint.opens_at(now) for endpoint in self._endpoints) - now
            said = "; ".join(endpoint.trouble or endpoint.name for endpoint in self._endpoints)
            error = EmbeddingUnavailable(f"no embedding server can be asked for {soonest_s:.1f} s: {said}")
            error.retry_after_s = soonest_s
            raise error
        return min(able, key=lambda endpoint: (endpoint.outstanding / endpoint.window.most, random.random()))

    def _checked(self, vectors: Vectors) -> Vectors:
        found = vectors.shape[1]
        if self.dimensions and found != self.dimensions:
            wanted = self.dimensions
            if not self._settings.embed_dimensions and len(self._endpoints) == 1:
                self.dimensions = 0  # its model was exchanged, perhaps: what comes next decides
            raise EmbeddingInvalid(f"vectors of {found} numbers, where there were {wanted} before")
        self.dimensions = found
        return vectors
