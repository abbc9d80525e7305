"""Spans of tasks, from a real supervisor to a collector that decodes what it is sent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from ..conftest import Supervised, until
from ..system.rig import Rig
from .collector import Collector, Span, collectors

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GIVEN = f"00-{TRACE}-{PARENT}-01"
STEPS = ["wait", "claim", "run", "finish"]


@pytest.fixture
def start(rig: Rig, collector: Collector) -> Any:
    """A function that starts a supervisor which sends its spans to the collector."""

    def start(*options: str, endpoint: str = "", **more: Any) -> Supervised:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint or collector.endpoint, **more.pop("environ", {})}
        return rig.start(*options, environ=environ, **more)

    return start


def whole(collector: Collector, task_id: str) -> dict[str, Span]:
    """Wait for the span of a task, and return all of its spans by name; those of one batch come together."""
    until(lambda: any(span.name.startswith("task ") for span in collector.of(task_id)), f"the span of {task_id}")
    return {span.name: span for span in collector.of(task_id)}


def test_a_task_is_a_span_with_wait_claim_run_and_finish_below_it(rig: Rig, collector: Collector, start: Any) -> None:
    supervisor = start(environ={"OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test"})
    rig.drop("a1", traceparent=GIVEN)
    record = rig.record("a1")
    spans = whole(collector, "a1")
    task = spans.pop("task cpu_short")
    assert (task.trace_id, task.parent) == (TRACE, PARENT)
    assert list(spans) == STEPS
    assert {(span.trace_id, span.parent) for span in spans.values()} == {(TRACE, task.span_id)}
    assert len({span.span_id for span in [task, *spans.values()]}) == 5
    # one after the other, without a gap, from the arrival to the record
    times = [task.start, *(spans[name].end for name in STEPS)]
    assert times == [*(spans[name].start for name in STEPS), task.end]
    assert times == sorted(times)
    assert spans["run"].end - spans["run"].start == pytest.approx(record["duration_ms"] / 1e3, abs=1e-4)
    assert task.facts == {"dspy.task.id": "a1", "dspy.task.class": "cpu_short", "dspy.task.attempt": 0}
    assert spans["run"].facts["process.pid"] == record["worker"]
    assert task.resource["service.name"] == "dspy-supervisor"
    assert task.resource["deployment.environment"] == "test"
    assert collector.paths == {"/v1/traces"}
    assert until(lambda: supervisor.status()["services"]["tracing"]["sent"] == 5, "it is counted")


def test_a_task_that_nobody_traces_begins_a_trace_and_one_that_is_not_recorded_sends_none(
    rig: Rig, collector: Collector, start: Any
) -> None:
    start(workers=1)
    rig.drop("unrecorded", traceparent=GIVEN[:-2] + "00")
    rig.record("unrecorded")
    rig.drop("a1", traceparent="garbage")
    rig.drop("a2")
    first, second = whole(collector, "a1")["task cpu_short"], whole(collector, "a2")["task cpu_short"]
    assert first.parent == second.parent == ""
    assert len({first.trace_id, second.trace_id, "0" * 32}) == 3
    assert collector.of("unrecorded") == []  # it was before them in the pipe


def test_each_attempt_has_its_spans_and_a_failed_one_says_why(rig: Rig, collector: Collector, start: Any) -> None:
    start()
    rig.drop("a1", {"do": "raise", "message": "too bad"}, max_attempts=2)
    rig.record("a1")
    assert whole(collector, "a1")["task cpu_short"].error == "raised: too bad"
    steps = [span for span in collector.of("a1") if not span.name.startswith("task ")]
    # another worker may claim the second attempt before the first one has noted that it is recorded
    first, second = ([span for span in steps if span.facts["dspy.task.attempt"] == attempt] for attempt in (0, 1))
    assert [span.name for span in first] == [span.name for span in second] == STEPS
    assert len(steps) == 2 * len(STEPS)
    assert first[2].facts["error.type"] == second[2].facts["error.type"] == "raised"
    assert second[0].start == first[2].end


def test_the_attempt_of_a_worker_that_dies_is_told_by_the_supervisor(
    rig: Rig, collector: Collector, start: Any
) -> None:
    start()
    gate = rig.gate("a1", "gate_then_die", max_attempts=1)
    gate.wait()
    gate.open()
    rig.record("a1")
    spans = whole(collector, "a1")
    assert "killed by SIGKILL" in spans["run"].error
    assert spans["run"].facts["error.type"] == spans["task cpu_short"].facts["error.type"] == "signal"


def test_a_task_that_is_cancelled_while_it_waits_has_a_span(rig: Rig, collector: Collector, start: Any) -> None:
    supervisor = start()
    supervisor.ask("pause")
    rig.drop("a1", traceparent=GIVEN)
    until(lambda: supervisor.status()["classes"]["cpu_short"]["pending"] == 1, "it is read")
    supervisor.ask("cancel", id="a1")
    spans = whole(collector, "a1")
    assert list(spans) == ["wait", "task cpu_short"]
    assert spans["task cpu_short"].error == "cancelled: cancelled before it started"


def test_what_a_handler_calls_and_puts_hangs_on_its_run(rig: Rig, collector: Collector, start: Any) -> None:
    start(settings={"kinds": "command"})
    rig.drop("a1", {"do": "put", "queue": str(rig.queue)}, traceparent=GIVEN)
    child = rig.record("a1")["runner_result"]
    rig.drop("a2", {"argv": ["sh", "-c", 'echo "__DSPY_RESULT__: \\"$TRACEPARENT\\""']}, kind="command")
    seen = rig.record("a2")["runner_result"]
    put = whole(collector, child)["task cpu_short"]
    assert (put.trace_id, put.parent) == (TRACE, whole(collector, "a1")["run"].span_id)
    run = whole(collector, "a2")["run"]
    assert seen == f"00-{run.trace_id}-{run.span_id}-01"


def test_what_ran_when_the_supervisor_was_told_to_stop_is_sent(rig: Rig, collector: Collector, start: Any) -> None:
    supervisor = start(workers=2)
    first, second = rig.gate("a1"), rig.gate("a2")
    first.wait()
    second.wait()
    supervisor.signal(signal.SIGTERM)
    until(lambda: '"event":"stopping"' in supervisor.log, "it drains")
    first.open()
    whole(collector, "a1")  # a service that was told to end with the others has ended by now
    second.open()
    assert supervisor.wait() == 0
    assert {span.name for span in collector.of("a2")} == {*STEPS, "task cpu_short"}


def test_a_collector_that_is_not_there_is_said_and_gets_the_spans_when_it_comes(rig: Rig, start: Any) -> None:
    with collectors() as gone:
        port, endpoint = gone.server_address[1], gone.endpoint
    supervisor = start(endpoint=endpoint)
    rig.drop("a1")
    assert rig.record("a1")["status"] == "done"

    def problem() -> str:
        return str(supervisor.status()["services"]["tracing"].get("problem") or "")

    assert until(problem, "it is said").startswith(f"{endpoint} takes no spans: ")
    with collectors(int(port)) as back:
        whole(back, "a1")
        until(lambda: not problem(), "it is over")


def test_a_tracing_service_that_dies_costs_no_span_that_it_had_not_read(
    rig: Rig, collector: Collector, start: Any
) -> None:
    supervisor = start()
    pid = until(lambda: supervisor.status()["services"]["tracing"]["pid"], "it runs")
    os.kill(pid, signal.SIGSTOP)
    rig.drop("a1")
    rig.record("a1")
    os.kill(pid, signal.SIGKILL)
    whole(collector, "a1")


def test_without_the_extra_tasks_run_and_status_names_the_remedy(rig: Rig, start: Any) -> None:
    code = rig.folder / "code" / "opentelemetry"
    code.mkdir(parents=True)
    (code / "__init__.py").write_text("raise ModuleNotFoundError('hidden', name='opentelemetry')\n")
    supervisor = start()
    rig.drop("a1")
    assert rig.record("a1")["status"] == "done"
    problem = until(lambda: supervisor.status()["services"]["tracing"].get("problem"), "it is said")
    assert "pip install 'dspy-supervisor[otel]'" in problem
    assert supervisor.stop() == 0


def test_without_a_collector_the_producers_context_goes_on_as_it_is(rig: Rig) -> None:
    """From what calls the command line to a program that a task runs."""
    rig.start(settings={"kinds": "command"})
    payload = json.dumps({"argv": ["sh", "-c", 'echo "__DSPY_RESULT__: \\"$TRACEPARENT\\""']})
    environ = {**os.environ, "TRACEPARENT": GIVEN, "HOME": str(rig.folder)}
    command = [sys.executable, "-m", "dspy_supervisor", "submit", "--queue-dir", str(rig.queue), "--json"]
    ended = subprocess.run(
        [*command, "--kind", "command", payload], env=environ, capture_output=True, check=True, cwd=rig.folder
    )
    record = rig.record(json.loads(ended.stdout)["id"])
    assert record["traceparent"] == record["runner_result"] == GIVEN
