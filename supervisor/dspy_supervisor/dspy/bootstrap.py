"""dspy.BootstrapFewShot over a queue: the teacher's calls run in workers, as many at once as demonstrations are missing.

What comes out is what BootstrapFewShot would make of the same answers, from the same examples in the same order, and no call is
made that it would not have made.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable
from itertools import islice
from typing import Any

import dspy
from dspy.utils.hasher import Hasher

from .calls import Metric, Outcome, Place, gather, start

_logger = logging.getLogger(__name__)


class QueueBootstrapFewShot(dspy.BootstrapFewShot):  # type: ignore[misc]
    """Composes demonstrations with a teacher that runs in the workers of a queue; used as dspy.BootstrapFewShot is.

    Raises CannotTravel for a teacher or an LM that a worker would not have as it is here.
    """

    def __init__(
        self,
        metric: Callable[..., Any] | None = None,
        *,
        queue: str | os.PathLike[str],
        made_by: str | Callable[[], Any] | None = None,
        configure: str | Callable[[], Any] | None = None,
        task_class: str = "cpu_long",
        timeout: float | None = None,
        max_attempts: int = 1,
        priority: int | None = None,
        insecure: bool = False,
        runtime_dir: str | os.PathLike[str] | None = None,
        **bootstrap: Any,  # of dspy.BootstrapFewShot
    ) -> None:
        super().__init__(metric=metric, **bootstrap)
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

    def _bootstrap(self, *, max_bootstraps: int | None = None) -> None:
        wanted = max_bootstraps or self.max_bootstrapped_demos
        if unknown := self.teacher_settings.keys() - {"lm"}:
            raise ValueError(
                f"teacher_settings {sorted(unknown)} don't travel: name them in configure='module:function'"
            )
        metric = Metric(self.metric)
        bootstrapped: dict[int, bool] = {}
        self.name2traces: dict[str, list[Any]] = {name: [] for name in self.name2predictor}
        examples = enumerate(self.trainset)
        with self.place.executor() as executor:
            # As many examples as demonstrations are missing: one after the other, each of them would be tried, too.
            while (missing := wanted - len(bootstrapped)) > 0 and (batch := list(islice(examples, missing))):
                left = dict(batch)
                won: dict[int, Outcome] = {}
                for number in range(self.max_rounds):
                    for index, outcome in self._round(executor, left, metric, number).items():
                        won[index] = outcome
                        del left[index]
                    if not left:
                        break
                for index in sorted(won):
                    self._keep(won[index])
                    bootstrapped[index] = True
        self.validation = [one for index, one in enumerate(self.trainset) if index not in bootstrapped]
        random.Random(0).shuffle(self.validation)

    def _round(self, executor: Any, examples: dict[int, Any], metric: Metric, number: int) -> dict[int, Outcome]:
        """Return what succeeded of one round of calls, by the places of the examples."""
        futures = []
        for example in examples.values():
            shared = self._teacher_without(example)
            futures += start(
                executor, shared, [example], metric=metric.name, trace=True, rollout=number if number else None
            )
        most = self.max_errors if self.max_errors is not None else dspy.settings.max_errors
        outcomes = gather(futures, max_errors=max(1, most - self.error_count))
        found = {}
        for (index, example), outcome in zip(examples.items(), outcomes, strict=True):
            try:
                if outcome.error is not None:
                    raise outcome.error
                if self._is_success(example, outcome, metric):
                    found[index] = outcome
            except Exception as error:
                self.error_count += 1
                if self.error_count >= most:
                    raise
                _logger.error("Failed to run or to evaluate example %s with %s due to %s.", example, self.metric, error)
        return found

    def _teacher_without(self, example: Any) -> dict[str, Any]:
        """Return what travels of the teacher, without the example among its demonstrations."""
        kept = {}
        for name, predictor in self.teacher.named_predictors():
            kept[name] = predictor.demos
            predictor.demos = [demo for demo in predictor.demos if demo != example]
        try:
            return self.place.shared(self.teacher, lm=self.teacher_settings.get("lm"))
        finally:
            for name, predictor in self.teacher.named_predictors():
                predictor.demos = kept[name]

    def _is_success(self, example: Any, outcome: Outcome, metric: Metric) -> bool:
        if metric.call is None:
            return True
        if metric.name is None:
            score = metric.call(example, outcome.prediction, self._trace(outcome))
        else:
            score = outcome.score
        return bool(score >= self.metric_threshold if self.metric_threshold else score)

    def _trace(self, outcome: Outcome) -> list[tuple[Any, dict[str, Any], Any]]:
        predictors = dict(self.teacher.named_predictors())
        return [(predictors[name], inputs, outputs) for name, inputs, outputs in outcome.trace if name in predictors]

    def _keep(self, outcome: Outcome) -> None:
        """Keep the steps of a call as demonstrations: of several steps of one predictor one, chosen as DSPy does."""
        steps: dict[str, list[Any]] = {}
        for name, inputs, outputs in outcome.trace:
            if name in self.name2traces:
                steps.setdefault(name, []).append(dspy.Example(augmented=True, **inputs, **outputs))
        for name, demos in steps.items():
            if len(demos) > 1:
                chance = random.Random(Hasher.hash(tuple(demos)))
                demos[:] = [chance.choice(demos[:-1]) if chance.random() < 0.5 else demos[-1]]
            self.name2traces[name].extend(demos)
