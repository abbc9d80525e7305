"""One attempt: a handler is called, and every way this can end becomes an Outcome.

Nothing a handler does by Python's means escapes :func:`run`: not SystemExit, not an exception whose ``str`` raises, not
a result that is no JSON. What it does to the process is put back by :class:`Surroundings`. The death of the process and
time are the business of those outside.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from collections.abc import Awaitable
from dataclasses import dataclass, field
from enum import Enum
from fcntl import F_DUPFD_CLOEXEC, fcntl
from types import TracebackType
from typing import TYPE_CHECKING, Any

import orjson

from .checkpoint import CheckpointSaved
from .cuda_errors import raised_out_of_memory
from .parts import Handler, HandlerFailure, Retry, Task, TaskRefused
from .task import Cause

if TYPE_CHECKING:
    import asyncio

MAX_MESSAGE_BYTES = 1024
MAX_TRACEBACK_BYTES = 3072  #: with the message 4 KiB, all that a record keeps of an error
MAX_TYPE_BYTES = 200
MAX_DETAILS_BYTES = 64 * 1024  #: two tails of 4 KiB, escaped, and facts beside them
LEFTOVER_TASKS_S = 1.0  #: how long asyncio tasks that a handler left behind may take to be cancelled

#: A second attempt would end the same way.
FINAL = frozenset({Cause.REFUSED, Cause.INVALID_RESULT, Cause.CANCELLED, Cause.ENV_LOST})

_PLAIN = frozenset({dict, list, str, int, float, bool, type(None), tuple})  # no coroutines, so no need to look
_SCALARS = frozenset({str, int, bool, type(None)})

# The module below `signal`, which wraps each answer in an enum: after every task 1.5 us instead of 20 for all handlers.
_signal: Any = importlib.import_module("_signal")
_SIGNALS = sorted(number for number in _signal.valid_signals() if number < _signal.SIGRTMIN)


@dataclass(slots=True, frozen=True)
class Outcome:
    """How an attempt ended."""

    ok: bool
    result: bytes | None = None  #: JSON; None where it failed
    cause: Cause | None = None
    message: str = ""
    type: str = ""  #: of the exception
    traceback: str = ""
    details: dict[str, Any] = field(default_factory=dict)  #: JSON
    retry: bool = False  #: whether another attempt may end better
    retry_delay_s: float | None = None  #: None: the usual back-off


def run(handler: Handler, task: Task, *, max_result_bytes: int) -> Outcome:
    """Call the handler and return how that ended; a coroutine is run on an event loop kept for the next one."""
    try:
        result: Any = handler(task)
        if type(result) not in _PLAIN and hasattr(type(result), "__await__"):
            result = _run_awaitable(result)
    except BaseException as exc:  # the handler's code: whatever it raises is its outcome
        return _failed(exc)
    try:
        encoded = orjson.dumps(result)
        if len(encoded) > max_result_bytes:
            return _invalid(f"the result is {len(encoded)} bytes of JSON, the bound is {max_result_bytes}")
        # orjson writes NaN and the infinities as null; a null that was meant is no error
        if b"null" in encoded and (place := _not_finite(result)):
            return _invalid(f"{place}, which JSON cannot hold")
    except TypeError as exc:
        return _invalid(f"the result, of type {_type_name(type(result))}, is not JSON: {_text(exc)}")
    except MemoryError as exc:
        return _failed(exc)
    return Outcome(True, encoded)


class Surroundings:
    """What a worker shares with the code it runs, as it is now, to be put back after each task.

    These are the working folder, umask, environment, signal handlers, mask and alarm, and the three standard streams.
    """

    def __init__(self) -> None:
        self._handlers = tuple(map(_signal.getsignal, _SIGNALS))
        self._mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._environ = os.environ
        self._variables: dict[bytes, bytes] = os.environ._data  # type: ignore[attr-defined]  # a copy costs 20 us
        self._variables_before = dict(self._variables)
        self._streams = (sys.stdin, sys.stdout, sys.stderr)
        opened = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._folder = _park(opened)
        os.close(opened)
        self._standard: list[tuple[int, int]] = []
        for number in (0, 1, 2):
            try:
                os.fstat(number)
            except OSError:  # the worker was started without it: whatever a task opens there stays its own affair
                continue
            self._standard.append((_park(number), number))

    def close(self) -> None:
        """Give the descriptors back."""
        os.close(self._folder)
        for saved, _ in self._standard:
            os.close(saved)
        self._standard = []

    def restore_urgent(self) -> None:
        """Put back what would reach into the very next thing the worker does: the mode of its files, and an alarm."""
        os.umask(self._umask)
        if _signal.getitimer(_signal.ITIMER_REAL) != (0.0, 0.0):
            _signal.setitimer(_signal.ITIMER_REAL, 0.0)

    def restore(self) -> None:
        """Put back what a task changed.

        Raises OSError (EBADF) where the task closed the worker's own descriptors: such a worker cannot go on.
        """
        self.restore_urgent()
        # Cheaper to set than to ask: getcwd costs 0.9 us and three fstat 5 us, these calls 1.5 us.
        os.fchdir(self._folder)
        for saved, number in self._standard:
            os.dup2(saved, number)
        if _stream_lost(self._streams):
            self._restore_streams()
        if os.environ is not self._environ or self._variables != self._variables_before:
            self._restore_environ()
        # Handlers before the mask: a signal that waits behind the task's mask is the worker's to handle.
        if tuple(map(_signal.getsignal, _SIGNALS)) != self._handlers:
            for number, handler in zip(_SIGNALS, self._handlers, strict=True):
                # None is a handler that C code installed; Python can neither name it nor put it back
                if handler is not None and _signal.getsignal(number) is not handler:
                    _signal.signal(number, handler)
        if _signal.pthread_sigmask(_signal.SIG_SETMASK, self._mask) != self._mask:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, self._mask)

    def _restore_environ(self) -> None:
        os.environ = self._environ  # noqa: B003  # the very object, whose changes reach the C library
        for name in self._variables.keys() - self._variables_before.keys():
            del os.environb[name]
        for name, value in self._variables_before.items():
            if self._variables.get(name) != value:
                os.environb[name] = value

    def _restore_streams(self) -> None:
        streams = list(self._streams)
        for number, (stream, mode) in enumerate(zip(streams, "rww", strict=True)):
            if stream is not None and stream.closed:
                # closing a stream closed its descriptor too, which is back by now
                streams[number] = os.fdopen(
                    number, mode, encoding="utf-8", errors="backslashreplace", closefd=False, buffering=1
                )
        sys.stdin, sys.stdout, sys.stderr = streams
        self._streams = (sys.stdin, sys.stdout, sys.stderr)


_loop: asyncio.AbstractEventLoop | None = None  # of this worker, made for the first coroutine


def _run_awaitable(awaitable: Awaitable[Any]) -> Any:
    import asyncio  # 8 MB of memory that a worker with plain handlers does without

    global _loop  # noqa: PLW0603  # libraries keep connections that belong to a loop: a new one a task would break them
    if _loop is None or _loop.is_closed():
        _loop = asyncio.new_event_loop()

    async def whole() -> Any:
        return await awaitable

    try:
        return _loop.run_until_complete(whole())
    finally:
        leftovers = asyncio.all_tasks(_loop)
        if leftovers:
            for leftover in leftovers:
                leftover.cancel()
            ended, stubborn = _loop.run_until_complete(asyncio.wait(leftovers, timeout=LEFTOVER_TASKS_S))
            for leftover in ended:
                if not leftover.cancelled():
                    leftover.exception()  # seen: asyncio would log it at some later time, in another task's name
            if stubborn:
                _loop.close()


def _failed(exc: BaseException) -> Outcome:
    """Return the outcome of an attempt that raised exc, which may be hostile to being looked at."""
    try:
        return _describe(exc)
    except BaseException as another:  # its class may have overridden anything
        return Outcome(
            False,
            cause=Cause.RAISED,
            message=f"the handler raised an exception that cannot be described ({type(another).__name__} on the way)",
            retry=True,
        )


def _describe(exc: BaseException) -> Outcome:
    cause = Cause.RAISED
    message = _text(exc)
    details: dict[str, Any] = {}
    retry_delay_s = None
    traceback = _traceback(exc)
    if isinstance(exc, HandlerFailure):
        cause, details = Cause(exc.cause), _checked_details(exc.details)
        if exc.__cause__ is None:
            traceback = ""  # it says all there is: where a built-in handler raised it helps nobody
    elif isinstance(exc, TaskRefused):
        cause = Cause.REFUSED
    elif isinstance(exc, Retry):
        retry_delay_s = exc.delay_s
        if isinstance(exc, CheckpointSaved):
            cause, traceback = Cause.LOST, ""  # its place was: it goes on in the next attempt, and nothing is charged
    elif raised_out_of_memory(exc):
        cause, details = Cause.OUT_OF_MEMORY, {"memory": "gpu"}
    elif isinstance(exc, MemoryError):
        cause = Cause.OUT_OF_MEMORY
    elif isinstance(exc, SystemExit):
        cause = Cause.EXIT
        code = 0 if exc.code is None else exc.code
        details["exit_code"] = code if isinstance(code, int) else 1  # as Python does
        message = f"the handler called sys.exit({message})"
    name = _type_name(type(exc))
    return Outcome(
        False,
        cause=cause,
        message=_clip(message, MAX_MESSAGE_BYTES) or name,
        type=name,
        traceback=traceback,
        details=details,
        retry=cause not in FINAL,
        retry_delay_s=retry_delay_s,
    )


def _invalid(message: str) -> Outcome:
    return Outcome(False, cause=Cause.INVALID_RESULT, message=_clip(message, MAX_MESSAGE_BYTES))


def _text(exc: BaseException) -> str:
    try:
        return str(exc)
    except BaseException as another:  # the handler's code again
        return f"<{_type_name(type(exc))}, whose str() raises {_type_name(type(another))}>"


def _type_name(kind: type) -> str:
    name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    return _clip(name, MAX_TYPE_BYTES)


def _traceback(exc: BaseException) -> str:
    import traceback  # a worker whose tasks succeed never needs it

    frames: TracebackType | None = exc.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next  # ours
    try:
        lines = traceback.format_exception(type(exc), exc, frames)
    except BaseException as another:  # sources, notes and causes are the handler's, too
        return f"<the traceback cannot be written: {_type_name(type(another))}>"
    # where it was raised, at the end, tells more than where it was called from
    return _clip("".join(lines), MAX_TRACEBACK_BYTES, head=0.25)


def _checked_details(details: dict[str, Any]) -> dict[str, Any]:
    try:
        size = len(orjson.dumps(details))
    except TypeError as exc:
        return {"details_dropped": f"not JSON: {_clip(_text(exc), 200)}"}
    if size > MAX_DETAILS_BYTES:
        return {"details_dropped": f"{size} bytes of JSON, the bound is {MAX_DETAILS_BYTES}"}
    return details


def _clip(text: str, limit: int, head: float = 0.5) -> str:
    """Return text as at most limit bytes of UTF-8, without its middle where it is longer; head: share before that."""
    if len(text) > 2 * limit:  # before it is encoded: a message of a gigabyte is possible
        cut = len(text) - 2 * limit
        text = text[:limit] + text[-limit:]
    else:
        cut = 0
    encoded = text.encode("utf-8", "backslashreplace")  # lone surrogates
    if not cut and len(encoded) <= limit:
        return encoded.decode()
    room = limit - 48  # for the words between, with any number
    first = int(room * head)
    omitted = len(encoded) + cut - room
    start, end = encoded[:first].decode("utf-8", "ignore"), encoded[first - room :].decode("utf-8", "ignore")
    return f"{start}\n[... {omitted} bytes left out ...]\n{end}"


def _not_finite(result: Any) -> str:
    """Return where in result a NaN or an infinity is, in words, or nothing."""
    # A place is its container's place and the key in it, so that only containers pay for it.
    stack: list[tuple[Any, Any]] = [([result], None)]
    while stack:
        container, place = stack.pop()
        items: Any
        if isinstance(container, dict):
            items = container.items()
        elif isinstance(container, (list, tuple)):
            items = enumerate(container)
        elif isinstance(container, Enum):
            items = (("value", container.value),)
        elif dataclasses.is_dataclass(container):
            items = ((known.name, getattr(container, known.name, None)) for known in dataclasses.fields(container))
        else:
            continue
        for key, value in items:
            kind = type(value)
            if kind is float:
                if value - value != 0.0:  # true for NaN and both infinities
                    return _place(place, key) + f" is {value}"
            elif kind not in _SCALARS:
                stack.append((value, (place, key)))
    return ""


def _place(place: Any, key: Any) -> str:
    keys = []
    while place is not None:
        keys.append(key)
        place, key = place
    return "result" + "".join(f"[{key!r}]" for key in reversed(keys))


def _park(descriptor: int) -> int:
    """Return a duplicate above the numbers that programs close by hand, where the limit of open files allows it."""
    try:
        return fcntl(descriptor, F_DUPFD_CLOEXEC, 200)
    except OSError:
        return fcntl(descriptor, F_DUPFD_CLOEXEC, 3)


def _stream_lost(streams: tuple[Any, Any, Any]) -> bool:
    if sys.stdin is not streams[0] or sys.stdout is not streams[1] or sys.stderr is not streams[2]:
        return True
    return any(stream is not None and stream.closed for stream in streams)
