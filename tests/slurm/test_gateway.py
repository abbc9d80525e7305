"""Jobs behind the older orchestrator's routes: submitted and looked at by plain HTTP."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from ..conftest import until
from .bridge import END_S, Bridge

pytest.importorskip("starlette")
from ..gateway.browser import browser
from ..gateway.conftest import Gateway


def test_ten_submissions_at_once_all_answer_with_a_job_and_tell_of_it(bridge: Bridge) -> None:
    gateway = Gateway(bridge.carry("--http", http_port=0), bridge.folder)
    answers: list[Any] = []

    def submit(number: int) -> None:
        payload = {"argv": ["sh", "-c", "exit 3" if number == 9 else "echo '__DSPY_RESULT__:1'"]}
        envelope = {"id": f"g{number}", "class": "gpu_slurm", "kind": "command", "payload": payload, "max_attempts": 1}
        answers.append(gateway.ask("POST", "/queue/submit", envelope))

    callers = [threading.Thread(target=submit, args=(number,)) for number in range(10)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert [answer.status for answer in answers] == [200] * 10
    jobs = {answer.json["slurm_job_id"] for answer in answers}
    assert all(job.isdigit() for job in jobs), jobs
    assert all(answer.body.startswith(b'{"ok":true,"slurm_job_id":"') for answer in answers)
    assert {answer.json["status"] for answer in answers} == {"submitted"}

    def status(number: int) -> dict[str, Any]:
        found: dict[str, Any] = gateway.get(f"/slurm/status/g{number}").json
        return found

    first = status(0)
    assert first["id"] in jobs and first["task_id"] == "g0"
    assert first["status"] in ("pending", "running", "completed")
    assert first["payload"]["argv"][0] == "sh"
    for number in range(10):
        wanted = "failed" if number == 9 else "completed"
        until(lambda number=number, wanted=wanted: status(number)["status"] == wanted, f"g{number} is {wanted}", END_S)
    good, bad = status(0), status(9)
    assert good["id"] == first["id"]
    assert good["submit_time"] <= good["start_time"] <= good["end_time"]
    assert (bad["exit_code"], "exit code 3" in bad["error"]) == (3, True)


def test_the_dashboard_shows_a_job_with_its_state_its_age_and_its_node(bridge: Bridge) -> None:
    gateway = Gateway(bridge.carry("--http", http_port=0), bridge.folder)
    gate = bridge.folder / "gate"
    payload = {"argv": ["sh", "-c", f"until [ -e {gate} ]; do sleep 0.1; done"]}
    answer = gateway.ask(
        "POST", "/queue/submit", {"id": "g", "class": "gpu_slurm", "kind": "command", "payload": payload}
    )
    with browser() as window:
        window.open(f"http://{gateway.host}:{gateway.port}/")
        window.sees("#slurm td", answer.json["slurm_job_id"])
        window.sees("#slurm tr", "running")
        (row,) = window.texts("#slurm tbody tr")
        assert "ago" in row or "now" in row
        node = gateway.get("/v1/slurm/jobs").json["jobs"][0]["nodes"]
        assert node and row.endswith(node)
    gate.touch()
    until(lambda: gateway.get("/slurm/status/g").json["status"] == "completed", "the job ends", END_S)


def test_a_submission_that_slurm_refuses_is_answered_with_its_reason(bridge: Bridge) -> None:
    gateway = Gateway(bridge.carry("--http", http_port=0, slurm_partition="nowhere"), bridge.folder)
    envelope = {"id": "lost", "class": "gpu_slurm", "kind": "command", "payload": {"argv": ["true"]}}
    answer = gateway.ask("POST", "/queue/submit", envelope)
    assert (answer.status, answer.headers["content-type"].split(";")[0]) == (500, "text/plain")
    assert "Slurm submission failed" in answer.text and "partition" in answer.text
    assert gateway.get("/slurm/status/lost").json["status"] == "failed"
