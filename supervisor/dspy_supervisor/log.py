"""The log: one event a line, a fixed word and its facts. For people on a terminal, JSON lines everywhere else.

``log.info("claimed", task="a1", worker=4711)`` writes ``claimed task=a1 worker=4711`` or
``{"time": ..., "level": "info", "event": "claimed", "task": "a1", "worker": 4711}``; docs/logs.md lists all events. Before a
line that goes to systemd's journal stands its priority, ``<6>``, see sd-daemon(3).

What handlers and libraries write with Python's logging comes the same way, as event ``message`` with ``logger`` and
``text``, and with the task that ran: ``task``, ``attempt`` and, where it is traced, ``trace_id``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from . import current
from .task import TaskName

MESSAGE = "message"  #: the event of what others wrote

_LOGGER = logging.getLogger("dspy_supervisor")
_TALKATIVE = ("httpx", "httpx2")  # they write a line for each request, which is no news
_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.NOTSET, 7))  # of syslog(3)
_STDERR = 2
_USUAL = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "facts"})

_bound: dict[str, Any] = {}  # facts of every line of this process


class Log:
    """Writes events with their facts. A fact ``klass`` is written as class, a file name as ``task`` as the task's id."""

    def debug(self, event: str, **facts: Any) -> None:
        """Chatter of single tasks."""
        if _LOGGER.isEnabledFor(logging.DEBUG):
            _LOGGER.debug(event, extra={"facts": facts})

    def info(self, event: str, **facts: Any) -> None:
        """What an operator would ask about."""
        _LOGGER.info(event, extra={"facts": facts})

    def warning(self, event: str, **facts: Any) -> None:
        """What may need a look."""
        _LOGGER.warning(event, extra={"facts": facts})

    def error(self, event: str, **facts: Any) -> None:
        """What needs a look."""
        _LOGGER.error(event, extra={"facts": facts})

    def bind(self, **facts: Any) -> None:
        """Let every further line of this process tell these facts, too."""
        _bound.update(facts)

    def descriptors(self) -> set[int]:
        """Return the descriptors that a child needs to go on logging."""
        return {sink.descriptor for sink in _sinks()}


log = Log()


def configure(level: str, file: Path | None = None, *, journal: str = "") -> None:
    """Send the log to a file, or to standard error; ``journal``: systemd's JOURNAL_STREAM.

    What handlers and libraries log goes there too, from INFO on, where the program has not set up Python's logging itself.
    """
    form: logging.Formatter
    if file is None and sys.stderr is not None and sys.stderr.isatty():
        form = _Line()
    else:
        form = _Json(priorities=file is None and _is_stderr(journal))
    sink = _Sink(file)
    sink.setFormatter(form)
    root = logging.getLogger()
    for old in _sinks():
        _LOGGER.removeHandler(old)
        root.removeHandler(old)
        old.close()
    _LOGGER.addHandler(sink)
    _LOGGER.setLevel(level.upper())
    _LOGGER.propagate = False
    if not root.handlers:
        root.addHandler(sink)
        root.setLevel(max(logging.INFO, _LOGGER.level))
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING if _LOGGER.level > logging.DEBUG else logging.NOTSET)


def reopen() -> None:
    """Open log files anew, after a rotation; this process's children follow with their next line. Raises OSError."""
    for sink in _sinks():
        sink.reopen()


def _sinks() -> list[_Sink]:
    return [handler for handler in _LOGGER.handlers if isinstance(handler, _Sink)]


