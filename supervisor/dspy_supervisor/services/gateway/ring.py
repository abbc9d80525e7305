"""The last events of a queue in memory, as they are streamed: numbered, so that a listener goes on where it was cut off.

An event's id is ``EPOCH-N``. An epoch ends where events may have been missed, as after an overflow or a new start: a
listener of an earlier one, or one whose place is no longer kept, is told ``event: reset`` first, and looks for itself.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

import orjson

MOST = 10_000  #: events that are kept
HEARTBEAT_S = 15.0  #: a listener is sent something at least so often, so that both sides notice a dead connection
_GATHER_S = 0.05  # what comes within so long goes in one piece
_GATHER_EACH_S = 0.0005  # and so much longer for each listener, as waking hundreds costs more than the news


class SlowListener(Exception):
    """A listener fell so far behind that what it needs next is kept no more."""


class Ring:
    """Events of one queue, for any number of listeners in one event loop."""

    def __init__(self, most: int = MOST) -> None:
        self._kept: deque[bytes] = deque(maxlen=most)
        self._next = 1  # number of the next event
        self._epoch = secrets.token_hex(4)
        self._news = asyncio.Event()
        self.listeners = 0

    def add(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Keep events, oldest first, and tell the listeners."""
        before = self._next
        for event in events:
            self._kept.append(b"id: %b-%d\ndata: %b\n\n" % (self._epoch.encode(), self._next, orjson.dumps(event)))
            self._next += 1
        if self._next != before:
            self._tell()

    def reset(self) -> None:
        """Begin a new epoch: something may have been missed."""
        self._epoch = secrets.token_hex(4)
        self._kept.clear()
        self._next = 1
        self._tell()

    async def listen(self, last_id: str | None, is_over: Callable[[], bool]) -> AsyncIterator[bytes]:
        """Yield what is to be sent to one listener, from after ``last_id`` on, or from now, until ``is_over``.

        Raises SlowListener where it does not keep up.
        """
        self.listeners += 1
        try:
            epoch, place = self._epoch, self._place(last_id)
            yield b"retry: 1000\n\n" if place is not None else self._reset_notice()
            place = self._next if place is None else place
            while not is_over():
                news = self._news
                if epoch != self._epoch:
                    epoch, place = self._epoch, self._next
                    yield self._reset_notice()
                elif place < self._next:
                    chunk, place = self._after(place)
                    yield chunk
                    await asyncio.sleep(_GATHER_S + _GATHER_EACH_S * self.listeners)
                else:
                    try:
                        async with asyncio.timeout(HEARTBEAT_S):
                            await news.wait()
                    except TimeoutError:
                        yield b": still here\n\n"
        finally:
            self.listeners -= 1

    def wake(self) -> None:
        """Let every listener look whether it is over."""
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _place(self, last_id: str | None) -> int | None:
        """Return the number of the event to go on with, None where what came before it is not known any more."""
        if last_id is None:
            return self._next
        epoch, _, number = last_id.partition("-")
        if epoch != self._epoch or not number.isascii() or not number.isdigit() or len(number) > 15:
            return None
        place = int(number) + 1
        return place if self._next - len(self._kept) <= place <= self._next else None

    def _after(self, place: int) -> tuple[bytes, int]:
        first = self._next - len(self._kept)
        if place < first:
            raise SlowListener(f"{first - place} events were dropped before they were taken")
        return b"".join([self._kept[number - first] for number in range(place, self._next)]), self._next

    def _reset_notice(self) -> bytes:
        """Return what tells a listener to look for itself; its id is that of the last event before now."""
        number = self._next - 1
        return b'retry: 1000\nid: %b-%d\nevent: reset\ndata: {"event":"reset"}\n\n' % (self._epoch.encode(), number)
