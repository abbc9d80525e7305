"""An embedding server for tests and benches: four dialects on real sockets, a real model or none, and faults on demand.

::

    python -m tests.embed.server --dialect tei --model minilm        # prints its address, serves until it is killed

``with serving("tei") as server`` runs one in a thread. POST /faults takes a list of faults, each ``{"do": ...,
"times": N}``, which befall the next requests for vectors; GET /stats tells what was asked.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import threading
import zlib
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import orjson

from .minilm import MiniLm

REASONS = {200: "OK", 307: "Temporary Redirect", 413: "Payload Too Large", 422: "Unprocessable Entity", 429: "Too Many"}
POISON = "POISON"  #: a text with this word is refused, alone
TEI_TEXTS, TEI_BYTES, TEI_TOKENS = 32, 2_000_000, 512


class Model(Protocol):
    """What makes the vectors."""

    name: str
    dimensions: int

    def embed(self, texts: Sequence[str]) -> Any:
        """Return a row of float32 for each text."""


class Null:
    """No model: a vector that only its text can have, at no cost."""

    name = "null"

    def __init__(self, dimensions: int = 8) -> None:
        self.dimensions = dimensions

    def embed(self, texts: Sequence[str]) -> Any:
        found = np.empty((len(texts), self.dimensions), np.float32)
        for row, text in zip(found, texts, strict=True):
            row[:] = (zlib.crc32(text.encode()) % 65521 + np.arange(self.dimensions)) / 65536
        return found


class Refusal(Exception):
    """The server answers with a status of its own."""

    def __init__(self, status: int, said: object) -> None:
        super().__init__(status, said)
        self.status, self.said = status, said


class Server:
    """One server. Faults and counts may be used from any thread."""

    def __init__(
        self, dialect: str = "infermesh", model: Model | None = None, key: str = "", limits: bool = True
    ) -> None:
        self.dialect, self.model, self.key, self.limits = dialect, model or Null(), key, limits
        self.faults: deque[dict[str, Any]] = deque()
        self.counts: Counter[str] = Counter()
        self.batches: list[int] = []  #: texts of each request for vectors
        self.most_at_once = 0
        self.packs = True  #: whether an OpenAI-like one knows base64
        self.url = ""
        self._at_once = 0
        self._thread = ThreadPoolExecutor(1)

    def fault(self, do: str, times: int = 1, **facts: Any) -> None:
        """Let this befall the next requests for vectors: status, slow, cut, cut_body, count, dimension, or junk."""
        self.faults.extend({"do": do, **facts} for _ in range(times))

    async def start(self, port: int = 0) -> asyncio.Server:
        """Listen, and know the address."""
        listener = await asyncio.start_server(self._serve, "127.0.0.1", port, backlog=1024)
        self.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        return listener

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.counts["connections"] += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, path, _ = head[0].split(" ")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
                size = int(headers.get("content-length", 0))
                if self.dialect == "tei" and self.limits and size > TEI_BYTES:
                    await reader.readexactly(size)
                    status, said, more = 413, "length limit exceeded", {}
                else:
                    body = await reader.readexactly(size)
                    status, said, more = await self._answer(method, path, headers, body)
                if said is None:
                    break
                sent = said if isinstance(said, bytes) else orjson.dumps(said)
                self.counts["sent"] += len(sent)
                lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Other')}", f"Content-Length: {len(sent)}"]
                lines += [f"{name}: {value}" for name, value in more.items()]
                sent = ("\r\n".join(lines) + "\r\n\r\n").encode() + sent
                if more.get("X-Cut"):
                    writer.write(sent[: len(sent) // 2])
                    break
                writer.write(sent)
                await writer.drain()
        writer.close()

    async def _answer(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, Any, dict[str, str]]:
        """Return status, what is said (None: nothing, the connection is cut), and further headers."""
        if path == "/faults":
            for fault in json.loads(body):
                self.fault(**fault)
            return 200, {}, {}
        if path == "/stats":
            return 200, {**self.counts, "batches": self.batches, "most_at_once": self.most_at_once}, {}
        self.counts[f"{method} {path}"] += 1
        if self.key and headers.get("authorization") != f"Bearer {self.key}":
            return 401, {"error": f"not the key: {headers.get('authorization')}"}, {}
        try:
            if method == "GET":
                return 200, self._about(path), {}
            fault = self.faults.popleft() if self.faults else {"do": ""}
            self.counts["requests"] += 1
            self.counts["bytes"] += len(body)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            try:
                return await self._vectors(path, json.loads(body), fault)
            finally:
                self._at_once -= 1
        except Refusal as refusal:
            return refusal.status, refusal.said, {}

    def _about(self, path: str) -> Any:
        if path == "/health":
            return {"status": "ok"} if self.dialect == "infermesh" else b""
        if path == "/info" and self.dialect == "tei":
            limits = {"max_client_batch_size": TEI_TEXTS, "max_batch_tokens": 16384, "max_input_length": TEI_TOKENS}
            return {"model_id": self.model.name, "version": "1.8.0", **limits}
        if path == "/v1/models" and self.dialect in ("openai", "vllm"):
            more = {"owned_by": "vllm", "max_model_len": 512} if self.dialect == "vllm" else {"owned_by": "us"}
            return {"object": "list", "data": [{"id": self.model.name, "object": "model", **more}]}
        raise Refusal(404, {"error": "not found"})

    async def _vectors(
        self, path: str, asked: dict[str, Any], fault: dict[str, Any]
    ) -> tuple[int, Any, dict[str, str]]:
        if fault["do"] == "slow":
            await asyncio.sleep(fault["s"])
        if fault["do"] == "status":
            return fault["status"], {"error": fault.get("said", "as told")}, fault.get("headers", {})
        if fault["do"] == "cut":
            return 0, None, {}
        if fault["do"] == "junk":
            return 200, fault["said"].encode(), {}
        is_openai = self.dialect in ("openai", "vllm")
        if path != ("/v1/embeddings" if is_openai else "/embed"):
            raise Refusal(404, {"error": "not found"})
        texts = asked["input" if is_openai else "inputs"]
        self._check(texts, asked)
        self.batches.append(len(texts))
        self.counts["texts"] += len(texts)
        vectors = self.model.embed(texts) if isinstance(self.model, Null) else await self._computed(texts)
        if fault["do"] == "count":
            vectors = vectors[:-1]
        if fault["do"] == "dimension":
            vectors = vectors[:, :-1]
        return 200, self._said(vectors, asked), {"X-Cut": "1"} if fault["do"] == "cut_body" else {}

    async def _computed(self, texts: Sequence[str]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self.model.embed, texts)

    def _check(self, texts: Any, asked: dict[str, Any]) -> None:
        """Refuse what such a server refuses, in its own words."""
        if any(POISON in text for text in texts):
            said = {"error": {"message": f"a text has {POISON}", "code": 400}} if self.dialect == "vllm" else "poison"
            raise Refusal(400 if self.dialect in ("openai", "vllm") else 422, said)
        if self.dialect == "tei" and self.limits:
            if len(texts) > TEI_TEXTS:
                said = f"batch size {len(texts)} > maximum allowed batch size {TEI_TEXTS}"
                raise Refusal(422, {"error": said, "error_type": "Validation"})
            longest = max(len(text.split()) for text in texts)
            if longest > TEI_TOKENS and not asked.get("truncate"):
                raise Refusal(413, {"error": f"`inputs` must have less than {TEI_TOKENS} tokens. Given: {longest}"})
        if self.dialect in ("openai", "vllm"):
            if asked["model"] != self.model.name:
                raise Refusal(404, {"error": {"message": f"The model `{asked['model']}` does not exist."}})
            if len(texts) > 2048:
                raise Refusal(400, {"error": {"message": "'input' has more than 2048 texts"}})
            if self.dialect == "vllm" and "normalize" in asked:
                raise Refusal(400, {"error": {"message": "extra fields not permitted: normalize"}})
            if not self.packs and asked.get("encoding_format") == "base64":
                raise Refusal(400, {"error": {"message": "encoding_format: base64 is not known here"}})

    def _said(self, vectors: Any, asked: dict[str, Any]) -> Any:
        numpy = orjson.OPT_SERIALIZE_NUMPY
        if self.dialect == "tei":
            return orjson.dumps(np.ascontiguousarray(vectors), option=numpy)
        if self.dialect == "infermesh":
            return orjson.dumps({"vectors": np.ascontiguousarray(vectors)}, option=numpy)
        packed = asked.get("encoding_format") == "base64"
        data = [
            {"index": index, "embedding": base64.b64encode(row.tobytes()).decode() if packed else row.tolist()}
            for index, row in enumerate(vectors)
        ]
        return {"object": "list", "data": data[::-1], "model": asked["model"], "usage": {"total_tokens": 1}}


@contextlib.contextmanager
def serving(dialect: str = "infermesh", port: int = 0, **more: Any) -> Iterator[Server]:
    """Run a server in a thread."""
    server, ready = Server(dialect, **more), threading.Event()
    loop, end = asyncio.new_event_loop(), asyncio.Event()

    async def main() -> None:
        listener = await server.start(port)
        ready.set()
        await end.wait()
        listener.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for one in others:
            one.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    assert ready.wait(30)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join()
        loop.close()


async def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dialect", default="infermesh")
    parser.add_argument("--model", choices=("null", "minilm"), default="null")
    parser.add_argument("--dimensions", type=int, default=8)
    parser.add_argument("--port", type=int, default=0)
    chosen = parser.parse_args()
    server = Server(chosen.dialect, MiniLm() if chosen.model == "minilm" else Null(chosen.dimensions))
    listener = await server.start(chosen.port)
    print(server.url, flush=True)
    await listener.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main())
