"""From "something arrived" to "this name, for that class": watch, scan, sweep.

Events are hints: they make the usual case fast. The scan is the truth: it runs once at the start and then at intervals,
reads a bounded slice of names at a time, so the loop never waits for a folder of a million files, and rests while the
backlogs are full. Order matters: the watch is set before the scan begins, so nothing falls between them.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from dspy_fastpath.counters import Counter, Global, Page
from dspy_fastpath.inotify import Watcher

from .backlog import Backlog
from .environments import key_of
from .layout import FOLDERS, Layout, list_folder
from .log import log
from .record import Claim
from .taskqueue import TaskQueue, Unusable, parse_delayed

SLICE = 1000  #: names read from the folder before the loop looks at anything else: about a millisecond
HIGH_WATER = 20_000  #: tasks of one class that are known at a time; the folder keeps the rest
_LOW_WATER = HIGH_WATER // 2
_WHOLE_S = 30.0  # between two passes to the folder's end for the sake of idle classes, where another one is full
_MAX_SUSPECTS = 10_000
_MAX_ROUTES = 1000
_MAX_COUNTED = 10_000
_IGNORED = (".tmp", ".lock")


class Keys(NamedTuple):
    """Where the keys of a class's tasks are, and whether they count at all."""

    by_env_id: bool  #: whether a task's payload names its environment, where its envelope has no affinity
    elsewhere: Callable[[str], str]  #: why a key's tasks are another supervisor's, or ""


class _Route(NamedTuple):
    """What becomes of the tasks of one kind and class."""

    klass: str
    reason: str  # why they can't run here, or ""
    keys: Keys | None  # None: their affinity says nothing here


@dataclass(slots=True)
class _Suspect:
    """A file that is no task, and perhaps still being written."""

    since: float  # monotonic seconds, when it last looked different
    signature: tuple[int, int, int]  # size, mtime, inode


@dataclass(slots=True)
class _Pass:
    """One walk through pending/."""

    names: Iterator[os.DirEntry[str]]
    descriptor: int
    unseen: set[str]  # known before it began, not met yet
    seen: int = 0
    skipped: bool = False  # some were left out, since their class had no room
    counts: bool = True  # whether it tells of all that waited when it began: no event was lost meanwhile
    cost_s: float = 0.0


