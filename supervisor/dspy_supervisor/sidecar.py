"""A process beside the workers, as telemetry, the controller or the Slurm bridge: forked, listened to, replaced.

A service that dies or says nothing for `HUNG_S` is replaced without a task coming to harm; one that dies over and over is
given up with its reason, tried once in `MEND_S`, and the rest goes on.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol

import orjson

from . import proctree
from .birth import enter, fork
from .breaker import Breaker
from .config import Config
from .environment import set_variable
from .layout import Layout
from .link import MAX_PACKET, STOP, Link
from .log import log
from .nodes import Presence
from .parts import ServicePost
from .reactor import Reactor, Timer
from .traces import Traces

TRACING = "tracing"  #: the service that reads what attempts are told to
HUNG_S = 10.0  #: a service that says nothing for so long is replaced
LOOK_S = 2.0  #: between two looks at whether it hangs
_STACKS_S = 0.2  # what a hung service gets to write its stacks
MEND_S = 60.0  #: one that was given up is tried again so often: what it died of may have passed
_DEATH_S = 5.0  # SIGKILL takes effect at once, but for a process that waits for a disk or a driver
_HEALTHY_S = 30.0  # a service that lived so long did not die of its start


class Kind(NamedTuple):
    """A service that this program knows."""

    name: str
    entry: str  #: module:function
    wanted: Callable[[Config], bool]
    last: bool = False  #: it ends after the workers have


class Owner(Protocol):
    """What a sidecar asks of the supervisor."""

    config: Config
    layout: Layout
    presence: Presence
    reactor: Reactor
    traces: Traces | None

    @property
    def page_path(self) -> Path:
        """Where the shared page lies."""

    def heard(self, sidecar: Sidecar, message: Mapping[str, Any]) -> None:
        """A service said something."""

    def ended(self, sidecar: Sidecar) -> None:
        """A service is gone, and was reaped."""


@dataclass(slots=True, eq=False)
class _Process:
    pid: int
    pidfd: int
    channel: socket.socket
    started: float  # monotonic seconds
    silent_s: float = 0.0
    renewed: bool = False  # told to end, to make room for one that knows the new configuration


class Sidecar:
    """One service of a supervisor."""

    def __init__(self, owner: Owner, kind: Kind) -> None:
        self._owner, self.kind = owner, kind
        self.name = kind.name
        self.restarts = 0
        self.state: Mapping[str, Any] = {}  #: what it last said of itself
        self.claims = ""  #: its folder in claimed/
        self._process: _Process | None = None
        self._breaker = Breaker(owner.config.breaker_starts, owner.config.backoff_cap_s)
        self._stopping = False
        self._looked_at = time.monotonic()
        self._again: Timer | None = None

    @property
    def pid(self) -> int:
        """Its process, or 0."""
        return self._process.pid if self._process else 0

    @property
    def failed(self) -> str:
        """Why it is not started any more, or nothing."""
        return self._breaker.failed

    def start(self) -> None:
        """Start it, where it doesn't run."""
        if self._process or self._stopping or self.failed:
            return
        try:
            self._fork()
        except OSError as error:  # EAGAIN, ENOMEM, EMFILE: ours, and it may pass
            log.error("cannot_fork", service=self.name, error=str(error))
            self._start_later(self._owner.config.backoff_cap_s)

    def mend(self) -> None:
        """Try again after it was given up, as often as the configuration says now."""
        self._breaker = Breaker(self._owner.config.breaker_starts, self._owner.config.backoff_cap_s)
        self.start()

    def send(self, message: Mapping[str, Any]) -> bool:
        """Tell it something; False where it is gone, or does not listen."""
        if self._process is None:
            return False
        try:
            self._process.channel.send(orjson.dumps(message))
        except OSError:  # dead, or its buffer is full: it hangs
            return False
        return True

    def stop(self, *, anew: bool = False) -> None:
        """Tell it to end, and whether another is started at once; `end_now` ends it whatever it says."""
        if self._stopping:
            return
        self._stopping = True
        self.send({**STOP, "anew": True} if anew else STOP)

    def renew(self) -> None:
        """Let it end, and start it anew: the configuration changed."""
        if self._process is not None:
            self._process.renewed = True
            self.send({**STOP, "anew": True})

    def end_now(self) -> None:
        """Kill and reap it, and start it no more."""
        self._stopping = True
        if (process := self._process) is not None:
            proctree.kill_tree([process.pid], signal.SIGKILL)
            if proctree.wait_gone([process.pid], time.monotonic() + _DEATH_S):
                self._exited(process)
            else:
                log.error(
                    "service_stuck", service=self.name, worker=process.pid, next="going on without waiting for it"
                )
                self._process = None
                self._part(process)

    def look(self, now: float) -> None:
        """Replace it where it hangs; called every few seconds (``now``: monotonic)."""
        # A pause of our own, as a frozen host makes it, proves nothing about the service.
        elapsed_s = min(now - self._looked_at, 2 * LOOK_S)
        self._looked_at = now
        process = self._process
        if process is None:
            return
        process.silent_s += elapsed_s
        if process.silent_s > HUNG_S:
            log.error("service_hung", service=self.name, worker=process.pid, silent_s=round(process.silent_s, 1))
            process.silent_s = 0.0
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process.pidfd, signal.SIGUSR2)  # its stacks
            self._owner.reactor.call_later(_STACKS_S, lambda: self._kill(process))

    def _kill(self, process: _Process) -> None:
        if self._process is process:
            proctree.kill_tree([process.pid], signal.SIGKILL)

    def _fork(self) -> None:
        owner, parent = self._owner, os.getpid()
        with contextlib.ExitStack() as undo:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(ours.close)
            self.claims = owner.presence.new_owner(self.name)
            with theirs:
                pid = fork(lambda: _live(self.kind, self._post(Link(theirs)), theirs.fileno(), parent))
            undo.callback(_end_child, pid)
            pidfd = os.pidfd_open(pid)
            undo.pop_all()
        ours.setblocking(False)
        process = self._process = _Process(pid, pidfd, ours, time.monotonic())
        self._looked_at = process.started
        owner.reactor.add(ours.fileno(), lambda: self._readable(process))
        owner.reactor.add(pidfd, lambda: self._exited(process))
        log.info("service_started", service=self.name, worker=pid)

    def _post(self, link: Link) -> ServicePost:
        owner, layout = self._owner, self._owner.layout
        return ServicePost(
            self.name,
            owner.config,
            Path(layout.path),
            layout.queue_id,
            owner.presence.node,
            self.claims,
            owner.page_path,
            link,
            owner.traces.reader if owner.traces is not None and self.name == TRACING else -1,
        )

    def _readable(self, process: _Process) -> None:
        try:
            while packet := process.channel.recv(MAX_PACKET):
                process.silent_s = 0.0
                message = orjson.loads(packet)
                if message["op"] == "state":
                    self._say_problem(message.get("problem"))
                    self.state = message
                if message["op"] != "alive":
                    self._owner.heard(self, message)
        except BlockingIOError:
            return
        except OSError:  # it died before it read what it was sent last
            pass
        except (ValueError, KeyError, TypeError) as error:
            log.error("service_babbles", service=self.name, error=repr(error), next="it is replaced")
            self._kill(process)
        if process.channel.fileno() >= 0:
            self._owner.reactor.remove(process.channel.fileno())  # its death is about to be noticed

    def _say_problem(self, problem: object) -> None:
        """Log what keeps the service from its work, once, and when that is over."""
        if problem == self.state.get("problem"):
            return
        if problem:
            log.warning("service_waits", service=self.name, reason=problem)
        else:
            log.info("service_works", service=self.name)

    def _exited(self, process: _Process) -> None:
        if self._process is not process:
            return
        self._readable(process)  # what it said before it died
        self._process = None
        _, status = os.waitpid(process.pid, 0)
        self._part(process)
        self._owner.ended(self)
        code = os.waitstatus_to_exitcode(status)
        why = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if self._stopping:
            log.info("service_ended", service=self.name, reason=why)
            return
        if process.renewed:
            self.start()
            return
        self.restarts += 1
        if time.monotonic() - process.started >= _HEALTHY_S:
            self._breaker.reset()
            delay_s = 0.0
        else:
            delay_s = self._breaker.trip(self.state.get("broken") or why)
        if self.failed:
            retry = f"a reload tries again, and so do we, once in {MEND_S:.0f} s"
            log.error("service_failed", service=self.name, reason=self.failed, retry=retry)
            self._later(MEND_S, self._try)
            return
        log.warning("service_died", service=self.name, reason=why, next=f"starting it again in {delay_s:g} s")
        self._start_later(delay_s)

    def _part(self, process: _Process) -> None:
        """Listen no more to a process that is gone, or out of reach."""
        self._owner.reactor.remove(process.channel.fileno())
        self._owner.reactor.remove(process.pidfd)
        os.close(process.pidfd)
        process.channel.close()

    def _start_later(self, delay_s: float) -> None:
        self._later(delay_s, self.start)

    def _try(self) -> None:
        """Start it once, and give it up again where it dies once more."""
        if self.failed:
            self._breaker.allow_one()
            self.start()

    def _later(self, delay_s: float, action: Callable[[], object]) -> None:
        if self._again is not None:
            self._again.cancel()
        self._again = self._owner.reactor.call_later(delay_s, action)


def _end_child(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _live(kind: Kind, post: ServicePost, channel: int, parent: int) -> NoReturn:
    """Be a service. Called in the forked child; ends the process."""
    code = 70  # EX_SOFTWARE: this program's fault
    try:
        enter(parent, kind.name, {channel, post.traces, *log.descriptors()}, {signal.SIGTERM: signal.SIG_IGN})
        faulthandler.register(signal.SIGUSR2, all_threads=True, chain=False)
        set_variable(proctree.MARK, post.node)
        log.bind(service=kind.name)
        module, _, function = kind.entry.partition(":")
        code = getattr(import_module(module), function)(post)
    except BaseException as error:  # the last chance to say anything
        import traceback

        with contextlib.suppress(BaseException):
            post.link.send({"op": "state", "broken": f"{type(error).__name__}: {error}"[:1000]})
            traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
