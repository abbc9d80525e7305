"""The gateway's process: its loop, its link to the supervisor, its end.

It says each second that it turns. What it can't serve it says in words, in `status` and in the log, and tries again; tasks
know nothing of it. Told to end, it answers who waits and ends its streams; where the supervisor drains, it goes on answering
that it does until what runs has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import time
from collections.abc import Mapping
from email.utils import formatdate
from typing import Any

from dspy_fastpath.counters import Page
from starlette.routing import Router
from starlette.types import ASGIApp

from ...errors import SupervisorError
from ...log import log
from ...parts import ServicePost
from . import admin, batch, dashboard, events, health, metrics_page, openapi, orchestrator, results, runner, tasks
from .connection import Connections
from .context import Context
from .guarding import Guard, is_local
from .listening import Listener, resolve

_TURN_S = 1.0
_AGAIN_S = 2.0  # between two tries to bind what is taken
_STATE_S = 2.0  # between two accounts of what was answered
_END_S = 5.0  # that requests get to end where nothing else is waited for
_SPARE_S = 2.0  # of the drain that is left to the supervisor
_SPARE_FILES = 256

#: what is served on http_port, and on metrics_port
MAIN = (health, tasks, results, batch, events, admin, openapi, orchestrator, metrics_page, dashboard)
RUNNER = (runner,)


def run(post: ServicePost) -> int:
    """Serve HTTP until told to stop."""
    _bridge_logs()
    with Page.attach(post.page) as page:
        return asyncio.run(_Gateway(post, page).run())


class _Gateway:
    """One life of the gateway."""

    def __init__(self, post: ServicePost, page: Page) -> None:
        self._post, self._page, self._link = post, page, post.link
        config = post.config
        self._connections = Connections(config.http_max_connections, config.http_patience_s)
        self._told = asyncio.Event()  # to stop
        self._listeners: list[Listener] = []
        self._problem = ""  # of what is wanted, beside the listeners' own
        self._state: Mapping[str, Any] = {}
        self._state_at = 0.0

    async def run(self) -> int:
        """Serve until told to stop; return the exit code."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_unforeseen)
        loop.add_reader(self._link.fileno(), self._hear)
        _raise_file_limit(self._post.config.http_max_connections + _SPARE_FILES)
        self._tick()
        context = await self._open()
        if context is None:
            return 0
        try:
            self._listeners = self._wanted(context)
            await self._serve(context)
            await self._end(context)
        finally:
            context.close()
            loop.remove_reader(self._link.fileno())
        return 0

    async def _open(self) -> Context | None:
        """Open the queue, as soon as it is there; None where the end comes first."""
        while not self._told.is_set():
            try:
                context = Context(self._post, self._page)
            except (SupervisorError, OSError) as error:
                self._problem = str(error)
                await self._turn(None)
            else:
                self._problem = ""
                return context
        return None

    def _wanted(self, context: Context) -> list[Listener]:
        """Return what the configuration says to serve, or say why nothing may be."""
        config = self._post.config
        try:
            addresses = resolve(config.http_host)
        except OSError as error:
            self._problem = f"http_host: {config.http_host} has no address here: {error.strerror}"
            addresses = []
        closed = [address for address in addresses if not is_local(address)]
        if closed and config.http_token is None:
            self._problem = (
                f"http_host: {closed[0]} is reached by other hosts, and there is no http_token: give one, best in a file "
                f"(http_token_file), or listen on 127.0.0.1"
            )
            log.error("gateway_refused", reason=self._problem)
            addresses = [address for address in addresses if is_local(address)]
        names = (config.http_host, *config.http_hosts)
        found = []
        for setting, port, modules in (
            ("http_port", config.http_port if config.http else None, MAIN),
            ("metrics_port", config.metrics_port, RUNNER),
        ):
            app = _router(context, modules)
            remedy = f"end that, or choose another with {setting}"
            found += [
                Listener(
                    setting,
                    (address, port),
                    Guard(app, context, local=is_local(address), names=names),
                    self._connections,
                    remedy,
                )
                for address in addresses
                if port is not None
            ]
        if config.http and config.http_socket is not None:
            app = Guard(_router(context, MAIN), context, local=True, names=names)
            found.append(Listener("http_socket", config.http_socket, app, self._connections, "choose another name"))
        return found

    async def _serve(self, context: Context) -> None:
        again_at = 0.0
        while not self._told.is_set():
            if time.monotonic() >= again_at:
                for listener in self._listeners:
                    if not listener.serves:
                        await listener.open()
                        if listener.serves:
                            log.info("gateway_listens", address=listener.address)
                again_at = time.monotonic() + _AGAIN_S
            await self._turn(context)

    async def _end(self, context: Context) -> None:
        """Answer who waits, end streams; while the supervisor drains, go on saying so."""
        context.stop()
        deadline = time.monotonic() + max(0.0, self._post.config.drain_s - _SPARE_S)
        with contextlib.suppress(SupervisorError, OSError):  # a supervisor that does not answer has no use for us
            while time.monotonic() < deadline and _drains(await context.status(fresh=True)):
                await self._turn(context)
        for listener in self._listeners:
            listener.close()
        for connection in list(self._connections.connections):
            connection.shutdown()
        deadline = min(deadline, time.monotonic() + _END_S)
        while self._connections.connections and time.monotonic() < deadline:
            self._tick()
            await asyncio.sleep(0.02)
        for connection in list(self._connections.connections):
            connection.transport.abort()
        log.info("gateway_ends")

    async def _turn(self, context: Context | None) -> None:
        self._tick()
        self._connections.look(time.monotonic())
        self._show(context)
        with contextlib.suppress(TimeoutError):
            if self._told.is_set():
                await asyncio.sleep(_TURN_S / 10)
            else:
                await asyncio.wait_for(self._told.wait(), _TURN_S)

    def _tick(self) -> None:
        self._link.alive()
        self._connections.default_headers = [(b"date", formatdate(usegmt=True).encode())]

    def _hear(self) -> None:
        if any(message["op"] == "stop" for message in self._link.receive(0.0)):
            self._told.set()

    def _show(self, context: Context | None) -> None:
        """Tell the supervisor how things are: troubles at once, figures now and then."""
        problems = [self._problem, *(listener.problem for listener in self._listeners)]
        plain = {
            "problem": "; ".join(filter(None, problems)) or None,
            "listening": [listener.address for listener in self._listeners if listener.serves],
        }
        now = time.monotonic()
        if now < self._state_at and all(self._state.get(key) == plain[key] for key in plain):
            return
        figures: dict[str, Any] = {"connections": len(self._connections.connections), "cut": self._connections.cut}
        if context is not None:
            figures["requests"] = {str(status): number for status, number in sorted(context.requests.items())}
            figures["busy_s"] = round(context.busy_s, 3)
        state = {**plain, **figures}
        self._state_at = now + _STATE_S
        if state != self._state:
            self._state = state
            self._link.send({"op": "state", **state})


def _drains(status: Mapping[str, Any]) -> bool:
    """Whether the supervisor waits for tasks before it ends."""
    return bool(status["stopping"]) and any(one["inflight"] for one in status["classes"].values())


def _router(context: Context, modules: Any) -> ASGIApp:
    router = Router([route for module in modules for route in module.routes(context)], redirect_slashes=False)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["app"] = router  # so that what is not there is raised, and answered as a problem
        await router(scope, receive, send)

    return app


def _raise_file_limit(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


def _unforeseen(_: asyncio.AbstractEventLoop, trouble: dict[str, Any]) -> None:
    log.error("gateway_trouble", error=trouble.get("message"), cause=repr(trouble.get("exception")))


class _Bridge(logging.Handler):
    """Brings the server's own words into our log: callers' mistakes are no trouble of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        write = log.error if record.levelno >= logging.ERROR else log.debug
        write("http", words=record.getMessage(), error=repr(record.exc_info[1]) if record.exc_info else None)


def _bridge_logs() -> None:
    for name in ("uvicorn", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers[:], logger.propagate = [_Bridge()], False
