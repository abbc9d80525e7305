"""The futures of a queue's executor, and the thread that ends them when their tasks end."""

from __future__ import annotations

import math
import os
import select
import threading
import time
from concurrent.futures import Future
from typing import Any, TypeVar

from ..errors import SupervisorError, TaskFailed
from ..lookup import find_one
from ..task import Cause, State
from .endings import Ending, Endings, Wait
from .queue import Queue

_T = TypeVar("_T")


class QueueFuture(Future[_T]):
    """The future of a task. ``task_id`` names it in the queue."""

    def __init__(self, queue: Queue, task_id: str) -> None:
        super().__init__()
        self.task_id = task_id
        self._queue = queue
        self._turn = threading.Lock()  # taken for good by whoever ends this future

    def running(self) -> bool:
        """Whether a worker has the task now: the queue is asked."""
        return not self.done() and self._place() is State.CLAIMED

    def cancel(self) -> bool:
        """Cancel the task unless a worker has it; whether it is cancelled."""
        if self.done():
            return self.cancelled()
        if self._place() not in (State.PENDING, State.DELAYED):
            return self.cancelled()
        try:
            self._queue.cancel(self.task_id)
        except SupervisorError:  # it began, or ended, this moment
            return self.cancelled()
        self.end_cancelled()
        return self.cancelled()

    def end_cancelled(self) -> None:
        """End as cancelled."""
        if self._turn.acquire(blocking=False):
            super().cancel()
            self.set_running_or_notify_cancel()

    def end(self, result: Any = None, error: BaseException | None = None) -> None:
        """End with a result or an error."""
        if isinstance(error, TaskFailed) and error.cause == Cause.CANCELLED:
            self.end_cancelled()
        elif self._turn.acquire(blocking=False):
            if error is None:
                self.set_result(result)
            else:
                self.set_exception(error)

    def _place(self) -> State | None:
        found = find_one(self._queue.access.layout, self.task_id)
        return None if found is None else found.state


class Listener:
    """One thread that ends the futures of an executor. It knows nothing of the executor, which may go before it."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._endings = Endings(queue.access)
        self._wait = Wait(())
        self._futures: dict[str, QueueFuture[Any]] = {}
        self._lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread: threading.Thread | None = None
        self._finishing = False

    def add(self, futures: list[QueueFuture[Any]]) -> None:
        """End these futures when their tasks end."""
        with self._lock:
            if self._finishing:
                raise RuntimeError("cannot schedule new futures after shutdown")
            idle = not self._futures
            self._futures.update((future.task_id, future) for future in futures)
            self._endings.expect(self._wait, [future.task_id for future in futures], fresh=True)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="QueueExecutor", daemon=True)
                self._thread.start()
            elif idle:
                os.eventfd_write(self._wake, 1)  # it sleeps without an end

    def placed(self, futures: list[QueueFuture[Any]]) -> None:
        """Take note that their tasks were accepted."""
        with self._lock:
            self._endings.placed([future.task_id for future in futures])

    def drop(self, futures: list[QueueFuture[Any]]) -> None:
        """Forget futures whose tasks were not accepted."""
        with self._lock:
            for future in futures:
                self._futures.pop(future.task_id, None)
            self._endings.forget(self._wait, [future.task_id for future in futures])

    def open_futures(self) -> list[QueueFuture[Any]]:
        """Return the futures that have not ended."""
        with self._lock:
            return list(self._futures.values())

    def finish(self) -> None:
        """Let the thread end as soon as the last future has."""
        with self._lock:
            if self._finishing:
                return
            self._finishing = True
            if self._thread is None:
                self._close()
            else:
                os.eventfd_write(self._wake, 1)

    def join(self) -> None:
        """Wait for the thread's end."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        while True:
            with self._lock:
                if (watcher := self._endings.fileno()) is not None:
                    poll.register(watcher, select.POLLIN)  # again and again: it may come late
                if self._finishing and not self._futures:
                    self._close()
                    return
                left = self._endings.next_take - time.monotonic()
            # Rounded up: a millisecond too early it would find nothing to do.
            ready = poll.poll(None if left == math.inf else max(0, math.ceil(left * 1000)))
            if any(descriptor == self._wake for descriptor, _ in ready):
                os.eventfd_read(self._wake)
            for future, ending, error in self._ended():
                self._end(future, ending, error)

    def _ended(self) -> list[tuple[QueueFuture[Any], Ending, BaseException | None]]:
        with self._lock:
            try:
                self._endings.take()
            except (SupervisorError, OSError) as error:  # the folder is gone: so are the results
                self._endings.forget(self._wait, list(self._futures))
                left, self._futures = self._futures, {}
                return [(future, Ending.MISSING, error) for future in left.values()]
            ended, self._wait.ended = self._wait.ended, {}
            return [(self._futures.pop(task_id), ending, None) for task_id, ending in ended.items()]

    def _end(self, future: QueueFuture[Any], ending: Ending, error: BaseException | None) -> None:
        if error is None:
            try:
                future.end(self._queue.outcome(future.task_id, ending))
                return
            except (SupervisorError, OSError) as refused:
                error = refused
        future.end(error=error)

    def _close(self) -> None:
        self._endings.close()
        self._queue.close()
        os.close(self._wake)
