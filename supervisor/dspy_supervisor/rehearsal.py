"""Whether workers could load their handlers, found out before any of them has to.

Each class has a process of its own for it, which does what its workers do at their birth: it may hang or die of what it
imports, and the supervisor imports nothing. A class without workers here loads nothing here.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, NoReturn

from . import bounds, proctree
from .birth import enter, fork
from .config import ClassConfig, Config
from .environment import set_variable
from .errors import ConfigError
from .handlers import chosen_by, make
from .log import log
from .reactor import Reactor, Timer

LONGEST_S = 120.0  #: that loading may take
_LOADED = "loaded"  # what is said where it is so: a module may end the process, with 0
_UNFIT = 78  # a worker ends so that can't load its handlers
_MOST_SAID = 2000  # bytes of why a class could not work


class _Part(NamedTuple):
    pid: int
    pidfd: int
    said: int  # descriptor of a file in memory


class Rehearsal:
    """One of all classes that workers serve here, under a configuration that may come."""

    def __init__(self, config: Config, queue: Path, node: str) -> None:
        """Begin. ``node``: whose children these are, should it die. Raises OSError where there is no process to be had."""
        self._parts: dict[str, _Part] = {}
        self._until = time.monotonic() + LONGEST_S
        self._reactor: Reactor | None = None
        self._timer: Timer | None = None
        try:
            for name, settings in config.classes.items():
                if settings.most and (settings.handler or config.kinds or config.kind_handlers):
                    self._parts[name] = _begin(settings, config, queue, node)
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> set[int]:
        """Its processes."""
        return {part.pid for part in self._parts.values()}

    def wait(self, longest_s: float = LONGEST_S) -> bool:
        """Wait until it is over, at most so long; return whether it is."""
        return self._are_gone(min(time.monotonic() + longest_s, self._until)) or time.monotonic() >= self._until

    def listen(self, reactor: Reactor, then: Callable[[], object]) -> None:
        """Call when it is over, once."""
        self._reactor = reactor
        longest_s = self._until - time.monotonic() if self._parts else 0.0  # with no class to try it is over already
        self._timer = reactor.call_later(longest_s, partial(self._over, then))
        for part in self._parts.values():
            reactor.add(part.pidfd, partial(self._ended, reactor, part, then))

    def end(self) -> dict[str, str]:
        """End it, and return which classes could not work, and why."""
        found = {name: why for name, part in self._parts.items() if (why := _why(part))}
        self.close()
        return found

    def close(self) -> None:
        """End it, whatever it found."""
        self._unlisten()
        while self._parts:
            _, part = self._parts.popitem()
            proctree.kill_tree([part.pid], signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(part.pid, 0)
            os.close(part.pidfd)
            os.close(part.said)

    def _ended(self, reactor: Reactor, part: _Part, then: Callable[[], object]) -> None:
        reactor.remove(part.pidfd)  # it stays readable
        if self._are_gone(0.0):
            self._over(then)

    def _over(self, then: Callable[[], object]) -> None:
        self._unlisten()
        then()

    def _are_gone(self, deadline: float) -> bool:
        left = {part.pidfd for part in self._parts.values()}
        poll = select.poll()
        for pidfd in left:
            poll.register(pidfd, select.POLLIN)
        while left:
            ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if not ready:
                return False
            for pidfd, _ in ready:
                poll.unregister(pidfd)
                left.discard(pidfd)
        return True

    def _unlisten(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._reactor is not None:
            for part in self._parts.values():
                self._reactor.remove(part.pidfd)
        self._reactor = self._timer = None


def _begin(settings: ClassConfig, config: Config, queue: Path, node: str) -> _Part:
    said, parent = os.memfd_create("said", os.MFD_CLOEXEC), os.getpid()
    try:
        pid = fork(lambda: _live(settings, config, queue, node, said, parent))
        try:
            return _Part(pid, os.pidfd_open(pid), said)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
    except BaseException:
        os.close(said)
        raise


def _why(part: _Part) -> str:
    """Return why a class could not work, or nothing."""
    ended = os.waitid(os.P_PID, part.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is None:
        return f"its handlers were not loaded in {LONGEST_S:.0f} s"
    if ended.si_code != os.CLD_EXITED:
        return f"loading its handlers was ended by {signal.Signals(ended.si_status).name}"
    text = os.pread(part.said, _MOST_SAID, 0).decode(errors="replace")
    if not ended.si_status and text == _LOADED:
        return ""
    return text or f"loading its handlers ended with exit code {ended.si_status}"


def _live(settings: ClassConfig, config: Config, queue: Path, node: str, said: int, parent: int) -> NoReturn:
    """Do what a worker does at its birth, and say why it can't. Called in the forked child; ends the process."""
    code, why = 70, ""
    try:
        enter(parent, f"{settings.name} rehearsal", {said, *log.descriptors()}, {})
        for name, value in settings.environment.items():
            set_variable(name, value)
        set_variable(proctree.MARK, node)
        bounds.enter(settings)
        _load(settings, config, queue)
        code, why = 0, _LOADED
    except ConfigError as error:
        code, why = _UNFIT, str(error)
    except BaseException as error:
        why = f"{type(error).__name__}: {error}"
    finally:
        with contextlib.suppress(BaseException):
            os.write(said, why.encode(errors="replace"))
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _load(settings: ClassConfig, config: Config, queue: Path) -> None:
    """Load what a worker of this class loads. Raises ConfigError."""
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    chosen, options = chosen_by(settings, config)
    if settings.sandbox == "off":
        for _, name in chosen:
            make(name, **options, embed=config)
        return
    from .warden import Warden

    warden = Warden(settings, config, queue, chosen, options)
    try:
        warden.start()
    finally:
        warden.close()
