"""What a caller asks for, read from a request and checked: query parameters, ids, bodies.

What is wrong is said as a Problem: 404 for an id that no task can have, 400 for a body that is no JSON, 422 for a value out
of bounds, each naming the place.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import orjson
from starlette.requests import Request

from ...task import WorkloadClass, is_task_id
from .problems import Problem

CLASSES = tuple(str(name) for name in WorkloadClass)


def task_id(request: Request) -> str:
    """Return the id in the path. Raises Problem for what can't be one, so that it never gets near a folder."""
    found = str(request.path_params["task_id"])
    if not is_task_id(found):
        raise Problem(404, f"no task {found[:100]!r}: an id is 1 to 100 of letters, digits, '.', '_' and '-'")
    return found


def text(request: Request, name: str, default: str = "", longest: int = 200) -> str:
    """Return a query parameter."""
    found = request.query_params.getlist(name)
    if len(found) > 1:
        raise Problem(422, f"{name} is there {len(found)} times")
    if found and len(found[0]) > longest:
        raise Problem(422, f"{name}: expected at most {longest} characters")
    return found[0] if found else default


def word(request: Request, name: str, words: Collection[str]) -> str | None:
    """Return a query parameter that is one of some words, None where it is not there."""
    found = text(request, name)
    if found in words:
        return found
    if name not in request.query_params:
        return None
    raise Problem(422, f"{name}={found!r}: expected one of {', '.join(words)}")


def whole(request: Request, name: str, default: int, low: int, high: int) -> int:
    """Return a query parameter that is a whole number."""
    found = text(request, name)
    if name not in request.query_params:
        return default
    if found.isascii() and found.isdigit() and low <= int(found) <= high:
        return int(found)
    raise Problem(422, f"{name}={found!r}: expected a whole number from {low} to {high}")


def seconds(request: Request, name: str, default: float | None, high: float) -> float | None:
    """Return a query parameter that is a length of time."""
    found = text(request, name)
    if name not in request.query_params:
        return default
    try:
        number = float(found) if found.isascii() and "_" not in found and not found.isspace() else math.nan
    except ValueError:
        number = math.nan
    if 0 <= number <= high:
        return number
    raise Problem(422, f"{name}={found!r}: expected seconds from 0 to {high:.10g}")


def truth(request: Request, name: str) -> bool:
    """Return a query parameter that is a yes or a no."""
    return word(request, name, ("1", "true", "0", "false")) in ("1", "true")


async def body(request: Request) -> Mapping[str, Any]:
    """Return a body that is a JSON object; none at all is an empty one."""
    raw = await request.body()
    if not raw.strip():
        return {}
    try:
        document = orjson.loads(raw)
    except ValueError as error:
        raise Problem(400, f"the body is no JSON: {error}") from None
    if not isinstance(document, dict):
        raise Problem(422, "the body: expected a JSON object")
    return document


def classes(document: Mapping[str, Any]) -> list[str] | None:
    """Return the member ``classes`` of a body, None where all are meant."""
    if "classes" not in document:
        return None
    found = document["classes"]
    if not isinstance(found, list) or not found or not all(name in CLASSES for name in found):
        raise Problem(422, f"classes: expected a list of {', '.join(CLASSES)}")
    return list(dict.fromkeys(found))
