"""Programs, metrics and settings that workers of the tests import."""

from __future__ import annotations

import os
from typing import Any

import dspy
from dspy.utils import DummyLM
from pydantic import BaseModel

from .capitals import CAPITALS


class Capital(dspy.Module):
    """Answers a question in one step."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.Predict("question -> answer")

    def forward(self, question: str) -> Any:
        if "Atlantis" in question:
            raise LookupError("no such country")
        return self.answer(question=question)


class TwoSteps(dspy.Module):
    """Answers in two steps, so that a trace has two predictors."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.width = width
        self.country = dspy.Predict("question -> country")
        self.answer = dspy.Predict("country -> answer")

    def forward(self, question: str) -> Any:
        return self.answer(country=self.country(question=question).country)


def wide() -> TwoSteps:
    return TwoSteps(width=5)


class Place(BaseModel):
    name: str
    people: int


class Typed(dspy.Module):
    """Returns what is no plain JSON."""

    def forward(self, place: Place) -> Any:
        return dspy.Prediction(place=Place(name=place.name, people=place.people + 1), pair=(1, "two"), seen=[place])


def right(example: Any, prediction: Any, trace: Any = None) -> bool:
    return bool(example.answer == prediction.answer)


def steps(example: Any, prediction: Any, trace: Any = None) -> bool:
    """Whether it is right, and the trace is one of all its steps."""
    return right(example, prediction) and (trace is None or len(trace) == 2)


def devset(*countries: str) -> list[Any]:
    known = {**CAPITALS, "Atlantis": "Poseidonis"}
    return [
        dspy.Example(question=f"What is the capital of {name}?", answer=known[name]).with_inputs("question")
        for name in countries or CAPITALS
    ]


def dummy() -> Any:
    """An LM without a network; Italy's capital is wrong."""
    questions = {f"capital of {name}?": {"answer": city, "country": f"<{name}>"} for name, city in CAPITALS.items()}
    questions["capital of Italy?"] = {"answer": "Milan", "country": "<Italy>"}
    return DummyLM(questions | {f"<{name}>": {"answer": city} for name, city in CAPITALS.items()})


def endpoint() -> Any:
    """An LM behind the endpoint of the test."""
    return dspy.LM(
        "openai/small", api_base=os.environ["ENDPOINT"], api_key="no secret", num_retries=0, max_tokens=50, cache=False
    )


def patient_endpoint() -> Any:
    """The same, asked again where it refuses, and with a cache."""
    return endpoint().copy(num_retries=3, cache=True)


def send(task: Any) -> dict[str, Any]:
    """A handler that sends something to a model of its own."""
    from dspy_supervisor import budget

    grant = budget.acquire("mine", tokens=10)
    budget.report("mine", task.payload["status"], {"Retry-After": "0.01"})
    grant.settle(task.payload["tokens"])
    return {}


def where(example: Any, prediction: Any, trace: Any = None) -> float:
    """Tell the folder of this worker's cache, by a file: a metric can return a number only."""
    folder = dspy.cache.disk_cache_dir
    with open(os.environ["SEEN"], "a") as seen:
        seen.write(f"{os.getpid()} {folder}\n")
    return 1.0
