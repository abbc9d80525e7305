"""What runs on a machine beside its supervisor: puts tasks into the queue there, and tells what became of them.

It speaks over its standard input and output (see wire.py) and ends with them; the supervisor it started goes on. From here:
``hello`` (``tasks``: names that lie there), ``alive`` (``serving``, ``problem``), ``have`` (``file``), ``refused`` (``file``,
``reason``), ``ended`` (``file``, ``state``, ``files``: [name, size]; the body is the record, then these files), ``off``.
To here: ``put`` (``file``, ``at``; the body is the envelope), ``settled`` (``file``), ``cancel`` (``file``), ``end``.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dspy_fastpath.claim import move_new, write_new

from ...config import Config
from ...control_client import ask, socket_path
from ...errors import NotRunning, SupervisorError
from ...layout import Layout
from ...lookup import files, find_one, name_of
from ...task import State, TaskName
from .wire import MAGIC, Frames, Message, pack

_TURN_S = 0.1
_ALIVE_S = 5.0
_LOOK_S, _LOOK_SOON_S = 2.0, 0.3  # between two looks at whether the supervisor serves
_STARTS = 5  # of a supervisor that ends again and again
_MOST_OUTPUT = 16 << 20  # bytes of a task's files that travel
_ENDED = (State.DONE, State.FAILED)


class Agent:
    """The agent of one queue."""

    def __init__(self, config: Config, options: Sequence[str]) -> None:
        config.queue_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._config, self._options = config, options
        self._layout = Layout.open(config.queue_dir, create=True, insecure=config.insecure)
        self._socket = socket_path(config.runtime_dir, self._layout.queue_id, config.instance)
        self._watched: dict[str, TaskName] = {}  # by id
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0
        self._look_at = self._alive_at = 0.0
        self._told = ""
        self._serving = False

    def run(self) -> int:
        """Serve the other end until it is gone."""
        os.write(1, MAGIC)
        there = [name_of(one) for state in State for one in files(self._layout, state)]
        self._say({"op": "hello", "tasks": [name.file for name in there]})
        frames = Frames(greeted=True)
        poll = select.poll()
        poll.register(0, select.POLLIN)
        while True:
            if poll.poll(_TURN_S * 1000):
                if not (data := os.read(0, 1 << 18)):
                    return 0
                for message in frames.feed(data):
                    if message.header["op"] == "end":
                        self._end()
                        return 0
                    self._hear(message)
            self._turn(time.monotonic())

    def _turn(self, now: float) -> None:
        if now >= self._look_at:
            before = self._serving
            self._look()
            self._look_at = now + (_LOOK_S if self._serving else _LOOK_SOON_S)
            self._alive_at = now if before != self._serving else self._alive_at
        if now >= self._alive_at:
            self._alive_at = now + _ALIVE_S
            self._say({"op": "alive", "serving": self._serving, "problem": self._told})
        for task_id, name in list(self._watched.items()):
            for state in _ENDED:
                if (Path(self._layout.path) / state / f"{task_id}.json").exists():
                    self._tell_end(name, state)
                    break

    def _hear(self, message: Message) -> None:
        header = message.header
        name = TaskName.parse(str(header["file"]))
        if name is None:
            return
        if header["op"] == "put":
            try:
                self._put(name, message.body, float(header["at"]))
            except OSError as error:
                self._say({"op": "refused", "file": name.file, "reason": str(error)})
                return
            self._watched[name.id] = name
            self._say({"op": "have", "file": name.file})
        elif header["op"] == "settled":
            self._watched.pop(name.id, None)
            self._forget(name)
        elif header["op"] == "cancel":
            with contextlib.suppress(SupervisorError):
                ask(self._socket, {"do": "cancel", "id": name.id})

    def _put(self, name: TaskName, envelope: bytes, at: float) -> None:
        """Put a task into the queue, unless it is there: the same question twice is one task."""
        if find_one(self._layout, name.id) is not None:
            return
        temporary = f".{name.file}.tmp".encode()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=self._layout.pending)
        write_new(self._layout.pending, temporary, envelope, self._layout.syncs)
        os.utime(temporary, (at, at), dir_fd=self._layout.pending)  # a task's age is its file's
        with contextlib.suppress(FileExistsError):
            move_new(self._layout.pending, temporary, self._layout.pending, name.file.encode())

    def _tell_end(self, name: TaskName, state: State) -> None:
        record = (Path(self._layout.path) / state / f"{name.id}.json").read_bytes()
        parts, told = [record], []
        room = _MOST_OUTPUT
        home = Path(self._layout.path) / "logs" / name.id
        with contextlib.suppress(OSError):
            for entry in sorted(os.scandir(home), key=lambda entry: entry.name):
                size = entry.stat(follow_symlinks=False).st_size
                if entry.is_file(follow_symlinks=False) and size <= room and not entry.name.startswith("attempt."):
                    content = Path(entry.path).read_bytes()
                    parts.append(content)
                    told.append([entry.name, len(content)])
                    room -= len(content)
        self._watched.pop(name.id)
        header: dict[str, Any] = {"op": "ended", "file": name.file, "state": str(state), "record": len(record)}
        self._say(header | {"files": told}, b"".join(parts))

    def _forget(self, name: TaskName) -> None:
        """Remove what is kept of a task that was brought home."""
        for folder in (self._layout.done, self._layout.failed):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{name.id}.json", dir_fd=folder)
        home = Path(self._layout.path) / "logs" / name.id
        if not stat.S_ISLNK(os.lstat(home).st_mode) if os.path.lexists(home) else False:
            shutil.rmtree(home, ignore_errors=True)

    def _look(self) -> None:
        """Start the supervisor where none serves."""
        try:
            ask(self._socket, {"do": "status"}, 10.0)
        except NotRunning:
            self._serving = False
            self._start()
            return
        except SupervisorError as error:
            self._serving, self._told = False, str(error)
            return
        self._serving, self._told, self._starts = True, "", 0

    def _start(self) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            return  # it is on its way
        log = self._config.queue_dir.with_name(f"{self._config.queue_dir.name}.log")
        if process is not None and self._starts >= _STARTS:
            with contextlib.suppress(OSError):
                self._told = f"start ends with {process.returncode}: {log.read_text(errors='replace').strip()[-300:]}"
            return
        self._starts += 1
        command = [sys.executable, "-m", "dspy_supervisor", "start", "--queue-dir", str(self._config.queue_dir)]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*command, *self._options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # the login ends, and this goes on
            )

    def _end(self) -> None:
        """Stop the supervisor: the machine goes, or is somebody else's again."""
        with contextlib.suppress(SupervisorError):
            ask(self._socket, {"do": "stop", "now": True}, 10.0)
        self._say({"op": "off"})

    @staticmethod
    def _say(header: dict[str, Any], body: bytes = b"") -> None:
        data = memoryview(pack(header, body))
        while data:
            data = data[os.write(1, data) :]
