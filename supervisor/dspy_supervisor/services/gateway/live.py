"""The overview once a second, computed once for all who listen, and not at all while nobody does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from ...errors import SupervisorError
from .answers import dumps
from .overview import overview

if TYPE_CHECKING:
    from .context import Context

_EVERY_S = 1.0


class Live:
    """Sends the overview to its listeners: ``event: status``, or ``event: problem`` where it can't be had, with the reason."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._listeners = 0
        self._latest: dict[bool, bytes] = {}
        self._made_at = 0.0  # monotonic seconds
        self._news = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None

    async def listen(self, *, may_write: bool) -> AsyncIterator[bytes]:
        """Yield what one listener is sent, until the gateway ends."""
        self._listeners += 1
        try:
            yield b"retry: 1000\n\n"
            if self._pump is None or self._pump.done():
                self._pump = self._context.spawn(self._run())
            elif time.monotonic() - self._made_at < 2 * _EVERY_S:
                yield self._latest[may_write]
            while not self._context.stopping.is_set():
                await self._news.wait()
                yield self._latest[may_write]
        finally:
            self._listeners -= 1

    async def _run(self) -> None:
        stopping = self._context.stopping
        while self._listeners:
            began = time.monotonic()
            try:
                await self._make()
            finally:
                news, self._news = self._news, asyncio.Event()
                news.set()
            if stopping.is_set():
                return
            try:
                async with asyncio.timeout(max(0.05, _EVERY_S - (time.monotonic() - began))):
                    await stopping.wait()
            except TimeoutError:
                pass

    async def _make(self) -> None:
        event, document = "status", dict[str, Any]()
        try:
            document = await overview(self._context)
        except (SupervisorError, OSError) as error:
            event, document = "problem", {"detail": str(error)}
        for may_write in (False, True):
            told = (
                document | {"gateway": {**document["gateway"], "writable": may_write}}
                if "gateway" in document
                else document
            )
            self._latest[may_write] = b"event: %b\ndata: %b\n\n" % (event.encode(), dumps(told).rstrip(b"\n"))
        self._made_at = time.monotonic()
