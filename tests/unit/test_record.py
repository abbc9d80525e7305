"""The record of an ended task: COMPAT (g), and nothing of the task changed by it."""

import re

import orjson
import pytest
from dspy_fastpath.envelope import scan
from dspy_supervisor.record import Claim, Run, done_record, failed_record, same_task, timestamp
from dspy_supervisor.task import Cause, TaskName
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.queues import RUN

RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e9, 1e9) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "kind": st.just("call"), "priority": st.integers(-100, 100), "not_before": st.just(1.5), "timeout_s": st.just(60),
        "max_attempts": st.integers(1, 1000), "idempotency_key": st.just("k\n\u00e9"), "affinity": st.just("host"),
        "traceparent": st.just("00-x"), "resources": st.just({"gpus": 1}),
    },
)  # fmt: skip
# What a producer writes beside the known keys, our own keys among them.
OTHERS = st.dictionaries(
    st.sampled_from(["note", "status", "error", "runner_result", "producer", "attempt", "history", "é\n", "worker"]),
    JSON,
    max_size=4,
)


def claim_of(document, name="a1", attempt=0, at=1_700_000_000.0):
    document = document if isinstance(document, bytes) else orjson.dumps(document)
    return Claim(TaskName(name, attempt), document, scan(document), at)


def test_a_done_record_holds_what_the_first_clients_read():
    record = orjson.loads(
        done_record(claim_of({"id": "a1", "class": "GPU", "payload": {"text": "hi"}}), b'{"answer":42}', RUN)
    )
    assert record["id"] == record["task_id"] == "a1"
    assert (record["class"], record["payload"], record["runner_result"]) == ("gpu", {"text": "hi"}, {"answer": 42})
    assert RFC3339.fullmatch(record["completed_at"])
    assert isinstance(record["duration_ms"], float) and record["duration_ms"] == 1250.0
    assert (record["status"], record["attempt"], record["worker"]) == ("done", 0, 4711)
    assert record["wait_ms"] == 250.0


def test_a_failed_record_says_why_and_what_was_tried():
    error = {"cause": Cause.SIGNAL, "message": "killed", "signal": "SIGKILL"}
    history = [{"attempt": 0, "cause": "raised", "message": "no"}]
    run = RUN._replace(started_at=None)
    record = orjson.loads(failed_record(claim_of({"payload": 1}, attempt=1), error, run, history))
    assert record["error"] == {"cause": "signal", "message": "killed", "signal": "SIGKILL"}
    assert record["history"] == history
    assert (record["status"], record["id"], record["class"]) == ("failed", "a1", "cpu_short")
    assert "runner_result" not in record and "started_at" not in record


@pytest.mark.parametrize("payload", ["hello", "", None, 0, [], 1.0, "a\u2028\U0001f600"])
def test_16_a_payload_of_any_kind_is_kept_as_it_is(payload):
    """Defect 16: string payloads became {}."""
    assert orjson.loads(done_record(claim_of({"payload": payload}), b"null", RUN))["payload"] == payload


def test_the_payload_keeps_its_bytes():
    document = b'{"payload": {"a" : 1.0e0, "big": 18446744073709551615, "u": "\\u00e9" } }'
    assert b'{"a" : 1.0e0, "big": 18446744073709551615, "u": "\\u00e9" }' in done_record(claim_of(document), b"1", RUN)


def test_an_object_without_payload_is_the_payload_as_a_whole():
    document = {"env_id": 7, "action": [1], "timestamp": 3, "kind": 5}
    record = orjson.loads(done_record(claim_of(document), b"1", RUN))
    assert record["payload"] == document
    assert "env_id" not in record and "kind" not in record


def test_an_id_that_differs_from_the_file_is_kept_and_is_not_the_identity():
    record = orjson.loads(done_record(claim_of({"id": "../../evil", "payload": 1}), b"1", RUN))
    assert (record["id"], record["task_id"]) == ("../../evil", "a1")


@settings(max_examples=150, deadline=None)
@given(JSON, OPTIONS, OTHERS)
def test_a_record_tells_of_its_task_and_of_no_other(payload, options, others):
    document = orjson.dumps({"id": "a1", **options, **others, "payload": payload})
    claim = claim_of(document)
    record = done_record(claim, b'{"r":[1]}', RUN)
    fields = scan(record, 1024, 1024)
    assert same_task(document, claim.fields, record, fields)
    read = orjson.loads(record)
    assert read["payload"] == payload and read["runner_result"] == {"r": [1]} and read["status"] == "done"
    assert all(read[key] == value for key, value in options.items() if value != 0)
    for key, value in others.items():
        assert (read[key] if key in ("note", "é\n") else read["producer"][key]) == value
    for other in (
        {"payload": [payload]},
        {"class": "gpu"},
        {"priority": -options.get("priority", 0) or 7},
        {"note": "another"},
    ):
        changed = orjson.dumps({"id": "a1", **options, **others, "payload": payload} | other)
        assert not same_task(changed, scan(changed), record, fields)
        assert not same_task(changed, scan(changed), document, claim.fields)


def test_a_record_that_is_put_back_keeps_nothing_of_its_past():
    document = {"id": "a1", "payload": 1, "status": "mine", "note": 2}
    first = failed_record(claim_of(document), {"cause": "raised", "message": "x"}, RUN)
    again = orjson.loads(done_record(claim_of(first, attempt=1), b"1", RUN))
    assert "error" not in again and again["attempt"] == 1
    assert (again["payload"], again["note"], again["producer"]) == (1, 2, {"status": "mine"})


@pytest.mark.parametrize("written", [-1e18, -0.5, 0.0, 1.0, 253402300799.9, 1e12, 1e300, float("inf")])
def test_no_mtime_makes_a_record_impossible(written):
    assert RFC3339.fullmatch(orjson.loads(timestamp(written)))
    record = orjson.loads(done_record(claim_of({"payload": 1}, at=written), b"1", Run(5.0, 6.0, 1.0, 1, "o")))
    assert RFC3339.fullmatch(record["submitted_at"])


def test_a_time_is_written_to_the_microsecond():
    assert timestamp(1_700_000_000.25) == b'"2023-11-14T22:13:20.250000Z"'
