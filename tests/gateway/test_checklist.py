"""What programs of the earlier system rely on, by plain HTTP and by dropped files.

What is tested elsewhere: every way of writing a file, and every content (tests/system/test_foreign.py); the files that their
dashboards read (there, too); their defects (tests/system/test_defects.py, and tests/slurm for those of its bridge); jobs of
real Slurm behind these routes (tests/slurm/test_gateway.py).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from tests.conftest import until

from .api import PLAY, Api, served

pytestmark = pytest.mark.xdist_group("gateway-checklist")

METRICS = (
    *("env_queue_depth", "gpu_wait_seconds", "env_error_rate", "queue_depth"),
    *("orchestrator_concurrency_limit", "orchestrator_inflight_tasks"),
    *("queue_tasks_submitted_total", "queue_tasks_processed_total", "queue_tasks_completed_total"),
    *("slurm_jobs_submitted_total", "slurm_jobs_completed_total", "slurm_jobs_failed_total"),
    *("slurm_reconcile_errors_total", "slurm_monitor_errors_total", "events_published_total"),
)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with served(tmp_path_factory.mktemp("checklist")) as found:
        yield found


def _record(api: Api, task_id: str) -> dict[str, Any]:
    path = api.queue / "done" / f"{task_id}.json"
    until(path.exists, f"{task_id} is done")
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


# -- the orchestrator: submit --------------------------------------------------------------------------------------------


def test_submit_answers_with_the_id_in_compact_json_and_a_newline(api: Api) -> None:
    answer = api.post("/queue/submit", {"id": "a1", "class": "cpu_short", "payload": {"n": 1}})
    assert (answer.status, answer.body) == (200, b'{"id":"a1","ok":true}\n')
    assert answer.headers["content-type"] == "application/json"
    record = _record(api, "a1")
    assert {"id", "class", "payload", "runner_result", "completed_at", "duration_ms"} <= record.keys()
    assert (record["id"], record["class"], record["payload"]) == ("a1", "cpu_short", {"n": 1})
    assert isinstance(record["duration_ms"], float)
    assert datetime.fromisoformat(record["completed_at"]).tzinfo is not None
    until(lambda: not (api.queue / "pending" / "a1.json").exists(), "it waits no more")
    assert [name for name in os.listdir(api.queue / "done") if name == "a1.json"] == ["a1.json"]


def test_an_id_is_made_where_there_is_none_and_an_empty_object_is_a_task(api: Api) -> None:
    answers = [api.post("/queue/submit", body) for body in (b"{}", b'{"payload":{"n":2}}', b'{"id":"","payload":{}}')]
    ids = {answer.json["id"] for answer in answers}
    assert len(ids) == 3
    assert all(answer.status == 200 and answer.json["ok"] is True for answer in answers)
    for task_id in ids:
        assert _record(api, task_id)["id"] == task_id


@pytest.mark.parametrize("body", [b"", b"{", b"null", b"[]", b'"a"', b"7", b"not json", b'{"a":1} x'])
def test_what_is_no_json_object_is_invalid_json(api: Api, body: bytes) -> None:
    answer = api.post("/queue/submit", body)
    assert (answer.status, answer.text.strip()) == (400, "invalid JSON")
    assert answer.headers["content-type"].startswith("text/plain")


def test_submit_takes_only_posts(api: Api) -> None:
    answer = api.get("/queue/submit")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert answer.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize(
    ("written", "klass"),
    [(None, "cpu_short"), ("CPU_Short", "cpu_short"), ("quantum", "cpu_short"), ("", "cpu_short")],
)
def test_a_class_is_taken_in_any_case_and_an_unknown_one_is_cpu_short(
    api: Api, written: str | None, klass: str
) -> None:
    task_id = api.post("/queue/submit", {"class": written, "payload": {}}).json["id"]
    assert _record(api, task_id)["class"] == klass


def test_keys_in_go_spelling_unknown_keys_and_payloads_of_any_kind_are_kept(api: Api) -> None:
    assert api.post("/queue/submit", {"ID": "go1", "Class": "cpu_short", "Payload": {"n": 3}, "trace": 5}).status == 200
    record = _record(api, "go1")
    assert (record["payload"], record["trace"]) == ({"n": 3}, 5)
    task_id = api.post("/queue/submit", {"id": "text", "kind": "echo", "payload": "demo"}).json["id"]
    assert _record(api, task_id)["runner_result"] == "demo"
    bare = api.post("/queue/submit", {"env_id": "e1", "action": "step", "do": "echo", "timestamp": 1.5}).json["id"]
    assert _record(api, bare)["payload"]["action"] == "step"


@pytest.mark.parametrize("task_id", ["../../evil", "/etc/passwd", "a/b", ".hidden", "a\nb", "x" * 101])
def test_an_id_leads_nowhere(api: Api, task_id: str) -> None:
    answer = api.post("/queue/submit", {"id": task_id, "payload": {}})
    assert (answer.status, answer.headers["content-type"].split(";")[0]) == (400, "text/plain")
    assert not list(api.folder.rglob("*evil*"))


def test_an_id_that_is_taken_by_another_task_overwrites_nothing(api: Api) -> None:
    api.post("/queue/submit", {"id": "twice", "payload": {"n": 1}})
    _record(api, "twice")
    assert api.post("/queue/submit", {"id": "twice", "payload": {"n": 2}}).status == 409
    assert _record(api, "twice")["payload"] == {"n": 1}


def test_many_submissions_at_once_are_all_accepted_and_run_once(api: Api) -> None:
    log = api.folder / "many.log"
    answers: list[int] = []

    def put(caller: int) -> None:
        for n in range(10):
            body = {"id": f"many-{caller}-{n}", "payload": {"log": str(log), "n": n}}
            answers.append(api.post("/queue/submit", body).status)

    callers = [threading.Thread(target=put, args=(number,)) for number in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert answers == [200] * 80
    for number in range(8):
        for n in range(10):
            _record(api, f"many-{number}-{n}")
    assert len(log.read_text().splitlines()) == 80


def test_a_failure_is_kept_in_failed_and_submit_goes_on(api: Api) -> None:
    api.post("/queue/submit", {"id": "bad", "payload": {"do": "raise"}})
    until((api.queue / "failed" / "bad.json").exists, "it fails")
    assert api.post("/queue/submit", {"id": "good", "payload": {}}).status == 200
    assert _record(api, "good")["runner_result"] is not None


# -- the orchestrator: looking ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_queues_status_is_five_numbers(api: Api, method: str) -> None:
    status = api.ask(method, "/queue/status").json
    assert set(status) == {"pending", "done", "submitted", "processed", "completed"}
    assert all(isinstance(number, int | float) and not isinstance(number, bool) for number in status.values())


def test_the_numbers_are_those_of_the_folders_and_count_each_task_once(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with served(tmp_path_factory.mktemp("numbers")) as api:
        for n in range(5):
            api.post("/queue/submit", {"id": f"n{n}", "payload": {"n": n}})
        api.post("/queue/submit", {"id": "n5", "payload": {"do": "raise"}})
        for n in range(3):
            (api.queue / "pending" / f"held{n}.json").write_text('{"class":"cpu_long","payload":{}}')
        wanted = {"pending": 3, "done": 5, "submitted": 9, "processed": 6, "completed": 5}
        found: dict[str, Any] = {}

        def settled() -> bool:
            found.update(api.read("/queue/status"))
            return found == wanted

        until(settled, f"the numbers are {wanted}")


def test_health_and_the_first_scrape(api: Api) -> None:
    assert api.get("/health").body == b'{"status":"ok"}\n'
    text = api.get("/metrics").text
    for name in METRICS:
        assert re.search(rf"^{name}(\{{[^}}]*\}})? [0-9.e+-]+", text, re.MULTILINE), name
    assert "orchestrator_task_errors_total" in text
    assert "task_id" not in text


def test_the_status_of_a_slurm_task_is_there_at_once_and_of_no_other(api: Api) -> None:
    answer = api.post("/queue/submit", {"id": "job1", "class": "gpu_slurm", "payload": {"method": "grpo"}})
    assert answer.status == 200
    assert set(answer.json) == {"ok", "slurm_job_id", "status"}  # no cluster here: it is queued
    status = api.read("/slurm/status/job1")
    assert {"id", "task_id", "status", "submit_time", "payload"} == set(status)
    assert (status["task_id"], status["status"], status["payload"]) == ("job1", "pending", {"method": "grpo"})
    assert datetime.fromisoformat(status["submit_time"]).tzinfo is not None
    for path in ("nobody", "a1", "", "../../etc/passwd", "a/b"):
        missing = api.get(f"/slurm/status/{path}")
        assert (missing.status, missing.text.strip()) == (404, "Job not found")


def test_the_status_of_a_cancelled_slurm_task_tells_why(api: Api) -> None:
    api.post("/queue/submit", {"id": "job2", "class": "gpu_slurm", "payload": {}})
    assert api.post("/v1/tasks/job2/cancel").status == 200
    status = api.read("/slurm/status/job2")
    assert (status["status"], "cancel" in status["error"]) == ("failed", True)
    assert status["end_time"] >= status["submit_time"]


# -- the dashboard of the orchestrator ---------------------------------------------------------------------------------------


def test_the_dashboard_puts_and_sees_its_task(api: Api) -> None:
    answer = api.post("/api/env-queue/submit", {"id": "unit-task-1", "class": "cpu_short", "payload": {"n": 1}})
    assert answer.json == {"ok": True, "id": "unit-task-1", "file": "unit-task-1.json"}
    stats = api.read("/api/env-queue/stats")
    assert set(stats) == {"pending", "done", "items", "timestamp"}
    assert isinstance(stats["pending"], int) and isinstance(stats["done"], int)
    _record(api, "unit-task-1")
    items = api.read("/api/env-queue/stats")["items"]
    assert {"id": "unit-task-1", "status": "done", "file": "unit-task-1.json"} in items
    assert api.post("/api/env-queue/submit", b"{").status == 400


def test_the_dashboard_reads_and_writes_the_limits(api: Api) -> None:
    names = {"BaseLimit", "MinLimit", "MaxLimit", "IncreaseStep", "DecreaseStep", "AdaptationIntervalMs"}
    config = api.read("/api/env-queue/config")["config"]
    assert set(config) == names
    assert all(isinstance(value, int) for value in config.values())
    answer = api.post("/api/env-queue/config", config | {"BaseLimit": 1})
    assert answer.json["config"]["BaseLimit"] == 1
    assert api.supervisor.status()["classes"]["cpu_short"]["limit"] == 1
    api.post("/api/env-queue/config", {"BaseLimit": 2})
    assert api.post("/api/env-queue/config", {"BaseLimit": "many"}).status == 400


# -- the runner --------------------------------------------------------------------------------------------------------------


def test_the_runner_tells_its_metrics_as_its_client_decodes_them(api: Api) -> None:
    port = api.runner_port
    assert api.ask("GET", "/health", port=port).body == b'{"status":"healthy"}\n'
    stats = api.ask("GET", "/metrics", port=port).json
    whole = {"tasks_processed", "queue_depth", "latency_p95_ms", "avg_duration_ms", "total_errors", "uptime_seconds"}
    assert set(stats) == whole | {"gpu_utilization", "errors_by_class"}
    assert all(type(stats[name]) is int and stats[name] >= 0 for name in whole)
    assert type(stats["gpu_utilization"]) is float
    assert all(type(number) is int for number in stats["errors_by_class"].values())
    text = api.ask("GET", "/prometheus", port=port).text
    for name in (
        *("env_runner_tasks_processed_total", "env_runner_errors_total", "env_runner_queue_depth"),
        *("env_runner_gpu_utilization", "env_runner_latency_p95_seconds", "env_runner_avg_duration_seconds"),
        "env_runner_uptime_seconds",
    ):
        assert re.search(rf"^{name} [0-9.e+-]+$", text, re.MULTILINE), name


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        ({}, "payload missing 'inputs'"),
        ({"inputs": "text"}, "payload 'inputs' must be an array"),
        ({"inputs": ["a", 5]}, "payload 'inputs' must be non-empty strings"),
        ({"inputs": ["a", " "]}, "payload 'inputs' must be non-empty strings"),
        ({"inputs": []}, "payload 'inputs' cannot be empty"),
        ("text", "payload missing 'inputs'"),
    ],
)
def test_the_runner_refuses_inputs_in_its_words(api: Api, payload: Any, error: str) -> None:
    answer = api.ask("POST", "/tasks/execute", {"id": "e0", "payload": payload}, port=api.runner_port)
    assert (answer.status, answer.json) == (400, {"error": error})


def test_the_runner_executes_a_task_and_answers_with_what_its_handler_made(api: Api) -> None:
    def execute(**more: Any) -> Any:
        body = {"id": "e1", "kind": "echo", "payload": {"inputs": ["a b", "c"], "embeddings": [[1.0], [2.0]], **more}}
        return api.ask("POST", "/tasks/execute", body, port=api.runner_port)

    answer = execute(metadata={"model": "m"}, latency_ms=3)
    assert answer.status == 200
    assert answer.json == {"id": "e1", "embeddings": [[1.0], [2.0]], "latency_ms": 3.0, "metadata": {"model": "m"}}
    again = execute()  # the same id with other content: the runner had no memory
    assert set(again.json) == {"id", "embeddings", "latency_ms"}
    assert again.json["id"] == "e1" and again.json["latency_ms"] > 0


def test_the_runner_says_what_went_wrong(api: Api) -> None:
    body = {"payload": {"inputs": ["a"], "do": "raise", "message": "no model"}, "class": "cpu_short"}
    answer = api.ask("POST", "/tasks/execute", body, port=api.runner_port)
    assert (answer.status, answer.json) == (500, {"error": "no model"})


# -- dropped files -----------------------------------------------------------------------------------------------------------


def test_a_dropped_file_is_run_and_seen_by_every_route(api: Api) -> None:
    with (api.queue / "pending" / "dropped.v1.json").open("w") as file:
        json.dump({"env_id": "e1", "action": "reset", "do": "echo", "timestamp": 1.0}, file)
    record = _record(api, "dropped.v1")
    assert (record["id"], record["payload"]["action"]) == ("dropped.v1", "reset")
    assert api.result("dropped.v1")["status"] == "done"
    assert "dropped.v1" in {item["id"] for item in api.read("/api/env-queue/stats")["items"]}


def test_pending_holds_only_what_nobody_has_claimed(api: Api) -> None:
    task_id, gate = api.gate()
    assert not (api.queue / "pending" / f"{task_id}.json").exists()
    gate.touch()
    _record(api, task_id)


def test_a_folder_that_is_deleted_and_made_again_is_served_on_the_same_address(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("deleted")
    with served(folder, handlers={"cpu_short": PLAY}) as api:
        assert api.post("/queue/submit", {"id": "first", "payload": {}}).status == 200
        _record(api, "first")
        api.queue.rename(folder / "away")  # in one step: a file that is written meanwhile keeps no folder
        shutil.rmtree(folder / "away", ignore_errors=True)
        (api.queue / "pending").mkdir(parents=True)
        api.queue.chmod(0o700)
        (api.queue / "pending" / "second.json").write_text('{"payload": {"n": 2}}')
        _record(api, "second")
        _again(api)
        assert api.post("/queue/submit", {"id": "third", "payload": {}}).status == 200
        _record(api, "third")


def _again(api: Api) -> None:
    """Wait until the gateway of the folder that was made again listens."""
    found = Api(api.supervisor, api.folder)
    until(lambda: found.state.get("listening"), "it listens again")
    api.host, api.port = Api(api.supervisor, api.folder).host, Api(api.supervisor, api.folder).port
