"""What travels to a worker for one call of a program, and the executor that puts it.

A task of kind ``dspy`` has the payload::

    {"program": "module:name",      what makes the program when it is called without arguments: a class or a function
     "state": {...},                as the program's own save() wrote it
     "example": {...},              its inputs are what the program is called with
     "metric": "module:function",   optional; called with example and prediction, and with the trace where one is asked for
     "configure": "module:function",optional; called once in each worker: it calls dspy.configure, or returns an LM or settings
     "lm": {...},                   optional; a plain dspy.LM by its own dump_state(), never with a key or an address
     "rollout": 1,                  optional; another answer of the LM than before, as BootstrapFewShot asks for
     "trace": true, "track_usage": true}

and ends with ``{"prediction": ..., "score": ..., "trace": [[predictor, inputs, outputs], ...]}``. A program whose copy in a
worker would be another one is refused here, in words: a score must never come from something else than was given.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import dspy
import orjson
import tqdm

from ..client.executor import QueueExecutor, import_path
from ..client.futures import QueueFuture
from ..errors import SupervisorError
from .values import decode, encode

#: of an LM: what changes an answer and is no secret and no address
_LM_OPTIONS = frozenset(
    {
        *("temperature", "max_tokens", "max_completion_tokens", "top_p", "top_k", "n", "stop", "seed", "rollout_id"),
        *("presence_penalty", "frequency_penalty", "logprobs", "reasoning_effort", "timeout"),
    }
)
_LM_OWN = frozenset({"_dspy_lm_class", "model", "model_type", "cache", "num_retries"})
_OWN = frozenset({"history", "callbacks", "_compiled", "stage"})  # of a module: nothing that a call depends on
_PLAIN = (bool, int, float, str, bytes, type(None))


class CannotTravel(SupervisorError):
    """A program, an LM or a function can't be had in a worker as it is here; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one call: a prediction, or the error that it ended with."""

    prediction: Any = None
    score: Any = None
    trace: tuple[tuple[str, dict[str, Any], Any], ...] = ()  #: (predictor's name, inputs, outputs)
    error: Exception | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where and how calls run: what is the same for all calls of an evaluation."""

    queue: str | os.PathLike[str]
    made_by: str | Callable[[], Any] | None = None  #: what makes the program; None: its class
    configure: str | Callable[[], Any] | None = None  #: what gives a worker its LM and settings; None: the LM of here
    task_class: str = "cpu_long"
    timeout: float | None = None  #: seconds for one call
    max_attempts: int = 1  #: a call that raised is not made again
    priority: int | None = None
    insecure: bool = False
    runtime_dir: str | os.PathLike[str] | None = None

    @contextlib.contextmanager
    def executor(self) -> Iterator[QueueExecutor]:
        """Yield an executor of program calls; those that didn't begin when this is left by an error are cancelled."""
        executor = QueueExecutor(
            self.queue,
            self.task_class,
            kind="dspy",
            insecure=self.insecure,
            runtime_dir=self.runtime_dir,
            max_attempts=self.max_attempts,
            timeout=self.timeout,
            priority=self.priority,
        )
        try:
            yield executor
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise
        executor.shutdown()

    def shared(self, program: Any, *, lm: Any = None) -> dict[str, Any]:
        """Return what the payloads of all calls of a program have in common. Raises CannotTravel.

        ``lm``: that of the calls, where it is another than that of the settings.
        """
        settings: dict[str, Any] = {}
        if self.configure is not None:
            settings["configure"] = _path(self.configure, "configure")
        elif dspy.settings.adapter is not None:
            raise CannotTravel(
                "dspy.settings.adapter is set, which no worker knows of: name a function that makes the same settings "
                "there, configure='module:function'"
            )
        else:
            lm = lm if lm is not None else dspy.settings.lm
        if lm is not None:
            settings["lm"] = lm_state(lm)
        if dspy.settings.track_usage:
            settings["track_usage"] = True
        return {**program_state(program, self.made_by), **settings}


def program_state(program: Any, made_by: str | Callable[[], Any] | None = None) -> dict[str, Any]:
    """Return what makes a program again: its maker's name, and its state as save() writes it. Raises CannotTravel."""
    name = _path(type(program) if made_by is None else made_by, "made_by")
    state = saved(program)
    try:
        twin = made_by() if callable(made_by) else _named(name)()
        load_saved(twin, state)
    except Exception as error:
        raise CannotTravel(
            f"{name}() makes no program that takes the state of this one ({type(error).__name__}: {error}): write a "
            f"function of a module that makes it without arguments, and give that as made_by='module:function'"
        ) from error
    if difference := _difference(program, twin):
        raise CannotTravel(
            f"what {name}() makes is another program: {difference}. Write a function of a module that makes this one, and "
            f"give that as made_by='module:function'"
        )
    return {"program": name, "state": state}


