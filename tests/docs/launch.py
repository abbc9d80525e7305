"""Starts a supervisor for a page, and ends as soon as it is ready: what a reader does in a shell of its own.

``launch.py FOLDER start OPTIONS``: FOLDER gets its log and its process id; the one that was started before is ended first.
With --burst it is waited for.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

START_S = 60.0
END_S = 60.0


def end(folder: Path) -> None:
    """End the supervisor of a page, and wait until it is gone."""
    book = folder / "supervisor.pid"
    if not book.exists():
        return
    with contextlib.suppress(ProcessLookupError):
        pid = int(book.read_text())
        gone = os.pidfd_open(pid)
        for number, patience_s in ((signal.SIGTERM, END_S), (signal.SIGKILL, END_S)):
            signal.pidfd_send_signal(gone, number)
            if select.select([gone], [], [], patience_s)[0]:
                break
    book.unlink()


def until_listening(deadline: float) -> int:
    """Return 0 when its gateway answers: that is a process of its own, and what runs does not wait for it."""
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(os.environ["DSPY_HTTP_PORT"]))):
            return 0
        time.sleep(0.02)
    return 1


def main(folder: Path, arguments: list[str]) -> int:
    """Start it, and return 0 when it is ready, else what it ended with."""
    end(folder)
    command = [sys.executable, "-m", "dspy_supervisor", *arguments]
    if "--burst" in arguments:
        return subprocess.run(command, check=False).returncode
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices, (folder / "supervisor.log").open("ab") as log:
        place = folder / "ready"
        place.unlink(missing_ok=True)
        notices.bind(str(place))
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"NOTIFY_SOCKET": str(place)})
        (folder / "supervisor.pid").write_text(str(process.pid))
        deadline = time.monotonic() + START_S
        ended = os.pidfd_open(process.pid)
        while (left := deadline - time.monotonic()) > 0:
            heard = select.select([notices, ended], [], [], left)[0]
            if notices in heard and b"READY=1" in notices.recv(4096).split(b"\n"):
                return until_listening(deadline) if "--http" in arguments else 0
            if ended in heard:
                break
    print(f"{' '.join(arguments)}: not ready:\n{Path(log.name).read_text()}", file=sys.stderr)
    return process.poll() or 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
