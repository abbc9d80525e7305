"""The log: one event a line, a fixed word and its facts. For people on a terminal, JSON lines everywhere else.

``log.info("claimed", task="a1", worker=4711)`` writes ``claimed task=a1 worker=4711`` or
``{"time": ..., "level": "info", "event": "claimed", "task": "a1", "worker": 4711}``.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import orjson

_LOGGER = logging.getLogger("dspy_supervisor")


class Log:
    """Writes events with their facts."""

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


log = Log()


class _Line(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts: dict[str, Any] = getattr(record, "facts", {})
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = "" if record.levelno <= logging.INFO else f" {record.levelname.lower()}:"
        return f"{clock}{level} {record.getMessage()}" + "".join(
            f" {key}={_plain(value)}" for key, value in facts.items()
        )


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts: dict[str, Any] = getattr(record, "facts", {})
        line = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **facts,
        }
        return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


class _File(logging.StreamHandler[TextIO]):
    """A log file that can be opened anew, after a rotation moved it away."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(self._open())

    def _open(self) -> TextIO:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self.path.open("a", encoding="utf-8", errors="backslashreplace")

    def reopen(self) -> None:
        """Go on in a file of the same name that is there now, or is made."""
        old = self.setStream(self._open())
        if old is not None:
            old.close()


def configure(level: str, file: Path | None = None) -> None:
    """Send the log to a file, or to standard error."""
    handler: logging.StreamHandler[TextIO] = _File(file) if file else logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line() if not file and sys.stderr.isatty() else _Json())
    for old in list(_LOGGER.handlers):
        _LOGGER.removeHandler(old)
        if isinstance(old, _File):
            old.close()
            old.stream.close()
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(level.upper())
    _LOGGER.propagate = False


def reopen() -> None:
    """Open log files anew: after a rotation."""
    for handler in _LOGGER.handlers:
        if isinstance(handler, _File):
            handler.reopen()


def _plain(value: Any) -> str:
    text = value if isinstance(value, str) else str(value)
    # A name or a message from outside must not be able to write lines of its own, or move the cursor.
    safe = text.encode("unicode_escape").decode() if not text.isprintable() else text
    return f'"{safe}"' if " " in safe or not safe else safe
