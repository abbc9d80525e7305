"""The line to one machine: ssh(1), and messages both ways over its standard input and output.

A message is a header, one JSON object with an ``op``, and a body of bytes::

    12 5\\n{"op":"put"}hello         lengths of header and body, then both

What the machine's shell may say before is passed over up to the line MAGIC.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple

import orjson

from ...config import Config
from ...environment import slurm_environment
from .provider import Address

MAGIC = b"dspy-cloud 1\n"
_MOST = 1 << 30  # bytes of a body
_HEAD = 40  # bytes that the two lengths take at most
_CHUNK = 1 << 18
_TAIL = 2000  # bytes of its complaints that are kept


class Message(NamedTuple):
    """What one end said."""

    header: Mapping[str, Any]
    body: bytes = b""


def pack(header: Mapping[str, Any], body: bytes = b"") -> bytes:
    """Return a message as it travels."""
    head = orjson.dumps(header)
    return b"%d %d\n%b%b" % (len(head), len(body), head, body)


class Frames:
    """Makes messages of bytes as they come. Raises ValueError for what is none."""

    def __init__(self, *, greeted: bool) -> None:
        self._buffer = bytearray()
        self._greeted = greeted  # whether MAGIC is behind us

    def feed(self, data: bytes) -> Iterator[Message]:
        """Yield the messages that are whole now."""
        self._buffer += data
        while not self._greeted:
            line, newline, rest = self._buffer.partition(b"\n")
            if not newline:
                if len(self._buffer) > 1 << 20:
                    raise ValueError("a megabyte without a line")
                return
            self._greeted = bytes(line) + b"\n" == MAGIC
            self._buffer = rest
        while True:
            end = self._buffer.find(b"\n", 0, _HEAD)
            if end < 0:
                if len(self._buffer) >= _HEAD:
                    raise ValueError(f"no message: {bytes(self._buffer[:_HEAD])!r}")
                return
            head, body = map(int, self._buffer[:end].split())
            if not (0 < head <= _MOST and 0 <= body <= _MOST):
                raise ValueError(f"a message of {head} and {body} bytes")
            start = end + 1
            if len(self._buffer) < start + head + body:
                return
            header = orjson.loads(self._buffer[start : start + head])
            content = bytes(self._buffer[start + head : start + head + body])
            del self._buffer[: start + head + body]
            yield Message(header, content)


def ssh_command(config: Config, address: Address, hosts_file: os.PathLike[str] | None, command: str) -> list[str]:
    """Return the ssh that runs a command there. A host that we rented is believed at its first login, and never another."""
    options = [*config.cloud_ssh_options]
    options += ["BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=10", "ServerAliveCountMax=3"]
    options += ["ForwardAgent=no", "ForwardX11=no", "ClearAllForwardings=yes", "EscapeChar=none"]
    if hosts_file is not None:
        options += [f'UserKnownHostsFile="{hosts_file}"', "StrictHostKeyChecking=accept-new", "UpdateHostKeys=no"]
    if config.cloud_ssh_key is not None:
        options += [f'IdentityFile="{config.cloud_ssh_key}"', "IdentitiesOnly=yes"]
    argv = ["ssh", "-T", "-p", str(address.port)]
    for option in options:
        argv += ["-o", option]
    return [*argv, "--", address.destination, command]


class Wire:
    """One ssh under way. Never waits: what can't be written yet is kept, what comes is read when it is there."""

    def __init__(self, argv: Sequence[str], stdin: IO[bytes] | None = None) -> None:
        self.process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE if stdin is None else stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=slurm_environment(("SSH_AUTH_SOCK", "DSPY_TASK_NODE")),
            bufsize=0,
        )
        self.heard_at = time.monotonic()
        self._frames = Frames(greeted=False)
        self._out: deque[memoryview] = deque()
        self._tail = b""
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                os.set_blocking(stream.fileno(), False)

    def descriptors(self) -> list[tuple[int, bool]]:
        """Return what to wait for: descriptors, and whether to be written."""
        found = [(s.fileno(), False) for s in (self.process.stdout, self.process.stderr) if s and not s.closed]
        if self._out and self.process.stdin and not self.process.stdin.closed:
            found.append((self.process.stdin.fileno(), True))
        return found

    def send(self, header: Mapping[str, Any], body: bytes = b"") -> None:
        """Say something; `flush` lets it go."""
        self._out.append(memoryview(pack(header, body)))

    def flush(self) -> None:
        """Write what can be written now."""
        stdin = self.process.stdin
        while self._out and stdin is not None and not stdin.closed:
            try:
                written = os.write(stdin.fileno(), self._out[0][:_CHUNK])
            except BlockingIOError:
                return
            except OSError:  # its end is about to be seen
                self._out.clear()
                return
            self._out[0] = self._out[0][written:]
            if not self._out[0]:
                self._out.popleft()

    def receive(self) -> Iterator[Message]:
        """Yield what came. Raises ValueError where the other end does not speak as ours does."""
        self._read_complaints()
        while data := self._read(self.process.stdout):
            self.heard_at = time.monotonic()
            yield from self._frames.feed(data)

    @property
    def ended(self) -> int | None:
        """Its exit code, None while it runs."""
        return self.process.poll()

    @property
    def complaint(self) -> str:
        """The last of what it wrote to standard error."""
        self._read_complaints()
        return self._tail.decode(errors="replace").strip()[-500:]

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _read_complaints(self) -> None:
        while data := self._read(self.process.stderr):
            self._tail = (self._tail + data)[-_TAIL:]

    @staticmethod
    def _read(stream: IO[bytes] | None) -> bytes:
        if stream is None or stream.closed:
            return b""
        try:
            return os.read(stream.fileno(), _CHUNK)
        except (BlockingIOError, OSError):
            return b""
