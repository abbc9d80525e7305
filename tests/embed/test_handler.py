"""Tasks of the embed handler, run by a real supervisor."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
from typing import Any

import numpy as np
import pytest
from dspy_supervisor import Queue, TaskFailed
from dspy_supervisor.config_embed import EmbedOptions
from dspy_supervisor.embedding import read_vectors
from dspy_supervisor.embedding.options import check_installed
from dspy_supervisor.embedding.shared import Asker, Gone, _connect
from dspy_supervisor.errors import ConfigError, ServiceUnavailable
from dspy_supervisor.handlers import make

from tests.conftest import Start, Supervised, until
from tests.embed.server import POISON, Null, serving

pytestmark = pytest.mark.xdist_group("embed")
WAIT_S = 60


def listening(one: Supervised) -> None:
    def answers() -> bool:  # its file is there a moment before it listens
        with contextlib.suppress(ValueError, OSError):
            (path,) = one.runtime.glob("*.embed")
            _connect(path).close()
            return True
        return False

    until(answers, "the process that batches listens", WAIT_S)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("shared", [True, False])
def test_tasks_get_vectors_as_the_runner_gave_them(supervisor: Start, serve, shared):
    server = serve("tei")
    settings = {"embed_urls": server.url, "embed_shared": shared, "embed_inline_bytes": 1000, "kinds": "echo,embed"}
    one = supervisor("--workers", "cpu_long=2", handlers={"cpu_long": "embed"}, settings=settings)
    if shared:
        listening(one)
    words = [f"word {n}" for n in range(100)]
    with Queue(one.queue) as queue:
        small = queue.submit({"inputs": ["to be", "or not"]}, "cpu_long")
        large = queue.submit({"inputs": words}, "cpu_long")
        asked = queue.submit({"inputs": words, "output": "json"}, kind="embed")
        bad = queue.submit({"inputs": ["good", POISON]}, "cpu_long")
        found = queue.result(small, WAIT_S)
        assert found["id"] == small and found["latency_ms"] > 0
        assert np.array_equal(read_vectors(found, one.queue), Null().embed(["to be", "or not"]))
        assert found["metadata"] == {"model": "null", "dimensions": 8, "shared": shared}
        found = queue.result(large, WAIT_S)
        path = f"logs/{large}/embeddings.0.npy"
        assert found["embeddings_file"] == {"path": path, "shape": [100, 8], "dtype": "float32"}
        assert "embeddings" not in found
        assert np.array_equal(np.load(one.queue / path), Null().embed(words))
        assert np.array_equal(read_vectors(found, one.queue), Null().embed(words))
        assert len(queue.result(asked, WAIT_S)["embeddings"]) == 100
        with pytest.raises(TaskFailed, match=r"inputs\[1\]: .* answered 422: poison") as failed:
            queue.result(bad, WAIT_S)
        assert failed.value.cause == "refused"
    if shared:
        until(lambda: one.status()["services"]["embed"].get("counts", {}).get("texts"), "status tells what was counted")


def test_tasks_of_several_workers_travel_together_and_lose_nothing_with_the_process_that_batches(
    supervisor: Start, serve
):
    server = serve("infermesh")
    settings = {"embed_urls": server.url, "embed_linger_ms": 50}
    one = supervisor("--workers", "cpu_short=4", handlers={"cpu_short": "embed"}, settings=settings)
    listening(one)
    with Queue(one.queue) as queue:
        tasks = queue.submit_many({"inputs": [f"text {n}"]} for n in range(40))
        for n, task in enumerate(tasks):
            assert np.allclose(queue.result(task, WAIT_S)["embeddings"], Null().embed([f"text {n}"]))
        assert max(server.batches) > 1
        server.fault("slow", times=4, s=1)
        tasks = queue.submit_many({"inputs": [f"more {n}"]} for n in range(8))
        until(lambda: len(server.faults) < 4, "a request is under way", WAIT_S)
        os.kill(one.status()["services"]["embed"]["pid"], signal.SIGKILL)
        for task in tasks:
            queue.result(task, WAIT_S)
        assert not [*(one.queue / "failed").glob("*.json")]
    records = [(one.queue / "done" / f"{task}.json").read_text() for task in tasks]
    assert all('"attempt":0' in record for record in records)


def test_the_runners_route_answers_with_all_vectors(supervisor: Start, serve):
    settings = {
        "embed_urls": serve("infermesh").url,
        "http_port": 0,
        "metrics_port": free_port(),
        "embed_inline_bytes": 100,
    }
    one = supervisor("--http", handlers={"cpu_long": "embed"}, settings=settings)
    words = [f"word {n}" for n in range(50)]

    def execute(inputs: object) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection("127.0.0.1", settings["metrics_port"], timeout=WAIT_S)
        try:
            body = json.dumps({"id": "a1", "class": "cpu_long", "payload": {"inputs": inputs}})
            connection.request("POST", "/tasks/execute", body)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    until(lambda: len(one.status()["services"]["gateway"].get("listening", ())) == 2, "both ports are open", WAIT_S)
    for inputs in (words, words[:1]):
        status, found = execute(inputs)
        assert (status, found["id"], found["metadata"]["dimensions"]) == (200, "a1", 8)
        assert np.allclose(found["embeddings"], Null().embed(inputs)) and found["latency_ms"] > 0
    assert execute([POISON])[0] == 500
    assert execute([]) == (400, {"error": "payload 'inputs' cannot be empty"})


def test_tasks_wait_for_a_server_that_is_away(supervisor: Start):
    with serving("infermesh") as gone:
        port = int(gone.url.rpartition(":")[2])
    settings = {"embed_urls": gone.url, "embed_retries": 0, "retry_base_s": 0.1, "retry_cap_s": 0.2}
    one = supervisor(handlers={"cpu_short": "embed"}, settings=settings)
    with Queue(one.queue) as queue:
        task = queue.submit({"inputs": ["text"]}, max_attempts=1000)
        log = one.queue / "logs" / task
        until(lambda: log.is_dir() and [*log.iterdir()], "an attempt failed", WAIT_S)
        with serving("infermesh", port=port):
            assert queue.result(task, WAIT_S)["embeddings"]


def test_a_payload_is_refused_in_the_words_of_the_runner(supervisor: Start, serve):
    one = supervisor(handlers={"cpu_short": "embed"}, settings={"embed_urls": serve("infermesh").url})
    expected = {
        "payload missing 'inputs'": [{}, [], "text", {"input": ["a"]}],
        "payload 'inputs' must be an array": [{"inputs": "a"}, {"inputs": None}],
        "payload 'inputs' must be non-empty strings": [{"inputs": ["a", " "]}, {"inputs": [1]}],
        "payload 'inputs' cannot be empty": [{"inputs": []}],
        "payload 'model' is 'other', and this queue's": [{"inputs": ["a"], "model": "other"}],
        "payload 'output' is json or npy, not 'csv'": [{"inputs": ["a"], "output": "csv"}],
        "payload 'output' is json or npy, not .'npy'.": [{"inputs": ["a"], "output": ["npy"]}],
    }
    with Queue(one.queue) as queue:
        tasks = [(words, queue.submit(payload)) for words, payloads in expected.items() for payload in payloads]
        for words, task in tasks:
            with pytest.raises(TaskFailed, match=words) as failed:
                queue.result(task, WAIT_S)
            assert failed.value.cause == "refused"


def test_without_a_server_the_class_says_what_is_missing(supervisor: Start):
    one = supervisor(handlers={"cpu_short": "embed"}, settings={"breaker_starts": 1})
    until(lambda: "INFERMESH_URL" in str(one.status()["classes"]["cpu_short"]), "the reason is told")
    with pytest.raises(ConfigError, match="INFERMESH_URL"):
        make("embed", embed=EmbedOptions())
    with pytest.raises(ConfigError, match="jobs have no embedding servers"):
        make("embed")


def test_without_its_packages_the_remedy_is_told(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ServiceUnavailable, match=r"pip install 'dspy-supervisor\[embed\]'"):
        check_installed()


def test_nobody_at_the_socket_is_no_error_of_the_task(tmp_path):
    with pytest.raises(Gone):
        Asker(tmp_path / "none").ask(["text"], 0)
