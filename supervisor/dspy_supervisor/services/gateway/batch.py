"""Many tasks in one request: /v1/tasks/batch takes an envelope a line, and answers a line for each, in their order.

A line is answered as soon as its task is in the queue, while later ones are still on their way, and is ``{"id": ...}`` or
``{"error": ..., "status": ...}``; blank lines are passed over. What came together shares its syncs. However long the body
is, only what is being put is in memory, and answers that the caller does not take yet, up to a bound: who sends more than
about a hundred thousand lines has to read while it writes, as curl does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from ...client.envelopes import Prepared
from .context import Context
from .incoming import strict
from .problems import Problem, problem_of

_GROUP = 500  # lines that share their syncs
_GROUP_BYTES = 4 << 20
_UNTAKEN_BYTES = 8 << 20  # answers that may wait for the caller


def routes(context: Context) -> list[BaseRoute]:
    """Return the routes of batches."""

    async def batch(_: Request) -> Response:
        return _Batch(context)

    return [Route("/v1/tasks/batch", batch, methods=["POST"])]


class _Batch(Response):
    """The answer to a batch: it reads the request while it is sent."""

    def __init__(self, context: Context) -> None:
        super().__init__(None, 200, None, "application/x-ndjson")
        del self.headers["content-length"]
        self._context = context
        self._untaken = bytearray()
        self._some, self._room = asyncio.Event(), asyncio.Event()
        self._ended = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        writer = asyncio.create_task(self._write(send))
        try:
            try:
                async for group in _groups(receive, self._context.config.http_max_body_bytes):
                    await self._say(await self._put(group))
            except Problem as problem:  # of the request as a whole: what was accepted before it stays so
                await self._say([_refusal(problem)])
            self._ended = True
            self._some.set()
            await writer
        finally:
            writer.cancel()

    async def _put(self, lines: list[bytes]) -> list[bytes]:
        """Put the tasks of some lines, and return their answers."""
        answers: list[bytes | None] = []
        tasks: list[tuple[int, Prepared]] = []
        for place, line in enumerate(lines):
            try:
                tasks.append((place, strict(line, self._context)))
                answers.append(None)
            except Problem as problem:
                answers.append(_refusal(problem))
        for place, answer in await self._context.apart(self._accept, tasks):
            answers[place] = answer
        return [answer for answer in answers if answer is not None]

    def _accept(self, tasks: list[tuple[int, Prepared]]) -> list[tuple[int, bytes]]:
        queue = self._context.sync_queue
        try:
            if tasks:
                queue.put([task for _, task in tasks])
            return [(place, _accepted(task)) for place, task in tasks]
        except Exception as error:
            if len(tasks) == 1:
                return [(tasks[0][0], _answer_to(error))]
        # Each gets the answer that it would get alone; what is in the queue already is answered as accepted, and is looked
        # for also where its id was made just now, as a part of them may be there, or run already.
        answers = []
        for place, task in tasks:
            try:
                queue.put([task._replace(fresh=False)])
                answers.append((place, _accepted(task)))
            except Exception as error:
                answers.append((place, _answer_to(error)))
        return answers

    async def _say(self, answers: list[bytes]) -> None:
        self._untaken += b"".join(answers)
        self._some.set()
        while len(self._untaken) > _UNTAKEN_BYTES:
            self._room.clear()
            await self._room.wait()

    async def _write(self, send: Send) -> None:
        while True:
            await self._some.wait()
            self._some.clear()
            chunk, self._untaken = bytes(self._untaken), bytearray()
            self._room.set()
            if chunk:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            elif self._ended:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            if self._ended:
                self._some.set()


async def _groups(receive: Receive, longest: int) -> AsyncIterator[list[bytes]]:
    """Yield the lines of a body as they come, in groups that are put together. Raises Problem for one that is too long."""
    parts: list[bytes] = []  # of a line that has not ended
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        more = message.get("more_body", False)
        first, *others = message.get("body", b"").split(b"\n")
        parts.append(first)
        lines: list[bytes] = []
        if others or not more:
            lines = [b"".join(parts), *others[:-1]]
            parts = others[-1:]
            if not more:
                lines, parts = [*lines, *parts], []
        too_long = sum(map(len, parts)) > longest
        group: list[bytes] = []
        size = 0
        for line in lines:
            if len(line) > longest:
                too_long = True
                break
            if not line.strip():
                continue
            if group and (len(group) >= _GROUP or size + len(line) > _GROUP_BYTES):
                yield group
                group, size = [], 0
            group.append(line)
            size += len(line)
        if group:
            yield group
        if too_long:
            raise Problem(413, f"a line has {longest} bytes at most: http_max_body_bytes; what follows it was not read")
        if not more:
            return


def _accepted(task: Prepared) -> bytes:
    return b'{"id":"%b"}\n' % task.id.encode()


def _answer_to(error: Exception) -> bytes:
    problem = problem_of(error)
    if problem is None:
        raise error
    return _refusal(problem)


def _refusal(problem: Problem) -> bytes:
    return orjson.dumps({"error": problem.detail, "status": problem.status}) + b"\n"
