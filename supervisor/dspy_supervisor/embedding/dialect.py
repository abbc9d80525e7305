"""The four dialects of embedding servers: what a request and an answer look like, and what the server says of itself.

::

    infermesh   POST /embed           {"model", "inputs"}           {"vectors": [[..]]} or {"embeddings": [[..]]}
    tei         POST /embed           {"inputs", "normalize"}       [[..]]                          GET /info
    openai      POST /v1/embeddings   {"model", "input"}            {"data": [{"index", "embedding"}]}  GET /v1/models
    vllm        the same, with truncate_prompt_tokens

Sources: huggingface/text-embeddings-inference (openapi.json), platform.openai.com/docs/api-reference/embeddings, vLLM's
OpenAI-compatible server. No vector leaves here that is not made of finite numbers, one for each text, all of one length.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import orjson
from numpy.typing import NDArray

from ..config_embed import EmbedSettings
from ..errors import EmbeddingInvalid
from .limits import Limits

Vectors: TypeAlias = NDArray[np.float32]
_NO_LIMIT = 1 << 40


class Dialect:
    """What all have in common; this one is infermesh's, as its first client wrote it."""

    name = "infermesh"
    path = "/embed"
    about = ""  #: what is asked for what the server says of itself
    limits = Limits(512, 10_000_000, _NO_LIMIT)

    def __init__(self, settings: EmbedSettings) -> None:
        self._settings = settings

    def body(self, texts: Sequence[str], *, packed: bool) -> bytes:
        """Return the request for these texts; packed: ask for base64, where the dialect has it."""
        settings = self._settings
        request: dict[str, Any] = {"model": settings.embed_model, "inputs": texts}
        groups = {
            "options": dict(settings.embed_options)
            | _given(routing_strategy=settings.embed_routing_strategy, priority=settings.embed_priority),
            "metadata": dict(settings.embed_metadata) | _given(tenant=settings.embed_tenant),
            "cache": dict(settings.embed_cache_options)
            | _given(ttl_seconds=settings.embed_cache_ttl_s, key_template=settings.embed_cache_key),
            "hints": dict(settings.embed_hints),
        }
        return orjson.dumps(request | {name: group for name, group in groups.items() if group})

    def vectors(self, answer: bytes, count: int) -> Vectors:
        """Return the vectors of an answer for so many texts. Raises EmbeddingInvalid for anything else."""
        found = _parsed(answer)
        rows = (found.get("vectors") or found.get("embeddings")) if isinstance(found, dict) else None
        if not isinstance(rows, list):
            raise EmbeddingInvalid(f"an answer without 'vectors' or 'embeddings': {_shown(answer)}")
        return matrix(rows, count)

    def told(self, about: Any) -> tuple[Limits, str]:
        """Return the limits that the server names, and its model ("": it names none)."""
        return Limits(**{name: getattr(self.limits, name) for name in ("texts", "bytes", "tokens")}), ""


class Tei(Dialect):
    """Text Embeddings Inference."""

    name = "tei"
    about = "/info"
    limits = Limits(32, 2_000_000, 16384)

    def body(self, texts: Sequence[str], *, packed: bool) -> bytes:
        settings = self._settings
        request = {"inputs": texts, "normalize": settings.embed_normalize, "truncate": settings.embed_truncate}
        return orjson.dumps(request)

    def vectors(self, answer: bytes, count: int) -> Vectors:
        rows = _parsed(answer)
        if not isinstance(rows, list):
            raise EmbeddingInvalid(f"an answer that is no array: {_shown(answer)}")
        return matrix(rows, count)

    def told(self, about: Any) -> tuple[Limits, str]:
        limits, _ = super().told(about)
        if not isinstance(about, Mapping):
            return limits, ""
        limits.texts = _whole(about.get("max_client_batch_size"), limits.texts)
        limits.tokens = _whole(about.get("max_batch_tokens"), limits.tokens)
        limits.bytes = _whole(about.get("payload_limit"), limits.bytes)
        model = about.get("model_id")
        return limits, model if isinstance(model, str) else ""


