"""The addresses that the gateway serves: each is bound as soon as that can be, and says why where it can't."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from pathlib import Path

from starlette.types import ASGIApp
from uvicorn.config import Config

from .connection import KEEP_ALIVE_S, Connection, Connections

_BACKLOG = 1024


class Listener:
    """One address, and what is served there."""

    def __init__(
        self, name: str, where: tuple[str, int] | Path, app: ASGIApp, connections: Connections, remedy: str
    ) -> None:
        """``name``: of the setting that says where; ``remedy``: what to do where the address is taken."""
        self.name, self.where = name, where
        self.problem = ""  #: why it is not served now
        self.address = ""  #: where it is served, for people
        self._connections, self._remedy = connections, remedy
        self._server: asyncio.Server | None = None
        self._config = Config(
            app,
            http=Connection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        self._config.load()

    @property
    def serves(self) -> bool:
        """Whether it is served."""
        return self._server is not None

    async def open(self) -> None:
        """Bind and serve it; `problem` says why that does not go."""
        try:
            bound = _bind_unix(self.where) if isinstance(self.where, Path) else _bind(*self.where)
        except OSError as error:
            where = self.where if isinstance(self.where, Path) else f"{self.where[0]}:{self.where[1]}"
            taken = error.errno == errno.EADDRINUSE
            self.problem = f"{self.name}: {where} " + (
                f"is taken by another program: {self._remedy}"
                if taken
                else f"can't be listened on: {error.strerror or error}"
            )
            return
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self._config, self._connections, {}, loop), sock=bound, backlog=_BACKLOG
        )
        self.problem = ""
        self.address = str(self.where) if isinstance(self.where, Path) else _shown(bound)

    def close(self) -> None:
        """Take no more connections; those that are go on."""
        if self._server is not None:
            self._server.close()
            self._server = None
            if isinstance(self.where, Path):
                with contextlib.suppress(OSError):
                    self.where.unlink()


def resolve(host: str) -> list[str]:
    """Return the addresses of a host. Raises OSError where it has none."""
    found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _bind(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # Of this protocol by name: asyncio turns Nagle's algorithm off for no other, and an answer would wait 40 ms.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that ended just now does not keep us out
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((address, port))
        bound.setblocking(False)
    except BaseException:
        bound.close()
        raise
    return bound


def _bind_unix(path: Path) -> socket.socket:
    """Bind to a path that only this user can connect to; a socket that nobody serves any more is replaced."""
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if path.is_socket() and not _is_served(path) and path.lstat().st_uid == os.geteuid():
            path.unlink()
        bound.bind(str(path))
        bound.setblocking(False)
    except BaseException:
        bound.close()
        raise
    finally:
        os.umask(mask)
    return bound


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
    return True


def _shown(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
