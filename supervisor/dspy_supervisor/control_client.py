"""Asking a supervisor of this host: one JSON object a line each way, over its control socket.

::

    request   {"do": "status" | "stop" | "pause" | "resume" | "cancel" | "limit" | "reload" | "explain" | "reopen"
               | "upgrade", ...}
    answer    {"ok": true, ...}  or  {"ok": false, "error": "...", "exit": N}
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import NotRunning, QueueUnsafe, ServiceUnavailable, SupervisorError, WaitTimeout

MAX_ANSWER_BYTES = 64 << 20
_LONGEST_S = 86400.0  # that is slept at once: the kernel counts milliseconds in an int
_LONGEST_NAME = 107  # bytes in sockaddr_un.sun_path, without the final NUL


class RequestRefused(SupervisorError):
    """The supervisor answered that it can't do this; the message and the exit code are its own."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[Any, ...]:
        return (RequestRefused, (str(self), self.exit_code))


def socket_path(runtime_dir: Path, queue_id: str, instance: str) -> Path:
    """Return where the supervisor of a queue listens."""
    return runtime_dir / f"{queue_id}.{instance}.sock"


def ask(path: Path, request: Mapping[str, Any], timeout_s: float = 10.0) -> dict[str, Any]:
    """Return the supervisor's answer to one request.

    Raises NotRunning where nothing listens, WaitTimeout where the answer takes longer than ``timeout_s`` seconds,
    RequestRefused where the answer is no, QueueUnsafe where the socket's folder could be a stranger's.
    """
    deadline = time.monotonic() + timeout_s
    with _connected(path, timeout_s) as connection:
        try:
            connection.sendall(json.dumps(dict(request)).encode() + b"\n")
            answer = _read_line(connection, deadline)
        except TimeoutError:
            raise WaitTimeout(
                f"the supervisor at {path} did not answer {request.get('do')!r} in {timeout_s:g} s"
            ) from None
        except ConnectionError:
            answer = b""
    if not answer.endswith(b"\n"):
        raise ServiceUnavailable(f"the supervisor at {path} ended while it was asked for {request.get('do')!r}")
    try:
        document: dict[str, Any] = json.loads(answer)
    except ValueError:
        raise ServiceUnavailable(f"what listens at {path} is no supervisor: it answered {answer[:80]!r}") from None
    if not document.get("ok"):
        raise RequestRefused(str(document.get("error", "refused without a reason")), int(document.get("exit", 1)))
    return document


def find_by_queue(runtime_dir: Path, queue_dir: Path, instance: str) -> Path:
    """Return the socket of the supervisor that serves a folder which can't be read any more, by asking those there are.

    Raises NotRunning where none does.
    """
    wanted = os.path.realpath(queue_dir)
    for path in sorted(runtime_dir.glob(f"*.{instance}.sock")):
        with contextlib.suppress(SupervisorError, OSError):
            if os.path.realpath(str(ask(path, {"do": "status"}, 2.0).get("queue_dir"))) == wanted:
                return path
    raise NotRunning(f"no supervisor of this host serves {queue_dir}; 'dspy-supervisor start' does")


@contextlib.contextmanager
def _connected(path: Path, timeout_s: float) -> Iterator[socket.socket]:
    try:
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise NotRunning(f"no supervisor is running: there is no {path.parent}") from None
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, folder)
        status = os.fstat(folder)
        if status.st_uid not in (os.geteuid(), 0) and os.geteuid() != 0:
            raise QueueUnsafe(
                f"{path.parent} belongs to user {status.st_uid}: another could answer for your supervisor"
            )
        if status.st_mode & stat.S_IWOTH:
            raise QueueUnsafe(f"{path.parent} is writable by others: 'chmod 700 {path.parent}'")
        connection = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC))
        connection.settimeout(min(timeout_s, _LONGEST_S))
        name = os.fsencode(path)
        if len(name) > _LONGEST_NAME:  # the same file, by a name that fits
            name = f"/proc/self/fd/{folder}/{path.name}".encode()
        try:
            connection.connect(name)
        except (FileNotFoundError, ConnectionRefusedError):
            raise NotRunning(f"no supervisor is running: nothing listens at {path}") from None
        except (TimeoutError, BlockingIOError):
            raise WaitTimeout(f"the supervisor at {path} takes no connection") from None
        yield connection


def _read_line(connection: socket.socket, deadline: float) -> bytes:
    """Read up to the newline, or to the end; TimeoutError after the deadline, however slowly bytes drip in."""
    parts = bytearray()
    while not parts.endswith(b"\n") and len(parts) < MAX_ANSWER_BYTES:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(min(left, _LONGEST_S))
        try:
            part = connection.recv(1 << 16)
        except TimeoutError:
            continue
        if not part:
            break
        parts += part
    return bytes(parts)