@dataclass(slots=True)
class Intake:
    """What waits in pending/ and delayed/, as far as it is known."""

    queue: TaskQueue
    page: Page
    backlogs: Mapping[str, Backlog]
    why_held: Callable[[Claim], str]  #: why a task can't run here, or ""
    keys_of: Callable[[Claim], Keys | None]  #: how tasks like this one are bound to workers; None: not at all
    offer: Callable[[str, str], bool]  #: hands a task of a class to an idle worker, where there is one
    fed: Set[str]  #: names that workers were handed
    has_idle: Callable[[], bool]  #: whether a class that could run knows of no task
    partial_grace_s: float
    held: dict[str, tuple[str, str]] = field(default_factory=dict)  #: file to class and why nothing here can run it
    lost: bool = False  #: a watched folder was removed or moved
    trouble: str = ""  #: why tasks can't be read
    blind: bool = False  #: no events come
    waiting: int = 0  #: tasks in pending/ at the end of the last whole pass
    counted: set[str] = field(default_factory=set)  #: tasks that were counted as they arrived; some are gone
    _most_counted: int = _MAX_COUNTED
    elsewhere: dict[str, str] = field(default_factory=dict)  #: file to why its key is another's, until a sweep
    whole: bool = False  #: whether all that waits was read since the watch was set, or events were lost
    _routes: dict[tuple[str | None, str | None], _Route] = field(default_factory=dict)
    _delayed: set[str] = field(default_factory=set)
    _due: list[tuple[float, str]] = field(default_factory=list)  # heap: monotonic seconds, file
    _suspects: dict[str, _Suspect] = field(default_factory=dict)
    _watcher: Watcher | None = None
    _root_watch: int = -1
    _pending_watch: int = -1
    _delayed_watch: int = -1
    _pass: _Pass | None = None
    _rescan: bool = True
    _whole_at: float = field(default_factory=lambda: time.monotonic() + _WHOLE_S)  # when to read the folder to its end

    # -- watching --------------------------------------------------------------------------------------------------------

    def watch(self) -> int | None:
        """Watch the folders, and return the descriptor that tells of events, or None where the kernel has none left."""
        layout = self.queue.layout
        watcher: Watcher | None = None
        try:
            watcher = Watcher()
            # A folder that is held open tells nothing of its removal; the one above it tells that another took its place.
            self._root_watch = watcher.add(os.path.realpath(layout.path))  # a watch doesn't follow links
            self._pending_watch = watcher.add(Path(layout.path, "pending"))
            self._delayed_watch = watcher.add(Path(layout.path, "delayed"))
            self.lost = not layout.is_current()  # else what is watched is not what is open
        except OSError as error:
            if watcher is not None:
                watcher.close()
            if not self.blind:
                log.warning("no_events", error=str(error), next="looking at the folder at short intervals instead")
                self._read_anew()
            self.blind = True
            return None
        finally:
            self.rescan()
        self._watcher, self.blind = watcher, False
        self._read_anew()
        return watcher.fileno()

    def unwatch(self) -> None:
        """Stop watching, and forget what is known."""
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None
        self._end_pass()
        self._read_anew()
        for backlog in self.backlogs.values():
            backlog.clear()
        self.held.clear()
        self._delayed.clear()
        self._due.clear()
        self._suspects.clear()

    def take_events(self) -> None:
        """Look at what the kernel says has arrived."""
        if self._watcher is None:
            return
        events, lost, overflowed = self._watcher.take()
        if overflowed:
            self._read_anew()
        for watch, raw, _mask in events:
            name = os.fsdecode(raw)
            if watch == self._pending_watch:
                self.see(name)
            elif watch == self._delayed_watch:
                self._see_delayed(name)
            else:
                self.lost = self.lost or name in FOLDERS
        if overflowed:
            self.page.add_global(Global.OVERFLOWS)
            log.warning("inotify_overflow", next="scanning the folder")
            self.rescan()
        if lost:
            self.page.add_global(Global.LOST_WATCHES)
            self.lost = True

    # -- scanning --------------------------------------------------------------------------------------------------------

    def rescan(self) -> None:
        """Begin a pass as soon as the one that is under way has ended."""
        self._rescan = True

    @property
    def has_work(self) -> bool:
        """Whether `scan_slice` would do something now."""
        if self._pass is None:
            return self._rescan
        return not self._is_full()

    def scan_slice(self) -> None:
        """Look at the next names of the folder."""
        if self._pass is None:
            if not self._rescan:
                return
            self._begin_pass()
        walk = self._pass
        if walk is None or self._is_full():
            return
        began = time.monotonic()
        names = [entry.name for entry in itertools.islice(walk.names, SLICE)]
        for name in sorted(names):
            walk.unseen.discard(name)
            if not name.startswith(".") and not name.endswith(_IGNORED):
                walk.seen += 1
                walk.skipped |= not self.see(name)
        walk.cost_s += time.monotonic() - began
        if len(names) < SLICE:
            self._finish_pass(walk)

    def see(self, file: str) -> bool:
        """Look at one name in pending/; False where its class has no room for it now."""
        if file in self.fed or file in self.held:
            return True
        for backlog in self.backlogs.values():
            if file in backlog:
                return True
        try:
            task = self.queue.look(file)
        except Unusable as unusable:
            return self._refuse(file, unusable)
        except OSError as error:
            self._cannot_read(file, error)
            return True
        if task is None:
            return True
        self._suspects.pop(file, None)
        try:
            return self._admit(file, task)
        except OSError as error:
            self._cannot_read(file, error)
            return True

    def _refuse(self, file: str, unusable: Unusable) -> bool:
        try:
            self._suspect(file, unusable.reason, may_change=unusable.may_change)
        except OSError as error:
            self._cannot_read(file, error)
        return True

    def _cannot_read(self, file: str, error: OSError) -> None:
        """Leave a task where it is: an error of ours is not its fault."""
        if not self.trouble:
            log.error("cannot_read", task=file, error=str(error), next="trying again at the next sweep")
        self.trouble = f"{file} can't be read: {error}"

    def _read_anew(self) -> None:
        """Hand out nothing that has a key until all that waits was read: an earlier task of the key may be among it."""
        self.whole = False
        if self._pass is not None:
            self._pass.counts = False
        for backlog in self.backlogs.values():
            backlog.lanes.complete = False

    def trust_lanes(self) -> None:
        """Let keys wait no more for tasks that were to come back and are nowhere: somebody took them away."""
        lanes = [backlog.lanes for backlog in self.backlogs.values() if backlog.lanes.awaits]
        if lanes:
            names = [parsed[1] for parsed in map(parse_delayed, self._delayed) if parsed]
            ids = {name.id for name in names} | {file.removesuffix(".json").partition("~")[0] for file in self.held}
            for one in lanes:
                one.trust(ids, time.monotonic())

    def postpone(self) -> None:
        """Look no further until the next sweep: the folder can't be read now."""
        self._end_pass()
        self._rescan = False

    @property
    def unread(self) -> bool:
        """Whether pending/ holds names that were not looked at yet."""
        return self._pass is not None or self._rescan

    def discard(self, file: str) -> None:
        """Forget a task that went elsewhere."""
        self.held.pop(file, None)
        for backlog in self.backlogs.values():
            backlog.discard(file)

    def hold(self, file: str, klass: str, reason: str) -> None:
        """Remember a task that can't run, and why."""
        if len(self.held) < HIGH_WATER:
            self.held[file] = (klass, reason)

    def reconsider(self) -> None:
        """Look again at what could not run: the configuration changed."""
        self.held.clear()
        self._routes.clear()
        self.rescan()

    # -- delayed -----------------------------------------------------------------------------------------------------------

    def promote_due(self) -> None:
        """Move what is due to pending/."""
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            _, file = heapq.heappop(self._due)
            if file in self._delayed:
                self._delayed.discard(file)
                if self.queue.promote(file) and (parsed := parse_delayed(file)):
                    self.see(parsed[1].file)

    @property
    def next_due_s(self) -> float:
        """Seconds until the next delayed task is due."""
        return max(0.0, self._due[0][0] - time.monotonic()) if self._due else math.inf

    @property
    def delayed(self) -> int:
        """Tasks that wait for their time."""
        return len(self._delayed)

    def pending_of(self, name: str) -> int:
        """Tasks of a class that are known to wait."""
        return len(self.backlogs[name]) + sum(klass == name for klass, _ in self.held.values())

    # -- below -------------------------------------------------------------------------------------------------------------

    @property
    def depth(self) -> int:
        """Tasks in pending/, as far as they are known."""
        known = sum(map(len, self.backlogs.values())) + len(self.held)
        return known if max(map(len, self.backlogs.values())) < _LOW_WATER else max(known, self.waiting)

    def _admit(self, file: str, task: Claim) -> bool:
        not_before = task.fields.not_before
        if not_before is not None and not_before > time.time():
            self._count(file, task)
            self.queue.delay(file, not_before)  # and the event of that brings it here again
            return True
        klass, reason, keys = self._route(task)
        if reason:
            self.hold(file, klass, reason)
            if file in self.held:
                self._count(file, task)
            return True
        backlog = self.backlogs[klass]
        # Asked in two steps, since nearly all tasks have no key.
        has_key = keys is not None and (task.fields.affinity is not None or keys.by_env_id)
        if has_key and keys is not None and (key := key_of(task, by_env_id=keys.by_env_id)) is not None:
            self._count(file, task)
            self._admit_keyed(file, task, backlog, key, keys)
            return True
        if backlog.ready >= HIGH_WATER and task.fields.priority <= 0:
            self._rescan = True
            return False
        self._count(file, task)
        if not backlog and self.offer(klass, file):
            return True
        # A time in the future would be a head start for ever; a clock that was set back must not stop a task.
        backlog.add(file, min(task.submitted_at, time.time()), task.fields.priority)
        return True

    def _count(self, file: str, task: Claim) -> None:
        """Count a task that arrived: once, though it may be looked at again and again."""
        if task.name.attempt or file in self.counted:
            return
        if len(self.counted) >= self._most_counted:
            known = {*self.held, *self.fed, *itertools.chain(*self.backlogs.values())}
            known |= {parsed[1].file for parsed in map(parse_delayed, self._delayed) if parsed}
            self.counted &= known
            self._most_counted = max(_MAX_COUNTED, 2 * len(self.counted))
        self.counted.add(file)
        self.page.add(self.page.classes.index(task.workload), Counter.SUBMITTED)

    def _admit_keyed(self, file: str, task: Claim, backlog: Backlog, key: str, keys: Keys) -> None:
        """Take a task that has a key, however many there are: without all of them the first of a key isn't known."""
        if not backlog.lanes.knows(key) and (why := keys.elsewhere(key)):
            if len(self.elsewhere) < HIGH_WATER:
                self.elsewhere[file] = why
            return
        arrived = min(task.submitted_at, time.time())
        backlog.add_keyed(file, arrived, task.fields.priority, key, is_new=not task.name.attempt)
        backlog.lanes.complete = self.whole

    def _route(self, task: Claim) -> _Route:
        """Return what becomes of a task; decided once for all tasks of its kind and class."""
        key = (task.fields.kind, task.fields.task_class)
        route = self._routes.get(key)
        if route is None:
            if len(self._routes) >= _MAX_ROUTES:  # both are text from outside
                self._routes.clear()
            route = self._routes[key] = _Route(task.workload.value, self.why_held(task), self.keys_of(task))
        return route

    def _is_full(self) -> bool:
        """Whether enough is known for now: reading on would mostly be reading for nothing."""
        if time.monotonic() >= self._whole_at and self.has_idle():
            return False  # tasks of a class that has nothing to do may lie behind those of a class that is full
        if not self.whole and any(backlog.lanes.waiting for backlog in self.backlogs.values()):
            return False  # nothing of a key is handed out before all of it is known
        sizes = [backlog.ready for backlog in self.backlogs.values()]
        return max(sizes) >= HIGH_WATER or (self._pass is not None and self._pass.skipped and max(sizes) > _LOW_WATER)

    def _begin_pass(self) -> None:
        self._rescan = False
        self.page.add_global(Global.SWEEPS)
        delayed = list_folder(self.queue.layout.delayed)
        self._delayed.intersection_update(delayed)
        self.elsewhere.clear()
        for file in delayed:
            if not self.whole and file not in self._delayed:
                self._expect(file)
            self._see_delayed(file)
        # A descriptor of its own: a listing's place is shared by all copies of a description, also in workers.
        descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.queue.layout.pending)
        unseen = {file for backlog in self.backlogs.values() for file in backlog} | self.held.keys()
        self._pass = _Pass(os.scandir(descriptor), descriptor, unseen)
        self.trouble = ""

    def _finish_pass(self, walk: _Pass) -> None:
        for file in walk.unseen:  # known, and gone: claimed by another supervisor, or taken away
            self.discard(file)
        self.page.add_global(Global.DRIFT, len(walk.unseen))
        self.waiting = walk.seen
        self._whole_at = time.monotonic() + max(_WHOLE_S, 20 * walk.cost_s)
        self._end_pass()
        if walk.counts and not self.whole:
            self.whole = True
            for backlog in self.backlogs.values():
                backlog.lanes.complete = True

    def _expect(self, delayed: str) -> None:
        """Let the key of a task wait for it that was tried before this supervisor started, and is to be tried again."""
        parsed = parse_delayed(delayed)
        if parsed is None or not parsed[1].attempt:
            return
        with contextlib.suppress(Unusable, OSError):
            task = self.queue.read_delayed(delayed)
            if task is not None:
                klass, _, keys = self._route(task)
                if keys is not None and (key := key_of(task, by_env_id=keys.by_env_id)) is not None:
                    self.backlogs[klass].lanes.expect(key, task.name.id, time.monotonic())

    def _end_pass(self) -> None:
        if self._pass is not None:
            self._pass.names.close()  # type: ignore[attr-defined]
            os.close(self._pass.descriptor)
            self._pass = None

    def _see_delayed(self, file: str) -> None:
        if file in self._delayed or file.startswith("."):
            return
        parsed = parse_delayed(file)
        if parsed is None:
            self._suspect(file, "not a name of delayed/", self.queue.layout.delayed)
            return
        # From here on our own clock counts: one that is set meanwhile neither hurries nor stops the task.
        self._delayed.add(file)
        heapq.heappush(self._due, (time.monotonic() + max(0.0, parsed[0] - time.time()), file))

    def _suspect(self, file: str, reason: str, folder: int | None = None, *, may_change: bool = True) -> None:
        """Quarantine what is no task, once it can't be a task that is still being written."""
        layout: Layout = self.queue.layout
        folder = layout.pending if folder is None else folder
        try:
            status = os.stat(file, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            self._suspects.pop(file, None)
            return
        now, signature = time.monotonic(), (status.st_size, status.st_mtime_ns, status.st_ino)
        suspect = self._suspects.get(file)
        if may_change and (suspect is None or suspect.signature != signature):
            if len(self._suspects) < _MAX_SUSPECTS:
                self._suspects[file] = _Suspect(now, signature)
            return
        if may_change and suspect and now - suspect.since < self.partial_grace_s:
            return
        self._suspects.pop(file, None)
        kept = self.queue.quarantine(folder, file, reason)
        if kept is not None:
            self.page.add_global(Global.QUARANTINED)
            log.warning("quarantined", file=file, reason=reason, kept=kept)

    @property
    def suspects(self) -> int:
        """Files that are no tasks, and have time left to become one."""
        return len(self._suspects)

    def is_suspect(self, file: str) -> bool:
        """Whether this file is no task yet."""
        return file in self._suspects
