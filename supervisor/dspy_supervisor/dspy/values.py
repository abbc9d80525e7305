"""Examples, predictions, scores and what they hold, as JSON and back.

What JSON has stays as it is. The rest is an object with the key ``$dspy``, whose value says what it is::

    {"$dspy": "example", "fields": {...}, "inputs": ["question"]}         dspy.Example
    {"$dspy": "prediction", "fields": {...}, "usage": {...}}              dspy.Prediction
    {"$dspy": "model", "type": "module:Name", "value": {...}}             a pydantic model
    {"$dspy": "tuple", "items": [...]}
    {"$dspy": "dict", "items": [[key, value], ...]}                       a dict whose keys are not all plain text
"""

from __future__ import annotations

import math
import sys
from enum import Enum
from typing import Any

import dspy
from pydantic import BaseModel

_MARK = "$dspy"


def encode(value: Any, where: str = "value") -> Any:
    """Return a value as JSON. Raises TypeError that names the place of what JSON can't hold."""
    if value is None or isinstance(value, bool | str):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, int | float):
        if not math.isfinite(value):
            raise TypeError(f"{where} is {value}, which JSON can't hold")
        return value.value if isinstance(value, Enum) else int(value) if isinstance(value, int) else float(value)
    if isinstance(value, Enum):
        return encode(value.value, where)
    if isinstance(value, list):
        return [encode(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, tuple):
        return {_MARK: "tuple", "items": encode(list(value), where)}
    if isinstance(value, dict):
        if _MARK not in value and all(type(key) is str for key in value):
            return {key: encode(item, f"{where}[{key!r}]") for key, item in value.items()}
        return {_MARK: "dict", "items": [encode(list(pair), where) for pair in value.items()]}
    if isinstance(value, dspy.Prediction):
        usage = value.get_lm_usage()
        return {_MARK: "prediction", "fields": _fields(value, where), **({"usage": usage} if usage else {})}
    if isinstance(value, dspy.Example):
        inputs = getattr(value, "_input_keys", None)
        return {_MARK: "example", "fields": _fields(value, where), "inputs": None if inputs is None else sorted(inputs)}
    if isinstance(value, BaseModel):
        kind = type(value)
        return {
            _MARK: "model",
            "type": f"{kind.__module__}:{kind.__qualname__}",
            "value": value.model_dump(mode="json"),
        }
    if type(value).__module__ == "numpy" and hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return encode(value.item(), where)
    raise TypeError(f"{where} is of type {type(value).__module__}.{type(value).__qualname__}, which is no JSON")


def decode(value: Any) -> Any:
    """Return what was encoded. A model whose module isn't loaded here stays what it holds: nothing is imported."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    mark = value.get(_MARK)
    if mark is None:
        return {key: decode(item) for key, item in value.items()}
    if mark == "tuple":
        return tuple(decode(value["items"]))
    if mark == "dict":
        return dict(decode(value["items"]))
    if mark == "example":
        example = dspy.Example(decode(value["fields"]))
        return example if value["inputs"] is None else example.with_inputs(*value["inputs"])
    if mark == "prediction":
        prediction = dspy.Prediction(**decode(value["fields"]))
        if value.get("usage"):
            prediction.set_lm_usage(value["usage"])
        return prediction
    if mark == "model":
        kind = _model(value["type"])
        return value["value"] if kind is None else kind.model_validate(value["value"])
    raise ValueError(f"{_MARK}={mark!r}: expected example, prediction, model, tuple or dict")


def _fields(value: Any, where: str) -> dict[str, Any]:
    return {str(key): encode(item, f"{where}.{key}") for key, item in value.items(include_dspy=True)}


def _model(name: str) -> type[BaseModel] | None:
    module, _, qualname = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) and issubclass(found, BaseModel) else None
