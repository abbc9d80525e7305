"""The failures of late, grouped by what went wrong: what an operator looks at first.

Of the records in failed/ the newest are read, each once: what is told of a record is kept, since the same question comes
every few seconds.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from ...layout import Layout
from ...lookup import Found, read_found
from ...task import State, TaskName, WorkloadClass
from .views import members

MOST = 1000  #: newest records that are looked at
_TICK_NS = 50_000_000
_TRACEBACK = 8 << 10  # characters, its end
_VARIABLE = re.compile(
    r"0x[0-9a-f]+|[0-9a-f]{8}-[0-9a-f-]{27}|\b[0-9a-f]{12,}\b|\d+(?:\.\d+)?|'[^']{0,200}'|\"[^\"]{0,200}\"",
    re.IGNORECASE,
)


class _Failure(NamedTuple):
    cause: str
    task_class: str
    type: str | None
    message: str
    traceback: str | None
    alike: str  # the message without what differs from task to task


class Failures:
    """What failed in one queue."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], _Failure] = {}
        self._listed: tuple[Layout, int] | None = None  # of what folder, at what time, the newest are known
        self._newest: list[tuple[int, str]] = []

    def groups(self, layout: Layout, since_s: float | None = None) -> dict[str, Any]:
        """Return the groups of the failures of the last ``since_s`` seconds, the latest first.

        ``looked_at``: records that were read; ``complete``: whether these were all.
        """
        oldest = 0 if since_s is None else int((time.time() - since_s) * 1e9)
        recent = [one for one in self._recent(layout) if one[0] >= oldest]
        known, found = self._known, {}
        groups: dict[tuple[str, str, str | None, str], dict[str, Any]] = {}
        for at, file in recent[:MOST]:
            failure = known.get((file, at)) or _read(layout, file)
            if failure is None:
                continue
            found[file, at] = failure
            group = groups.get(key := (failure.cause, failure.task_class, failure.type, failure.alike))
            if group is not None:
                group["count"] += 1
                continue
            groups[key] = {
                "cause": failure.cause,
                "class": failure.task_class,
                "type": failure.type,
                "message": failure.message,
                "count": 1,
                "last_at": at / 1e9,
                "example_id": file.removesuffix(".json"),
                "traceback": failure.traceback,
            }
        self._known = found
        return {"groups": list(groups.values()), "looked_at": len(found), "complete": len(recent) <= MOST}

    def _recent(self, layout: Layout) -> list[tuple[int, str]]:
        """Return times (nanoseconds) and names of the newest records, newest first, one more than are read."""
        changed = os.fstat(layout.failed).st_mtime_ns
        if (layout, changed) == self._listed:
            return self._newest
        found = []
        descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=layout.failed)
        try:
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    if entry.name.endswith(".json") and not entry.name.startswith("."):
                        with contextlib.suppress(FileNotFoundError):
                            found.append((entry.stat(follow_symlinks=False).st_mtime_ns, entry.name))
        finally:
            os.close(descriptor)
        self._newest = heapq.nlargest(MOST + 1, found)
        # A change within the same tick of the clock would not show: only a folder that was quiet for a moment is trusted.
        self._listed = (layout, changed) if time.time_ns() - changed > _TICK_NS else None
        return self._newest


def _read(layout: Layout, file: str) -> _Failure | None:
    if TaskName.parse(file) is None:
        return None
    try:
        got = read_found(layout, Found(State.FAILED, file, layout.failed))
    except OSError:
        return None
    if got is None:
        return None
    error = members(got, "error").get("error")
    facts: Mapping[str, Any] = error if isinstance(error, Mapping) else {}
    message = str(facts.get("message") or "")[:2000]
    trace = facts.get("traceback") or facts.get("stacks")
    return _Failure(
        str(facts.get("cause") or "unknown"),
        str(WorkloadClass.parse(got.fields.task_class)),
        None if facts.get("type") is None else str(facts["type"])[:200],
        message,
        None if not trace else str(trace)[-_TRACEBACK:],
        _VARIABLE.sub("*", message)[:500],
    )
