"""What a service and its supervisor say to each other: one JSON object a packet, over a SOCK_SEQPACKET pair.

Each has an ``op``. From the supervisor: ``stop`` (end what is begun, then end; ``anew``: another is started at once),
``feed`` (``files``: names of waiting tasks to carry), ``cancel`` (``file``). To it: ``alive``, ``state`` (facts for
`status`), ``limit`` (``class``, ``limit``, ``reason``, ``why``), ``gpu_lost`` (``uuid``), ``report`` (``kind``, ``file``,
``text``, ``run_s``: what became of a carried task).
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Mapping
from typing import Any

import orjson

MAX_PACKET = 60_000  #: bytes
ALIVE_S = 2.0  #: a service says something at least so often
STOP: Mapping[str, Any] = {"op": "stop"}


class Link:
    """The service's end. It reads as told to stop when the supervisor is gone."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._spoke_at = 0.0  # monotonic seconds

    def fileno(self) -> int:
        """The descriptor that is readable when there is a message."""
        return self._channel.fileno()

    def send(self, message: Mapping[str, Any]) -> None:
        """Tell the supervisor. Waits while it is busy; a supervisor that is gone is noticed by `receive`.

        Raises ValueError for a message of more than MAX_PACKET bytes.
        """
        packet = orjson.dumps(message)
        if len(packet) > MAX_PACKET:
            raise ValueError(f"a message of {len(packet)} bytes, the bound is {MAX_PACKET}")
        self._spoke_at = time.monotonic()
        with contextlib.suppress(ConnectionError):
            self._channel.send(packet)

    def alive(self) -> None:
        """Say that the service still turns, where it said nothing of late: call it in every turn of its loop."""
        if time.monotonic() - self._spoke_at > ALIVE_S / 2:
            self.send({"op": "alive"})

    def receive(self, timeout_s: float) -> list[dict[str, Any]]:
        """Return the messages that are here within ``timeout_s``, oldest first; none: nothing came."""
        messages: list[dict[str, Any]] = []
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        while poll.poll(0 if messages else max(0.0, timeout_s) * 1000):
            try:
                packet = self._channel.recv(MAX_PACKET)
            except ConnectionError:
                packet = b""
            if not packet:
                return [*messages, dict(STOP)]
            messages.append(orjson.loads(packet))
        return messages
