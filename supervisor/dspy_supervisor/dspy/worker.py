"""The other end: one call of a program in a worker, as its payload (see calls) describes it."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import dspy
import orjson

from .. import budget
from .calls import load_saved
from .lm import budgeted
from .values import decode, encode

_PROGRAMS = 8  # kept with their state: of an evaluation there is one, of an optimizer a few

Resolve = Callable[[str], Callable[..., Any]]  #: from "module:name" to what it names, where that is allowed


class Runner:
    """Calls programs, one at a time, and keeps what the next call will need again."""

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve
        self._programs: OrderedDict[tuple[str, bytes], Any] = OrderedDict()
        self._settings: dict[str, dict[str, Any]] = {}
        self._lms: OrderedDict[bytes, Any] = OrderedDict()

    def run(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Return prediction, score and trace of one call, as JSON. Raises what program and metric raise."""
        program = self._program(payload["program"], payload["state"])
        metric = self._resolve(payload["metric"]) if payload.get("metric") else None
        example = decode(payload["example"])
        with dspy.context(**self._context(payload), trace=[]):
            prediction = program(**example.inputs())
            trace = list(dspy.settings.trace)
            found: dict[str, Any] = {"prediction": encode(prediction, "prediction")}
            if metric is not None:
                score = metric(example, prediction, trace) if payload.get("trace") else metric(example, prediction)
                found["score"] = encode(score, "score")
        if payload.get("trace"):
            names = {id(predictor): name for name, predictor in program.named_predictors()}
            found["trace"] = [
                [names[id(predictor)], encode(inputs, "inputs"), encode(outputs, "outputs")]
                for predictor, inputs, outputs in trace
                if id(predictor) in names
            ]
        return found

    def _program(self, name: str, state: Any) -> Any:
        key = (name, _digest(state))
        program = self._programs.get(key)
        if program is None:
            program = self._resolve(name)()
            load_saved(program, state)
            self._programs[key] = program
            if len(self._programs) > _PROGRAMS:
                self._programs.popitem(last=False)
        self._programs.move_to_end(key)
        return program

    def _context(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of a call: what `configure` says, above that the LM that travelled."""
        context: dict[str, Any] = {}
        if name := payload.get("configure"):
            if name not in self._settings:
                self._settings[name] = _settings(name, self._resolve(name)())
            context |= self._settings[name]
        if payload.get("lm"):
            context["lm"] = self._lm(payload["lm"])
        lm = context.get("lm", dspy.settings.lm)
        if lm is not None and budget.is_shared():
            context["lm"] = lm = budgeted(lm)
        if (rollout := payload.get("rollout")) and lm is not None:
            context["lm"] = lm.copy(rollout_id=rollout, temperature=1.0)
        if payload.get("track_usage"):
            context["track_usage"] = True
        return context

    def _lm(self, state: Mapping[str, Any]) -> Any:
        key = _digest(state)
        if key not in self._lms:
            self._lms[key] = dspy.BaseLM.load_state({name: decode(value) for name, value in state.items()})
            if len(self._lms) > _PROGRAMS:
                self._lms.popitem(last=False)
        self._lms.move_to_end(key)
        return self._lms[key]


def _settings(name: str, returned: Any) -> dict[str, Any]:
    if returned is None:  # it called dspy.configure
        return {}
    if isinstance(returned, Mapping):
        return dict(returned)
    if isinstance(returned, dspy.BaseLM):
        return {"lm": returned}
    raise TypeError(
        f"{name}() returned {type(returned).__name__}: expected nothing, an LM or a dict of dspy's settings"
    )


def _digest(value: Any) -> bytes:
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).digest()
