"""The two sockets: what a handler gets, returns and raises, what a service gets, and how each is found by name.

A handler is any callable that takes a :class:`Task` and returns JSON (or a coroutine of it)::

    def count_words(task):
        return {"words": len(task.payload["text"].split())}

It is named ``module:function`` in the configuration. Whatever it raises fails the attempt; three errors say more:
:class:`TaskRefused` (never again), :class:`Retry` (again, not before) and :class:`HandlerFailure` (with its cause).
"""

from __future__ import annotations

import importlib
import math
import os
import stat
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import orjson

from .errors import ConfigError
from .task import MAX_TIMEOUT_S, Cause
from .traceparent import Traceparent

if TYPE_CHECKING:
    from dspy_fastpath.envelope import Fields

    from .config import Config
    from .kept import Kept
    from .link import Link

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"

_UNREAD: Any = object()


@dataclass(slots=True)  # frozen would cost five microseconds for each task
class Task:
    """One attempt of one task, as its handler sees it."""

    id: str
    task_class: str
    kind: str | None
    attempt: int  #: 0 for the first; hand it to outside systems, so that they can refuse an older one
    crashes: int  #: of the attempts before this one, how many ended in the death of the worker
    timeout_s: float | None
    raw: bytes  #: the payload as it was written, valid JSON
    fields: Fields  #: what the envelope says beside the payload
    envelope: bytes  #: the whole file
    home: str | Path  #: path of `folder`, which is made a Path when it is asked for
    deadline: float | None  #: time.monotonic() at which the attempt is ended from outside
    trace: Callable[[], str] | None = None  #: names the span of this attempt, where attempts are traced
    worker: Kept | None = None  #: what the worker keeps between tasks; None where it can't keep anything
    _payload: Any = field(default=_UNREAD, init=False, repr=False, compare=False)

    @property
    def payload(self) -> Any:
        """The payload as Python objects, parsed once: who changes it, changes it for this attempt only."""
        if self._payload is _UNREAD:
            self._payload = orjson.loads(self.raw)
        return self._payload

    @property
    def traceparent(self) -> str | None:
        """The W3C trace context for calls that this attempt makes: its own span where it is traced, else the producer's."""
        if self.trace is not None:
            return self.trace()
        given = self.fields.traceparent  # often None, which needs no parsing
        return None if given is None or (parsed := Traceparent.parse(given)) is None else str(parsed)

    @property
    def folder(self) -> Path:
        """Where output of this task may be kept; `output_folder` makes it."""
        return Path(self.home)  # a Path costs 5 us to make, and most tasks have no output

    def kept(self, key: str | None = None) -> Any:
        """Return what an earlier task of this key kept here, or None; the key is the envelope's affinity.

        Raises HandlerFailure with the cause ``env_lost`` where that was lost with its worker: once, and never to the task
        that had made it. TaskRefused where the task has no key.
        """
        return self._keeper.get(self._key(key), self.id)

    def keep(self, thing: Any, close: Callable[[], object] | None = None, key: str | None = None) -> None:
        """Keep a thing in this worker for the next tasks of this key, which all come here, one after another.

        ``close`` is called when it is released, replaced, or unused for ``env_idle_s``, and where the worker ends in order.
        """
        self._keeper.keep(self._key(key), thing, close, self.id)

    def release(self, key: str | None = None) -> bool:
        """Give up what is kept under this key; False where there is nothing."""
        return self._keeper.release(self._key(key))

    @property
    def _keeper(self) -> Kept:
        if self.worker is None:
            raise TaskRefused("nothing can be kept here between tasks: it runs in a process of its own")
        return self.worker

    def _key(self, key: str | None) -> str:
        key = self.fields.affinity if key is None else key
        if not key:
            raise TaskRefused("it has no key: put one into the envelope's affinity")
        return key

    def output_folder(self) -> Path:
        """Return the folder for files of this task, which is there now.

        Raises NotADirectoryError where a link or a file took its name: nothing outside the queue is written.
        """
        folder = self.folder
        try:
            _make_folder(folder)
        except FileNotFoundError:
            folder.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            _make_folder(folder)
        return folder


Handler: TypeAlias = Callable[[Task], "JSON | Awaitable[JSON]"]


@dataclass(frozen=True, slots=True)
class ServicePost:
    """What a service is told at its birth. It opens the queue and the page itself, and dies with its supervisor."""

    name: str
    config: Config
    queue_dir: Path
    queue_id: str
    node: str  #: of its supervisor; it lives as long as that does
    owner: str  #: a folder of claimed/ that nobody used before, where it may keep claims of its own
    page: Path  #: of the shared page
    link: Link
    traces: int = -1  #: of the tracing service: the descriptor that it reads


#: A process beside the workers. It speaks on its link at least every `link.ALIVE_S`, and returns its exit code when told to.
Service: TypeAlias = Callable[[ServicePost], int]


class TaskRefused(Exception):
    """A handler raises this where the task can never succeed: it goes to failed/ and is not tried again."""


class Retry(Exception):
    """A handler raises this to be called again, not before delay_s; the attempt counts, and their bound holds.

    delay_s: seconds, or None for the usual back-off.
    """

    def __init__(self, message: str = "the handler asked for another attempt", delay_s: float | None = None) -> None:
        super().__init__(message)
        if delay_s is not None and not (math.isfinite(delay_s) and 0 <= delay_s <= MAX_TIMEOUT_S):
            raise ValueError(f"delay_s={delay_s!r}: expected seconds from 0 to {MAX_TIMEOUT_S:.0f}")
        self.delay_s = delay_s


class HandlerFailure(Exception):
    """An attempt failed for a known cause; details is JSON that goes into the record beside it."""

    def __init__(self, cause: Cause, message: str, details: Mapping[str, JSON] | None = None) -> None:
        super().__init__(message)
        self.cause, self.message, self.details = cause, message, dict(details or {})


def load(name: str) -> Handler:
    """Import what ``module:function`` names.

    Raises ConfigError that names the part that is missing, wrong or broken.
    """
    module_name, colon, qualname = name.partition(":")
    if not colon or not all(part.isidentifier() for part in [*module_name.split("."), *qualname.split(".")]):
        raise ConfigError("handler", name, "module:function, for example 'tools.text:count_words'")
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as exc:  # a module runs its author's code when it is imported
        raise ConfigError(
            "handler", name, f"a module {module_name!r} that can be imported, not {type(exc).__name__}: {exc}"
        ) from exc
    where = module_name
    for part in qualname.split("."):
        if not hasattr(found, part):
            raise ConfigError("handler", name, f"{part!r} to be defined in {where}")
        found, where = getattr(found, part), f"{where}.{part}"
    if not callable(found):
        raise ConfigError("handler", name, f"something that can be called, not {type(found).__name__}")
    handler: Handler = found
    return handler


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(mode=0o750)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise NotADirectoryError(20, "a link or a file has the name of this task's folder", str(path)) from None
