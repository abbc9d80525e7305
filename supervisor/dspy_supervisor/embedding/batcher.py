"""Texts of many callers, gathered into requests.

The first text starts a timer, and a batch goes when it runs out, or as soon as it is full by count, bytes or estimated tokens,
or nobody is left who could ask for more; and never while the servers have as many requests as they answer well: then batches
grow. A caller with a hundred thousand texts doesn't stand before one with a single text: each batch holds some of everyone's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import orjson

from ..config_embed import EmbedSettings
from ..errors import EmbeddingError, EmbeddingRefused
from .limits import tokens_of
from .sender import Row, Sender

_AHEAD = 2  # requests under way that keep a server busy while the answer to one of them travels


class Call:
    """The texts of one caller, on their way to vectors."""

    def __init__(self, texts: Sequence[str], *, each: bool) -> None:
        loop = asyncio.get_running_loop()
        self.texts, self.each = texts, each
        self.sizes = [_size(text, index) for index, text in enumerate(texts)]  #: bytes of JSON
        self.rows: list[Row | None] = [None] * len(texts)
        self.ended: asyncio.Future[None] = loop.create_future()
        self.since = loop.time()
        self.next = 0  #: the first text that is not on its way
        self._left = len(texts)

    def put(self, index: int, row: Row) -> None:
        """A text has its vector, or will never have one."""
        if self.ended.done():
            return
        if isinstance(row, EmbeddingError):
            row.index = index
            if not self.each:
                self.fail(row)
                return
        self.rows[index] = row
        self._left -= 1
        if not self._left:
            self.ended.set_result(None)

    def fail(self, error: BaseException) -> None:
        """None of its texts will have one."""
        if isinstance(error, asyncio.CancelledError):
            self.ended.cancel()
        elif not self.ended.done():
            self.ended.set_exception(error)


class _Place(NamedTuple):
    call: Call
    at: int


class Batcher:
    """Of one client."""

    def __init__(self, settings: EmbedSettings, sender: Sender) -> None:
        self._sender = sender
        self._wait_s, self._linger_s = settings.embed_wait_ms / 1000, settings.embed_linger_ms / 1000
        self._calls: deque[Call] = deque()  # with texts that wait
        self._texts = self._bytes = self._tokens = 0  # that wait
        self._deliveries: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._open = 0  # calls that have not ended
        self.callers = 0  #: how many there can be at once; 0: not known

    @property
    def waiting(self) -> int:
        """Texts that are on no way yet."""
        return self._texts

    @property
    def deliveries(self) -> int:
        """Batches that are under way."""
        return len(self._deliveries)

    async def run(self, call: Call) -> None:
        """Get the vectors of a call. Raises EmbeddingError."""
        self._calls.append(call)
        self._texts += len(call.texts)
        self._bytes += sum(call.sizes)
        self._tokens += sum(map(tokens_of, call.sizes))
        self._open += 1
        # Else the timer sends it, after all who ask in this moment.
        if self._timer is None or self._is_full() or self._open == self.callers:
            self._pump()
        try:
            await call.ended
        finally:
            self._open -= 1
            self._drop(call)

    def _drop(self, call: Call) -> None:
        """Send nothing more of a call that ended, or whose caller went away."""
        if call.next < len(call.texts):
            left = call.sizes[call.next :]
            self._texts -= len(left)
            self._bytes -= sum(left)
            self._tokens -= sum(map(tokens_of, left))
            call.next = len(call.texts)
            self._calls.remove(call)

    def _pump(self) -> None:
        """Send what may go now, and see to it that the rest goes in time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop = asyncio.get_running_loop()
        while self._calls and len(self._deliveries) < self._sender.room:
            wait_s = min(self._linger_s, self._wait_s) if len(self._deliveries) < _AHEAD else self._wait_s
            if self.callers and self._open >= self.callers:
                wait_s = 0.0  # everyone who could ask for more waits for an answer
            due = min(call.since for call in self._calls) + wait_s
            if loop.time() < due and not self._is_full():
                self._timer = loop.call_at(due, self._pump)
                return
            delivery = loop.create_task(self._deliver(self._cut()))
            self._deliveries.add(delivery)
            delivery.add_done_callback(self._delivered)

    def _delivered(self, delivery: asyncio.Task[None]) -> None:
        self._deliveries.discard(delivery)
        if not delivery.get_loop().is_closed():
            self._pump()

    def _is_full(self) -> bool:
        limits = self._sender.limits
        return self._texts >= limits.texts or self._bytes >= limits.bytes or self._tokens >= limits.tokens

    def _cut(self) -> list[_Place]:
        """Take a batch of what waits: of each call its share, and as much more as there is room for."""
        limits = self._sender.limits
        places: list[_Place] = []
        size = tokens = 0
        share = max(1, limits.texts // len(self._calls))
        while self._calls and len(places) < limits.texts:
            call = self._calls[0]
            for index in range(
                call.next, min(len(call.texts), call.next + share, call.next + limits.texts - len(places))
            ):
                more = call.sizes[index]
                if places and (size + more > limits.bytes or tokens + tokens_of(more) > limits.tokens):
                    break
                places.append(_Place(call, index))
                size += more
                tokens += tokens_of(more)
                call.next = index + 1
            else:
                self._calls.popleft()
                if call.next < len(call.texts):
                    self._calls.append(call)
                continue
            break
        self._texts -= len(places)
        self._bytes -= size
        self._tokens -= tokens
        return places

    async def _deliver(self, places: list[_Place]) -> None:
        try:
            rows = await self._sender.rows([place.call.texts[place.at] for place in places])
        except BaseException as error:  # whatever it is: a caller must not wait for ever
            for call in {place.call for place in places}:
                call.fail(error)
                self._drop(call)
            if not isinstance(error, EmbeddingError):
                raise
            return
        for place, row in zip(places, rows, strict=True):
            place.call.put(place.at, row)


def _size(text: str, index: int) -> int:
    if not isinstance(text, str):
        raise EmbeddingRefused(f"text {index} is no text but {type(text).__name__}", index=index)
    try:
        return len(orjson.dumps(text)) + 1
    except orjson.JSONEncodeError:
        raise EmbeddingRefused(f"text {index} has a lone surrogate, which UTF-8 has not", index=index) from None
