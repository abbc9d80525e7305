"""The routes of the older environment runner, on a port of its own: its health, its metrics, and tasks that are waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import orjson
from dspy_fastpath.counters import Counter, Gauge, GpuValue, Histogram, Page, bounds
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ...embedding import read_vectors
from ...errors import DuplicateTask, SupervisorError, TaskFailed, WaitTimeout
from ...gpu import read
from ...metrics.table import RUNNER
from .answers import json
from .context import Context
from .incoming import accept, lenient
from .overview import quantile
from .problems import Problem, problem_of

_LONGEST_S = 300.0  #: that a caller waits for a task
_EMBED = "embed"


def routes(context: Context) -> list[BaseRoute]:
    """Return the runner's routes."""

    async def health(_: Request) -> Response:
        return json({"status": "healthy"})

    async def metrics(_: Request) -> Response:
        return json(stats(context.page))

    async def prometheus(_: Request) -> Response:
        told = stats(context.page)
        lines = []
        for name, kind, text, key, divisor in RUNNER:
            value = told[key] / divisor if divisor > 1 else told[key]
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", f"{name} {value}"]
        return Response("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")

    async def execute(request: Request) -> Response:
        began = time.monotonic()
        try:
            return json(await _execute(context, await request.body(), began))
        except (Problem, SupervisorError) as error:
            problem = problem_of(error)
            assert problem is not None
            return json({"error": problem.detail}, problem.status, problem.headers)

    return [
        Route("/health", health),
        Route("/metrics", metrics),
        Route("/prometheus", prometheus),
        Route("/tasks/execute", execute, methods=["POST"]),
    ]


def stats(page: Page) -> dict[str, Any]:
    """Return what the older runner told of itself; all whole numbers but the utilization, since its client decodes uint64."""
    counts, total_s, errors = [0] * len(page.histogram(0, Histogram.RUN)[0]), 0.0, {}
    processed = depth = 0
    for klass, name in enumerate(page.classes):
        some, seconds = page.histogram(klass, Histogram.RUN)
        counts = [one + other for one, other in zip(counts, some, strict=True)]
        total_s += seconds
        processed += page.counter(klass, Counter.DONE)
        depth += page.gauge(klass, Gauge.PENDING)
        if failed := page.counter(klass, Counter.FAILED):
            errors[name] = failed
    ended = sum(counts)
    busy = [value for gpu in read(page).gpus if (value := gpu[GpuValue.UTILIZATION]) >= 0]  # nan is not
    return {
        "tasks_processed": processed,
        "queue_depth": depth,
        "gpu_utilization": sum(busy) / len(busy) if busy else 0.0,
        "latency_p95_ms": round((quantile(counts, bounds(), 0.95) or 0.0) * 1000),
        "avg_duration_ms": round(total_s / ended * 1000) if ended else 0,
        "total_errors": sum(errors.values()),
        "errors_by_class": errors,
        "uptime_seconds": max(0, int(time.time() - page.started_at)),
    }


async def _execute(context: Context, data: bytes, began: float) -> dict[str, Any]:
    """Run a task through the queue, and return what its handler made of its inputs. Raises Problem, SupervisorError."""
    try:
        document = orjson.loads(data)
    except ValueError as error:
        raise Problem(400, f"invalid JSON: {error}") from None
    if not isinstance(document, dict) or not isinstance(document.get("id", ""), str):
        raise Problem(400, "expected an object with an id that is text, and a payload")
    if (wrong := wrong_inputs(document.get("payload"))) is not None:
        raise Problem(400, wrong)
    known = {"kind": _EMBED} if _EMBED in context.config.kinds and "kind" not in document else {}
    try:
        task = lenient(data, context, **known)
        await accept(context, task)
    except DuplicateTask:
        # The runner had no memory: an id may come again with other inputs. Its caller finds it in the answer as it was.
        task = lenient(
            orjson.dumps({key: value for key, value in document.items() if key.lower() != "id"}), context, **known
        )
        await accept(context, task)
    try:
        result = await context.queue.result(task.id, _LONGEST_S)
    except TaskFailed as failure:
        told = failure.record.get("error") or {}
        raise Problem(500, str(told.get("message") or failure.cause)) from None
    except WaitTimeout as error:
        raise Problem(504, str(error)) from None
    answer = {
        "id": document.get("id") or task.id,
        "embeddings": result,
        "latency_ms": (time.monotonic() - began) * 1000,
    }
    if isinstance(result, Mapping) and ("embeddings" in result or "embeddings_file" in result):
        if "embeddings" in result:
            answer["embeddings"] = result["embeddings"]
        else:  # too many for a record: they lie beside it
            vectors = await asyncio.to_thread(read_vectors, result, context.post.queue_dir)
            answer["embeddings"] = vectors.tolist()
        if isinstance(result.get("latency_ms"), int | float):
            answer["latency_ms"] = float(result["latency_ms"])
        if result.get("metadata") is not None:
            answer["metadata"] = result["metadata"]
    return answer


def wrong_inputs(payload: object) -> str | None:
    """Return what is wrong with a payload, in the older runner's words, or None."""
    if not isinstance(payload, dict) or "inputs" not in payload:
        return "payload missing 'inputs'"
    inputs = payload["inputs"]
    if not isinstance(inputs, list):
        return "payload 'inputs' must be an array"
    if not all(isinstance(one, str) and one.strip() for one in inputs):
        return "payload 'inputs' must be non-empty strings"
    return None if inputs else "payload 'inputs' cannot be empty"
