"""Budgets with real workers: what DSPy sends takes its turn, and what was spent is known after a restart."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import dspy
import pytest
from dspy_fastpath.counters import Page
from dspy_supervisor import Queue, budget
from dspy_supervisor.dspy import QueueEvaluate, budgeted
from dspy_supervisor.dspy.lm import BudgetedEngine
from dspy_supervisor.schedule import Reading

from ..conftest import Start, Supervised, clean_environ, until
from . import programs
from .provider import Provider

pytestmark = pytest.mark.xdist_group("dspy")


def readings(supervisor: Supervised) -> dict[str, Reading]:
    path = next(supervisor.runtime.glob("*.main.page"))
    with Page.attach(path) as page:
        return {reading.name: reading for reading in budget.readings(page)}


@pytest.fixture
def alone(tmp_path: Path):
    """Budgets of this process, as in a worker."""
    with Page.create(tmp_path / "own.page", "q-1", ("cpu_short",), 1) as page:
        budget.configure(page, {"openai/*": "60000rpm/60Mtpm"})
        budget.use(page, {"openai/*": "60000rpm/60Mtpm"})
        yield page
        budget.use(None, {})


@pytest.fixture
def lm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with Provider() as provider:
        monkeypatch.setenv("ENDPOINT", provider.url)
        made = budgeted(programs.patient_endpoint())
        yield provider, made
        made.close()


def test_an_lm_that_is_refused_waits_and_asks_again(alone, lm):
    provider, made = lm
    provider.refuse_next = 2
    with dspy.context(lm=made):
        assert programs.Capital()(question="capital of Peru, again?").answer == "Lima"
    assert provider.asked == ["Peru"]
    assert provider.keys == {"Bearer no secret"}
    (reading,) = budget.readings(alone)
    assert (reading.name, reading.sent, reading.refused) == ("openai/*", 3, 2)


def test_a_cached_answer_costs_no_budget_and_each_call_is_told_once(alone, lm):
    provider, made = lm
    question = f"capital of Japan? {os.urandom(8).hex()}"
    with dspy.context(lm=made, track_usage=True):
        first, second = programs.Capital()(question=question), programs.Capital()(question=question)
    assert first.answer == second.answer == "Tokyo"
    assert provider.asked == ["Japan"]
    assert [reading.sent for reading in budget.readings(alone)] == [1]
    assert first.get_lm_usage()["openai/small"]["total_tokens"] == 50
    assert len(made.history) == 2
    assert made.history[0]["usage"]["total_tokens"] == 50


def test_an_lm_with_an_engine_of_its_own_is_left_alone():
    dummy = programs.dummy()
    assert budgeted(dummy) is dummy
    once = budgeted(programs.dspy.LM("openai/small", api_key="no secret"))
    assert isinstance(once.engine, BudgetedEngine)
    assert budgeted(once) is once


def test_workers_send_within_their_budget_what_dspy_asks_for(supervisor: Start, tmp_path: Path):
    with Provider() as provider:
        provider.refuse_next = 1
        one = supervisor(
            *("--workers", "cpu_short=2"),
            settings={"call_allow": "tests.dspy.programs:*", "kinds": "dspy", "llm_budgets": "openai/*=6000rpm"},
            environ={"ENDPOINT": provider.url, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        )
        evaluate = QueueEvaluate(
            queue=one.queue,
            devset=programs.devset(),
            metric=programs.right,
            configure=programs.patient_endpoint,
            task_class="cpu_short",
        )
        assert evaluate(programs.Capital()).score == 100.0
        assert sorted(provider.asked) == sorted(programs.CAPITALS)
    found = readings(one)["openai/*"]
    assert (found.rates.requests, found.sent, found.refused) == (6000, len(programs.CAPITALS) + 1, 1)


def test_what_was_spent_is_known_after_the_supervisor_was_killed(supervisor: Start):
    options = {"handlers": {"cpu_short": "tests.dspy.programs:send"}, "settings": {"llm_budgets": "mine=60rpm/600tpm"}}
    first = supervisor(**options)
    with Queue(first.queue) as queue:
        queue.result(queue.submit({"status": 429, "tokens": 36_000}), 60)
    first.kill()
    second = supervisor(**options)
    found = readings(second)["mine"]
    assert (found.sent, found.refused) == (1, 1)
    shown = subprocess.run(
        [sys.executable, "-m", "dspy_supervisor", "status", "--queue-dir", str(second.queue)],
        capture_output=True,
        text=True,
        env=clean_environ(second.queue.parent) | {"DSPY_RUNTIME_DIR": str(second.runtime)},
    ).stdout
    assert re.search(
        r"budget mine +60 rpm and 600 tpm; 1 requests sent, 1 refused; the next would wait \d{4}\.\d s", shown
    )
    assert second.status()["llm_budgets"]["mine"]["sent"] == 1
    assert 3600 < found.wait_s < 4200  # of the hour that it charged, at the pace after a 429
    assert second.stop() == 0
    third = supervisor(settings={"llm_budgets": "mine=6rpm"})
    assert (readings(third)["mine"].sent, readings(third)["mine"].rates.requests) == (1, 6)


def test_a_reload_changes_the_rates(supervisor: Start, tmp_path: Path):
    (tmp_path / "dspy-supervisor.toml").write_text('[llm_budgets]\nmine = "60rpm"\n')
    one = supervisor()
    (tmp_path / "dspy-supervisor.toml").write_text('[llm_budgets]\nmine = "90rpm"\nother = "5ktpm"\n')
    one.ask("reload")
    rates = {name: tuple(reading.rates) for name, reading in readings(one).items()}
    assert rates == {"mine": (90, 0), "other": (0, 5000)}
    until(lambda: one.status()["classes"]["cpu_short"]["workers"] == 1, "the new worker is there")
