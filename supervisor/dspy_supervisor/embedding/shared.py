"""Between a worker and the process that batches for all workers of a supervisor: packets over a Unix socket.

::

    packet      4 bytes, big-endian: the length of a JSON object; the object; then so many bytes as its "size" says
    request     {"texts": [...], "inline_bytes": N}
    answer      {"size", "shape", "facts"}: the numbers, little-endian float32; with "json": true their text as JSON
                {"size": 0, "error": {"kind", "message", "endpoint", "status", "index", "retry_after_s"}}

A worker asks one thing at a time, and needs neither asyncio nor numpy for it. It hangs up to take a question back.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from .. import errors
from ..errors import EmbeddingError, EmbeddingUnavailable

MAX_HEAD = 1 << 30  #: bytes of JSON: a task's texts
LENGTH = struct.Struct(">I")
_KINDS = ("EmbeddingError", "EmbeddingRefused", "EmbeddingInvalid", "EmbeddingUnavailable")


class Gone(Exception):
    """Nobody answers there: ask the server without help."""


@dataclass(frozen=True, slots=True)
class Found:
    """The vectors of a request."""

    numbers: bytes  #: little-endian float32, or their text as JSON
    is_json: bool
    shape: tuple[int, int]
    facts: dict[str, Any]  #: for the record: model, dimensions


class Asker:
    """A worker's end. It connects when it is first asked, and anew where the other end was replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket: socket.socket | None = None

    def ask(self, texts: Sequence[str], inline_bytes: int) -> Found:
        """Return the vectors of these texts. Raises EmbeddingError, and Gone where nobody answers."""
        try:
            if self._socket is None:
                self._socket = _connect(self._path)
            head = orjson.dumps({"texts": texts, "inline_bytes": inline_bytes})
            self._socket.sendall(LENGTH.pack(len(head)) + head)
            (length,) = LENGTH.unpack(self._read(LENGTH.size))
            answer = orjson.loads(self._read(length))
            numbers = self._read(answer["size"])
        except BaseException as error:
            self.close()  # also where the task was interrupted: the next must not get its answer
            if isinstance(error, OSError | EOFError):
                raise Gone(str(error)) from None
            raise
        if "error" in answer:
            raise unpacked(answer["error"])
        return Found(numbers, bool(answer.get("json")), tuple(answer["shape"]), answer["facts"])

    def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _read(self, size: int) -> bytes:
        assert self._socket is not None
        parts = bytearray(size)
        view = memoryview(parts)
        while view:
            count = self._socket.recv_into(view)
            if not count:
                raise EOFError("it hung up")
            view = view[count:]
        return bytes(parts)


def packed(error: EmbeddingError) -> dict[str, Any]:
    """Return an error as it travels."""
    return {
        "kind": type(error).__name__ if type(error).__name__ in _KINDS else "EmbeddingRefused",
        "message": str(error),
        "endpoint": error.endpoint,
        "status": error.status,
        "index": error.index,
        "retry_after_s": getattr(error, "retry_after_s", None),
    }


def unpacked(told: dict[str, Any]) -> EmbeddingError:
    """Return the error that the other end had."""
    kind = getattr(errors, told["kind"]) if told["kind"] in _KINDS else EmbeddingError
    error: EmbeddingError = kind(told["message"], endpoint=told["endpoint"], status=told["status"], index=told["index"])
    if isinstance(error, EmbeddingUnavailable):
        error.retry_after_s = told["retry_after_s"]
    return error


def _connect(path: Path) -> socket.socket:
    """Connect by the folder's descriptor: a name in sockaddr_un holds 107 bytes, a path may be longer."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        found.connect(f"/proc/self/fd/{folder}/{path.name}")
    except BaseException:
        found.close()
        raise
    finally:
        os.close(folder)
    return found