class OpenAi(Dialect):
    """OpenAI and those that offer the same."""

    name = "openai"
    path = "/v1/embeddings"
    about = "/v1/models"
    limits = Limits(2048, 10_000_000, 300_000)

    def body(self, texts: Sequence[str], *, packed: bool) -> bytes:
        return orjson.dumps(self._request(texts, packed))

    def vectors(self, answer: bytes, count: int) -> Vectors:
        found = _parsed(answer)
        items = found.get("data") if isinstance(found, dict) else None
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise EmbeddingInvalid(f"an answer without 'data': {_shown(answer)}")
        if len(items) != count:
            raise EmbeddingInvalid(_wrong_count(len(items), count))
        places = [item.get("index", place) for place, item in enumerate(items)]
        if not all(type(place) is int for place in places) or sorted(places) != list(range(count)):
            raise EmbeddingInvalid(f"an answer whose 'index' does not count from 0 to {count - 1}")
        rows: list[Any] = [None] * count
        for place, item in zip(places, items, strict=True):
            rows[place] = item.get("embedding")
        if all(isinstance(row, str) for row in rows):
            return _unpacked(rows)
        return matrix(rows, count)

    def _request(self, texts: Sequence[str], packed: bool) -> dict[str, Any]:
        settings = self._settings
        request: dict[str, Any] = {
            "model": settings.embed_model,
            "input": texts,
            "encoding_format": "base64" if packed else "float",
        }
        return request | ({"dimensions": settings.embed_dimensions} if settings.embed_dimensions else {})


class Vllm(OpenAi):
    """vLLM's server, which can cut long texts."""

    name = "vllm"
    limits = Limits(1024, 10_000_000, _NO_LIMIT)

    def body(self, texts: Sequence[str], *, packed: bool) -> bytes:
        cut = {"truncate_prompt_tokens": -1} if self._settings.embed_truncate else {}
        return orjson.dumps(self._request(texts, packed) | cut)


DIALECTS = {kind.name: kind for kind in (Dialect, Tei, OpenAi, Vllm)}


def models_of(about: Any) -> list[dict[str, Any]]:
    """Return the models of an answer to GET /v1/models, or nothing where it is something else."""
    found = about.get("data") if isinstance(about, Mapping) else None
    if not isinstance(found, list):
        return []
    return [one for one in found if isinstance(one, dict) and isinstance(one.get("id"), str)]


def matrix(rows: list[Any], count: int) -> Vectors:
    """Return rows of numbers as vectors. Raises EmbeddingInvalid for a wrong count, and what is no vector."""
    if len(rows) != count:
        raise EmbeddingInvalid(_wrong_count(len(rows), count))
    if not all(isinstance(row, list) and row for row in rows):
        raise EmbeddingInvalid("an answer in which a vector is missing or empty")
    if any(len(row) != len(rows[0]) for row in rows):
        raise EmbeddingInvalid(f"an answer with vectors of different lengths: {sorted({len(row) for row in rows})}")
    try:
        found = np.array(rows)
    except (ValueError, OverflowError):
        found = np.array(None)
    if found.ndim != 2 or found.dtype.kind not in "iuf":
        raise EmbeddingInvalid("an answer with a vector that is not made of numbers")
    return _finite(found)


def _unpacked(rows: list[str]) -> Vectors:
    """Return vectors from base64: little-endian float32, as OpenAI packs them."""
    try:
        packed = [base64.b64decode(row, validate=True) for row in rows]
    except (binascii.Error, ValueError):
        raise EmbeddingInvalid("an answer with a vector that is no base64") from None
    size = len(packed[0])
    if not size or size % 4 or any(len(one) != size for one in packed):
        raise EmbeddingInvalid("an answer with vectors of different lengths, or empty ones")
    return _finite(np.frombuffer(b"".join(packed), "<f4").reshape(len(rows), size // 4))


def _finite(found: NDArray[Any]) -> Vectors:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused for that
        vectors = found.astype(np.float32)
    if not math.isfinite(float(np.add.reduce(vectors, axis=None, dtype=np.float64))):
        raise EmbeddingInvalid("an answer with a number that is not finite")
    return vectors


def _parsed(answer: bytes) -> Any:
    try:
        return orjson.loads(answer)
    except orjson.JSONDecodeError:
        raise EmbeddingInvalid(f"an answer that is no JSON: {_shown(answer)}") from None


def _given(**members: object) -> dict[str, object]:
    return {name: value for name, value in members.items() if value is not None}


def _whole(value: object, default: int) -> int:
    return value if type(value) is int and value > 0 else default


def _wrong_count(found: int, count: int) -> str:
    return f"an answer with {found} vectors for {count} texts"


def _shown(answer: bytes) -> str:
    return repr(answer[:80].decode("utf-8", "replace"))
