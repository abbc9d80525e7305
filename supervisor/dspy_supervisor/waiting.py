"""Waiting for tasks to end: woken by events of done/ and failed/, and by looking where events can't be relied on.

The folders are watched before they are looked at, so a record that appears in between is not missed.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from typing import Any

from dspy_fastpath.inotify import Watcher

from .errors import WaitTimeout
from .layout import Layout, list_folder
from .lookup import read_record

_LOOK_S, _LOOK_SILENT_S = 5.0, 0.5  # between two looks, where events are told and where they are not
_FEW = 64  # records that are looked for by name; for more a listing is cheaper


def ended(layout: Layout, ids: Collection[str], timeout_s: float | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (id, record) of each task as it ends, in done/ or failed/; an id may be of a task that is not there yet.

    Raises WaitTimeout where some have not ended after ``timeout_s`` seconds; None: wait for ever.
    """
    open_ids = set(ids)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    interval = _LOOK_S if layout.filesystem.events else _LOOK_SILENT_S
    with Watcher() as watcher:
        for name in ("done", "failed"):
            watcher.add(layout.path / name)
        candidates: Collection[str] = open_ids
        next_look = time.monotonic() + interval
        while open_ids:
            for task_id in sorted(_present(layout, candidates)):
                if task_id in open_ids and (record := read_record(layout, task_id)) is not None:
                    open_ids.discard(task_id)
                    yield task_id, record
            now = time.monotonic()
            if not open_ids:
                return
            if deadline is not None and now >= deadline:
                raise WaitTimeout(f"{_named(open_ids)} did not end in {timeout_s:g} s, and goes on in the queue")
            watcher.wait(max(0.0, min(next_look, now + interval if deadline is None else deadline) - now))
            events, lost, overflowed = watcher.take()
            candidates = {name[:-5].decode("ascii", "replace") for _, name, _ in events if name.endswith(b".json")}
            if lost or overflowed or time.monotonic() >= next_look:
                candidates, next_look = open_ids, time.monotonic() + interval


def _present(layout: Layout, ids: Collection[str]) -> Collection[str]:
    """Return those that may have a record."""
    if len(ids) <= _FEW:
        return ids
    names = {
        name[:-5] for folder in (layout.done, layout.failed) for name in list_folder(folder) if name.endswith(".json")
    }
    return names.intersection(ids)


def _named(ids: Collection[str]) -> str:
    first = min(ids)
    return f"task {first}" + (f" and {len(ids) - 1} more" if len(ids) > 1 else "")
