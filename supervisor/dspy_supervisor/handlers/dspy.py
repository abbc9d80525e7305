"""The dspy handler: one call of a DSPy program, with its metric; dspy_supervisor.dspy puts these tasks.

What a task may name, as program, metric or configuration, is bounded by ``call_allow``, like the callables of the call handler.
DSPy is imported with the first such task of a worker, which has a cache of DSPy's of its own from then on.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..environment import dspy_cache_folder, set_variable
from ..parts import JSON, Handler, Task, TaskRefused
from .call import checked_patterns, find

_NEEDED = ("program", "state", "example")
_WORKERS = 65536  # of one user on one host, at most


def make(*, call_allow: Iterable[str] = ()) -> Handler:
    """Return the handler that calls programs which these patterns allow. Raises ConfigError for what is no pattern."""
    allowed = checked_patterns(call_allow)
    run: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None

    def call_program(task: Task) -> JSON:
        nonlocal run
        payload = task.payload
        if not isinstance(payload, Mapping) or any(key not in payload for key in _NEEDED):
            raise TaskRefused(f"the payload of a dspy task is an object with {', '.join(_NEEDED)}")
        if run is None:
            if find_spec("dspy") is None:
                raise TaskRefused("DSPy is not installed where this worker runs: pip install 'dspy-supervisor[dspy]'")
            own_cache()
            from ..dspy.worker import Runner

            run = Runner(lambda name: find(name, allowed)).run
        return run(payload)

    return call_program


def own_cache() -> Path | None:
    """Give this process a cache of DSPy's of its own, and return where; None where no folder can be written.

    Folders are numbered, and a worker takes the first that no living one has: so they are as many as workers, and a
    worker that takes the place of another finds what that has cached.
    """
    folder = dspy_cache_folder()
    if folder is None:
        return None
    for number in range(_WORKERS):
        place = folder / f"worker-{number}"
        place.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(place / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # kept for the life of this process
        except BlockingIOError:
            os.close(lock)
            continue
        set_variable("DSPY_CACHEDIR", str(place))
        import dspy

        assert dspy.cache is not None  # it is made when it is first asked for, and reads the variable then
        return place
    return None
