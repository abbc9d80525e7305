"""Whether the queue, or some of its classes, are paused: a file in its folder, so that it outlives every supervisor.

``paused.json`` holds ``{"classes": [names] or null for all, "reason": text, "since": epoch seconds}``. Tasks are accepted
all the same; nothing new is started.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection
from typing import NamedTuple

from .layout import PAUSED, Layout, read_json, replace_json


class Paused(NamedTuple):
    """What is paused."""

    classes: frozenset[str] | None  #: None: all of them
    reason: str
    since: float  #: epoch seconds

    def includes(self, name: str) -> bool:
        """Whether this class is paused."""
        return self.classes is None or name in self.classes


class Pause:
    """The pause of one queue."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def read(self) -> Paused | None:
        """Return what is paused, or None."""
        note = read_json(self._layout.root, PAUSED)
        if note is None:
            return None
        classes = note.get("classes")
        names = frozenset(map(str, classes)) if isinstance(classes, list) else None
        since = note.get("since")
        return Paused(names, str(note.get("reason") or ""), float(since) if isinstance(since, int | float) else 0.0)

    def pause(self, classes: Collection[str] | None, reason: str) -> None:
        """Pause these classes beside those that are paused; None: all."""
        already = self.read()
        if already is not None and (already.classes is None or classes is None):
            classes = None
        elif already is not None and already.classes is not None and classes is not None:
            classes = already.classes.union(classes)
        names = None if classes is None else sorted(classes)
        note = {"classes": names, "reason": reason, "since": round(time.time(), 3)}
        replace_json(self._layout.root, PAUSED, note, durable=self._layout.syncs)

    def resume(self, classes: Collection[str] | None, everything: Collection[str]) -> None:
        """Resume these classes of ``everything``; None: all."""
        already = self.read()
        paused = set(already.classes if already and already.classes is not None else everything)
        left = set() if classes is None else paused - set(classes)
        if already is not None and left:  # one that can't be read pauses nothing: it goes
            note = {"classes": sorted(left), "reason": already.reason, "since": already.since}
            replace_json(self._layout.root, PAUSED, note, durable=self._layout.syncs)
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(PAUSED, dir_fd=self._layout.root)
