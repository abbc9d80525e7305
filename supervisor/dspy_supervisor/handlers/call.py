"""The call handler: a task names a Python callable and its arguments, the configuration says which ones it may name.

The payload is ``{"callable": "module:qualname", "args": [...], "kwargs": {...}}``. It is allowed by one of these patterns::

    tools.text:count_words      this callable, wherever it is defined
    tools.text:*                what this module defines, but nothing private and nothing that it imported
    tools.*                     the same for every module of the package tools, and for tools itself
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..errors import ConfigError
from ..parts import JSON, Handler, HandlerFailure, Task
from ..task import Cause

_MODULE = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_NAME = re.compile(rf"({_MODULE}):({_MODULE})")
_PATTERN = re.compile(rf"{_MODULE}(?:\.\*|:\*|:{_MODULE})")
_KEYS = frozenset({"callable", "args", "kwargs"})


def make(*, call_allow: Iterable[str] = ()) -> Handler:
    """Return the handler that calls what these patterns allow, and nothing where there are none.

    Raises ConfigError for what is no pattern.
    """
    allowed = checked_patterns(call_allow)
    found: dict[str, Callable[..., JSON]] = {}  # bounded: only what is allowed and exists gets in

    def call(task: Task) -> JSON:
        name, args, kwargs = _checked(task.payload)
        function = found.get(name)
        if function is None:
            function = found[name] = find(name, allowed)
        return function(*args, **kwargs)

    return call


def _checked(payload: Any) -> tuple[str, list[Any], dict[str, Any]]:
    if not isinstance(payload, Mapping):
        raise _refused(f"the payload of a call is an object with 'callable', not {type(payload).__name__}")
    unknown = payload.keys() - _KEYS
    if unknown:
        raise _refused(f"a call has 'callable', 'args' and 'kwargs', and knows no {sorted(unknown)[0]!r}")
    name, args, kwargs = payload.get("callable"), payload.get("args"), payload.get("kwargs")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise _refused(f"'callable' is 'module:name', not {name!r}")
    args = [] if args is None else args
    kwargs = {} if kwargs is None else kwargs
    if not isinstance(args, list):
        raise _refused(f"'args' is an array, not {type(args).__name__}")
    if not isinstance(kwargs, dict):
        raise _refused(f"'kwargs' is an object, not {type(kwargs).__name__}")
    return name, args, kwargs


def checked_patterns(call_allow: Iterable[str]) -> frozenset[str]:
    """Return the patterns. Raises ConfigError for what is none."""
    allowed = frozenset(call_allow)
    for pattern in allowed:
        if not _PATTERN.fullmatch(pattern):
            raise ConfigError("call_allow", pattern, "'module:name', 'module:*' or 'package.*'")
    return allowed


def find(name: str, allowed: frozenset[str]) -> Callable[..., JSON]:
    """Return what name stands for. Nothing is imported before a pattern is found that allows it.

    Raises TaskRefused for what is not allowed, or not there.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise _refused(f"'module:name' names what is called, not {name!r}")
    module_name, _, qualname = name.partition(":")
    by_name = name in allowed
    if not by_name:
        packages = module_name.split(".")
        patterns = [f"{module_name}:*", *(".".join(packages[:n]) + ".*" for n in range(len(packages), 0, -1))]
        if allowed.isdisjoint(patterns):
            raise _refused(
                f"{name} may not be called: none of {name!r}, {', '.join(map(repr, patterns))} is in call_allow"
            )
        if any(part.startswith("_") for part in qualname.split(".")):
            raise _refused(f"{name} is private: only {name!r} itself in call_allow allows it")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        # a module that is there and lacks another one is broken, which may be mended: that is tried again
        if exc.name is not None and (module_name + ".").startswith(exc.name + "."):
            raise _refused(f"{name} may be called, but there is no module {exc.name!r} here") from None
        raise
    parts = qualname.split(".")
    for depth, part in enumerate(parts):
        # a name leads into classes only: 'tools.text:os.system' would be somebody else's function
        if depth and not isinstance(found, type):
            raise _refused(f"{name}: {'.'.join(parts[:depth])} is no class, so nothing in it can be called")
        if not hasattr(found, part):
            raise _refused(f"{name}: there is no {part!r} in {'.'.join([module_name, *parts[:depth]])}")
        found = getattr(found, part)
    if not callable(found):
        raise _refused(f"{name} is of type {type(found).__name__} and cannot be called")
    home = getattr(found, "__module__", None)
    if not by_name and home != module_name:
        raise _refused(f"{name} is defined in {home}: only {name!r} itself in call_allow allows it")
    function: Callable[..., JSON] = found
    return function


def _refused(message: str) -> HandlerFailure:
    return HandlerFailure(Cause.REFUSED, message)
