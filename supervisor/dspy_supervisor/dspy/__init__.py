"""DSPy programs on a queue: evaluation, parallel calls and few-shot bootstrapping in its workers.

::

    evaluate        QueueEvaluate: dspy.Evaluate over a queue
    batch           parallel: program calls over a queue, as dspy.Parallel makes them in threads
    bootstrap       QueueBootstrapFewShot: dspy.BootstrapFewShot over a queue
    lm              budgeted: an LM that keeps to what all workers together may send
    calls           what travels, and the executor that all three put their calls with
    worker          the other end: a call in a worker
    values          examples, predictions and scores as JSON, and back

A supervisor serves them with ``kinds`` that has dspy, and ``call_allow`` that allows the programs, metrics and functions
that are named. DSPy itself comes with ``pip install 'dspy-supervisor[dspy]'``, and is imported when a name is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .batch import parallel as parallel
    from .bootstrap import QueueBootstrapFewShot as QueueBootstrapFewShot
    from .calls import CannotTravel as CannotTravel
    from .evaluate import QueueEvaluate as QueueEvaluate
    from .lm import budgeted as budgeted

_HOME = {
    "CannotTravel": "calls",
    "QueueBootstrapFewShot": "bootstrap",
    "QueueEvaluate": "evaluate",
    "budgeted": "lm",
    "parallel": "batch",
}

__all__ = ["CannotTravel", "QueueBootstrapFewShot", "QueueEvaluate", "budgeted", "parallel"]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value
