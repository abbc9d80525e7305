"""Program calls over a queue, as dspy.Parallel makes them in threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dspy

from .calls import Outcome, Place, gather, start


def parallel(
    calls: Sequence[tuple[Any, Any]],
    queue: str | os.PathLike[str],
    *,
    made_by: str | Callable[[], Any] | None = None,
    configure: str | Callable[[], Any] | None = None,
    task_class: str = "cpu_long",
    timeout: float | None = None,
    max_attempts: int = 1,
    priority: int | None = None,
    insecure: bool = False,
    runtime_dir: str | os.PathLike[str] | None = None,
    max_errors: int | None = None,
    display_progress: bool = False,
    return_failed_examples: bool = False,
) -> Any:
    """Call programs in the workers of a queue, and return their predictions in order, None for a call that failed.

    ``calls``: pairs of a program and a dspy.Example (its inputs are the arguments) or a dict of arguments.
    ``return_failed_examples``: return predictions, failed examples, and their errors. Raises CannotTravel, and RuntimeError
    when ``max_errors`` (dspy.settings.max_errors) calls have failed.
    """
    place = Place(
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
    limit = dspy.settings.max_errors if max_errors is None else max_errors
    groups: dict[int, list[int]] = {}  # calls of one program share what travels
    for index, (program, _) in enumerate(calls):
        groups.setdefault(id(program), []).append(index)
    shared = [(place.shared(calls[places[0]][0]), places) for places in groups.values()]
    with place.executor() as executor:
        futures: dict[int, Any] = {}
        for common, places in shared:
            examples = [_example(calls[index][1]) for index in places]
            futures |= zip(places, start(executor, common, examples), strict=True)
        outcomes = gather(
            [futures[index] for index in range(len(calls))], max_errors=limit, display_progress=display_progress
        )
    failed = [(calls[index][1], one.error) for index, one in enumerate(outcomes) if one.error is not None]
    if len(failed) >= limit:
        raise RuntimeError(f"{len(failed)} of {len(calls)} calls failed, the first with: {_first(outcomes)}")
    predictions = [one.prediction for one in outcomes]
    if return_failed_examples:
        return predictions, [example for example, _ in failed], [error for _, error in failed]
    return predictions


def _example(given: Any) -> Any:
    if isinstance(given, dspy.Example):
        return given.inputs()
    if isinstance(given, Mapping):
        return dspy.Example(dict(given)).with_inputs(*given)
    raise TypeError(f"a call is (program, dspy.Example or dict of arguments), not {type(given).__name__}")


def _first(outcomes: list[Outcome]) -> str:
    return next((str(one.error) for one in outcomes if one.error is not None), "")
