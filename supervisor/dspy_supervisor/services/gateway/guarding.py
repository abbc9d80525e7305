"""What every request passes before a route sees it.

In this order: a Host that is not ours is answered 421, since the scripts of a page elsewhere, whose name was made to point
here, would read the answer (DNS rebinding); an Origin or a Sec-Fetch-Site that is not our own 403; a missing token 401. Who
presents the token is asked for no more.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import socket
import time
import traceback
from collections.abc import Iterable

from dspy_fastpath.ids import uuid7
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from ...log import log
from .context import Context
from .exchange import Exchange, Headers
from .problems import Problem, problem_of

#: what programs ask for that can't have a token, and the page that asks people for theirs
PUBLIC = frozenset({"/livez", "/readyz", "/health", "/version", "/metrics", "/prometheus", "/"})
PUBLIC_FOLDER = "/static/"  #: the dashboard's files
#: bodies that are read line by line, so that only a line has a bound
STREAMED = frozenset({"/v1/tasks/batch"})
#: older routes that change nothing, whatever the method
_READS = ("/queue/status", "/slurm/status/")
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TRACE_CHARACTERS = 8000


class Guard:
    """The application that stands before the routes of one listener."""

    def __init__(self, app: ASGIApp, context: Context, *, local: bool, names: Iterable[str] = ()) -> None:
        """``local``: only this host reaches it; ``names``: of ours, beside the address that a caller reached."""
        config = context.config
        self._app, self._context, self._local = app, context, local
        self._meant = {name.lower().strip("[]") for name in config.http_hosts}
        self._names = {"localhost", socket.gethostname().lower(), *self._meant, *map(_plain_name, names)}
        self._token = config.http_token.encode() if config.http_token else None
        self._open_reads, self._patience_s = config.http_open_reads, config.http_patience_s
        self._most = config.http_max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request. ``scope`` gets ``request_id`` and ``may_write``, whether this caller may change things."""
        if scope["type"] != "http":
            return
        began, path = time.monotonic(), scope["path"]
        headers = Headers(scope["headers"])
        request_id = next(iter(headers.all(b"x-request-id")), "")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = uuid7()
        scope["request_id"] = request_id
        exchange = Exchange(receive, send, request_id, self._patience_s)
        try:
            try:
                exchange.expect(headers, None if path in STREAMED else self._most)
                self._check(scope, headers)
                await self._app(scope, exchange.receive, exchange.send)
            except ClientDisconnect:  # in the middle of what he had to say: there is nobody to answer
                return
            except Exception as error:
                if exchange.status:  # the caller has half an answer: it is to see that it is cut off
                    raise
                await self._problem(error, scope).answer(path)(scope, exchange.receive, exchange.send)
        finally:
            took_s = time.monotonic() - began
            self._context.answered(exchange.status, took_s)
            ms = round(took_s * 1000, 1)
            log.debug("request", request=request_id, method=scope["method"], path=path, status=exchange.status, ms=ms)

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Raise Problem where the caller may not ask this; note whether it may change things."""
        known = self._knows_token(headers)
        if not known:
            self._check_host(scope, headers)
        self._check_origin(scope, headers)
        may_write = scope["may_write"] = known or (self._token is None and self._local)
        path = scope["path"]
        if may_write or path in PUBLIC or path.startswith(PUBLIC_FOLDER):
            return
        reads = scope["method"] in _SAFE or path.startswith(_READS)
        if not (reads and (self._local or self._open_reads)):
            detail = "present the token: Authorization: Bearer TOKEN"
            raise Problem(401, detail, headers={"WWW-Authenticate": "Bearer"})

    def _knows_token(self, headers: Headers) -> bool:
        """Whether the token is presented; how long that takes says nothing of how much of it is right."""
        if self._token is None:
            return False
        kind, _, given = (headers.one(b"authorization") or "").partition(" ")
        return hmac.compare_digest(given.strip().encode(), self._token) and kind.lower() == "bearer"

    def _check_host(self, scope: Scope, headers: Headers) -> None:
        hosts, server = headers.all(b"host"), scope["server"]
        if len(hosts) > 1 or (not hosts and scope["http_version"] == "1.1"):
            raise Problem(400, "a request has one Host")
        if not hosts or server is None or server[1] is None:  # no browser reaches a Unix socket
            return
        name = host_name(hosts[0])
        if name not in self._names and (_address(name) is None or _address(name) != _address(server[0])):
            raise Problem(421, f"{name[:200]!r} is not known to be this host: where it is, name it in http_hosts")

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        origin, host = headers.one(b"origin"), headers.one(b"host") or ""
        if origin is not None:
            scheme, _, own = origin.lower().partition("://")
            if scheme in ("http", "https") and host_name(own) in self._meant:
                return
            if scheme not in ("http", "https") or own != host.lower():
                raise Problem(403, f"a page of {origin[:200]!r} may not ask this")
        follows_link = scope["method"] == "GET" and headers.one(b"sec-fetch-mode") == "navigate"
        if headers.one(b"sec-fetch-site") in ("cross-site", "same-site") and not follows_link:
            raise Problem(403, "a page of another site may not ask this")

    def _problem(self, error: Exception, scope: Scope) -> Problem:
        if (problem := problem_of(error)) is not None:
            return problem
        trace = "".join(traceback.format_exception(error))[-_TRACE_CHARACTERS:]
        log.error("request_failed", request=scope["request_id"], path=scope["path"], error=repr(error), traceback=trace)
        return Problem(500, f"an error of ours, which is in the log as {scope['request_id']}")


def is_local(address: str) -> bool:
    """Whether only this host reaches an address."""
    found = _address(address)
    return found is not None and found.is_loopback


def host_name(host: str) -> str:
    """Return the name or address in a Host, without its port."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".")


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None


def _plain_name(name: str) -> str:
    """Return a configured name as callers may say it: not 0.0.0.0, by which pages elsewhere reach this host, too."""
    found = _address(plain := name.lower().strip("[]"))
    return "localhost" if found is not None and found.is_unspecified else plain
