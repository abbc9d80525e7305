"""Evaluation, parallel calls and bootstrapping over a real queue come to what threads come to."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import dspy
import pytest
from dspy_supervisor import Queue, QueueExecutor, TaskFailed
from dspy_supervisor.dspy import CannotTravel, QueueBootstrapFewShot, QueueEvaluate, parallel
from dspy_supervisor.dspy.calls import saved

from ..conftest import Supervised, supervisors
from . import programs
from .provider import Provider

pytestmark = pytest.mark.xdist_group("dspy")
HERE = "tests.dspy.programs"


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dspy")


@pytest.fixture(scope="module")
def service(folder: Path, provider: Provider) -> Iterator[Supervised]:
    environ = {"ENDPOINT": provider.url, "SEEN": str(folder / "seen"), "DSPY_CACHEDIR": str(folder / "cache")}
    environ["OPENAI_API_KEY"] = ""
    with supervisors(folder) as start:
        settings = {"call_allow": f"{HERE}:*", "kinds": "echo,dspy"}
        yield start("--workers", "cpu_short=2", settings=settings, environ=environ)


@pytest.fixture
def where(service: Supervised) -> dict[str, object]:
    """What says where calls run."""
    return {"queue": service.queue, "runtime_dir": service.runtime, "task_class": "cpu_short"}


def rows(result: object) -> list[tuple[object, ...]]:
    return [(example.question, dict(prediction.items()), score) for example, prediction, score in result.results]


def test_an_evaluation_scores_what_threads_score(where):
    devset = programs.devset()
    evaluate = QueueEvaluate(devset=devset, metric=programs.right, configure=programs.dummy, **where)
    ours = evaluate(programs.Capital())
    with dspy.context(lm=programs.dummy()):
        theirs = dspy.Evaluate(devset=devset, metric=programs.right, num_threads=4)(programs.Capital())
    assert ours.score == theirs.score == 83.33
    assert rows(ours) == rows(theirs)
    assert [type(prediction) for _, prediction, _ in ours.results] == [dspy.Prediction] * len(devset)


def test_one_failing_example_costs_one_example(where):
    devset = programs.devset("France", "Atlantis", "Japan", "Peru")
    evaluate = QueueEvaluate(devset=devset, metric=programs.right, configure=programs.dummy, **where)
    result = evaluate(programs.Capital())
    assert result.score == 75.0
    assert [score for *_, score in result.results] == [True, 0.0, True, True]


def test_after_too_many_errors_an_evaluation_ends_as_dspys_own_does(where, service):
    devset = programs.devset("Atlantis", "Atlantis", "France")
    evaluate = QueueEvaluate(devset=devset, metric=programs.right, configure=programs.dummy, max_errors=2, **where)
    with pytest.raises(Exception, match="cancelled due to errors"):
        evaluate(programs.Capital())


def test_each_example_asks_the_endpoint_once(where, provider):
    provider.asked.clear()
    devset = programs.devset()
    evaluate = QueueEvaluate(devset=devset, metric=programs.right, configure=programs.endpoint, **where)
    assert evaluate(programs.Capital()).score == 100.0
    assert sorted(provider.asked) == sorted(programs.CAPITALS)


def test_an_error_of_the_endpoint_costs_one_example_too(where, provider):
    devset = [
        *programs.devset("France"),
        dspy.Example(question="capital of Narnia", answer="?").with_inputs("question"),
    ]
    evaluate = QueueEvaluate(devset=devset, metric=programs.right, configure=programs.endpoint, **where)
    assert evaluate(programs.Capital()).score == 50.0


def test_the_state_of_a_program_travels(where, provider):
    program = programs.Capital()
    program.answer.demos = [dspy.Example(question="What is the seat of Bolivia?", answer="Sucre")]
    program.answer.signature = program.answer.signature.with_instructions("Name one city.")
    provider.prompts.clear()
    evaluate = QueueEvaluate(
        devset=programs.devset("France"), metric=programs.right, configure=programs.endpoint, **where
    )
    assert evaluate(program).score == 100.0
    (prompt,) = provider.prompts
    assert all(words in prompt for words in ("Name one city.", "seat of Bolivia", "Sucre"))


def test_a_metric_of_this_program_is_called_here(where):
    seen = []

    def metric(example, prediction, trace=None):
        seen.append(prediction.answer)
        return example.answer == prediction.answer

    evaluate = QueueEvaluate(devset=programs.devset(), metric=metric, configure=programs.dummy, **where)
    assert evaluate(programs.Capital()).score == 83.33
    assert seen == [{**programs.CAPITALS, "Italy": "Milan"}[name] for name in programs.CAPITALS]


def test_each_worker_has_a_cache_of_its_own(where, folder):
    evaluate = QueueEvaluate(devset=programs.devset() * 5, metric=programs.where, configure=programs.dummy, **where)
    evaluate(programs.Capital())
    seen = {tuple(line.split()) for line in (folder / "seen").read_text().splitlines()}
    folders = [cache for _, cache in seen]
    assert len(set(folders)) == len(seen)  # of as many processes
    assert all(Path(cache).parent == folder / "cache" for cache in folders)


def test_parallel_calls_return_predictions_in_order(where):
    program, other = programs.Capital(), programs.TwoSteps()
    calls = [(program, programs.devset("Spain")[0]), (other, {"question": "capital of Japan?"})]
    calls += [(program, programs.devset("Atlantis")[0])]
    found, failed, errors = parallel(calls, configure=programs.dummy, return_failed_examples=True, **where)
    assert [one and one.answer for one in found] == ["Madrid", "Tokyo", None]
    assert [one.question for one in failed] == ["What is the capital of Atlantis?"]
    assert isinstance(errors[0], TaskFailed)
    assert "LookupError: no such country" in str(errors[0])


def test_values_travel_as_what_they_are(where):
    place = programs.Place(name="Oslo", people=7)
    (found,) = parallel([(programs.Typed(), {"place": place})], **where)
    assert found.place == programs.Place(name="Oslo", people=8)
    assert found.pair == (1, "two")
    assert found.seen == [place]


def test_bootstrapping_over_a_queue_makes_the_demonstrations_that_dspy_makes(where):
    trainset = programs.devset()
    options = {"max_bootstrapped_demos": 3, "max_labeled_demos": 2}
    ours = QueueBootstrapFewShot(programs.steps, configure=programs.dummy, **where, **options)
    compiled = ours.compile(programs.TwoSteps(), trainset=trainset)
    with dspy.context(lm=programs.dummy()):
        theirs = dspy.BootstrapFewShot(programs.steps, **options).compile(programs.TwoSteps(), trainset=trainset)
    for (name, mine), (_, dspys) in zip(compiled.named_predictors(), theirs.named_predictors(), strict=True):
        assert [dict(demo.items()) for demo in mine.demos] == [dict(demo.items()) for demo in dspys.demos], name
    assert len(compiled.country.demos) == 3
    assert compiled._compiled


def test_a_teacher_does_not_see_the_example_that_it_is_asked(where):
    trainset = programs.devset("France", "Spain")
    ours = QueueBootstrapFewShot(programs.steps, configure=programs.dummy, max_labeled_demos=2, **where)
    ours.trainset = trainset
    ours._prepare_student_and_teacher(programs.TwoSteps(), None)
    demos = ours._teacher_without(trainset[0])["state"]["answer"]["demos"]
    assert [demo["question"] for demo in demos] == [trainset[1].question]
    assert len(ours.teacher.answer.demos) == 2


def test_what_a_worker_would_not_have_is_refused_in_words(where):
    evaluate = QueueEvaluate(devset=programs.devset(), metric=programs.right, configure=programs.dummy, **where)
    with pytest.raises(CannotTravel, match=r"self.width is 5 here, and 3 there.*made_by"):
        evaluate(programs.wide())
    QueueEvaluate(
        devset=programs.devset("Spain"), metric=programs.right, configure=programs.dummy, made_by=programs.wide, **where
    )(programs.wide())
    with pytest.raises(CannotTravel, match="made_by='module:function'"):
        evaluate(dspy.Predict("question -> answer"))
    plain = QueueEvaluate(devset=programs.devset(), metric=programs.right, **where)
    with (
        dspy.context(lm=programs.dummy()),
        pytest.raises(CannotTravel, match="DummyLM does not travel: name a function"),
    ):
        plain(programs.Capital())
    with (
        dspy.context(lm=dspy.LM("openai/small", api_base="http://127.0.0.1:1")),
        pytest.raises(CannotTravel, match="api_base"),
    ):
        plain(programs.Capital())
    with dspy.context(adapter=dspy.JSONAdapter()), pytest.raises(CannotTravel, match="adapter"):
        plain(programs.Capital())


def test_a_plain_lm_travels_without_its_key(where, service, caplog):
    with dspy.context(lm=dspy.LM("openai/small", api_key="sesame-open", temperature=0.5)):
        calls = [(programs.Capital(), {"question": "capital of Peru?"})]
        with caplog.at_level(logging.CRITICAL):
            _, _, errors = parallel(calls, return_failed_examples=True, **where)
    record = Queue(service.queue).record(errors[0].task_id)
    assert record["payload"]["lm"] == {
        "_dspy_lm_class": "dspy.clients.lm.LM",
        "model": "openai/small",
        "model_type": "chat",
        "cache": True,
        "num_retries": 3,
        "temperature": 0.5,
    }
    assert "sesame" not in str(record)


def test_a_task_may_name_only_what_is_allowed(service):
    example, state = {"$dspy": "example", "fields": {}, "inputs": []}, saved(programs.Capital())
    payloads = [
        {"program": "os:getcwd", "state": {}, "example": example},
        {"program": f"{HERE}:Capital", "state": state, "example": example, "configure": "os:getcwd"},
        {"program": "Capital"},
    ]
    with QueueExecutor(service.queue, kind="dspy") as executor:
        for future in executor.submit_payloads(payloads):
            error = future.exception(60)
            assert isinstance(error, TaskFailed)
            assert error.cause == "refused"
