"""Evaluate a DSPy program over a queue, give it demonstrations over the same queue, and evaluate it again.

In one shell, and in another:

    dspy-supervisor start --queue-dir queue --workers cpu_long=2 --kinds dspy --set call_allow=triage:*
    python run.py --queue-dir queue

Without a network the answers come from a DummyLM. With any OpenAI-compatible endpoint, set for the supervisor:
TRIAGE_API_BASE=http://127.0.0.1:8000/v1, TRIAGE_API_KEY, TRIAGE_MODEL=openai/NAME; and how much may be sent:
--set llm_budgets=openai/*=500rpm/200ktpm
"""

import argparse

import triage
from dspy_supervisor.dspy import QueueBootstrapFewShot, QueueEvaluate


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queue-dir", required=True)
    where = {"queue": parser.parse_args().queue_dir, "configure": triage.configure}
    examples = triage.examples()
    evaluate = QueueEvaluate(devset=examples, metric=triage.is_right, **where)
    result = evaluate(triage.Triage())
    for example, prediction, right in result.results:
        print(f"{'right' if right else 'wrong'}  {prediction.team:<9} {example.message}")
    print(f"score {result.score}")
    optimizer = QueueBootstrapFewShot(triage.is_right, max_bootstrapped_demos=3, max_labeled_demos=0, **where)
    compiled = optimizer.compile(triage.Triage(), trainset=examples)
    (predictor,) = compiled.predictors()
    print(f"score {evaluate(compiled).score} with {len(predictor.demos)} demonstrations")


if __name__ == "__main__":
    main()
