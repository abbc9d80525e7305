"""Which of the tasks that somebody waits for have ended: told by events of the folders, and by looking.

The order is: watch, look, wait. Events wake; what lies in the folders decides. A look at everything follows where events
were lost, where the folder was replaced, and at an interval, which is short where the filesystem has no events.

A task that is nowhere has ended too, as MISSING; this is asked for a moment after a wait begins, since most tasks have
ended by then, and again with the later looks.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Collection, Iterable
from enum import Enum

from dspy_fastpath.inotify import Watcher

from ..errors import QueueMissing
from ..layout import Layout, list_folder
from ..lookup import files, find_one, name_of, quarantined
from ..task import State
from ..taskqueue import exists
from .access import Access

_LOOK_S, _LOOK_SILENT_S = 5.0, 1.0  # between two looks, where events are told and where they are not
_LOOK_BLIND_S = 0.02  # where this process gets no watcher: its user has too many
_DOUBT_S = 0.05  # after the begin of a wait: is the task there at all?
_GONE_S = 6.0  # a folder that is made again is made again by a supervisor's next sweep
_FEW = 64  # tasks that are looked for by name; for more a listing is cheaper
_COST = 20  # a look may take this share of the time: 1/20
_QUARANTINE_SUFFIX = 42  # .UUID.json


class Ending(Enum):
    """How a wait for a task ends."""

    DONE = "done"
    FAILED = "failed"
    QUARANTINED = "quarantined"  #: it was refused
    MISSING = "missing"  #: no such task is in the queue


class Wait:
    """A wait for tasks: until one, or all, have ended; ``until`` is a word of concurrent.futures.wait."""

    def __init__(self, ids: Iterable[str], until: str = "ALL_COMPLETED") -> None:
        self.open = set(ids)
        self.ended: dict[str, Ending] = {}
        self._first = until != "ALL_COMPLETED"
        self._first_good = until == "FIRST_COMPLETED"
        self._enough = False

    def tell(self, task_id: str, ending: Ending) -> None:
        """Take note that a task has ended."""
        self.open.discard(task_id)
        self.ended[task_id] = ending
        if (self._first and (self._first_good or ending is not Ending.DONE)) or ending is Ending.MISSING:
            self._enough = True

    @property
    def over(self) -> bool:
        """Whether it has what it waits for."""
        return self._enough or not self.open


class Endings:
    """Tells waits of the endings of their tasks. Not for several threads at once, but for `sleep`."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._layout: Layout | None = None
        self._watcher: Watcher | None = None
        self._folders: dict[int, Ending] = {}
        self._waits: dict[str, list[Wait]] = {}
        self._doubted: set[str] = set()
        self._unborn: set[str] = set()
        self._doubt_at = self._look_at = self._search_at = self._gone_at = math.inf

    # -- who waits for what ---------------------------------------------------------------------------------------------

    def expect(self, wait: Wait, ids: Collection[str], *, fresh: bool = False) -> None:
        """Tell a wait of these tasks from now on, and at once of those that have ended.

        ``fresh``: they are not in the queue yet, which is no ending until `placed` is called.
        """
        self._watch()
        now = time.monotonic()
        if not self._waits:
            self._look_at = self._search_at = now + self._interval
        for task_id in ids:
            self._waits.setdefault(task_id, []).append(wait)
        if fresh:
            self._unborn.update(ids)
            return
        self._look(ids)
        if open_ids := [task_id for task_id in ids if task_id in self._waits]:
            self._doubted.update(open_ids)
            self._doubt_at = min(self._doubt_at, now + _DOUBT_S)

    def placed(self, ids: Iterable[str]) -> None:
        """Take note that these tasks are in the queue now."""
        self._unborn.difference_update(ids)

    def forget(self, wait: Wait, ids: Iterable[str]) -> None:
        """Tell a wait of these tasks no more."""
        for task_id in ids:
            waits = self._waits.get(task_id)
            if waits is not None and wait in waits:
                waits.remove(wait)
                if not waits:
                    del self._waits[task_id]
                    self._settled(task_id)

    # -- waiting --------------------------------------------------------------------------------------------------------

    @property
    def next_take(self) -> float:
        """When `take` has something to do without an event (monotonic seconds); inf where nobody waits."""
        return min(self._doubt_at, self._look_at)

    def fileno(self) -> int | None:
        """Return what is readable when `take` has something to do, after the first `expect`; None: nothing is."""
        return self._watcher.fileno() if self._watcher is not None else None

    def sleep(self, timeout_s: float) -> None:
        """Return after an event, at ``next_take``, or after ``timeout_s`` seconds."""
        left = min(timeout_s, self.next_take - time.monotonic())
        if left > 0:
            if self._watcher is not None:
                self._watcher.wait(left)
            else:
                time.sleep(left)

    def take(self) -> None:
        """Tell the waits what has ended since. Raises QueueMissing where the folder is gone, and stays so."""
        lost = False
        if self._watcher is not None:
            events, dropped, overflowed = self._watcher.take()
            waits = self._waits
            for watch, name, _ in events:
                if name.endswith(b".json") and (ending := self._folders.get(watch)) is not None:
                    refused = ending is Ending.QUARANTINED
                    task_id = name[: -_QUARANTINE_SUFFIX if refused else -5].decode("ascii", "replace")
                    if task_id in waits:
                        if refused:
                            self._search([task_id])
                        else:
                            self._tell(task_id, ending)
            lost = any(watch in self._folders for watch in dropped)
            if lost or overflowed:
                self._look_at = 0.0
        if not self._waits:
            return
        now = time.monotonic()
        if now >= self._look_at:
            self._look_again(lost)
        elif now >= self._doubt_at:
            doubted = [task_id for task_id in self._doubted if task_id in self._waits]
            self._doubted.clear()
            self._doubt_at = math.inf
            if self._access.layout.is_current():
                self._search(doubted)
            else:
                self._look_again(lost=True)

    def close(self) -> None:
        """Give the watcher back."""
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None

    # -- below ----------------------------------------------------------------------------------------------------------

    @property
    def _interval(self) -> float:
        if not self._folders:
            return _LOOK_BLIND_S
        return _LOOK_S if self._access.layout.filesystem.events else _LOOK_SILENT_S

    def _watch(self) -> None:
        """Watch the folders of the layout that is open, where they are not watched."""
        layout = self._access.layout
        if self._layout is layout:
            return
        for watch in self._folders:
            if self._watcher is not None:
                self._watcher.remove(watch)
        self._folders = {}
        self._layout = layout
        try:
            self._watcher = self._watcher or Watcher()
            for folder, ending in (
                ("done", Ending.DONE),
                ("failed", Ending.FAILED),
                ("quarantine", Ending.QUARANTINED),
            ):
                self._folders[self._watcher.add(layout.path / folder)] = ending
        except FileNotFoundError:
            self._look_at = 0.0  # gone this moment: the next look sees to it
        except OSError:
            # This user has too many watchers or watches. Looking finds everything, too; each look tries again to watch.
            self._folders, self._layout = {}, None

    def _look_again(self, lost: bool) -> None:
        """Look at everything that is waited for, in the folder that is there now."""
        began = time.monotonic()
        if lost or not self._access.layout.is_current():
            try:
                self._access.reopen()
            except QueueMissing:
                self._gone_at = min(self._gone_at, began)
                if began - self._gone_at >= _GONE_S:
                    raise
                self._look_at = began + _LOOK_SILENT_S / 4
                return
            self._layout = None
            self._search_at = 0.0
        self._gone_at = math.inf
        self._watch()
        ids = list(self._waits)
        self._look(ids)
        now = time.monotonic()
        if now >= self._search_at:
            self._search([task_id for task_id in ids if task_id in self._waits and task_id not in self._unborn])
            self._search_at = time.monotonic() + max(self._interval, _COST * (time.monotonic() - now))
        self._look_at = now + max(self._interval, _COST * (now - began))

    def _look(self, ids: Collection[str]) -> None:
        """Tell of those that have a record."""
        layout = self._access.layout
        for folder, number, ending in (("done", layout.done, Ending.DONE), ("failed", layout.failed, Ending.FAILED)):
            names: list[str] = []
            if layout.filesystem.network:
                # A file server's client remembers for half a minute that a name was not there; a fresh listing by path
                # makes it ask.
                with contextlib.suppress(FileNotFoundError):
                    names = os.listdir(layout.path / folder)
            elif len(ids) > _FEW:
                with contextlib.suppress(FileNotFoundError):  # an open folder that was removed
                    names = list_folder(number)
            else:
                names = [f"{task_id}.json" for task_id in ids if exists(number, f"{task_id}.json")]
            for task_id in {name[:-5] for name in names if name.endswith(".json")}.intersection(ids):
                self._tell(task_id, ending)

    def _search(self, ids: Collection[str]) -> None:
        """Tell of those that are nowhere, or were refused."""
        layout = self._access.layout
        lost: Collection[str] = ids
        if len(ids) > _FEW:
            there = {name_of(found).id for state in State for found in files(layout, state)}
            lost = [task_id for task_id in ids if task_id not in there]
        for task_id in lost:
            # Asked twice: a task that moves backwards may pass behind a look.
            if find_one(layout, task_id) is None and find_one(layout, task_id) is None:
                refused = quarantined(layout, task_id) is not None
                self._tell(task_id, Ending.QUARANTINED if refused else Ending.MISSING)

    def _tell(self, task_id: str, ending: Ending) -> None:
        for wait in self._waits.pop(task_id, ()):
            wait.tell(task_id, ending)
        self._settled(task_id)

    def _settled(self, task_id: str) -> None:
        self._doubted.discard(task_id)
        self._unborn.discard(task_id)
        if not self._waits:
            self._doubt_at = self._look_at = self._search_at = self._gone_at = math.inf
