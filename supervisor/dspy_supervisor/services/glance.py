"""One look at GPUs and host where no telemetry runs: by a child, because a driver's library can hang for ever."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
from dspy_fastpath.counters import Page, Telemetry

from ..gpu import Sight, read
from ..host import Host
from .telemetry import Board, described, sources
from .watch import Watch

TIMEOUT_S = 30.0  #: what a driver may take to wake its GPUs
_KILL_S = 1.0
_BETWEEN_S = 0.2  # of two samples of the host, whose difference is how busy it is


def glance(timeout_s: float = TIMEOUT_S) -> tuple[Sight, dict[str, Any]]:
    """Return what GPUs and host tell now, and in words what keeps work away; a hang is a state like others."""
    with (
        TemporaryDirectory(prefix="dspy-supervisor-") as folder,
        Page.create(Path(folder, "page"), "glance", ["gpu"], 0) as page,
    ):
        began, host = time.monotonic(), Host()
        host.sample(began)
        told = _told_by_child(page, timeout_s)
        time.sleep(max(0.0, began + _BETWEEN_S - time.monotonic()))
        now = time.monotonic()
        page.host_write(host.sample(now), now)
        sight = read(page)
    if told is None:
        why = f"the GPU driver's library did not answer within {timeout_s:g} s"
        return replace(sight, state=Telemetry.TROUBLED), {"why": why}
    return sight, told


def _told_by_child(page: Page, timeout_s: float) -> dict[str, Any] | None:
    """Let a child look and write the page; return what it says of the state, None where it says nothing in time."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    if (pid := os.fork()) == 0:
        try:
            _look(page, writer)
        finally:
            os._exit(0)
    os.close(writer)
    child = os.pidfd_open(pid)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, child)
        stack.callback(os.close, reader)
        poll = select.poll()
        poll.register(child, select.POLLIN)
        ended = bool(poll.poll(timeout_s * 1000))
        if not ended:
            signal.pidfd_send_signal(child, signal.SIGKILL)
            ended = bool(poll.poll(_KILL_S * 1000))  # stuck in the driver, not even that ends it
        if ended:
            os.waitpid(pid, 0)
        os.set_blocking(reader, False)
        with contextlib.suppress(BlockingIOError):
            if text := os.read(reader, 1 << 16):
                told: dict[str, Any] = orjson.loads(text)
                return told
    return None


def _look(page: Page, writer: int) -> None:
    watch = Watch(sources())
    now = time.monotonic()
    view = watch.look(now)
    Board(page).write(view, watch.errors, now)
    os.write(writer, orjson.dumps(described(view)))
    watch.close()
