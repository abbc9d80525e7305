"""What a forked child of the supervisor does first: leave everything that is not its own."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn

from . import proctree


def fork(child: Callable[[], NoReturn]) -> int:
    """Fork, and return the child's pid; the child calls ``child``. Raises OSError.

    Signals wait until the child has dropped our handlers. This process has one thread, so the fork is safe.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        gc.freeze()  # what exists now is shared with the child until one of us writes to it
        pid = os.fork()
        if pid == 0:
            child()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return pid


def enter(parent: int, title: str, keep: Collection[int], handlers: Mapping[signal.Signals, Any]) -> None:
    """Be a process of its own: session, signals, descriptors; and one that dies with its parent. In the child only.

    ``keep``: the descriptors, beside the three standard ones, that stay open.
    """
    os.setsid()  # a Ctrl-C at the terminal is for the supervisor, which lets its children finish
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP) and number < signal.SIGRTMIN:
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    for one, handler in handlers.items():
        signal.signal(one, handler)
    proctree.die_with_parent(parent)
    proctree.become_subreaper()
    kept = {0, 1, 2, *keep}
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            with contextlib.suppress(OSError):  # the listing's own descriptor is among them
                os.close(int(name))
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    with contextlib.suppress(ImportError):
        from setproctitle import setproctitle

        setproctitle(f"dspy-supervisor: {title}")
