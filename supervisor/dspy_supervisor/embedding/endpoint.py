"""One server: what it speaks and takes, how it does, and one request to it.

The API key goes into one header of one place, and is taken out of whatever a server says before anyone sees it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import httpx2
import orjson

from ..config_embed import EmbedSettings
from ..errors import EmbeddingError, EmbeddingInvalid, EmbeddingRefused, EmbeddingUnavailable
from .breaker import Breaker
from .counts import Counts
from .dialect import DIALECTS, Dialect, Tei, Vectors, models_of
from .window import Window

MAX_ANSWER_BYTES = 1 << 30
_LONGEST_S = 86400.0  # that a server may ask to be let alone
_SHOWN = 300  # characters of what a server says about an error
#: what may go better another time: TEI says 424 where its own model failed
_AGAIN = frozenset({408, 424, 425, 429, 500, 502, 503, 504})
_OVERLOADED = frozenset({429, 503})
#: a request that holds too much, or one text that the model won't take
SIZE = frozenset({413})
TEXT = frozenset({400, 422})


class TooMany(EmbeddingRefused):
    """More than this server takes in one request: it was not asked."""


class Answer(NamedTuple):
    """What came back, whatever its status."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Endpoint:
    """One server of a client."""

    def __init__(self, url: str, settings: EmbedSettings, http: httpx2.AsyncClient, counts: Counts) -> None:
        parts = httpx2.URL(url)
        self.base = str(parts.copy_with(username=None, password=None, query=None, fragment=None)).rstrip("/")
        self.name = self.base  #: as it is shown: without a password
        self._auth = httpx2.BasicAuth(parts.username, parts.password) if parts.username else None
        self._secrets = [secret for secret in (settings.embed_api_key, parts.password) if secret]
        self._settings, self._http, self._counts = settings, http, counts
        self.dialect: Dialect | None = None  #: None: not known yet
        self.model = ""  #: that it says it has
        self.models: tuple[str, ...] = ()
        self.breaker = Breaker(settings.embed_breaker_failures, settings.embed_breaker_s)
        self.window = Window(settings.embed_max_requests)
        self.outstanding = 0
        self.trouble = ""  #: its last error
        self.not_before = 0.0  #: monotonic seconds: it asked to be let alone until then
        self._packs = True  # whether it takes encoding_format base64
        self._lock = asyncio.Lock()
        self.limits = DIALECTS["infermesh"].limits  #: of the dialect, lowered by what it refused

    def opens_at(self, now: float) -> float:
        """Return when it may be asked, in monotonic seconds; not after now: at once."""
        if self.breaker.lets(now):
            return self.not_before
        return max(self.not_before, self.breaker.until, now + 0.05)  # half open, and being tried: see soon

    async def discover(self) -> None:
        """Find out what it speaks and takes. Raises EmbeddingUnavailable where it can't be asked."""
        async with self._lock:
            if self.dialect is not None:
                return
            wanted = self._settings.embed_dialect
            dialect, about = await self._detect() if wanted == "auto" else (DIALECTS[wanted], None)
            known = dialect(self._settings)
            if about is None and dialect.about:
                about = await self._about(dialect.about)
            self.limits, self.model = known.told(about)
            self.models = tuple(one["id"] for one in models_of(about))
            if self._settings.embed_batch_bytes:
                self.limits.bytes = self._settings.embed_batch_bytes
            if self._settings.embed_batch_tokens:
                self.limits.tokens = self._settings.embed_batch_tokens
            self.limits.texts = min(self.limits.texts, self._settings.embed_batch_size)
            self.dialect = known

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """Return the vectors of these texts, by one request. Raises EmbeddingError."""
        now = time.monotonic()
        self.breaker.begun(now)
        self.outstanding += 1
        heard = False
        try:
            vectors = await self._embed(texts)
            heard = True
            self.breaker.succeeded()
            self.trouble = ""
            took_s = time.monotonic() - now
            self.window.answered(took_s, len(texts), self.outstanding)
            self._counts.round_trips.append(took_s)
            return vectors
        except EmbeddingError as error:
            heard = True
            error.endpoint = self.name
            if not isinstance(error, TooMany):
                self._judge(error)
            raise
        finally:
            self.outstanding -= 1
            if not heard:
                self.breaker.abandoned()

    async def _embed(self, texts: Sequence[str]) -> Vectors:
        if self.dialect is None:
            await self.discover()
            assert self.dialect is not None
        dialect, packs = self.dialect, self._packs  # another request may change them meanwhile
        if len(texts) > self.limits.texts:
            raise TooMany(f"{self.name} takes {self.limits.texts} texts", status=413)
        body = dialect.body(texts, packed=packs)
        self._counts.requests += 1
        self._counts.bytes_sent += len(body)
        answer = await self._call("POST", dialect.path, body)
        self._counts.bytes_received += len(answer.body)
        if answer.status == 200:
            return dialect.vectors(answer.body, len(texts))
        if packs and answer.status in TEXT and b"encoding_format" in answer.body:
            self._packs = False
            return await self._embed(texts)
        if answer.status in (404, 405) and self._settings.embed_dialect == "auto":
            self.dialect = None  # another server has come to this address, perhaps: it is asked again
        error = self._error(answer)
        error.sent_bytes = len(body)
        raise error

    def _judge(self, error: EmbeddingError) -> None:
        """Remember what an error says about the server: a text that it won't take says nothing."""
        now = time.monotonic()
        self._counts.failed += 1
        self.trouble = str(error)
        if isinstance(error, EmbeddingRefused) or error.status == 429:
            self.breaker.succeeded()
        else:
            self.breaker.erred(now)
        if error.status in _OVERLOADED or (isinstance(error, EmbeddingUnavailable) and not error.status):
            self.window.overloaded()
        if isinstance(error, EmbeddingUnavailable) and error.retry_after_s:
            self.not_before = max(self.not_before, now + error.retry_after_s)

    def _error(self, answer: Answer) -> EmbeddingError:
        said = self._said(answer.body)
        message = f"{self.name} answered {answer.status}" + (f": {said}" if said else "")
        if answer.status in _AGAIN:
            unavailable = EmbeddingUnavailable(message, status=answer.status)
            unavailable.retry_after_s = _retry_after(answer.headers.get("retry-after"))
            return unavailable
        if 300 <= answer.status < 400:
            message += f", to {answer.headers.get('location', 'nowhere')}; its address belongs into embed_urls"
        if answer.status in (401, 403):
            message += "; its key belongs into embed_api_key (variable INFERMESH_API_KEY)"
        if answer.status == 404 and self.models and self._settings.embed_model not in self.models:
            message += f"; it has {', '.join(self.models[:5])}, and is asked for {self._settings.embed_model}"
        return EmbeddingRefused(message, status=answer.status)

    async def _detect(self) -> tuple[type[Dialect], Any]:
        """Return what the server speaks, and what it said of itself on the way."""
        info = await self._about(Tei.about)
        if isinstance(info, dict) and "model_id" in info:
            return DIALECTS["tei"], info
        models = await self._about(DIALECTS["openai"].about)
        if isinstance(models, dict) and isinstance(models.get("data"), list):
            is_vllm = any(one.get("owned_by") == "vllm" or "max_model_len" in one for one in models_of(models))
            return DIALECTS["vllm" if is_vllm else "openai"], models
        return DIALECTS["infermesh"], {}

    async def _about(self, path: str) -> Any:
        """Return the JSON that it tells at this path, or None. Raises EmbeddingUnavailable where it doesn't answer at all."""
        answer = await self._call("GET", path, None)
        if answer.status in (502, 503, 504):  # a proxy before it, or itself while its model loads
            raise self._error(answer)
        if answer.status == 200:
            with suppress(orjson.JSONDecodeError):
                return orjson.loads(answer.body)
        return None

    async def _call(self, method: str, path: str, body: bytes | None) -> Answer:
        if path.startswith("/v1/") and self.base.endswith("/v1"):
            path = path.removeprefix("/v1")
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if self._settings.embed_api_key:
            headers["Authorization"] = f"Bearer {self._settings.embed_api_key}"
        timeout_s = self._settings.embed_timeout_s
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._http.stream(method, self.base + path, content=body, headers=headers, auth=self._auth) as got,
            ):
                parts, size = [], 0
                async for part in got.aiter_bytes():
                    parts.append(part)
                    size += len(part)
                    if size > MAX_ANSWER_BYTES:
                        raise EmbeddingInvalid(f"{self.name} sent more than {MAX_ANSWER_BYTES} bytes")
                return Answer(got.status_code, got.headers, b"".join(parts))
        except (TimeoutError, httpx2.TimeoutException):
            raise EmbeddingUnavailable(f"{self.name} did not answer in {timeout_s:g} s") from None
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            why = str(error) or type(error).__name__
            raise EmbeddingUnavailable(self._hidden(f"{self.name} can't be asked: {why}")) from None

    def _said(self, body: bytes) -> str:
        """Return what a server says about an error: its message where it is JSON as all four write it."""
        text = body[: 4 * _SHOWN].decode("utf-8", "replace")
        with suppress(orjson.JSONDecodeError):
            found = orjson.loads(body)
            for key in ("error", "message", "detail"):
                while isinstance(found, dict) and key in found:
                    found = found[key]
            text = found if isinstance(found, str) else text
        return self._hidden(" ".join(text.split()))[:_SHOWN]

    def _hidden(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "(secret)")
        return text


def _retry_after(written: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for: a number of them, or a date (RFC 9110, 10.2.3)."""
    if not written:
        return None
    with suppress(ValueError):
        return min(_LONGEST_S, max(0.0, float(written)))
    with suppress(ValueError, TypeError):
        return min(_LONGEST_S, max(0.0, parsedate_to_datetime(written).timestamp() - time.time()))
    return None
