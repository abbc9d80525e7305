"""Ends the programs of tasks whose supervisor was killed.

The kernel ends workers together with their supervisor, but not what these had started: a command would run on beside its
own next attempt. The guard is a process that outlives the supervisor by a moment: it waits at a pipe whose other end only
the supervisor holds, and when that closes, kills what carries the supervisor's mark, in whatever session it is.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from typing import NoReturn

from . import proctree
from .birth import fork


class Guard:
    """The guard of one supervisor, started before any worker is."""

    def __init__(self, node: str, then: Callable[[], object] = lambda: None, pid: int = 0, pipe: int = -1) -> None:
        """``then`` is called in the guard; ``pid``, ``pipe``: of one that runs, and that the program before this one started."""
        self._node, self._then = node, then
        self.pid = pid
        self.pipe = pipe  #: the end that only we hold
        self.renew()

    def renew(self) -> None:
        """Start it, where it doesn't run. Raises OSError."""
        if self.pid and os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG) is None:
            return
        self._let_go()
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            self.pid = fork(lambda: _watch(reader, self._node, self._then))
        except OSError:
            os.close(writer)
            raise
        finally:
            os.close(reader)
        self.pipe = writer

    def close(self) -> None:
        """Let it do its work, and end."""
        self._let_go()
        if self.pid:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
            self.pid = 0

    def _let_go(self) -> None:
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1


def _watch(pipe: int, node: str, then: Callable[[], object]) -> NoReturn:
    """Be the guard. Called in the forked child; ends the process."""
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
            with contextlib.suppress(OSError, ValueError):  # whoever ends a whole group ends it after the supervisor
                signal.signal(number, signal.SIG_IGN)
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        for name in os.listdir("/proc/self/fd"):
            if int(name) not in (0, 1, 2, pipe):
                with contextlib.suppress(OSError):
                    os.close(int(name))
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        with contextlib.suppress(ImportError):
            from setproctitle import setproctitle

            setproctitle("dspy-supervisor: guard")
        os.read(pipe, 1)  # nobody writes: it returns when the supervisor is gone
        proctree.kill_marked({node})
        then()
    finally:
        os._exit(0)
