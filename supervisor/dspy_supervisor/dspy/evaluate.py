"""dspy.Evaluate over a queue.

::

    evaluate = QueueEvaluate(queue="/data/queue", devset=devset, metric=metric)
    result = evaluate(program)      # result.score, result.results

One task an example. Afterwards dspy.Evaluate itself goes over what came back, so score, failure_score, max_errors, table and
files are its own.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import dspy

from .calls import Metric, Outcome, Place, gather, start


class QueueEvaluate(dspy.Evaluate):  # type: ignore[misc]
    """Evaluates programs in the workers of a queue; called as dspy.Evaluate is, and returns what that returns.

    A metric that no worker can import (a lambda, one of the program that runs) is called here. Raises CannotTravel for a
    program or an LM that a worker would not have as it is here.
    """

    def __init__(
        self,
        *,
        queue: str | os.PathLike[str],
        devset: Sequence[Any],
        metric: Callable[..., Any] | None = None,
        made_by: str | Callable[[], Any] | None = None,
        configure: str | Callable[[], Any] | None = None,
        task_class: str = "cpu_long",
        timeout: float | None = None,
        max_attempts: int = 1,
        priority: int | None = None,
        insecure: bool = False,
        runtime_dir: str | os.PathLike[str] | None = None,
        **evaluate: Any,  # of dspy.Evaluate; num_threads has no meaning here
    ) -> None:
        super().__init__(devset=devset, metric=metric, **evaluate)
        self.place = Place(
            queue=queue,
            made_by=made_by,
            configure=configure,
            task_class=task_class,
            timeout=timeout,
            max_attempts=max_attempts,
            priority=priority,
            insecure=insecure,
            runtime_dir=runtime_dir,
        )

    def __call__(
        self,
        program: Any,
        metric: Callable[..., Any] | None = None,
        devset: Sequence[Any] | None = None,
        num_threads: int | None = None,
        display_progress: bool | None = None,
        **more: Any,
    ) -> Any:
        """Return the dspy.EvaluationResult of a program: score in percent, and (example, prediction, score) of each."""
        chosen = Metric(metric if metric is not None else self.metric)
        devset = devset if devset is not None else self.devset
        if chosen.call is None:
            raise ValueError("QueueEvaluate needs a metric: give one to it, or to the call")
        if not devset:
            raise ValueError("devset must contain at least one example, got an empty devset.")
        shown = self.display_progress if display_progress is None else display_progress
        limit = self.max_errors if self.max_errors is not None else dspy.settings.max_errors
        shared = self.place.shared(program)
        with self.place.executor() as executor:
            futures = start(executor, shared, devset, metric=chosen.name)
            outcomes = gather(futures, max_errors=limit, display_progress=bool(shown))
        replay = _Replay(outcomes, chosen)

        @functools.wraps(chosen.call)  # its name is in tables and files
        def score(example: Any, prediction: Any, *more: Any) -> Any:
            return replay.score(example, prediction, *more)

        return super().__call__(
            replay,
            metric=score,
            devset=devset,
            num_threads=1,  # one after the other, in order
            display_progress=False,
            **more,
        )


class _Replay:
    """What dspy.Evaluate gets for a program: it hands out, example by example, what the workers made."""

    def __init__(self, outcomes: list[Outcome], metric: Metric) -> None:
        self._outcomes, self._metric = iter(outcomes), metric
        self._now = Outcome()

    def __call__(self, **_: Any) -> Any:
        self._now = next(self._outcomes)
        if self._now.error is not None:
            raise self._now.error
        return self._now.prediction

    def score(self, example: Any, prediction: Any, *more: Any) -> Any:
        """Return the score of the prediction that was handed out last."""
        if self._metric.name is not None or self._metric.call is None:
            return self._now.score
        return self._metric.call(example, prediction, *more)
