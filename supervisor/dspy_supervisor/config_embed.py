"""The settings of embedding servers: where they are, what is asked of them, and how texts travel there together.

Beside its own, each has the variable that older tools gave their servers' clients by (INFERMESH_URL, BATCH_SIZE).
"""
# ruff: noqa: RUF009 (setting() returns dataclasses.field(), which that rule can't see)

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .setting import (
    Kind,
    choice,
    optional,
    path,
    seconds,
    setting,
    settings,
    size,
    text,
    truth,
    whole,
    words,
)

DIALECTS = ("infermesh", "tei", "openai", "vllm")
_WORD = r"[^\x00-\x1f]{1,200}"


def json_object() -> Kind:
    """A JSON object: a table in TOML, its text elsewhere."""

    def read(value: object) -> Mapping[str, Any]:
        if isinstance(value, str):
            value = json.loads(value)
        if not isinstance(value, Mapping):
            raise TypeError
        return MappingProxyType(dict(value))

    return Kind('a JSON object, as {"key": "value"}', read)


def addresses() -> Kind:
    """Addresses of servers, each with a host and, if any, a port that can be one."""
    inner = words(r"https?://[^\s,]+", "addresses as http://host:port")

    def read(value: object) -> object:
        from urllib.parse import urlsplit

        found = inner.read(value)
        assert isinstance(found, tuple)
        for parts in map(urlsplit, found):
            if not parts.hostname or parts.port == 0:  # to ask for a port above 65535 raises ValueError
                raise ValueError
        return found

    return inner._replace(read=read)


