"""What every request passes before a route sees it.

In this order: a Host that is not ours is answered 421, since a page elsewhere whose name was made to point here would be
read by its script (DNS rebinding); an Origin or a Sec-Fetch-Site that is not our own 403; a missing token 401; a body that
is too long 413, one that comes too slowly 408. An answer carries a request id and the headers that keep browsers in bounds.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
import time
import traceback
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from dspy_fastpath.ids import uuid7
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...log import log
from .problems import Problem, problem_of

if TYPE_CHECKING:
    from .context import Context

#: what says nothing of the queue, or is asked for by programs that can't have a token
PUBLIC = frozenset({"/livez", "/readyz", "/health", "/version", "/metrics", "/prometheus", "/"})
PUBLIC_FOLDER = "/static/"  #: the dashboard's files
#: bodies that are read line by line, so that only a line has a bound
STREAMED = frozenset({"/v1/tasks/batch"})
#: older routes that change nothing, whatever the method
_READS = ("/queue/status", "/slurm/status/", "/metrics", "/health")
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LEAST_RATE = 1024  # bytes a second that a body must come at, beyond the first seconds
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
]


class Guard:
    """The application that stands before the routes of one listener."""

    def __init__(self, app: ASGIApp, context: Context, *, local: bool, names: Iterable[str]) -> None:
        """``local``: only this host reaches it; ``names``: of ours, beside the address that a caller reached."""
        config = context.config
        self._app, self._context, self._local = app, context, local
        self._names = {"localhost", *(name.lower().strip("[]") for name in names)}
        self._token = config.http_token.encode() if config.http_token else None
        self._open_reads = config.http_open_reads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        began = time.monotonic()
        headers = _Headers(scope["headers"])
        request_id = headers.one("x-request-id")
        if request_id is None or not _REQUEST_ID.fullmatch(request_id):
            request_id = uuid7()
        path, status = scope["path"], 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                present = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(header for header in _HEADERS if header[0] not in present),
                    (b"x-request-id", request_id.encode()),
                ]
            await send(message)

        scope["request_id"] = request_id
        try:
            self._check(scope, headers)
            await self._app(scope, self._bounded(scope, headers, receive), answer)
        except Exception as error:
            problem = problem_of(error)
            if problem is None:
                log.error("request_failed", request=request_id, path=path, error=repr(error), traceback=_trace(error))
                problem = Problem(500, f"an error of ours, which is in the log under {request_id}")
            if status:  # the caller has half an answer: it is to see that it is cut off
                raise
            await problem.answer(path)(scope, receive, answer)
        finally:
            self._context.requests[status] = self._context.requests.get(status, 0) + 1
            log.debug(
                "request",
                request=request_id,
                method=scope["method"],
                path=path,
                status=status,
                ms=round((time.monotonic() - began) * 1000, 1),
            )

    def _check(self, scope: Scope, headers: _Headers) -> None:
        """Raise Problem where the caller may not ask this; note whether it may change things."""
        self._check_host(scope, headers)
        self._check_origin(scope, headers)
        known = self._knows_token(headers)
        path, reads = scope["path"], scope["method"] in _SAFE or scope["path"].startswith(_READS)
        scope["may_write"] = known or (self._token is None and self._local)
        if path in PUBLIC or path.startswith(PUBLIC_FOLDER) or scope["may_write"]:
            return
        if not (reads and (self._local or self._open_reads)):
            raise self._refused(
                401, "token", "present the token: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
            )

    def _check_host(self, scope: Scope, headers: _Headers) -> None:
        hosts = headers.all("host")
        if len(hosts) > 1 or (not hosts and scope["http_version"] == "1.1"):
            raise self._refused(400, "host", "a request has one Host")
        if not hosts or scope["server"] is None or scope["server"][1] is None:  # no browser reaches a Unix socket
            return
        name = _without_port(hosts[0]).lower().rstrip(".")
        if name in self._names or name == scope["server"][0]:
            return
        raise self._refused(421, "host", f"this is not {name!r}: name it in http_hosts, where it is meant")

    def _check_origin(self, scope: Scope, headers: _Headers) -> None:
        origin, host = headers.one("origin"), headers.one("host")
        if origin is not None and origin.lower() not in {f"{scheme}://{host}".lower() for scheme in ("http", "https")}:
            raise self._refused(403, "origin", f"a page of {origin[:200]!r} may not ask this")
        site = headers.one("sec-fetch-site")
        if site in ("cross-site", "same-site"):
            if scope["method"] == "GET" and headers.one("sec-fetch-mode") == "navigate":
                return  # a link that somebody follows
            raise self._refused(403, "origin", "a page of another site may not ask this")

    def _knows_token(self, headers: _Headers) -> bool:
        """Whether the token is presented; how long that takes says nothing of how much of it is right."""
        if self._token is None:
            return False
        kind, _, given = (headers.one("authorization") or "").partition(" ")
        return hmac.compare_digest(given.strip().encode(), self._token) and kind.lower() == "bearer"

    def _refused(self, status: int, why: str, detail: str, headers: Mapping[str, str] | None = None) -> Problem:
        refused = self._context.refused
        refused[why] = refused.get(why, 0) + 1
        return Problem(status, detail, headers=headers)

    def _bounded(self, scope: Scope, headers: _Headers, receive: Receive) -> Receive:
        """Return a receive that ends a body which is too long, or comes too slowly."""
        config = self._context.config
        most = None if scope["path"] in STREAMED else config.http_max_body_bytes
        length = headers.one("content-length")
        if most is not None and length is not None and int(length) > most:
            raise self._too_long(most)
        got, ended, began = 0, False, time.monotonic()

        async def bounded() -> Message:
            nonlocal got, ended
            if ended:  # what is waited for now is the caller's leaving
                return await receive()
            try:
                async with asyncio.timeout(config.http_patience_s):
                    message = await receive()
            except TimeoutError:
                raise self._too_slow() from None
            got += len(message.get("body", b""))
            ended = not message.get("more_body", False)
            if most is not None:
                if got > most:
                    raise self._too_long(most)
                if not ended and time.monotonic() - began > config.http_patience_s + got / _LEAST_RATE:
                    raise self._too_slow()
            return message

        return bounded

    def _too_long(self, most: int) -> Problem:
        problem = self._refused(413, "length", f"a body has {most} bytes at most: http_max_body_bytes")
        problem.headers["Connection"] = "close"
        return problem

    def _too_slow(self) -> Problem:
        problem = self._refused(408, "slow", "the body came too slowly")
        problem.headers["Connection"] = "close"
        return problem


class _Headers:
    """The headers of a request, as they came."""

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        self._raw = raw

    def all(self, name: str) -> list[str]:
        wanted = name.encode()
        return [value.decode("latin-1") for key, value in self._raw if key == wanted]

    def one(self, name: str) -> str | None:
        """Return the value of a header that came once, None where it didn't come. Raises Problem where it came twice."""
        values = self.all(name)
        if len(values) > 1:
            raise Problem(400, f"{name} came {len(values)} times")
        return values[0] if values else None


def is_local(address: str) -> bool:
    """Whether only this host reaches an address."""
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _trace(error: Exception) -> str:
    return "".join(traceback.format_exception(error))[-8000:]


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
