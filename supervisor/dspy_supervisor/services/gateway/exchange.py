"""One request and its answer: how long the body may be and may take, and what every answer carries."""

from __future__ import annotations

import asyncio
import contextlib
import time

from starlette.types import Message, Receive, Send

from .problems import Problem

_LEAST_RATE = 1024  # bytes a second that a body must come at, beyond the first seconds
_SMALL_BYTES = 64 << 10  # what is left of a body that nobody wants is read to its end, if it is no more
#: of every answer that does not say otherwise: a browser is to run nothing, frame nothing, keep nothing
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
)


class Headers:
    """The headers of a request, as they came."""

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        self._values: dict[bytes, list[bytes]] = {}
        for name, value in raw:
            self._values.setdefault(name, []).append(value)

    def all(self, name: bytes) -> list[str]:
        """Return the values of a header."""
        return [value.decode("latin-1") for value in self._values.get(name, ())]

    def one(self, name: bytes) -> str | None:
        """Return the value of a header, None where it didn't come. Raises Problem where it came twice."""
        values = self._values.get(name)
        if values is None:
            return None
        if len(values) > 1:
            raise Problem(400, f"the header {name.decode('latin-1')} came {len(values)} times")
        return values[0].decode("latin-1")


class Exchange:
    """The two ways of one request."""

    def __init__(self, receive: Receive, send: Send, request_id: str, patience_s: float) -> None:
        self.status = 0  #: of the answer, as soon as it began
        self._receive, self._send = receive, send
        self._id, self._patience_s = request_id.encode(), patience_s
        self._most: int | None = None  # bytes of the body; None: it is read bit by bit, while the answer is on its way
        self._length: int | None = None  # that the caller announced
        self._is_read = True  # to its end, where there is a body
        self._got = 0
        self._began = time.monotonic()

    def expect(self, headers: Headers, most: int | None) -> None:
        """Look at what the caller announced; ``most``: bytes, or None for a body that is read bit by bit.

        Raises Problem for a body that is too long.
        """
        length = headers.one(b"content-length")
        self._most, self._length = most, int(length) if length is not None else None
        self._is_read = not self._length and headers.one(b"transfer-encoding") is None
        if most is not None and self._length is not None and self._length > most:
            raise self._too_long(most)

    async def receive(self) -> Message:
        """Return the next piece of the body. Raises Problem where it is too long, or comes too slowly."""
        if self._is_read:  # what is waited for is the end of nothing, or the caller's leaving
            return await self._receive()
        try:
            async with asyncio.timeout(self._patience_s):
                message = await self._receive()
        except TimeoutError:
            raise Problem(408, "the body came too slowly") from None
        self._got += len(message.get("body", b""))
        self._is_read = not message.get("more_body", False)
        if self._most is None:
            return message
        if self._got > self._most:
            raise self._too_long(self._most)
        took_s = time.monotonic() - self._began
        if not self._is_read and took_s > self._patience_s + self._got / _LEAST_RATE:
            raise Problem(408, "the body came too slowly")
        return message

    async def send(self, message: Message) -> None:
        """Send a piece of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            present = {name for name, _ in message["headers"]}
            message["headers"] = [
                *message["headers"],
                *(header for header in _HEADERS if header[0] not in present),
                (b"x-request-id", self._id),
                *await self._parting(),
            ]
        await self._send(message)

    async def _parting(self) -> list[tuple[bytes, bytes]]:
        """Return what an answer has to say of the connection, where nobody wanted the body that still comes."""
        if self._is_read or self._most is None:
            return []
        if self.status not in (408, 413) and self._length is not None and self._length - self._got <= _SMALL_BYTES:
            with contextlib.suppress(Problem):
                while not self._is_read:
                    await self.receive()
                return []
        return [(b"connection", b"close")]

    @staticmethod
    def _too_long(most: int) -> Problem:
        return Problem(413, f"a body has {most} bytes at most: see http_max_body_bytes")
