"""What happens in a queue, seen by its folders' events: a task is submitted, started, done, failed, delayed, requeued, cancelled.

It looks only while somebody listens, and a minute longer, so that a listener that was cut off finds its place again. What
other hosts do on a shared filesystem raises no event here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, NamedTuple

from dspy_fastpath.inotify import Watcher

from ...client.access import Access
from ...errors import SupervisorError
from ...layout import Layout, list_folder
from ...log import log
from ...lookup import Found, find_one, read_found
from ...task import Cause, State, TaskName, WorkloadClass
from ...taskqueue import parse_delayed
from .ring import Ring
from .views import members

LINGER_S = 60.0  #: it goes on so long after the last listener
_LOOK_S = 1.0  # between two looks at whether the folder is still the same
_GATHER_S = 0.02  # events that come together are read together
_REMEMBERED = 50_000  # tasks whose class is known


class _Memory(NamedTuple):
    klass: str | None
    event: str
    attempt: int


class Lookout:
    """Watches a queue for the listeners of its ring."""

    def __init__(self, access: Access, stopping: Callable[[], bool]) -> None:
        self.ring = Ring()
        self._access, self._stopping = access, stopping
        self._task: asyncio.Task[None] | None = None
        self._left_at = 0.0  # monotonic seconds

    async def listen(self, last_id: str | None) -> AsyncIterator[bytes]:
        """Yield what one listener is sent. Raises SlowListener where it does not keep up."""
        if self._task is None or self._task.done():
            began = asyncio.Event()
            self._task = asyncio.create_task(self._watch(began))
            await began.wait()
        try:
            watch = self._task
            async for chunk in self.ring.listen(last_id, lambda: self._stopping() or watch.done()):
                yield chunk
        finally:
            self._left_at = time.monotonic()

    def close(self) -> None:
        """Watch no more."""
        if self._task is not None:
            self._task.cancel()

    async def _watch(self, began: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        sights: _Sights | None = None

        def wake(descriptor: int) -> None:
            loop.remove_reader(descriptor)  # it stays readable until it is read: once is enough
            readable.set()

        self.ring.reset()  # nobody looked before now
        try:
            while not self._stopping():
                if not self.ring.listeners and began.is_set() and time.monotonic() - self._left_at > LINGER_S:
                    return
                if sights is None:
                    sights = await self._open()
                    began.set()
                readable.clear()
                if sights is not None:
                    loop.add_reader(descriptor := sights.watcher.fileno(), wake, descriptor)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await readable.wait()
                        await asyncio.sleep(_GATHER_S)
                if sights is None:
                    continue
                events, whole = await loop.run_in_executor(None, sights.take)
                self.ring.add(events)
                if not whole:
                    loop.remove_reader(sights.watcher.fileno())
                    sights.close()
                    sights = None
                    self.ring.reset()
        except Exception as error:  # events are a convenience: the next listener tries anew
            log.warning("events_off", error=repr(error), next="the next listener tries again")
        finally:
            began.set()
            if sights is not None:
                loop.remove_reader(sights.watcher.fileno())
                sights.close()
            self.ring.wake()  # who listens comes again

    async def _open(self) -> _Sights | None:
        """Watch the queue that is at the path now; None where there is none, or no more watches are to be had."""
        try:
            layout = await asyncio.get_running_loop().run_in_executor(None, self._access.now)
            return _Sights(layout)
        except (SupervisorError, OSError):
            return None


class _Sights:
    """The watched folders of one layout."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._known: OrderedDict[str, _Memory] = OrderedDict()
        self._owners: dict[int, str] = {}
        self._looked_at = time.monotonic()
        self.watcher = Watcher()
        try:
            path = layout.path
            self._pending = self.watcher.add(path / "pending")
            self._delayed = self.watcher.add(path / "delayed")
            self._claimed = self.watcher.add(path / "claimed")
            self._ends = {
                self.watcher.add(path / "done"): (State.DONE, layout.done),
                self.watcher.add(path / "failed"): (State.FAILED, layout.failed),
            }
            for owner in list_folder(layout.claimed):
                self._add_owner(owner)
        except BaseException:
            self.watcher.close()
            raise

    def close(self) -> None:
        self.watcher.close()

    def take(self) -> tuple[list[Mapping[str, Any]], bool]:
        """Return what happened since, and whether nothing was missed."""
        seen, dropped, overflowed = self.watcher.take()
        found: list[Mapping[str, Any]] = []
        at = round(time.time(), 3)
        for watch, raw, _ in seen:
            file = os.fsdecode(raw)
            if watch == self._claimed:
                found += self._new_owner(file, at)
            elif (event := self._event(watch, file, at)) is not None:
                found.append(event)
        for watch in dropped:
            self._owners.pop(watch, None)
        lost = {self._pending, self._delayed, self._claimed, *self._ends}.intersection(dropped)
        now = time.monotonic()
        if not lost and now - self._looked_at > _LOOK_S:
            self._looked_at = now
            lost = set() if self._layout.is_current() else {self._pending}
        return found, not (lost or overflowed)

    def _event(self, watch: int, file: str, at: float) -> Mapping[str, Any] | None:
        if not file.endswith(".json") or file.startswith("."):
            return None
        if watch == self._delayed:
            parsed = parse_delayed(file)
            return None if parsed is None else self._tell("delayed", parsed[1], at, self._layout.delayed, file)
        name = TaskName.parse(file)
        if name is None:
            return None
        if watch == self._pending:
            before = self._known.get(name.id)
            again = name.attempt or (before is not None and before.event in ("delayed", "started"))
            return self._tell("requeued" if again else "submitted", name, at, self._layout.pending, file)
        if (end := self._ends.get(watch)) is not None:
            return self._tell(self._ending(end, name), name, at, end[1], file)
        owner = self._owners.get(watch)
        return None if owner is None else self._tell("started", name, at, None, file, owner)

    def _tell(
        self, event: str, name: TaskName, at: float, folder: int | None, file: str, owner: str | None = None
    ) -> Mapping[str, Any] | None:
        before = self._known.get(name.id)
        if before is not None and (before.event, before.attempt) == (event, name.attempt):
            return None  # a file written in place is created, and then closed
        klass = before.klass if before is not None else None
        if klass is None:
            klass = self._class(name, Found(State.PENDING, file, folder, owner))
        self._known[name.id] = _Memory(klass, event, name.attempt)
        self._known.move_to_end(name.id)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return {"event": event, "id": name.id, "class": klass, "at": at}

    def _class(self, name: TaskName, found: Found) -> str | None:
        """Return a task's class from its file, wherever that has got to meanwhile."""
        record = f"{name.id}.json"
        ends = (Found(State.DONE, record, self._layout.done), Found(State.FAILED, record, self._layout.failed))
        for place in (found, *ends, None):  # None: between these, as while it runs
            with contextlib.suppress(OSError):
                there = place or find_one(self._layout, name.id)
                if there is not None and (got := read_found(self._layout, there)) is not None:
                    return str(WorkloadClass.parse(got.fields.task_class))
        return None

    def _ending(self, end: tuple[State, int], name: TaskName) -> str:
        state, folder = end
        if state is State.FAILED:
            with contextlib.suppress(OSError):
                got = read_found(self._layout, Found(state, f"{name.id}.json", folder))
                error = members(got, "error").get("error") if got is not None else None
                if isinstance(error, Mapping) and error.get("cause") == Cause.CANCELLED:
                    return "cancelled"
        return str(state)

    def _new_owner(self, owner: str, at: float) -> list[Mapping[str, Any]]:
        """Watch the claims of a new owner, and tell of those that were there before that."""
        watch = self._add_owner(owner)
        if watch is None:
            return []
        try:
            files = os.listdir(self._layout.path / "claimed" / owner)
        except OSError:
            return []
        return [event for file in sorted(files) if (event := self._event(watch, file, at)) is not None]

    def _add_owner(self, owner: str) -> int | None:
        with contextlib.suppress(OSError):  # gone again, or no folder
            watch = self.watcher.add(self._layout.path / "claimed" / owner)
            self._owners[watch] = owner
            return watch
        return None
