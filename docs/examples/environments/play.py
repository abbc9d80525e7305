"""Walks some environments at once, each step a task: ``python play.py QUEUE [ENVIRONMENTS]``.

Start a supervisor first, in this folder::

    dspy-supervisor start --queue-dir queue --handler cpu_short=environment --set environments=walk=walk:Walk
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from dspy_supervisor import AsyncQueue, TaskFailed


async def walk(queue: AsyncQueue, env: str) -> tuple[str, int, float]:
    """Play one episode, from the beginning again should its worker be lost; return how long it was, and its reward."""

    async def ask(action: str, **more: Any) -> dict[str, Any]:
        task = await queue.submit({"env_id": env, "action": action, **more}, task_class="cpu_short")
        found: dict[str, Any] = await queue.result(task, timeout=60)
        return found

    while True:
        try:
            await ask("init", config={"seed": 7})
            steps, total, done = 0, 0.0, False
            while not done:
                found = await ask("step", action_data=1)
                steps, total, done = steps + 1, total + found["reward"], found["done"]
            await ask("close")
        except TaskFailed as failure:
            if failure.cause != "env_lost":
                raise
        else:
            return env, steps, round(total, 3)


async def main(path: str, number: int) -> None:
    """Play them all at once."""
    async with AsyncQueue(path) as queue:
        for env, steps, total in await asyncio.gather(*(walk(queue, f"walk-{n}") for n in range(number))):
            print(f"{env}: {steps} steps, reward {total}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 8))