def saved(program: Any) -> Any:
    """Return the state of a program as its save() writes it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.json"
        try:
            program.save(str(path))
        except Exception as error:
            raise CannotTravel(f"the program can't be saved as JSON: {error}") from error
        return orjson.loads(path.read_bytes())


def load_saved(program: Any, state: Any) -> None:
    """Give a program the state of another, by its load()."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.json"
        path.write_bytes(orjson.dumps(state))
        program.load(str(path))


def lm_state(lm: Any) -> dict[str, Any]:
    """Return a plain LM as its dump_state() has it, without its key. Raises CannotTravel for what a worker couldn't have."""
    remedy = "name a function that makes it in a worker, configure='module:function'"
    if type(lm) is not dspy.LM:
        raise CannotTravel(f"an LM of class {type(lm).__module__}.{type(lm).__qualname__} does not travel: {remedy}")
    if not isinstance(lm.engine, str):
        raise CannotTravel(f"an LM with an engine of its own does not travel: {remedy}")
    state = {name: value for name, value in lm.dump_state().items() if value not in (None, {})}
    if strange := sorted(state.keys() - _LM_OPTIONS - _LM_OWN):
        raise CannotTravel(
            f"the LM {lm.model} has {', '.join(strange)}, which may be secret or lead elsewhere, and is not written into "
            f"tasks: {remedy}"
        )
    return {name: encode(value, f"lm.{name}") for name, value in state.items()}


def start(
    executor: QueueExecutor,
    shared: Mapping[str, Any],
    examples: Sequence[Any],
    *,
    metric: str | None = None,
    trace: bool = False,
    rollout: int | None = None,
) -> list[QueueFuture[Any]]:
    """Put one call for each example, and return their futures in that order."""
    more: dict[str, Any] = {}
    if metric is not None:
        more["metric"] = metric
    if trace:
        more["trace"] = True
    if rollout is not None:
        more["rollout"] = rollout
    payloads = [
        {**shared, **more, "example": encode(example, f"example {index}")} for index, example in enumerate(examples)
    ]
    return executor.submit_payloads(payloads)


def gather(
    futures: Sequence[QueueFuture[Any]],
    *,
    max_errors: int,
    display_progress: bool = False,
) -> list[Outcome]:
    """Return what became of calls, in their order. After so many errors those that didn't begin are cancelled."""
    errors = 0
    with tqdm.tqdm(total=len(futures), dynamic_ncols=True, disable=not display_progress) as progress:
        for future in as_completed(futures):
            progress.update()
            errors += future.cancelled() or future.exception() is not None
            if errors == max_errors:
                for other in futures:
                    other.cancel()
    return [outcome(future) for future in futures]


def outcome(future: QueueFuture[Any]) -> Outcome:
    """Return what became of a call that has ended."""
    if future.cancelled():
        return Outcome(error=SupervisorError(f"task {future.task_id} was cancelled"))
    error = future.exception()
    if error is not None:
        return Outcome(error=error if isinstance(error, Exception) else SupervisorError(str(error)))
    found = future.result()
    trace = tuple((name, decode(inputs), decode(outputs)) for name, inputs, outputs in found.get("trace", ()))
    return Outcome(decode(found["prediction"]), decode(found.get("score")), trace)


class Metric:
    """A metric, by its name where a worker can import it; one of this program is called here."""

    def __init__(self, metric: Callable[..., Any] | None) -> None:
        self.call = metric
        self.name: str | None = None
        if metric is not None:
            with contextlib.suppress(TypeError):
                self.name = import_path(metric)

    @classmethod
    def of(cls, metric: Callable[..., Any] | Self | None) -> Metric:
        """Return a metric, which may be one already."""
        return metric if isinstance(metric, Metric) else cls(metric)


def _path(fn: Callable[..., Any] | str, what: str) -> str:
    try:
        return import_path(fn)
    except TypeError as error:
        raise CannotTravel(f"{what}: {error}") from error


def _named(name: str) -> Callable[[], Any]:
    from ..parts import load

    found: Any = load(name)
    return found  # type: ignore[no-any-return]


def _difference(one: Any, other: Any) -> str:
    """Return in words where two programs differ beyond their state, or nothing."""
    ours, theirs = dict(one.named_sub_modules()), dict(other.named_sub_modules())
    if ours.keys() != theirs.keys():
        return f"the parts {sorted(ours.keys() ^ theirs.keys())} are in one of them only"
    for name, part in ours.items():
        twin = theirs[name]
        if type(part) is not type(twin):
            return f"{name} is a {type(part).__qualname__} here, and a {type(twin).__qualname__} there"
        if isinstance(part, dspy.Predict):
            if not part.signature.equals(twin.signature):
                return f"{name} has another signature"
            if part.config != twin.config:
                return f"{name} has config {part.config} here, and {twin.config} there"
            continue
        for key, value in vars(part).items():
            if key not in _OWN and _is_plain(value) and vars(twin).get(key, _OWN) != value:
                return f"{name}.{key} is {value!r:.80} here, and {vars(twin).get(key)!r:.80} there"
    return ""


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(_is_plain(key) and _is_plain(inner) for key, inner in value.items())
    return isinstance(value, _PLAIN)
