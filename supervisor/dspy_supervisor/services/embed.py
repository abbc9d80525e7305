"""The service that batches for all workers of a supervisor: their texts travel to the embedding servers together.

It listens on a Unix socket in the runtime folder, which only this user enters. A worker that finds nobody there asks the
servers by itself, so this process may hang or die without a task noticing more than a delay.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from ..embedding.asynchronous import AsyncEmbeddingClient
from ..embedding.options import shared_socket
from ..embedding.shared import LENGTH, MAX_HEAD, packed
from ..errors import EmbeddingError
from ..link import ALIVE_S
from ..log import log
from ..parts import ServicePost

_TELL_S = 4.0  # between two looks at whether `status` should be told something new


def run(post: ServicePost) -> int:
    """Serve the workers until told to stop."""
    path = shared_socket(post.config.runtime_dir, post.queue_id, post.config.instance)
    return asyncio.run(_serve(post, path))


async def _serve(post: ServicePost, path: Path) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def heard() -> None:
        if any(message["op"] == "stop" for message in post.link.receive(0)):
            stop.set()
            loop.remove_reader(post.link.fileno())

    loop.add_reader(post.link.fileno(), heard)
    listener = _listener(path)
    async with AsyncEmbeddingClient(settings=post.config) as client:
        desk = Desk(client)
        server = await asyncio.start_unix_server(desk.serve, sock=listener)
        telling = asyncio.create_task(_tell(post, client))
        try:
            await stop.wait()
        finally:
            server.close()
            telling.cancel()
            await desk.close()
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
    return 0


async def _tell(post: ServicePost, client: AsyncEmbeddingClient) -> None:
    """Say that the loop turns, and what was counted."""
    told: dict[str, Any] = {}
    while True:
        for _ in range(round(_TELL_S / (ALIVE_S / 2))):
            post.link.alive()
            await asyncio.sleep(ALIVE_S / 2)
        found = client.metrics()
        if found != told:
            post.link.send({"op": "state", "counts": found})
            told = found


class Desk:
    """Answers the workers, each on its own connection."""

    def __init__(self, client: AsyncEmbeddingClient) -> None:
        self._client = client
        self._busy: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one worker until it hangs up; a question whose worker hung up is taken back."""
        task = asyncio.current_task()
        assert task is not None
        self._busy.add(task)
        self._client.expect(len(self._busy))
        try:
            while True:
                (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
                if length > MAX_HEAD:
                    raise ValueError(f"a question of {length} bytes")
                asked = orjson.loads(await reader.readexactly(length))
                answer = asyncio.ensure_future(self._answer(asked["texts"], asked["inline_bytes"]))
                gone = asyncio.ensure_future(reader.read(1))  # a worker says nothing more before it has its answer
                try:
                    await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
                    if not answer.done():
                        return
                    head, numbers = answer.result()
                    writer.write(LENGTH.pack(len(head)) + head)
                    writer.write(numbers)
                    await writer.drain()
                finally:
                    for one in (answer, gone):
                        one.cancel()
                    await asyncio.gather(answer, gone, return_exceptions=True)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # it hung up, or we are to end: it asks the servers by itself then
        except (ValueError, KeyError, TypeError) as error:
            log.error("embed_bad_question", error=str(error))
        finally:
            self._busy.discard(task)
            self._client.expect(len(self._busy))
            writer.close()

    async def close(self) -> None:
        """Let go of all workers."""
        for task in self._busy:
            task.cancel()
        await asyncio.gather(*self._busy, return_exceptions=True)

    async def _answer(self, texts: Sequence[str], inline_bytes: int) -> tuple[bytes, bytes]:
        try:
            vectors = await self._client.embed(texts)
        except EmbeddingError as error:
            return orjson.dumps({"size": 0, "error": packed(error)}), b""
        inline = vectors.nbytes <= inline_bytes
        if inline:
            numbers = orjson.dumps(vectors, option=orjson.OPT_SERIALIZE_NUMPY)
        else:
            numbers = np.ascontiguousarray(vectors, "<f4").tobytes()
        facts = {"model": self._client.model, "dimensions": vectors.shape[1], "shared": True}
        head = {"size": len(numbers), "shape": vectors.shape, "facts": facts, "json": inline}
        return orjson.dumps(head), numbers


def _listener(path: Path) -> socket.socket:
    """Listen at the path, which a killed service may have left. By the folder's descriptor: names of sockets are short."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path.name, dir_fd=folder)
        listener.bind(f"/proc/self/fd/{folder}/{path.name}")
        listener.listen(128)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(folder)
    return listener
