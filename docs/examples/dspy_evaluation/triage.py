"""A DSPy program that sorts messages to a support desk, its metric, and what its workers need to run it."""

import os

import dspy
from dspy.utils import DummyLM

TEAMS = ("billing", "delivery", "product")
MESSAGES = {
    "I was charged twice this month.": "billing",
    "My parcel has been in Leipzig for nine days.": "delivery",
    "The lid doesn't close any more.": "product",
    "Please send the invoice to our new address.": "billing",
    "The courier left it in the rain.": "delivery",
    "It stops when I press the red button.": "product",
    "Can I pay by bank transfer?": "billing",
    "Where do I find the battery?": "product",
}


class Triage(dspy.Module):
    """Says which team a message is for."""

    def __init__(self):
        super().__init__()
        self.classify = dspy.ChainOfThought(
            dspy.Signature("message -> team", f"Say which team answers this message: {', '.join(TEAMS)}.")
        )

    def forward(self, message):
        return self.classify(message=message)


def is_right(example, prediction, trace=None):
    """Return whether it is the team that answered."""
    return prediction.team.strip().lower() == example.team


def examples():
    """Return the messages with their teams."""
    return [dspy.Example(message=message, team=team).with_inputs("message") for message, team in MESSAGES.items()]


def configure():
    """Return the LM of a worker: the endpoint that the environment names, or one that needs no network."""
    if url := os.environ.get("TRIAGE_API_BASE"):
        key = os.environ.get("TRIAGE_API_KEY", "none")
        return dspy.LM(os.environ.get("TRIAGE_MODEL", "openai/local"), api_base=url, api_key=key)
    answers = {message: {"reasoning": "It is about that.", "team": team} for message, team in MESSAGES.items()}
    answers["Where do I find the battery?"] = {"reasoning": "Find is about places.", "team": "delivery"}
    return DummyLM(answers)