def key() -> Kind:
    """A word without spaces; those around it, as a file's last newline, are not its own."""
    inner = text(r"[!-~]{1,8192}", "a key of printable characters")

    def read(value: object) -> object:
        return inner.read(value.strip() if isinstance(value, str) else value)

    return inner._replace(read=read)


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)  # Config has these
class EmbedSettings:
    """The part of Config that is about embedding servers."""

    embed_urls: tuple[str, ...] = setting(
        addresses(),
        "embedding servers of the same model; each request goes to the one that has the least to do",
        (),
        also=("INFERMESH_BASE_URL", "INFERMESH_URL"),
        live=True,
    )
    embed_dialect: str = setting(
        choice("auto", *DIALECTS), "what the servers speak; auto: each is asked", "auto", live=True
    )
    embed_model: str = setting(
        text(_WORD, "a model's name"),
        "model that is asked for",
        "BAAI/bge-small-en-v1.5",
        also=("INFERMESH_MODEL",),
        live=True,
    )
    embed_api_key: str | None = setting(
        optional(key()),
        "sent as Authorization: Bearer",
        None,
        also=("INFERMESH_API_KEY",),
        secret=True,
        live=True,
    )
    embed_batch_size: int = setting(
        whole(1, 100_000),
        "texts of a request; a server that says it takes fewer gets fewer",
        512,
        also=("INFERMESH_REQUEST_BATCH_SIZE", "INFERMESH_BATCH_SIZE", "BATCH_SIZE"),
        live=True,
    )
    embed_batch_bytes: int = setting(
        size(1024, 1 << 30, "as much as such servers take by default"), "body of a request", 0, live=True
    )
    embed_batch_tokens: int = setting(
        whole(0, 10**9, "as many as the server takes"), "tokens of a request, estimated", 0, live=True
    )
    embed_wait_ms: float = setting(
        seconds(0, 60_000)._replace(expected="milliseconds from 0 to 60000"),
        "longest time that a text waits for others to travel with, while the servers are busy",
        100.0,
        also=("MAX_WAIT_TIME_MS",),
        live=True,
    )
    embed_linger_ms: float = setting(
        seconds(0, 60_000)._replace(expected="milliseconds from 0 to 60000"),
        "the same while no request is under way",
        2.0,
        live=True,
    )
    embed_max_requests: int = setting(
        whole(1, 10_000),
        "requests at once",
        100,
        also=("INFERMESH_MAX_CONCURRENCY", "MAX_CONCURRENT_REQUESTS"),
        live=True,
    )
    embed_connections: int = setting(
        whole(1, 10_000), "connections that are kept open", 50, also=("CONNECTION_POOL_SIZE",), live=True
    )
    embed_timeout_s: float = setting(
        seconds(0.01, 86400),
        "longest time of a request, from its first byte to the answer's last",
        30.0,
        also=("INFERMESH_TIMEOUT_SEC", "REQUEST_TIMEOUT_SECS"),
        live=True,
    )
    embed_retries: int = setting(
        whole(0, 100), "further tries of a request that may go better", 4, also=("INFERMESH_RETRIES",), live=True
    )
    embed_retry_base_s: float = setting(
        seconds(0, 3600),
        "longest wait before the second try; it doubles then, and what the server asks for comes first",
        0.25,
        also=("INFERMESH_BACKOFF_SEC",),
        live=True,
    )
    embed_retry_cap_s: float = setting(seconds(0, 3600), "longest wait before any try", 20.0, live=True)
    embed_breaker_failures: int = setting(
        whole(1, 10_000), "failures in a row after which a server is left alone for a while", 5, live=True
    )
    embed_breaker_s: float = setting(
        seconds(0.01, 3600),
        "how long it is left alone at first; twice as long after each further failure",
        1.0,
        live=True,
    )
    embed_dimensions: int = setting(
        whole(0, 1 << 20, "as the servers have it"),
        "length of a vector: asked for where the server can shorten them, and checked everywhere",
        0,
        live=True,
    )
    embed_normalize: bool = setting(
        truth(), "ask for vectors of length 1, where the server lets one ask", True, live=True
    )
    embed_truncate: bool = setting(
        truth(), "let the server cut texts that are longer than its model takes; else they fail", False, live=True
    )
    embed_inline_bytes: int = setting(
        size(0, 1 << 40),
        "vectors of a task that take more bytes (4 a number) are kept in a .npy file, not in its record",
        256 << 10,
        live=True,
    )
    embed_shared: bool = setting(
        truth(),
        "workers of this host send their texts through one process, which batches them together",
        True,
        live=True,
    )
    embed_cache_dir: Path | None = setting(
        optional(path()), "keep vectors here, to ask for no text twice; a folder of this host", None, live=True
    )
    embed_cache_bytes: int = setting(
        size(1 << 16, 1 << 50),
        "size of that folder; the vectors that nobody asked for longest go first",
        1 << 30,
        live=True,
    )
    embed_routing_strategy: str | None = setting(
        optional(text(_WORD, "a word that the server knows")),
        "options.routing_strategy of requests to infermesh",
        None,
        also=("INFERMESH_ROUTING_STRATEGY", "INFERMESH_ROUTING"),
        live=True,
    )
    embed_priority: str | None = setting(
        optional(text(_WORD, "a word that the server knows", digits=True)),
        "options.priority of requests to infermesh",
        None,
        also=("INFERMESH_PRIORITY",),
        live=True,
    )
    embed_tenant: str | None = setting(
        optional(text(_WORD, "a name that the server knows")),
        "metadata.tenant of requests to infermesh",
        None,
        also=("INFERMESH_TENANT",),
        live=True,
    )
    embed_cache_ttl_s: int | None = setting(
        optional(whole(0, 1 << 31)),
        "cache.ttl_seconds of requests to infermesh",
        None,
        also=("INFERMESH_CACHE_TTL",),
        live=True,
    )
    embed_cache_key: str | None = setting(
        optional(text(_WORD, "a template that the server knows")),
        "cache.key_template of requests to infermesh",
        None,
        also=("INFERMESH_CACHE_KEY",),
        live=True,
    )
    embed_options: Mapping[str, Any] = setting(
        json_object(),
        "more options of requests to infermesh",
        MappingProxyType({}),
        also=("INFERMESH_OPTIONS",),
        live=True,
    )
    embed_metadata: Mapping[str, Any] = setting(
        json_object(), "more metadata of the same", MappingProxyType({}), also=("INFERMESH_METADATA",), live=True
    )
    embed_cache_options: Mapping[str, Any] = setting(
        json_object(),
        "more of what they say about caching",
        MappingProxyType({}),
        also=("INFERMESH_CACHE_OPTIONS",),
        live=True,
    )
    embed_hints: Mapping[str, Any] = setting(
        json_object(), "hints of the same", MappingProxyType({}), also=("INFERMESH_HINTS",), live=True
    )


EMBED_SETTINGS = settings(EmbedSettings)


@dataclass(frozen=True, kw_only=True)
class EmbedOptions(EmbedSettings):
    """The same for a client that has no Config."""
