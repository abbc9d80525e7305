"""The queue as a concurrent.futures.Executor: functions that workers can import, called in tasks of kind ``call``.

::

    with QueueExecutor("/data/queue") as executor:
        futures = [executor.submit(math.factorial, n) for n in range(100)]

Arguments and results are JSON, so a tuple arrives as a list. The supervisor must allow the function (``call_allow``).
A future that is cancelled, and one that nobody waits for, is a task like any other: tasks outlive the program that put
them, and an interpreter that ends does not wait for them; ``with`` and `shutdown` do.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import math
import os
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from typing import Any, Self, TypeVar

from .envelopes import Options, Prepared, prepare
from .futures import Listener, QueueFuture
from .queue import Queue

_T = TypeVar("_T")


class QueueExecutor(Executor):
    """Calls functions in the workers of a queue."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        task_class: str = "cpu_short",
        *,
        create: bool = False,
        insecure: bool = False,
        runtime_dir: str | os.PathLike[str] | None = None,
        max_attempts: int = 1,  # a call that failed is the caller's to repeat
        timeout: float | None = None,  # seconds for one call, from its start
        priority: int | None = None,
        resources: dict[str, Any] | None = None,
        kind: str = "call",  # of tasks put by submit_payloads, where it is another
    ) -> None:
        """Open a queue. Raises QueueMissing, QueueUnsafe."""
        self._queue = Queue(path, create=create, insecure=insecure, runtime_dir=runtime_dir)
        self._options: Options = {"task_class": task_class, "kind": kind, "max_attempts": max_attempts}
        self._options |= {"timeout": timeout, "priority": priority, "resources": resources}
        self._shut = False
        self._listener = Listener(self._queue)
        # An executor that is dropped without shutdown: its futures are still served, then the thread ends.
        self._finalizer = weakref.finalize(self, self._listener.finish)

    def submit(self, fn: Callable[..., _T] | str, /, *args: Any, **kwargs: Any) -> QueueFuture[_T]:
        """Have a worker call a function, named by itself or as "module:function", and return the future of its result.

        Raises TypeError for a function that a worker can't import, EnvelopeInvalid for arguments that are no JSON,
        QueueFull, RuntimeError after shutdown.
        """
        return self._start([self._prepared(import_path(fn), args, kwargs)])[0]

    def submit_payloads(self, payloads: Iterable[Any]) -> list[QueueFuture[Any]]:
        """Put a task of this executor's kind for each payload, and return the futures of their results.

        Raises EnvelopeInvalid for a payload that is no JSON, QueueFull, RuntimeError after shutdown.
        """
        return self._start([prepare(payload, **self._options) for payload in payloads])

    def map(
        self,
        fn: Callable[..., _T] | str,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[_T]:
        """Call a function for each of the items, as many at once as the queue allows, and yield the results in order.

        All are put before the first result is asked for, with few syncs; with ``buffersize`` at most so many ahead.
        ``timeout``: seconds from now for all of it, then TimeoutError. ``chunksize`` is for other executors.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        callee = import_path(fn)
        calls = (self._prepared(callee, args, {}) for args in zip(*iterables, strict=False))
        futures: deque[QueueFuture[_T]] = deque(self._start(list(itertools.islice(calls, buffersize))))
        return _results(futures, calls, self._start, deadline)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more calls; wait for those that are there, or cancel the ones that no worker has begun."""
        self._shut = True
        if cancel_futures:
            for future in self._listener.open_futures():
                future.cancel()
        self._finalizer()
        if wait:
            self._listener.join()

    def __enter__(self) -> Self:
        return self

    def _prepared(self, callee: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Prepared:
        return prepare({"callable": callee, "args": args, "kwargs": kwargs}, **self._options)

    def _start(self, calls: list[Prepared]) -> list[QueueFuture[Any]]:
        if self._shut:
            raise RuntimeError("cannot schedule new futures after shutdown")
        futures = [QueueFuture[Any](self._queue, call.id) for call in calls]
        # Listening first: no ending can pass between the put and the listening.
        self._listener.add(futures)
        try:
            for batch in range(0, len(calls), 10_000):
                self._queue.put(calls[batch : batch + 10_000])
            self._listener.placed(futures)
        except BaseException:
            self._listener.drop(futures)
            raise
        return futures


def import_path(fn: Callable[..., Any] | str) -> str:
    """Return what names a function for a worker, "module:function". Raises TypeError that says what to do instead."""
    if isinstance(fn, str):
        module, colon, qualname = fn.partition(":")
        if not colon or not all(part.isidentifier() for part in [*module.split("."), *qualname.split(".")]):
            raise TypeError(f"{fn!r} names no function: write 'module:function'")
        return fn
    if isinstance(fn, functools.partial):
        raise TypeError("a partial has no name that a worker could import: give its function and its arguments")
    name: Any = getattr(fn, "__qualname__", None)
    home: Any = getattr(fn, "__module__", None) or getattr(getattr(fn, "__objclass__", None), "__module__", None)
    if not callable(fn) or not isinstance(name, str) or not isinstance(home, str):
        raise TypeError(f"{fn!r} has no name that a worker could import: give a function of a module")
    if "<lambda>" in name or "<locals>" in name:
        what = "a lambda" if "<lambda>" in name else f"{name.rpartition('.')[2]}(), defined inside a function,"
        raise TypeError(f"{what} can't be imported by a worker: define it at the top of a module, and give that")
    if home == "__main__":
        raise TypeError(
            f"{name}() is defined in the program that runs now, which a worker can't import: move it into a module that "
            f"the supervisor finds on its path, and give that"
        )
    found: Any = sys.modules.get(home) or importlib.import_module(home)
    for part in name.split("."):
        found = getattr(found, part, None)
    if found != fn:
        raise TypeError(
            f"{home}:{name} is not {fn!r}: a worker would import another, or none; give a function by its name"
        )
    return f"{home}:{name}"


def _results(
    futures: deque[QueueFuture[_T]],
    calls: Iterator[Prepared],
    start: Callable[[list[Prepared]], list[QueueFuture[Any]]],
    deadline: float,
) -> Iterator[_T]:
    try:
        while futures:
            future = futures[0]
            result = future.result(None if deadline == math.inf else max(0.0, deadline - time.monotonic()))
            futures.popleft()
            if following := list(itertools.islice(calls, 1)):
                futures.extend(start(following))
            yield result
    finally:
        for future in futures:
            future.cancel()
