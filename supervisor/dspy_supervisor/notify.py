"""Tells systemd how the service is (sd_notify(3)): a datagram to the socket it named."""

from __future__ import annotations

import contextlib
import socket


class Notifier:
    """Sends states to the service manager; does nothing where there is none.

    address: the value of NOTIFY_SOCKET; a leading ``@`` stands for NUL, an abstract socket.
    """

    def __init__(self, address: str = "", watchdog_usec: str = "") -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) if address else None
        #: seconds between two signs of life, half of what the manager waits; None where it doesn't watch
        self.watchdog_s = int(watchdog_usec) / 2e6 if address and watchdog_usec.isdigit() else None

    def send(self, **states: str | int) -> None:
        """Send states such as READY=1 or STATUS=text; a manager that doesn't listen is no reason to fail."""
        if self._socket is not None:
            text = "\n".join(f"{name}={str(value).replace(chr(10), ' ')}" for name, value in states.items())
            with contextlib.suppress(OSError):
                self._socket.sendto(text.encode(), self._address)

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
