"""How soon the task of a killed worker is back in the queue, and how soon it runs again.

::

    python -m bench.recovery [--kills 40]
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from pathlib import Path

from dspy_fastpath.inotify import Watcher

from bench import script
from bench.compare import percentile
from bench.ours import CLASS, Ours
from bench.player import TIMEOUT_S


class Killed(Ours):
    """Workers that wait to be killed."""

    handler = "bench.handlers:until_killed"


def wait_for_name(watcher: Watcher, beginning: bytes) -> None:
    """Return when a file whose name contains this appears in a watched folder."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline and watcher.wait(1.0):
        events, _, _ = watcher.take()
        if any(beginning in name for _, name, _ in events):
            return
    raise TimeoutError(f"{beginning!r} did not come back")


def measure(folder: Path, options: argparse.Namespace) -> script.Facts:
    """Return the times from kill(2) to the rename, seen by inotify, and to the first line of the next attempt."""
    pipe = folder / "pid"
    os.mkfifo(pipe)
    back, again = [], []
    with Killed(folder, sync=False) as ours, Watcher() as watcher:
        ours.start(2)
        for name in ("pending", "delayed"):
            watcher.add(ours.path / name)
        for _ in range(options.kills):
            task = ours.queue.submit(str(pipe), task_class=CLASS)
            pid = int(pipe.read_text())
            watcher.take()
            killed = time.monotonic_ns()
            os.kill(pid, signal.SIGKILL)
            wait_for_name(watcher, f"{task}~1x1.json".encode())
            back.append((time.monotonic_ns() - killed) / 1e6)
            again.append((ours.queue.result(task, timeout=TIMEOUT_S) - killed) / 1e6)
    return {
        "p50_ms": percentile(back, 0.5),
        "p99_ms": percentile(back, 0.99),
        "again_p50_ms": percentile(again, 0.5),
        "again_p99_ms": percentile(again, 0.99),
    }


if __name__ == "__main__":
    script.main(__doc__, measure, kills=40)
