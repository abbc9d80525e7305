"""The control socket: how other programs of this user ask a running supervisor for something.

A Unix stream socket in the runtime folder (0600). One JSON object a line each way: ``{"do": "status"}`` is answered by
``{"ok": true, ...}`` or ``{"ok": false, "error": "...", "exit": N}``.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson

from .errors import EXIT_USAGE, SupervisorError
from .log import log
from .reactor import Reactor


class Later:
    """An answer that is not known yet; whoever was asked says it by `end`, once."""

    hears: Callable[[Callable[[], Mapping[str, Any]]], object] | None = None  #: gets what returns the answer, or raises

    def end(self, answer: Callable[[], Mapping[str, Any]]) -> None:
        """Say it to whoever asked."""
        if self.hears is not None:
            self.hears(answer)


Answer = Callable[[Mapping[str, Any]], Mapping[str, Any] | Later]

_MAX_REQUEST = 1 << 20  # bytes
_PATIENCE_S = 10.0  # for a client to send its line and take the answer
_MAX_CLIENTS = 64
_AGAIN_S = 1.0


class Control:
    """Serves the control socket from the supervisor's loop."""

    def __init__(
        self, reactor: Reactor, path: Path, requests: Mapping[str, Answer], listening: int | None = None
    ) -> None:
        """``listening``: the socket at this path, where the program before this one made it; who asked it waits there."""
        self._reactor, self._path, self._requests = reactor, path, requests
        self._clients: dict[int, _Client] = {}
        if listening is None:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()  # of a supervisor that was killed: we hold its lock
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            mask = os.umask(0o177)
            try:
                _bind(self._socket, path)
            finally:
                os.umask(mask)
            self._socket.listen(_MAX_CLIENTS)
        else:
            self._socket = socket.socket(fileno=listening)
            self._socket.setblocking(False)
        self._listen()

    def fileno(self) -> int:
        """The descriptor that listens."""
        return self._socket.fileno()

    @property
    def is_busy(self) -> bool:
        """Whether somebody was not sent all of an answer yet."""
        return any(client.has_output for client in self._clients.values())

    def _listen(self) -> None:
        if self._socket.fileno() >= 0:
            self._reactor.add(self._socket.fileno(), self._accept)

    def close(self) -> None:
        """Serve no more."""
        for client in list(self._clients.values()):
            client.close()
        self._reactor.remove(self._socket.fileno())
        self._socket.close()
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    def _accept(self) -> None:
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:  # out of descriptors: whoever asks waits meanwhile
            log.warning("cannot_accept", error=str(error), next=f"again in {_AGAIN_S:.0f} s")
            self._reactor.remove(self._socket.fileno())
            self._reactor.call_later(_AGAIN_S, self._listen)
            return
        with contextlib.suppress(ConnectionError):
            if len(self._clients) >= _MAX_CLIENTS or _peer(connection) not in (os.geteuid(), 0):
                connection.close()
                return
            connection.setblocking(False)
            client = _Client(self._reactor, connection, self._answer, self._clients)
            self._clients[connection.fileno()] = client

    def _answer(self, line: bytes) -> bytes | Later:
        """Return the answer as a line, or what will be one by `_line`."""
        later: Later | None = None

        def asked() -> Mapping[str, Any]:
            nonlocal later
            request = orjson.loads(line)
            do = request.get("do") if isinstance(request, dict) else None
            if not isinstance(do, str) or do not in self._requests:
                known = ", ".join(sorted(self._requests))
                return {"ok": False, "error": f"do={do!r}: expected one of {known}", "exit": EXIT_USAGE}
            answer = self._requests[do](request)
            if isinstance(answer, Later):
                later = answer
                return {}
            return answer

        said = _line(asked)
        return said if later is None else later


def _line(answer: Callable[[], Mapping[str, Any]]) -> bytes:
    """Return what is answered, or why it can't be."""
    try:
        return orjson.dumps({"ok": True, **answer()}) + b"\n"
    except SupervisorError as error:
        return orjson.dumps({"ok": False, "error": str(error), "exit": error.exit_code}) + b"\n"
    except (ValueError, TypeError, KeyError, OSError) as error:
        log.warning("request_failed", error=str(error))
        return orjson.dumps({"ok": False, "error": f"{type(error).__name__}: {error}", "exit": 1}) + b"\n"


class _Client:
    """One connection: reads a line, answers it, reads the next."""

    def __init__(
        self,
        reactor: Reactor,
        connection: socket.socket,
        answer: Callable[[bytes], bytes | Later],
        clients: dict[int, _Client],
    ) -> None:
        self._reactor, self._connection, self._answer, self._clients = reactor, connection, answer, clients
        self._number = connection.fileno()
        self._input, self._output = bytearray(), bytearray()
        self._timer = reactor.call_later(_PATIENCE_S, self.close)
        reactor.add(self._number, self._ready)

    @property
    def has_output(self) -> bool:
        """Whether a part of an answer was not sent yet."""
        return bool(self._output)

    def close(self) -> None:
        self._timer.cancel()
        if self._clients.pop(self._number, None) is not None:
            self._reactor.remove(self._number)
            self._connection.close()

    def _ready(self) -> None:
        try:
            self._read()
            self._write()
        except BlockingIOError:
            return
        except OSError:
            self.close()

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            chunk = self._connection.recv(65536)
            if not chunk and not self._output:
                self.close()
                return
            self._input += chunk
        if len(self._input) > _MAX_REQUEST:
            self.close()
            return
        while b"\n" in self._input:
            line, _, rest = bytes(self._input).partition(b"\n")
            self._input = bytearray(rest)
            answer = self._answer(line)
            if isinstance(answer, Later):
                self._timer.cancel()  # it waits for as long as it wants
                answer.hears = self._tell
            else:
                self._output += answer

    def _tell(self, answer: Callable[[], Mapping[str, Any]]) -> None:
        """Send an answer that came late. What is done for it is done also where nobody waits for it any more."""
        said = _line(answer)
        if self._clients.get(self._number) is self:
            self._timer = self._reactor.call_later(_PATIENCE_S, self.close)
            self._output += said
            self._ready()

    def _write(self) -> None:
        if self._clients.get(self._number) is not self:
            return
        if self._output:
            sent = self._connection.send(self._output)
            del self._output[:sent]
        self._reactor.add(self._number, self._ready, writable=bool(self._output))


def _bind(server: socket.socket, path: Path) -> None:
    """Bind to a path of any length: one of more than 107 bytes is reached through a descriptor of its folder."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        server.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


def _peer(connection: socket.socket) -> int:
    """Return the user at the other end."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])
