"""The embed handler: ``payload.inputs``, an array of texts, becomes an array of vectors.

The result is as the environment runner's was: ``{"id", "embeddings", "latency_ms", "metadata"}``. More than
``embed_inline_bytes`` of vectors lie in ``logs/ID/embeddings.ATTEMPT.npy``, and the result has ``"embeddings_file": {"path",
"shape", "dtype"}`` in place of them; ``"output": "json"`` or ``"npy"`` in the payload chooses by itself.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Mapping
from pathlib import Path
from typing import Any

import orjson

from ..config_embed import EmbedSettings
from ..embedding.options import check_installed, check_urls
from ..embedding.shared import Asker, Found, Gone
from ..embedding.vectors import DTYPE, write_npy
from ..errors import ConfigError, EmbeddingError, EmbeddingRefused, EmbeddingUnavailable, ServiceUnavailable
from ..parts import JSON, Handler, HandlerFailure, Retry, Task, TaskRefused
from ..task import Cause

_INLINE = {"json": 1 << 62, "npy": -1}


def make(settings: EmbedSettings | None, socket: Path | None) -> Handler:
    """Return the handler. ``socket``: where the process listens that batches for all workers; None: there is none.

    Raises ConfigError where no server is configured, or the extra is not installed.
    """
    if settings is None:
        raise ConfigError("handler", "embed", "a class that workers of this host serve: jobs have no embedding servers")
    check_urls(settings)
    try:
        check_installed()
    except ServiceUnavailable as error:
        raise ConfigError("handler", "embed", str(error)) from None
    return Embed(settings, Asker(socket) if socket is not None else None)


class Embed:
    """The handler of one worker."""

    def __init__(self, settings: EmbedSettings, asker: Asker | None) -> None:
        self._settings, self._asker = settings, asker
        self._client: Any = None  # made when it is needed: it loads httpx2 and numpy

    def __call__(self, task: Task) -> JSON | Awaitable[JSON]:
        """Return the task's vectors."""
        texts, inline_bytes = _checked(task.payload, self._settings)
        started = time.monotonic()
        if self._asker is not None:
            try:
                found = self._asker.ask(texts, inline_bytes)
            except Gone:
                pass  # it is being replaced, or its batches are not wanted: the servers are still there
            except EmbeddingError as error:
                raise _failure(error) from None
            else:
                return _result(task, found, started)
        return self._directly(task, texts, inline_bytes, started)

    async def _directly(self, task: Task, texts: list[str], inline_bytes: int, started: float) -> JSON:
        if self._client is None:
            from ..embedding.asynchronous import AsyncEmbeddingClient

            self._client = AsyncEmbeddingClient(settings=self._settings)
        try:
            vectors = await self._client.embed(texts)
        except EmbeddingError as error:
            raise _failure(error) from None
        inline = vectors.nbytes <= inline_bytes
        numbers = (
            orjson.dumps(vectors, option=orjson.OPT_SERIALIZE_NUMPY) if inline else vectors.astype("<f4").tobytes()
        )
        facts = {"model": self._client.model, "dimensions": vectors.shape[1], "shared": False}
        return _result(task, Found(numbers, inline, vectors.shape, facts), started)


def _checked(payload: Any, settings: EmbedSettings) -> tuple[list[str], int]:
    """Return the texts, and how many bytes of vectors may go into the record. The words are the environment runner's."""
    if not isinstance(payload, Mapping) or "inputs" not in payload:
        raise _refused("payload missing 'inputs'")
    inputs = payload["inputs"]
    if not isinstance(inputs, list):
        raise _refused("payload 'inputs' must be an array")
    if not all(isinstance(text, str) and text.strip() for text in inputs):
        raise _refused("payload 'inputs' must be non-empty strings")
    if not inputs:
        raise _refused("payload 'inputs' cannot be empty")
    model = payload.get("model")
    if model is not None and model != settings.embed_model:
        raise _refused(f"payload 'model' is {model!r}, and this queue's servers are asked for {settings.embed_model!r}")
    output = payload.get("output")
    if output is not None and (not isinstance(output, str) or output not in _INLINE):
        raise _refused(f"payload 'output' is json or npy, not {output!r}")
    return inputs, _INLINE[output] if output else settings.embed_inline_bytes


def _result(task: Task, found: Found, started: float) -> JSON:
    result: dict[str, Any] = {"id": task.id}
    if found.is_json:
        result["embeddings"] = orjson.Fragment(found.numbers)
    else:
        name = f"embeddings.{task.attempt}.npy"
        write_npy(task.output_folder(), name, found.shape, found.numbers)
        path = f"logs/{task.id}/{name}"
        result["embeddings_file"] = {"path": path, "shape": list(found.shape), "dtype": DTYPE}
    result["latency_ms"] = round((time.monotonic() - started) * 1000, 3)
    result["metadata"] = found.facts
    return result


def _failure(error: EmbeddingError) -> Exception:
    """Return what the task's attempt ends with: never again, not before the server wants it, or as any error."""
    if isinstance(error, EmbeddingRefused):
        return TaskRefused(f"inputs[{error.index}]: {error}" if error.index is not None else str(error))
    if isinstance(error, EmbeddingUnavailable):
        return Retry(str(error), error.retry_after_s)
    return error


def _refused(message: str) -> HandlerFailure:
    return HandlerFailure(Cause.REFUSED, message)
