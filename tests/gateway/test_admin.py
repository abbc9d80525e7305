"""The supervisor by /v1: what it says of itself, and what it can be told to do."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import until

from .api import Api, next_event, served
from .conftest import TOKEN, Gateway, Open

pytestmark = pytest.mark.xdist_group("gateway-admin")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with served(tmp_path_factory.mktemp("admin")) as found:
        yield found


def test_the_status_is_the_supervisors_own_with_gateway_gpus_host_and_latency(api: Api) -> None:
    api.result(api.put({"n": 1}))
    status = api.read("/v1/status")
    assert status["queue_dir"] == str(api.queue)
    assert status["gateway"]["writable"] is True
    assert status["gpus"] == [] and "host" in status
    assert status["latency"]["cpu_short"]["run_p50_s"] > 0
    assert status["latency"]["gpu"]["run_p50_s"] is None
    assert "ok" not in status


def test_classes_are_paused_and_resumed(api: Api) -> None:
    answer = api.post("/v1/queue/pause", {"classes": ["cpu_short"], "reason": "lunch"})
    assert answer.json == {"paused": ["cpu_short"]}
    task_id = api.put({"n": 1})
    assert "lunch" in until(
        lambda: "paused" in (said := api.read(f"/v1/tasks/{task_id}/explain")["explanation"]) and said, "it is held"
    )
    assert api.read("/v1/status")["classes"]["cpu_short"]["state"] == "paused"
    assert api.post("/v1/queue/resume").json["resumed"] == ["cpu_short", "cpu_long", "gpu", "gpu_slurm"]
    assert api.result(task_id)["status"] == "done"


def test_a_limit_is_set(api: Api) -> None:
    assert api.ask("PUT", "/v1/classes/cpu_short/limit", {"limit": 1}).json == {"class": "cpu_short", "limit": 1}
    assert api.supervisor.status()["classes"]["cpu_short"]["limit"] == 1
    api.ask("PUT", "/v1/classes/cpu_short/limit", {"limit": 2})


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/queue/pause", {"classes": ["x"]}, 422),
        ("POST", "/v1/queue/pause", {"classes": "gpu"}, 422),
        ("POST", "/v1/queue/pause", {"reason": 5}, 422),
        ("POST", "/v1/queue/pause", b"{", 400),
        ("POST", "/v1/queue/resume", b"[]", 422),
        ("PUT", "/v1/classes/cpu_short/limit", {"limit": -1}, 422),
        ("PUT", "/v1/classes/cpu_short/limit", {"limit": True}, 422),
        ("PUT", "/v1/classes/cpu_short/limit", {}, 422),
        ("PUT", "/v1/classes/huge/limit", {"limit": 1}, 404),
        ("GET", "/v1/queue/pause", None, 405),
        ("GET", "/v1/nothing", None, 404),
    ],
)
def test_an_order_that_cannot_be_carried_out_is_refused(
    api: Api, method: str, path: str, body: object, status: int
) -> None:
    answer = api.ask(method, path, body)
    assert (answer.status, answer.json["status"]) == (status, status)


def test_a_full_queue_is_said_so_and_when_to_try_again(gateway: Open) -> None:
    full = gateway(settings={"max_pending": 3})
    full.supervisor.ask("pause")
    put = [full.ask("POST", "/v1/tasks", {"payload": n}).status for n in range(3)]
    refused = full.ask("POST", "/v1/tasks", {"payload": 3})
    assert (put, refused.status) == ([201] * 3, 429)
    assert int(refused.headers["retry-after"]) >= 1
    assert full.ask("POST", "/queue/submit", {"payload": 3}).status == 429


def test_a_drain_ends_what_listens_answers_who_waits_and_then_the_supervisor(tmp_path: Path) -> None:
    with served(tmp_path) as api:
        task_id, gate = api.gate()
        with api.stream("/v1/events") as events, api.connect() as waiting:
            assert events.readline()
            waiting.sendall(b"GET /v1/tasks/%b/result?wait_s=60 HTTP/1.1\r\nHost: localhost\r\n\r\n" % task_id.encode())
            until(lambda: api.state["connections"] >= 2, "it waits")
            assert api.post("/v1/queue/drain").status == 202
            assert waiting.recv(12) == b"HTTP/1.1 202", "who waits is answered before its time"
            assert events.read() == b"\n", "a stream ends"
        gate.touch()
        assert api.supervisor.wait() == 0
        assert (api.queue / "done" / f"{task_id}.json").exists()


def test_live_says_so_when_the_supervisor_does_not_answer(gateway: Open) -> None:
    found = gateway()
    api = Api(found.supervisor, found.folder)
    with api.stream("/v1/live") as stream:
        assert next_event(stream)[1] == "status"
        api.supervisor.signal(signal.SIGSTOP)
        try:
            while True:
                _, kind, said = next_event(stream)
                if kind == "problem":
                    assert "did not answer" in said["detail"]
                    break
        finally:
            api.supervisor.signal(signal.SIGCONT)


def test_a_caller_is_told_whether_it_may_change_things(locked: Gateway) -> None:
    token = {"Authorization": f"Bearer {TOKEN}"}
    assert locked.get("/v1/status").json["gateway"]["writable"] is False
    assert locked.ask("GET", "/v1/status", headers=token).json["gateway"]["writable"] is True
    for method, path in (
        *(("POST", f"/v1/tasks{path}") for path in ("", "/batch", "/a/cancel", "/a/retry")),
        *(("POST", f"/v1/queue/{order}") for order in ("pause", "resume", "drain")),
        ("PUT", "/v1/classes/gpu/limit"),
        *(("POST", path) for path in ("/queue/submit", "/api/env-queue/submit", "/api/env-queue/config")),
    ):
        assert locked.ask(method, path, {"payload": 1}).status == 401, path
    assert locked.ask("POST", "/queue/status").status == 200
