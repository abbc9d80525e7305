"""Tasks that come side by side under one name are one task, and one caller made it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dspy_supervisor.client import Queue
from dspy_supervisor.client.envelopes import Prepared, prepare
from dspy_supervisor.services.gateway.incoming import accept


def test_two_that_put_one_task_at_one_moment_are_told_apart(tmp_path: Path) -> None:
    async def both() -> list[bool]:
        with closing(Queue(tmp_path / "queue", create=True)) as queue:

            async def apart(call: Callable[[], Any]) -> Any:
                await asyncio.sleep(0)
                return call()

            async def put(task: Prepared) -> None:
                for _ in range(10):  # the other may look meanwhile
                    await asyncio.sleep(0)
                queue.put([task])

            context: Any = SimpleNamespace(accepting={}, apart=apart, sync_queue=queue, disk=SimpleNamespace(put=put))
            task = prepare({"n": 1}, idempotency_key="one")
            found = await asyncio.gather(*(accept(context, task) for _ in range(3)))
            assert context.accepting == {}
            return found

    assert sorted(asyncio.run(both())) == [False, False, True]