class _Sink(logging.Handler):
    """A file, or standard error. Each line is written by one call, so that those of several processes don't mix."""

    def __init__(self, path: Path | None) -> None:
        # Before logging knows of us: it closes at the exit whatever it knows of.
        self.descriptor = _STDERR if path is None else _open(path)
        super().__init__()
        self._path = path
        self._owner = os.getpid()
        self._opened = _identity(self.descriptor)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record) + "\n"
        except Exception:  # a handler's own arguments: %d of a text, a str() that raises
            self.handleError(record)
            return
        with contextlib.suppress(OSError):  # a full disk or a reader that went away must not end what is logged about
            self._follow()
            data = line.encode("utf-8", "backslashreplace")
            while data:
                data = data[os.write(self.descriptor, data) :]

    def close(self) -> None:
        if self._path is not None and self.descriptor >= 0 and _identity(self.descriptor) == self._opened:
            os.close(self.descriptor)
        self.descriptor = -1
        super().close()

    def reopen(self) -> None:
        """Go on in a file of the same name that is there now, or is made."""
        if self._path is None:
            return
        old, held = self.descriptor, _identity(self.descriptor) == self._opened
        self.descriptor = _open(self._path)
        self._opened = _identity(self.descriptor)
        if held:  # else a task closed it, and the number is something else's by now
            os.close(old)

    def _follow(self) -> None:
        """In a child, go on in the file that the parent writes to since a rotation."""
        if self._path is None or os.getpid() == self._owner:
            return
        there = _identity(self._path)
        if there not in (self._opened, None) or _identity(self.descriptor) != self._opened:
            self.reopen()


class _Line(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = "" if record.levelno <= logging.INFO else f" {record.levelname.lower()}:"
        event, facts = _told(record)
        traceback = facts.pop("traceback", None)
        if event == MESSAGE:
            event = f"{facts.pop('logger')}: {_safe(str(facts.pop('text')))}"
        line = f"{clock}{level} {event}" + "".join(f" {key}={_plain(value)}" for key, value in facts.items())
        return line if traceback is None else "\n    ".join([line, *map(_safe, str(traceback).splitlines())])


class _Json(logging.Formatter):
    def __init__(self, *, priorities: bool) -> None:
        super().__init__()
        self._priorities = priorities

    def format(self, record: logging.LogRecord) -> str:
        event, facts = _told(record)
        line = {"time": round(record.created, 3), "level": record.levelname.lower(), "event": event, **facts}
        try:
            text = orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
        except TypeError:  # half a surrogate pair, as file names of other encodings have
            text = json.dumps(line, default=str)
        return f"<{_priority(record.levelno)}>{text}" if self._priorities else text


def _told(record: logging.LogRecord) -> tuple[str, dict[str, Any]]:
    """Return the event of a line and its facts."""
    facts = _named(_bound)
    if (task := current.task) is not None:
        facts |= {"task": task.id, "attempt": task.attempt}
        if traceparent := task.traceparent:
            facts["trace_id"] = traceparent.split("-")[1]
    if (own := getattr(record, "facts", None)) is not None:
        return record.getMessage(), facts | _named(own)
    facts |= {"logger": record.name, "text": record.getMessage()}
    if more := {key: value for key, value in vars(record).items() if key not in _USUAL}:
        facts["extra"] = more
    if record.exc_info and record.exc_info[0] is not None:
        facts["traceback"] = logging.Formatter().formatException(record.exc_info)
    elif record.stack_info:
        facts["traceback"] = record.stack_info
    return MESSAGE, facts


def _named(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts under the names that a reader expects."""
    found: dict[str, Any] = {}
    for key, value in facts.items():
        if key == "klass":
            found["class"] = value
        elif key == "task" and (name := TaskName.parse(str(value))):  # its file
            found |= {"task": name.id, "attempt": name.attempt}
        elif key == "tasks" and isinstance(value, list | tuple):
            names = [TaskName.parse(str(file)) for file in value]
            found[key] = [file if name is None else name.id for file, name in zip(value, names, strict=True)]
        else:
            found[key] = value
    return found


def _priority(level: int) -> int:
    return next(priority for least, priority in _PRIORITIES if level >= least)


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _identity(file: int | Path) -> tuple[int, int] | None:
    """Return what a file is on this host, or None where there is none."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_stderr(journal: str) -> bool:
    """Whether standard error is the stream of JOURNAL_STREAM, ``DEVICE:INODE``: a child may have been given another."""
    identity = _identity(_STDERR)
    return bool(journal) and identity is not None and journal == f"{identity[0]}:{identity[1]}"


def _plain(value: Any) -> str:
    text = value if isinstance(value, str) else str(value)
    # A name or a message from outside must not be able to write lines of its own, or move the cursor.
    safe = _safe(text)
    return f'"{safe}"' if " " in safe or not safe else safe


def _safe(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode()
