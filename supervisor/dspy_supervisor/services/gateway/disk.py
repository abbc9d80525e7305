"""Putting tasks for callers that wait side by side: those that come while one sync runs share the next one's.

A put at durability task needs two syncs, whether it is of one task or of thousands. So one thread puts: all that came since
its last turn go together. Where the queue syncs nothing, a put takes less than the way to another thread, and is made at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from concurrent.futures import Future
from typing import TypeAlias

from ...client import Queue
from ...client.envelopes import Prepared

_MOST = 1000  # tasks of one turn: what waits for them waits for all their writes

_Entry: TypeAlias = tuple[Prepared, Future[None]]


class Disk:
    """Puts tasks into a queue for an event loop."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._waiting: deque[_Entry] = deque()
        self._some = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    async def put(self, task: Prepared) -> None:
        """Put a task; it is in the queue then, as durably as the queue promises. Raises what `Queue.put` raises."""
        if not self._queue.access.layout.syncs:
            self._queue.put([task])
            return
        done: Future[None] = Future()
        with self._some:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="disk", daemon=True)
                self._thread.start()
            self._waiting.append((task, done))
            self._some.notify()
        await asyncio.wrap_future(done)

    def close(self) -> None:
        """Put what waits, and end."""
        with self._some:
            self._closed = True
            self._some.notify()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while True:
            with self._some:
                while not self._waiting:
                    if self._closed:
                        return
                    self._some.wait()
                entries = [self._waiting.popleft() for _ in range(min(_MOST, len(self._waiting)))]
            self._put(entries)

    def _put(self, entries: list[_Entry]) -> None:
        """Put all together; where that is refused, one by one, so that each gets the answer that it would get alone."""
        entries = [entry for entry in entries if entry[1].set_running_or_notify_cancel()]
        if len({task.id for task, _ in entries}) == len(entries) > 1:
            with contextlib.suppress(Exception):
                self._queue.put([task for task, _ in entries])
                for _, done in entries:
                    done.set_result(None)
                return
            # A part of them may be in the queue, or run already: an id that was made just now is known by now.
            entries = [(task._replace(fresh=False), done) for task, done in entries]
        for task, done in entries:
            try:
                self._queue.put([task])
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(None)
