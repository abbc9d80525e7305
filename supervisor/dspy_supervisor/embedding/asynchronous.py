"""The client for asyncio; all of its callers share its batches, connections and what it knows of the servers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import httpx2
import numpy as np
import orjson

from ..config_embed import EmbedSettings
from ..errors import EmbeddingError, EmbeddingInvalid
from .batcher import Batcher, Call
from .cache import Cache
from .counts import Counts
from .dialect import Vectors
from .endpoint import Endpoint
from .options import check_urls, options
from .sender import Row, Sender

_KEEP_S = 60.0  # an idle connection


class AsyncEmbeddingClient:
    """Vectors for texts, in one event loop.

    ``urls``: one address or several, of servers of the same model; none: what the configuration says, as the variables
    INFERMESH_URL and INFERMESH_API_KEY. Further settings go by their names without ``embed_``, as in ``batch_size=64``.
    """

    def __init__(
        self, urls: str | Sequence[str] | None = None, *, settings: EmbedSettings | None = None, **more: Any
    ) -> None:
        self.settings = settings if settings is not None else options(urls, more)
        check_urls(self.settings)
        self._counts = Counts()
        secure = any(url.startswith("https:") for url in self.settings.embed_urls)
        self._http = httpx2.AsyncClient(
            # The whole request has a time limit of its own, which includes the wait for a connection.
            timeout=httpx2.Timeout(None, connect=min(10.0, self.settings.embed_timeout_s)),
            limits=httpx2.Limits(
                max_connections=None,
                max_keepalive_connections=self.settings.embed_connections,
                keepalive_expiry=_KEEP_S,
            ),
            verify=secure,  # without https no certificate is ever seen, and to load their list takes 20 ms
        )
        self._endpoints = [Endpoint(url, self.settings, self._http, self._counts) for url in self.settings.embed_urls]
        self._sender = Sender(self.settings, self._endpoints, self._counts)
        self._discovery: asyncio.Future[None] | None = None
        self._batcher = Batcher(self.settings, self._sender)
        self._cache = (
            Cache(self.settings.embed_cache_dir, self.settings.embed_cache_bytes)
            if self.settings.embed_cache_dir
            else None
        )

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """Return one row a text, in their order: float32, shape (texts, dimensions).

        Raises EmbeddingRefused (with the ``index`` of the first text that the server won't take), EmbeddingUnavailable and
        EmbeddingInvalid; there are no vectors then.
        """
        rows = await self._rows(texts, each=False)
        if not rows:
            return np.zeros((0, self._sender.dimensions), np.float32)
        return np.stack(rows)  # type: ignore[arg-type]  # an error would have been raised

    async def embed_each(self, texts: Sequence[str]) -> list[Row]:
        """Return for each text its vector, or the EmbeddingRefused that says why the server won't take it.

        Raises EmbeddingUnavailable and EmbeddingInvalid, which are the fault of no text.
        """
        return await self._rows(texts, each=True)

    def expect(self, callers: int) -> None:
        """Say how many can ask at once: when all of them wait, there is nobody to wait for. 0: not known."""
        self._batcher.callers = callers

    def metrics(self) -> dict[str, Any]:
        """Return what was counted since the client was made, and how each server does, as JSON."""
        now = time.monotonic()
        return {
            **self._counts.told(),
            "waiting": self._batcher.waiting,
            "under_way": self._batcher.deliveries,
            "dimensions": self._sender.dimensions or None,
            "endpoints": [
                {
                    "url": one.name,
                    "dialect": one.dialect.name if one.dialect else None,
                    "model": one.model or None,
                    "breaker": one.breaker.state(now),
                    "opened": one.breaker.opened,
                    "outstanding": one.outstanding,
                    "window": one.window.most,
                    "trouble": one.trouble or None,
                }
                for one in self._endpoints
            ],
        }

    @property
    def model(self) -> str:
        """The model of the vectors: what the server says it has, else what it is asked for."""
        return next((one.model for one in self._endpoints if one.model), self.settings.embed_model)

    async def aclose(self) -> None:
        """Close the connections. What is under way is given up."""
        await self._http.aclose()
        if self._cache is not None:
            self._cache.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _rows(self, texts: Sequence[str], *, each: bool) -> list[Row]:
        if isinstance(texts, str):
            raise TypeError("texts is one string; a sequence of them is wanted, as in embed([text])")
        if not texts:
            return []
        await self._discover()
        if self._cache is None:
            return await self._asked(texts, each=each)
        found = await self._cache.get(self._space, texts, self._sender.dimensions)
        missing = [index for index, vector in enumerate(found) if vector is None]
        self._counts.cache_hits += len(texts) - len(missing)
        self._counts.cache_misses += len(missing)
        rows: list[Any] = list(found)
        new: dict[str, Vectors] = {}
        if missing:
            try:
                asked = await self._asked([texts[index] for index in missing], each=each)
            except EmbeddingError as error:
                if error.index is not None:
                    error.index = missing[error.index]
                raise
            for index, row in zip(missing, asked, strict=True):
                rows[index] = row
                if isinstance(row, EmbeddingError):
                    row.index = index
            new = {texts[index]: rows[index] for index in missing if not isinstance(rows[index], EmbeddingError)}
        if len(sizes := {row.size for row in rows if not isinstance(row, EmbeddingError)}) > 1:
            raise EmbeddingInvalid(
                f"vectors of {sorted(sizes)} numbers, some of them of the cache: {self.model} is another model now, and "
                "needs another embed_cache_dir"
            )
        if new:
            await self._cache.put(self._space, new)
        return rows

    async def _asked(self, texts: Sequence[str], *, each: bool) -> list[Row]:
        call = Call(texts, each=each)
        await self._batcher.run(call)
        rows: list[Any] = call.rows
        refused = sum(isinstance(row, EmbeddingError) for row in rows)
        self._counts.refused += refused
        self._counts.texts += len(rows) - refused
        return rows

    async def _discover(self) -> None:
        """Ask servers that are not known yet what they speak and take; who doesn't answer is asked with the first texts."""
        now = time.monotonic()
        unknown = [one for one in self._endpoints if one.dialect is None and one.opens_at(now) <= now]
        if unknown:
            if self._discovery is None or self._discovery.done():
                self._discovery = asyncio.ensure_future(self._ask_about(unknown))
            # All callers wait for the same answer, and go on in the same moment: their texts still travel together.
            await asyncio.shield(self._discovery)

    async def _ask_about(self, endpoints: Sequence[Endpoint]) -> None:
        for error in await asyncio.gather(*(one.discover() for one in endpoints), return_exceptions=True):
            if isinstance(error, BaseException) and not isinstance(error, EmbeddingError):
                raise error

    @property
    def _space(self) -> str:
        """What vectors must have in common to be compared."""
        settings = self.settings
        facts: list[Any] = [settings.embed_dimensions, settings.embed_normalize, settings.embed_truncate]
        if told := [
            dict(one) for one in (settings.embed_options, settings.embed_metadata, settings.embed_hints) if one
        ]:
            facts.append(orjson.dumps(told, option=orjson.OPT_SORT_KEYS).decode())
        return "\0".join(map(str, [self.model, settings.embed_model, *facts]))
