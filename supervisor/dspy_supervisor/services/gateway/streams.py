"""Answers that go on: events, as the EventSource of a browser reads them, and text that grows."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.responses import StreamingResponse

from .ring import SlowListener


def event_stream(chunks: AsyncIterator[bytes]) -> StreamingResponse:
    """Return an answer of Server-Sent Events. It ends where the listener is too slow: it comes back and is told so."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # no proxy may keep it back
    return StreamingResponse(_until_slow(chunks), 200, headers, "text/event-stream")


async def _until_slow(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        async for chunk in chunks:
            yield chunk
    except SlowListener:
        return
