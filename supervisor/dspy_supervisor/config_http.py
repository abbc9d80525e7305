"""The settings of the gateway: whether there is one, where it listens, and what it asks of those who call."""
# ruff: noqa: RUF009 (setting() returns dataclasses.field(), which that rule can't see)

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from .setting import Kind, optional, path, seconds, setting, size, text, truth, whole, words

_LEAST_TOKEN = 16  # characters: what is shorter can be guessed
_ADDRESS = r"[0-9A-Za-z]([\w.-]{0,251}\w)?|\[?[0-9A-Fa-f:.]{2,45}\]?"


def is_open(host: str) -> bool:
    """Whether other hosts may reach what listens on this address; of a name, only its addresses tell, when it is bound."""
    import ipaddress  # 10 ms, for the few that say where to listen

    try:
        return not ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def token() -> Kind:
    """A secret of printable characters; white space around it, as the end of a file's line, is none of it."""

    def read(value: object) -> str:
        if not isinstance(value, str) or not re.fullmatch(r"[!-~]+", value.strip()):
            raise ValueError
        if len(value.strip()) < _LEAST_TOKEN:
            raise ValueError
        return value.strip()

    return Kind(f"{_LEAST_TOKEN} characters or more, as `openssl rand -hex 32` makes them", read)


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)  # Config has these
class HttpSettings:
    """The part of Config that is about HTTP."""

    http: bool = setting(
        truth(),
        "serve the HTTP API, the metrics and the dashboard",
        False,
        flag="--http/--no-http",
        modes=dict.fromkeys(("workstation", "cluster", "cloud"), True),
        live=True,
    )
    http_host: str = setting(
        text(_ADDRESS, "an address or a name of this host, as 127.0.0.1"),
        "address to listen on; one that other hosts reach needs http_token",
        "127.0.0.1",
        live=True,
    )
    http_port: int | None = setting(
        optional(whole(0, 65535, "any that is free")), "port to listen on; none: http_socket alone", 9097, live=True
    )
    http_socket: Path | None = setting(
        optional(path()), "listen on a Unix socket of this name too, which only this user can reach", None, live=True
    )
    http_token: str | None = setting(
        optional(token()),
        "what a caller must present as `Authorization: Bearer TOKEN` to change anything, and from other hosts to read",
        None,
        live=True,
        secret=True,
    )
    http_hosts: tuple[str, ...] = setting(
        words(_ADDRESS, "names of hosts without ports"),
        "more names under which callers may know this host, as that of a proxy before it",
        (),
        live=True,
    )
    http_open_reads: bool = setting(truth(), "reading needs no token from other hosts either", False, live=True)
    http_max_body_bytes: int = setting(
        size(1024, 1 << 32), "longest body of a request, and longest line of a batch", 16 << 20, live=True
    )
    http_max_connections: int = setting(whole(1, 100_000), "connections at once", 1000, live=True)
    http_patience_s: float = setting(
        seconds(0.1, 3600),
        "time a caller has to send a request's head, or to take or send the next bytes",
        20.0,
        live=True,
    )
    metrics_port: int | None = setting(
        optional(whole(0, 65535, "any that is free")),
        "serve the routes of the older environment runner on this port of http_host too, which was 8083",
        None,
        variable="METRICS_PORT",
        live=True,
    )
