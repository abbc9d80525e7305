"""What the routes share: the queue, the page, and what the supervisor says of itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from dspy_fastpath.counters import Page

from ...client import AsyncQueue, Queue
from ...control_client import ask, socket_path
from ...parts import ServicePost
from .disk import Disk
from .failures import Failures
from .live import Live
from .lookout import Lookout
from .overview import Latencies

_T = TypeVar("_T")
_FRESH_S = 1.0  # an account of the supervisor may be so old
_ASKERS = 4
_PATIENCE_S = 3.0  # with a supervisor that is asked how it is
_LOOKS = ("status", "explain")  # requests that change nothing


class Context:
    """One gateway, as its routes see it."""

    def __init__(self, post: ServicePost, page: Page) -> None:
        config = post.config
        self.post, self.config, self.page = post, config, page
        self.queue = AsyncQueue(post.queue_dir, insecure=config.insecure, runtime_dir=config.runtime_dir)
        self.sync_queue = Queue(post.queue_dir, insecure=config.insecure, runtime_dir=config.runtime_dir)
        self.disk = Disk(self.sync_queue)
        self.started_at = time.time()
        self.stopping = asyncio.Event()  #: set once: long polls are to be answered, streams to end
        self.requests: dict[int, int] = {}  #: by the status they were answered with; 0: the caller left before
        self.busy_s = 0.0  #: that requests took together, waiting for tasks included
        self.accepting: dict[str, asyncio.Future[None]] = {}  #: ids that are being put
        self.lookout = Lookout(self.sync_queue.access, self.stopping.is_set)
        self.live = Live(self)
        self.latencies = Latencies(page)
        self.failures, self.looking = Failures(), asyncio.Lock()
        self._socket = socket_path(config.runtime_dir, post.queue_id, config.instance)
        self._askers = ThreadPoolExecutor(_ASKERS, "ask")  # a supervisor that does not answer holds no other work up
        self._status: asyncio.Task[dict[str, Any]] | None = None
        self._asked_at = 0.0  # monotonic seconds
        self._tasks: set[asyncio.Task[Any]] = set()

    async def ask(self, do: str, timeout_s: float = 10.0, **request: Any) -> dict[str, Any]:
        """Return the supervisor's answer. Raises RequestRefused, NotRunning, WaitTimeout, ServiceUnavailable."""
        try:
            call = partial(ask, self._socket, {"do": do, **request}, timeout_s)
            return await asyncio.get_running_loop().run_in_executor(self._askers, call)
        finally:
            if do not in _LOOKS:
                self._status = None  # it is out of date

    async def status(self, *, fresh: bool = False) -> dict[str, Any]:
        """Return the supervisor's `status`, at most a second old, or asked for now; not to be changed.

        Raises what `ask` raises.
        """
        task, now = self._status, time.monotonic()
        if task is None or (task.done() and (fresh or _failed(task) or now - self._asked_at > _FRESH_S)):
            self._asked_at = now
            task = self._status = asyncio.create_task(self.ask("status", _PATIENCE_S))
        return await asyncio.shield(task)

    async def apart(self, call: Callable[..., _T], *arguments: Any, **options: Any) -> _T:
        """Call something that waits, as for a disk, in another thread."""
        return await asyncio.get_running_loop().run_in_executor(None, partial(call, *arguments, **options))

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Let something run beside the requests until the gateway ends."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def stop(self) -> None:
        """Let long polls be answered, and streams end."""
        self.stopping.set()
        self.lookout.ring.wake()

    def answered(self, status: int, took_s: float) -> None:
        """Count a request."""
        self.requests[status] = self.requests.get(status, 0) + 1
        self.busy_s += took_s

    def close(self) -> None:
        """Give everything back."""
        for task in self._tasks:
            task.cancel()
        self.lookout.close()
        self.disk.close()
        self.queue.close()
        self.sync_queue.close()


def _failed(task: asyncio.Task[Any]) -> bool:
    return task.cancelled() or task.exception() is not None
