"""The client for programs without asyncio: threads share it, and so their texts travel together."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError
from types import TracebackType
from typing import Any, Self, TypeVar

from ..config_embed import EmbedSettings
from .asynchronous import AsyncEmbeddingClient
from .dialect import Vectors
from .options import check_urls, options
from .sender import Row

_T = TypeVar("_T")


class EmbeddingClient:
    """Vectors for texts; see :class:`AsyncEmbeddingClient` for its arguments.

    A thread of its own does the work, from the first call on. A forked child gets a thread of its own.
    """

    def __init__(
        self, urls: str | Sequence[str] | None = None, *, settings: EmbedSettings | None = None, **more: Any
    ) -> None:
        self.settings = settings if settings is not None else options(urls, more)
        check_urls(self.settings)
        self._lock = threading.Lock()
        _clients.add(self)
        self._closed = False
        self._owner = 0  # the process whose thread works
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread
        self._client: AsyncEmbeddingClient

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return one row a text, in their order: see :meth:`AsyncEmbeddingClient.embed`."""
        return self._do(lambda client: client.embed(texts))

    def embed_each(self, texts: Sequence[str]) -> list[Row]:
        """Return for each text its vector or its error: see :meth:`AsyncEmbeddingClient.embed_each`."""
        return self._do(lambda client: client.embed_each(texts))

    def metrics(self) -> dict[str, Any]:
        """Return what was counted, and how each server does: see :meth:`AsyncEmbeddingClient.metrics`."""
        with self._lock:
            return self._started().metrics()

    @property
    def model(self) -> str:
        """The model of the vectors."""
        with self._lock:
            return self._started().model

    def close(self) -> None:
        """End the thread and close the connections. Who waits for vectors gets a RuntimeError."""
        with self._lock:
            self._closed = True
            if self._owner != os.getpid():
                return
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._owner = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _started(self) -> AsyncEmbeddingClient:
        """Return the client of this process, made where there is none yet. The lock is held."""
        if self._closed:
            raise RuntimeError("this EmbeddingClient is closed")
        if self._owner != os.getpid():
            self._loop = asyncio.new_event_loop()
            self._client = AsyncEmbeddingClient(settings=self.settings)
            self._thread = threading.Thread(
                target=_work, args=(self._loop, self._client), name="embedding", daemon=True
            )
            self._thread.start()
            self._owner = os.getpid()
        return self._client

    def _do(self, what: Callable[[AsyncEmbeddingClient], Coroutine[Any, Any, _T]]) -> _T:
        with self._lock:  # held until the loop knows of it, which close() ends under the same lock
            future = asyncio.run_coroutine_threadsafe(what(self._started()), self._loop)
        try:
            return future.result()
        except CancelledError:
            raise RuntimeError("this EmbeddingClient was closed meanwhile") from None
        except BaseException:
            future.cancel()  # a caller that was interrupted wants nothing more
            raise


_clients: weakref.WeakSet[EmbeddingClient] = weakref.WeakSet()


def _forked() -> None:
    """Give the clients of a child new locks: a thread that had one is not there to give it back."""
    for client in _clients:
        client._lock = threading.Lock()


os.register_at_fork(after_in_child=_forked)


def _work(loop: asyncio.AbstractEventLoop, client: AsyncEmbeddingClient) -> None:
    """Run the loop until it is stopped; then give up what is under way, for which somebody may wait, and close all."""
    loop.run_forever()
    while left := asyncio.all_tasks(loop):  # again: a batch that ends may begin another
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    loop.run_until_complete(client.aclose())
    loop.close()
