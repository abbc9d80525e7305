"""Tasks of the embed handler, run by a real supervisor."""

from __future__ import annotations

import numpy as np
import pytest
from dspy_supervisor import Queue, TaskFailed
from dspy_supervisor.embedding import read_vectors

from tests.conftest import Start, until
from tests.embed.server import POISON, Null, serving

pytestmark = pytest.mark.xdist_group("embed")


@pytest.fixture
def server():
    with serving("tei") as one:
        yield one


@pytest.mark.parametrize("shared", ["true", "false"])
def test_tasks_get_vectors_as_the_runner_gave_them(supervisor: Start, server, shared):
    settings = {"embed_urls": server.url, "embed_shared": shared, "embed_inline_bytes": 1000}
    one = supervisor("--workers", "cpu_long=2", handlers={"cpu_long": "embed"}, settings=settings)
    if shared == "true":
        until(lambda: [*one.runtime.glob("*.embed")], "the process that batches listens")
    with Queue(one.queue) as queue:
        small = queue.submit({"inputs": ["to be", "or not"]}, task_class="cpu_long")
        large = queue.submit({"inputs": [f"word {n}" for n in range(100)]}, task_class="cpu_long")
        bad = queue.submit({"inputs": ["good", POISON]}, task_class="cpu_long")
        found = queue.result(small, timeout=30)
        assert found["id"] == small and found["latency_ms"] > 0
        assert np.allclose(found["embeddings"], Null().embed(["to be", "or not"]))
        assert found["metadata"] == {"model": "null", "dimensions": 8, "shared": shared == "true"}
        found = queue.result(large, timeout=30)
        assert found["embeddings_file"]["shape"] == [100, 8] and "embeddings" not in found
        assert np.allclose(read_vectors(found, one.queue), Null().embed([f"word {n}" for n in range(100)]))
        with pytest.raises(TaskFailed, match=r"inputs\[1\]: .* answered 422: poison") as failed:
            queue.result(bad, timeout=30)
        assert failed.value.cause == "refused"
