"""One connection of a caller, cut where it keeps us waiting or says too much.

The parser has no bounds of its own: a head that never ends, or comes a byte a second, and a caller that takes no answer,
would each hold a connection for ever. `Connections.look` is called about once a second and ends those.

A connection that is closed while its caller still sends lingers for a moment: the kernel would answer what comes then with a
reset, by which the caller loses the answer that it was about to read (RFC 9112, 9.6).
"""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

MAX_HEAD_BYTES = 64 << 10
MAX_HEADERS = 200
KEEP_ALIVE_S = 75  #: that a caller may keep a connection without a request
_MAX_PIPELINED = 32  # requests of one caller that wait for the answer to the one before
_SEND_BYTES = 256 << 10
_GATHERED_BYTES = 16 << 10  # of an answer that wait for the rest of it, until the loop's next turn
_SPARE = 64  # connections beyond the bound that are told so
_LINGER_S = 2.0
_LINGER_BYTES = 64 << 20

_TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_TOO_LONG = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Connections(ServerState):
    """All connections of a gateway."""

    def __init__(self, most: int, patience_s: float) -> None:
        super().__init__()
        self.most, self.patience_s = most, patience_s
        self.cut = 0  #: that were ended for what they did

    def look(self, now: float) -> None:
        """End those that keep us waiting (``now``: monotonic)."""
        for connection in list(self.connections):
            if isinstance(connection, Connection):
                connection.look(now)


class Connection(HttpToolsProtocol):
    """A connection of a caller."""

    def __init__(
        self,
        config: Config,
        server_state: Connections,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._all = server_state
        self._head_since = 0.0  # monotonic seconds; 0: no head is on its way
        self._head_bytes = 0
        self._full_since = 0.0  # since when the caller takes nothing of what is written
        self._closing_since = 0.0
        self._lingering_bytes = 0  # that came since

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Lingering(transport, self))  # type: ignore[arg-type]
        self._head_since = time.monotonic()
        # What the kernel keeps for a caller who does not take it is memory, too, and hides that he doesn't.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)
        if len(self.connections) > self._all.most + _SPARE:
            transport.abort()
        elif len(self.connections) > self._all.most:
            self._head_bytes = 1  # its request is on the way, surely
            self._end(_TOO_MANY)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            self._lingering_bytes += len(data)
            if self._lingering_bytes > _LINGER_BYTES:
                self.transport.abort()
            return
        if not self._head_since and (self.cycle is None or self.cycle.response_complete):
            self._head_since, self._head_bytes = time.monotonic(), 0
        if self._head_since:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._head_since and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._end(_TOO_LONG)

    def on_headers_complete(self) -> None:
        self._head_since, self._head_bytes = 0.0, 0
        if self.transport.is_closing():
            return
        if len(self.pipeline) >= _MAX_PIPELINED:
            self._all.cut += 1
            self.transport.abort()
            return
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS:
            self._end(_TOO_LONG)
            return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self.cycle is not None and not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self.cycle is not None and not self.transport.is_closing():
            super().on_message_complete()

    def pause_writing(self) -> None:
        self._full_since = time.monotonic()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._full_since = 0.0
        super().resume_writing()

    @property
    def still_sends(self) -> bool:
        """Whether the end of a request is still on its way."""
        return self._head_bytes > 0 or (self.cycle is not None and self.cycle.more_body)

    def look(self, now: float) -> None:
        """End this one where it keeps us waiting."""
        patience_s = self._all.patience_s
        if self.transport.is_closing():  # what is left to be written may never be taken
            self._closing_since = self._closing_since or now
            if now - self._closing_since > (_LINGER_S if self.still_sends else patience_s):
                self.transport.abort()
        elif self._full_since and now - self._full_since > patience_s:
            self._all.cut += 1
            self.transport.abort()
        elif self._head_since and now - self._head_since > patience_s:
            self._end(_TOO_SLOW if self._head_bytes else b"")

    def _end(self, answer: bytes) -> None:
        self._all.cut += 1
        if answer:
            self.transport.write(answer)
        self.transport.close()


class _Lingering:
    """The transport of a connection, which sends head and body of an answer at once, and lets the caller finish at its end."""

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        self._transport, self._connection = transport, connection
        self._lingers = False
        self._unsent = bytearray()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._lingers or self._transport.is_closing()

    def write(self, data: bytes) -> None:
        if self._lingers:
            return
        if len(self._unsent) + len(data) > _GATHERED_BYTES:
            self._send()
            self._transport.write(data)
            return
        if not self._unsent:
            self._connection.loop.call_soon(self._send)
        self._unsent += data

    def close(self) -> None:
        self._send()
        if self.is_closing() or not self._connection.still_sends:
            self._transport.close()
            return
        self._lingers = True
        self._transport.write_eof()
        self._connection.flow.resume_reading()  # and so reads the end, upon which the transport closes by itself

    def _send(self) -> None:
        if self._unsent:
            self._transport.write(bytes(self._unsent))
            self._unsent.clear()
