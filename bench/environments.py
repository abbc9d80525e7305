"""Steps of environments through the queue, beside the same environments in processes at the other end of a pipe.

Each environment is stepped by a producer of its own, which puts the next step when it has seen the result of the last. As
many processes hold them either way, and as many threads wait; what a step costs beyond the pipe's is the price of a record
on the disk for each. ``python -m bench.environments --envs 64 --steps 1000``.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dspy_supervisor import AsyncQueue

from bench import script
from bench.ours import CLASS, Ours


class Counter:
    """The environment: a step is next to no work."""

    def __init__(self) -> None:
        self.count = 0

    def reset(self) -> tuple[int, dict[str, Any]]:
        """Begin anew."""
        self.count = 0
        return 0, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        """Count."""
        self.count += action
        return self.count, 1.0, False, False, {}


class Stepped(Ours):
    """A supervisor whose workers hold them."""

    handler = "environment"
    options = ("--set", "environments=counter=bench.environments:Counter", "--no-http")


def measure(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Return microseconds a step, and steps a second, both ways."""
    piped_s, piped_us = _through_pipes(options.envs, options.steps, options.workers)
    with Stepped(folder, False) as ours:
        ours.start(options.workers)
        queued_s, queued_us = asyncio.run(_through_the_queue(ours.path, options.envs, options.steps))
    alone = folder / "alone"
    alone.mkdir()
    with Stepped(alone, False) as ours:
        ours.start(options.workers)
        _, alone_us = asyncio.run(_through_the_queue(ours.path, 1, min(options.steps, 500)))
    _, alone_piped_us = _through_pipes(1, min(options.steps, 500), options.workers)
    total = options.envs * options.steps
    return {
        "environments": options.envs,
        "steps_each": options.steps,
        "pipe_steps_per_s": total / piped_s,
        "queue_steps_per_s": total / queued_s,
        "rate_queue_over_pipe": piped_s / queued_s,
        "pipe_step_us_p50": statistics.median(piped_us),
        "queue_step_us_p50": statistics.median(queued_us),
        "pipe_step_us_p50_alone": statistics.median(alone_piped_us),
        "queue_step_us_p50_alone": statistics.median(alone_us),
        "overhead_us_a_step_alone": statistics.median(alone_us) - statistics.median(alone_piped_us),
    }


async def _through_the_queue(path: Path, envs: int, steps: int) -> tuple[float, list[float]]:
    took: list[float] = []
    async with AsyncQueue(path) as queue:

        async def ask(payload: dict[str, Any]) -> Any:
            return await queue.result(await queue.submit(payload, task_class=CLASS), timeout=60)

        async def play(env: str) -> None:
            for number in range(steps):
                begun = time.perf_counter()
                found = await ask({"env_id": env, "action": "step", "action_data": 1})
                took.append((time.perf_counter() - begun) * 1e6)
                if found["state"] != number + 1:
                    raise AssertionError(f"{env}: step {number} counts {found['state']}")

        names = [f"e{number}" for number in range(envs)]
        await asyncio.gather(*(ask({"env_id": env, "action": "init"}) for env in names))
        begun = time.perf_counter()
        await asyncio.gather(*(play(env) for env in names))
        return time.perf_counter() - begun, took


def _through_pipes(envs: int, steps: int, workers: int) -> tuple[float, list[float]]:
    took: list[float] = []
    ends, processes = [], []
    for _ in range(workers):
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        ends.append(ours)
        processes.append(process)
    homes = {f"e{number}": ends[number % workers] for number in range(envs)}
    begun = time.perf_counter()
    for _ in range(steps):
        sent = time.perf_counter()
        for env, end in homes.items():
            end.send({"env_id": env, "action_data": 1})
        for end in homes.values():
            end.recv()
            took.append((time.perf_counter() - sent) * 1e6)
    elapsed_s = time.perf_counter() - begun
    for end in ends:
        end.send(None)
    for process in processes:
        process.join()
    return elapsed_s, took


def _serve(end: Connection) -> None:
    made: dict[str, Counter] = {}
    while (order := end.recv()) is not None:
        env = made.setdefault(order["env_id"], Counter())
        state, reward, terminated, truncated, info = env.step(order["action_data"])
        end.send({"state": state, "reward": reward, "done": terminated or truncated, "info": info})


if __name__ == "__main__":
    script.main(__doc__, measure, envs=64, steps=1000, workers=2)
