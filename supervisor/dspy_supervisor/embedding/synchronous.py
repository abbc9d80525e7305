"""The client for programs without asyncio: threads share it, and so their texts travel together."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine, Sequence
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
        self._closed = False
        self._owner = 0  # the process whose thread works
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread
        self._client: AsyncEmbeddingClient

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return one row a text, in their order: see :meth:`AsyncEmbeddingClient.embed`."""
        return self._do(self._started().embed(texts))

    def embed_each(self, texts: Sequence[str]) -> list[Row]:
        """Return for each text its vector or its error: see :meth:`AsyncEmbeddingClient.embed_each`."""
        return self._do(self._started().embed_each(texts))

    def metrics(self) -> dict[str, Any]:
        """Return what was counted, and how each server does: see :meth:`AsyncEmbeddingClient.metrics`."""
        return self._started().metrics()

    @property
    def model(self) -> str:
        """The model of the vectors."""
        return self._started().model

    def close(self) -> None:
        """End the thread and close the connections."""
        with self._lock:
            self._closed = True
            if self._owner != os.getpid():
                return
            self._do(self._client.aclose())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._owner = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _started(self) -> AsyncEmbeddingClient:
        with self._lock:
            if self._closed:
                raise RuntimeError("this EmbeddingClient is closed")
            if self._owner != os.getpid():
                self._loop = asyncio.new_event_loop()
                self._client = AsyncEmbeddingClient(settings=self.settings)
                self._thread = threading.Thread(target=self._loop.run_forever, name="embedding", daemon=True)
                self._thread.start()
                self._owner = os.getpid()
            return self._client

    def _do(self, what: Coroutine[Any, Any, _T]) -> _T:
        future = asyncio.run_coroutine_threadsafe(what, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # a caller that was interrupted wants nothing more
            raise
