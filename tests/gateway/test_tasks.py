"""Tasks by /v1: put once, looked at, listed, told of, followed, cancelled and tried again."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest

from tests.conftest import until

from .api import Api, served

pytestmark = pytest.mark.xdist_group("gateway-tasks")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with served(tmp_path_factory.mktemp("tasks")) as found:
        yield found


def test_a_task_is_put_run_and_its_result_waited_for(api: Api) -> None:
    answer = api.post("/v1/tasks", {"payload": {"do": "echo", "n": 7}})
    task_id = answer.json["id"]
    assert (answer.status, answer.json["state"]) == (201, "pending")
    assert answer.headers["location"] == f"/v1/tasks/{task_id}"
    assert api.result(task_id) == {
        "id": task_id,
        "status": "done",
        "result": {"n": 7, "attempt": 0, "crashes": 0},
    }


def test_answers_are_compact_json_with_a_newline(api: Api) -> None:
    answer = api.post("/v1/tasks", {"id": api.name(), "payload": None, "kind": "echo"})
    assert answer.body == b'{"id":"%b","state":"pending"}\n' % answer.json["id"].encode()


def test_the_trace_of_a_request_goes_on_in_its_task_unless_that_names_another(api: Api) -> None:
    caller, other = (f"00-{'4bf92f3577b34da6' * 2}-{span * 8}-01" for span in ("a1", "b2"))
    body = {"payload": None, "kind": "echo"}
    for trace, written, found in ((caller, {}, caller), (caller, {"traceparent": other}, other), ("garbage", {}, None)):
        task_id = api.post("/v1/tasks", body | written, traceparent=trace).json["id"]
        api.result(task_id)
        record = json.loads((api.queue / "done" / f"{task_id}.json").read_bytes())
        assert record.get("traceparent") == found


def test_the_same_idempotency_key_is_one_task_and_the_same_answer(api: Api) -> None:
    first = api.post("/v1/tasks", {"payload": {"n": 1}}, Idempotency_Key="order 66")
    again = api.post("/v1/tasks", {"payload": {"n": 1}}, Idempotency_Key="order 66")
    assert (first.status, again.status) == (201, 200)
    assert first.body == again.body
    other = api.post("/v1/tasks", {"payload": {"n": 2}}, Idempotency_Key="order 66")
    assert other.status == 409
    inside = api.post("/v1/tasks", {"payload": {"n": 1}, "idempotency_key": "order 66"})
    assert (inside.status, inside.body) == (200, first.body)


def test_of_many_callers_with_one_key_exactly_one_made_the_task(api: Api) -> None:
    statuses: list[int] = []
    gate = threading.Barrier(8)

    def put() -> None:
        gate.wait()
        statuses.append(api.post("/v1/tasks", {"payload": {"n": 3}}, Idempotency_Key="all at once").status)

    callers = [threading.Thread(target=put) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert sorted(statuses) == [200] * 7 + [201]


def test_an_id_names_one_task(api: Api) -> None:
    task_id = api.put({"n": 1})
    assert api.post("/v1/tasks", {"id": task_id, "payload": {"n": 1}}).status == 200
    assert api.post("/v1/tasks", {"id": task_id, "payload": {"n": 2}}).status == 409


def test_a_whole_number_may_have_a_point_and_the_payload_stays_as_it_came(api: Api) -> None:
    answer = api.post("/v1/tasks", b'{"priority": 3.0 ,"max_attempts":2.00,"kind":"echo","payload":{"priority":1.0}}')
    assert answer.status == 201
    api.result(answer.json["id"])
    shown = api.get(f"/v1/tasks/{answer.json['id']}").body
    assert b'"payload":{"priority":1.0}' in shown


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{", 400, "invalid JSON"),
        (b"", 400, "invalid JSON"),
        (b"null", 422, "object"),
        (b"{}", 422, "payload"),
        (b'{"payload":1,"class":"quantum"}', 422, "cpu_short"),
        (b'{"payload":1,"class":"GPU"}', 422, "cpu_short"),
        (b'{"payload":1,"id":"../../evil"}', 422, "an id is"),
        (b'{"payload":1,"id":5}', 422, "id=5"),
        (b'{"payload":1,"priority":101}', 422, "-100 to 100"),
        (b'{"payload":1,"priority":1.5}', 422, "whole number"),
        (b'{"payload":1,"kind":"a b"}', 422, "kind='a b'"),
        (b'{"payload":1,"affinity":"' + b"x" * 251 + b'"}', 422, "affinity"),
        (b'{"payload":1,"timeout_s":0}', 422, "timeout_s"),
        (b'{"payload":1,"max_attempts":0}', 422, "max_attempts"),
        (b'{"payload":' + b"[" * 200 + b"]" * 200 + b"}", 422, "128"),
    ],
)
def test_what_is_no_task_is_refused_with_the_place(api: Api, body: bytes, status: int, says: str) -> None:
    answer = api.post("/v1/tasks", body)
    assert answer.status == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json["status"] == status
    assert says in answer.json["detail"]


def test_a_task_is_shown_with_payload_record_and_times(api: Api) -> None:
    task_id = api.put({"n": 5})
    api.result(task_id)
    shown = api.read(f"/v1/tasks/{task_id}")
    assert (shown["state"], shown["class"], shown["payload"]) == ("done", "cpu_short", {"n": 5})
    assert shown["record"]["runner_result"]["n"] == 5
    assert shown["submitted_at"] <= shown["started_at"] <= shown["completed_at"]
    assert shown["duration_ms"] >= 0 and shown["wait_ms"] >= 0


def test_a_payload_that_is_too_long_is_shown_by_its_beginning(api: Api) -> None:
    task_id = api.put({"fill": "x" * 200_000})
    api.result(task_id)
    shown = api.read(f"/v1/tasks/{task_id}")
    assert (shown["payload"], shown["truncated"]) == (None, ["payload"])
    assert shown["payload_head"].startswith('{"fill": "xxx') and shown["payload_bytes"] > 200_000


@pytest.mark.parametrize("task_id", ["nobody", "..%2f..%2fetc", "%00", "a%0ab", ".won", "a" * 101])
@pytest.mark.parametrize("path", ["", "/result", "/story", "/explain", "/logs"])
def test_a_task_that_is_nowhere_or_could_be_none_is_not_found(api: Api, task_id: str, path: str) -> None:
    assert api.get(f"/v1/tasks/{task_id}{path}").status == 404


def test_a_list_is_newest_first_in_pages_and_by_filters(api: Api) -> None:
    mine = [api.put({"n": n, "do": "echo"}) for n in range(5)]
    for task_id in mine:
        api.result(task_id)
    rows = api.read("/v1/tasks?state=done&limit=1000")["tasks"]
    times = [row["completed_at"] for row in rows]
    assert times == sorted(times, reverse=True)
    assert set(mine) <= {row["id"] for row in rows}
    paged: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = api.read(f"/v1/tasks?state=done&limit=3&cursor={cursor}")
        assert len(page["tasks"]) <= 3
        paged += [row["id"] for row in page["tasks"]]
        cursor = page["next"]
    assert paged == [row["id"] for row in rows]
    assert api.read("/v1/tasks?class=gpu")["tasks"] == []
    assert [row["id"] for row in api.read(f"/v1/tasks?q={mine[0]}&limit=1000")["tasks"] if row["id"] == mine[0]]


@pytest.mark.parametrize(
    "query", ["state=lost", "class=x", "limit=0", "limit=1e3", "limit=1&limit=2", "q=" + "x" * 201]
)
def test_a_filter_that_means_nothing_is_refused(api: Api, query: str) -> None:
    assert api.get(f"/v1/tasks?{query}").status == 422


def test_a_cursor_that_no_list_gave_out_is_not_found(api: Api) -> None:
    assert [api.get(f"/v1/tasks?cursor={cursor}").status for cursor in ("x", "%ff", "MC4uLg")] == [404] * 3


def test_a_result_that_is_not_there_yet_is_waited_for_and_then_said_so(api: Api) -> None:
    task_id, gate = api.gate()
    answer = api.get(f"/v1/tasks/{task_id}/result")
    assert (answer.status, answer.json) == (202, {"id": task_id, "state": "claimed"})
    assert api.get(f"/v1/tasks/{task_id}/result?wait_s=0.1").status == 202
    gate.touch()
    assert api.result(task_id)["status"] == "done"


def test_a_failure_is_a_result_with_its_traceback_and_a_story(api: Api) -> None:
    task_id = api.put({"do": "raise", "message": "seven is odd"})
    found = api.result(task_id)
    assert (found["status"], found["error"]["cause"], found["error"]["message"]) == ("failed", "raised", "seven is odd")
    steps = api.read(f"/v1/tasks/{task_id}/story")["story"]
    assert [step["what"] for step in steps] == ["submitted", "attempt_failed", "started", "ended"]
    assert "seven is odd" in steps[1]["text"] and "Traceback" in steps[1]["traceback"]
    at = [step["at"] for step in steps]
    assert at == sorted(at)


def test_failures_are_grouped_by_what_went_wrong(api: Api) -> None:
    for n in range(3):
        task_id = api.put({"do": "raise", "message": f"no file 'x{n}' at 0x7f{n}"}, max_attempts=1)
        api.result(task_id)
    groups = api.read("/v1/failures")["groups"]
    [group] = [one for one in groups if one["message"].startswith("no file")]
    assert (group["count"], group["cause"], group["class"]) == (3, "raised", "cpu_short")
    assert group["example_id"] == task_id
    assert "Traceback" in group["traceback"]
    assert groups[0] == group, "the latest comes first"
    assert api.read("/v1/failures?since_s=0")["groups"] == []


def test_the_story_of_a_running_task_says_that_it_runs(api: Api) -> None:
    task_id, gate = api.gate()
    steps = api.read(f"/v1/tasks/{task_id}/story")["story"]
    assert [step["what"] for step in steps] == ["submitted", "started"]
    assert "worker" in api.read(f"/v1/tasks/{task_id}/explain")["explanation"]
    gate.touch()
    api.result(task_id)


def test_a_waiting_task_and_a_running_one_are_cancelled_and_tried_again(api: Api) -> None:
    held = api.put({}, **{"class": "cpu_long"})  # which has no worker here
    assert api.post(f"/v1/tasks/{held}/cancel").json == {"id": held, "was": "waiting"}
    assert api.result(held)["error"]["cause"] == "cancelled"
    assert api.post(f"/v1/tasks/{held}/cancel").status == 409
    running, gate = api.gate()
    assert api.post(f"/v1/tasks/{running}/cancel").json == {"id": running, "was": "running"}
    assert api.result(running)["error"]["cause"] == "cancelled"
    gate.touch()
    assert api.post(f"/v1/tasks/{running}/retry").json == {"id": running, "state": "pending"}
    assert api.result(running)["status"] == "done"
    assert api.post(f"/v1/tasks/{running}/retry").status == 409
    assert api.post("/v1/tasks/nobody/retry").status == 404
    assert api.post("/v1/tasks/nobody/cancel").status == 404


def test_output_is_shown_from_its_end_and_followed_to_the_end_of_the_task(api: Api) -> None:
    gate = api.folder / "output.gate"
    script = f"echo one; echo two; while [ ! -e {gate} ]; do sleep 0.02; done; echo three; echo oops >&2"
    task_id = api.shell(script)
    with api.stream(f"/v1/tasks/{task_id}/logs?follow=1") as stream:
        assert [stream.readline(), stream.readline()] == [b"one\n", b"two\n"]
        gate.touch()
        assert stream.read() == b"three\n"
    assert api.get(f"/v1/tasks/{task_id}/logs?tail=1").text == "three\n"
    assert api.get(f"/v1/tasks/{task_id}/logs?stream=stderr").text == "oops\n"
    assert api.get(f"/v1/tasks/{task_id}/logs?tail=0").text == ""


def test_output_of_all_attempts_is_followed(api: Api) -> None:
    task_id = api.shell('echo "attempt $DSPY_TASK_ATTEMPT"; exit 1')
    with api.stream(f"/v1/tasks/{task_id}/logs?follow=1") as stream:
        assert stream.read() in (b"attempt 0\nattempt 1\n", b"attempt 1\n")  # the first may be over before we ask
    assert api.get(f"/v1/tasks/{task_id}/logs?attempt=0").text == "attempt 0\n"


def test_a_link_among_the_logs_leads_nowhere(api: Api) -> None:
    task_id = api.shell("true")
    api.result(task_id)
    folder = api.queue / "logs" / task_id
    folder.mkdir(exist_ok=True)
    (folder / "stdout.0.txt").unlink(missing_ok=True)
    (folder / "stdout.0.txt").symlink_to("/etc/passwd")
    assert api.get(f"/v1/tasks/{task_id}/logs").text == ""


def test_what_was_refused_says_why(api: Api) -> None:
    (api.queue / "pending" / "torn.json").write_text('{"payload": ')
    found = until(lambda: (answer := api.get("/v1/tasks/torn")).status == 200 and answer.json, "it is refused")
    if found["state"] != "quarantined":
        found = until(lambda: (one := api.read("/v1/tasks/torn"))["state"] == "quarantined" and one, "it is refused")
    assert (found["state"], found["cause"]) == ("quarantined", "refused")
    assert "expected a value" in found["message"]
    assert api.get("/v1/tasks/torn/result").status == 422


def test_a_record_of_a_stranger_does_no_harm(api: Api) -> None:
    (api.queue / "done" / "strange.json").write_text(json.dumps({"id": 5, "runner_result": "x"}))
    (api.queue / "failed" / "stranger.json").write_text("{}")
    assert api.get("/v1/tasks?limit=1000").status == 200
    assert api.get("/v1/failures").status == 200
    assert api.get("/v1/tasks/stranger").status == 200
    assert api.get("/v1/tasks/strange/story").status == 200
