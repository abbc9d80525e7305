"""A queue for asyncio programs: the verbs of Queue as coroutines.

Waiting needs no thread: the event loop reads the watcher of the folders, one for all that wait. What writes to the disk
runs in the loop's default executor, since a sync takes milliseconds in which nothing else would run.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack

from ..errors import WaitTimeout
from ..task import State
from .endings import Ending, Endings, Wait
from .envelopes import Options, TaskOptions
from .queue import Ids, Infos, Queue, Waited, checked_return_when

_T = TypeVar("_T")


class AsyncQueue:
    """The queue in a folder, for the tasks of one event loop at a time. See Queue for what its verbs return and raise."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        create: bool = False,
        insecure: bool = False,
        runtime_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        """Open a queue. Raises QueueMissing, QueueUnsafe."""
        self._queue = Queue(path, create=create, insecure=insecure, runtime_dir=runtime_dir)
        self._endings = Endings(self._queue.access)
        self._loop: asyncio.AbstractEventLoop | None = None  # that reads the watcher
        self._reading: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: set[_AsyncWait] = set()

    @property
    def path(self) -> Path:
        """The folder."""
        return self._queue.path

    async def submit(self, payload: Any, task_class: str = "cpu_short", **options: Unpack[TaskOptions]) -> str:
        """Put a task and return its id."""
        return await _apart(partial(self._queue.submit, payload, task_class, **options))

    async def submit_many(self, payloads: Iterable[Any], **options: Unpack[Options]) -> Ids:
        """Put tasks with few syncs, and return their ids."""
        return await _apart(partial(self._queue.submit_many, payloads, **options))

    async def result(self, task_id: str, timeout: float | None = None) -> Any:
        """Wait until a task has ended, and return its result."""
        wait = _AsyncWait([task_id])
        await self._wait(wait, timeout)
        ending = wait.ended.get(task_id)
        if ending is None:
            if await self.state(task_id) not in (State.DONE, State.FAILED):
                raise WaitTimeout(f"task {task_id} did not end in {timeout:g} s; it goes on in the queue")
            ending = Ending.DONE
        return self._queue.outcome(task_id, ending)

    async def wait(
        self, ids: Iterable[str], timeout: float | None = None, return_when: str = "ALL_COMPLETED"
    ) -> Waited:
        """Wait until tasks have ended, and return which have and which have not."""
        wait = _AsyncWait(ids, checked_return_when(return_when))
        await self._wait(wait, timeout)
        return self._queue.waited(wait)

    async def state(self, task_id: str) -> State:
        """Return where a task is."""
        return await _apart(partial(self._queue.state, task_id))

    async def record(self, task_id: str) -> dict[str, Any] | None:
        """Return all that is known of an ended task, None of one that has not ended."""
        return await _apart(partial(self._queue.record, task_id))

    async def list(self, state: State | str | None = None, limit: int = 1000) -> Infos:
        """Return tasks, of one state or all, by id: the last ``limit``."""
        return await _apart(partial(self._queue.list, state, limit))

    async def cancel(self, task_id: str) -> str:
        """Cancel a task and return what it was: ``waiting`` or ``running``."""
        return await _apart(partial(self._queue.cancel, task_id))

    async def retry(self, task_id: str) -> None:
        """Let a failed task be tried again, with all its attempts."""
        await _apart(partial(self._queue.retry, task_id))

    def close(self) -> None:
        """Give everything back. Nothing may be waiting."""
        self._stop_reading()
        self._endings.close()
        self._queue.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    # -- below ----------------------------------------------------------------------------------------------------------

    async def _wait(self, wait: _AsyncWait, timeout_s: float | None) -> None:
        """Return when a wait is over, or after timeout_s."""
        self._adopt(asyncio.get_running_loop())
        self._queue.access.now()
        self._waiting.add(wait)
        try:
            self._endings.expect(wait, tuple(wait.open))
            self._read()
            if not wait.over and (timeout_s is None or timeout_s > 0):
                async with asyncio.timeout(timeout_s):
                    await wait.finished
        except TimeoutError:
            if wait.finished.done() and not wait.finished.cancelled():
                wait.finished.result()
        finally:
            self._waiting.discard(wait)
            self._endings.forget(wait, wait.open)
            self._read()

    def _adopt(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wait on this loop from now on. Raises RuntimeError while another one does."""
        if loop is self._loop:
            return
        if self._waiting and self._loop is not None and not self._loop.is_closed():
            raise RuntimeError("another event loop waits with this AsyncQueue: each needs one of its own")
        self._waiting.clear()  # of a loop that was closed under them
        self._stop_reading()
        self._loop = loop

    def _read(self) -> None:
        """Have the loop read the watcher, and look by itself when that is due, as long as anybody waits."""
        assert self._loop is not None
        if not self._waiting:
            self._stop_reading()
            return
        if self._reading is None and (descriptor := self._endings.fileno()) is not None:
            self._loop.add_reader(descriptor, self._take)
            self._reading = descriptor
        due = self._endings.next_take
        if self._timer is not None:
            self._timer.cancel()
        left = min(max(0.0, due - time.monotonic()), 3600.0)
        self._timer = self._loop.call_later(left, self._take)

    def _stop_reading(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._reading is not None:
            assert self._loop is not None
            if not self._loop.is_closed():
                self._loop.remove_reader(self._reading)
            self._reading = None

    def _take(self) -> None:
        try:
            self._endings.take()
        except Exception as error:  # of no one wait: all of them raise it
            for wait in tuple(self._waiting):
                wait.fail(error)
            return
        if self._waiting:
            self._read()


class _AsyncWait(Wait):
    """A wait that an event loop's task awaits."""

    def __init__(self, ids: Iterable[str], until: str = "ALL_COMPLETED") -> None:
        super().__init__(ids, until)
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def tell(self, task_id: str, ending: Ending) -> None:
        super().tell(task_id, ending)
        if self.over and not self.finished.done():
            self.finished.set_result(None)

    def fail(self, error: Exception) -> None:
        if not self.finished.done():
            self.finished.set_exception(error)


async def _apart(call: Callable[[], _T]) -> _T:
    return await asyncio.get_running_loop().run_in_executor(None, call)
