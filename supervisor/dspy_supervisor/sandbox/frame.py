"""What a worker and the process that runs its tasks in a sandbox say to each other: JSON, and bytes that are not looked into.

A frame is the length of the JSON (4 bytes), that of the bytes (8 bytes), both in network order, the JSON, and the bytes.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from typing import Any

import orjson

_HEAD = struct.Struct("!IQ")
MAX_FACTS_BYTES = 1 << 20


class FrameError(Exception):
    """What came is no frame."""


def pack(facts: Mapping[str, Any], body: bytes = b"") -> bytes:
    """Return a frame."""
    encoded = orjson.dumps(facts)
    return _HEAD.pack(len(encoded), len(body)) + encoded + body


class Reader:
    """Puts a frame together from what arrives."""

    def __init__(self, max_body_bytes: int) -> None:
        self._most = max_body_bytes
        self._held = bytearray()

    def feed(self, chunk: bytes) -> tuple[dict[str, Any], bytes] | None:
        """Take what arrived; return the frame once it is whole. Raises FrameError for what can't become one."""
        self._held += chunk
        if len(self._held) < _HEAD.size:
            return None
        length, body = _HEAD.unpack_from(self._held)
        if length > MAX_FACTS_BYTES:
            raise FrameError(f"it says {length} bytes about itself, {MAX_FACTS_BYTES} are allowed")
        if body > self._most:
            raise FrameError(f"the result is {body} bytes of JSON, the bound is {self._most}")
        start = _HEAD.size + length
        if len(self._held) < start + body:
            return None
        try:
            facts = orjson.loads(self._held[_HEAD.size : start])
        except orjson.JSONDecodeError as error:
            raise FrameError(f"what it says about itself is no JSON: {error}") from None
        if not isinstance(facts, dict):
            raise FrameError("what it says about itself is no object")
        return facts, bytes(memoryview(self._held)[start : start + body])


def receive(stream: socket.socket, max_body_bytes: int = 1 << 40) -> tuple[dict[str, Any], bytes] | None:
    """Wait for a frame; None where the other end is gone."""
    reader = Reader(max_body_bytes)
    while chunk := stream.recv(1 << 16):
        if (found := reader.feed(chunk)) is not None:
            return found
    return None
