"""Tasks that share a key: one after another, in the order they arrived, all on the worker that the key is bound to.

A lane is the waiting tasks of one key. Its first is handed out only when none of the key runs, and none that was tried
before is still to come back. A key is bound when its first task is handed out, stays bound while tasks of it come, and
for a while after the last one; what its worker keeps under it (an environment) is gone with that worker.

Within a lane: those that were tried before, then by arrival, then by name. Among lanes, and beside tasks without a key, the
first of each counts, by the backlog's own order.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Hashable, Iterator
from typing import NamedTuple

MAX_UNUSED = 10_000  #: bound keys that nothing waits for and nothing is kept under: the longest unused are forgotten
CLOSING = "-"  #: in place of a task: the worker is giving up what it keeps under the key
_SETTLING_S = 5.0  # a task that is on its way back has been seen by then

Host = Hashable  #: a worker, whatever that is to the caller


class Waiting(NamedTuple):
    """One waiting task, as its lane orders it."""

    is_new: bool  #: tried never before
    arrived: float  #: epoch seconds
    file: str
    turn: float  #: when it is due among others, as a backlog's key


class Lane:
    """What is known of one key."""

    __slots__ = ("awaits", "busy", "host", "is_kept", "key", "leaves", "used_at", "waiting")

    def __init__(self, key: str) -> None:
        self.key = key
        self.waiting: list[Waiting] = []  # heap
        self.busy = ""  #: the task that its worker has, or CLOSING
        self.awaits: dict[str, float] = {}  #: ids of tasks that come back, and since when (monotonic seconds)
        self.host: Host | None = None
        self.is_kept = False  #: whether its worker keeps something under the key
        self.leaves = False  #: whether it is bound no longer than its task runs
        self.used_at = 0.0  #: monotonic seconds

    @property
    def is_open(self) -> bool:
        """Whether its first task may be handed out."""
        if not self.waiting or self.busy:
            return False
        return not self.awaits or not self.waiting[0].is_new

    def position(self, file: str) -> int:
        """Return how many waiting tasks of the key come before this one."""
        ahead = sorted(self.waiting)
        return next((index for index, task in enumerate(ahead) if task.file == file), len(ahead))

    @property
    def is_unused(self) -> bool:
        """Whether nothing of the key waits, runs or comes back."""
        return not (self.waiting or self.busy or self.awaits)


class Lanes:
    """The lanes of one class."""

    def __init__(self) -> None:
        self.waiting = 0  #: tasks
        self.complete = False  #: whether all that waits has been read, so that the first of a lane is the first
        self._lanes: dict[str, Lane] = {}
        self._lane_of: dict[str, Lane] = {}  # by file, of what waits and what was handed out
        self._keys: dict[Host, set[str]] = {}
        self._open: dict[
            Host | None, list[tuple[float, str, str]]
        ] = {}  # heaps of turn, file, key; entries may be stale

    def __bool__(self) -> bool:
        """Whether something waits and may be handed out, as far as this can be told at once."""
        return self.waiting > 0 and self.complete

    def __len__(self) -> int:
        return len(self._lanes)

    # -- what waits ------------------------------------------------------------------------------------------------------

    def add(self, key: str, task: Waiting) -> None:
        """Take a waiting task of a key."""
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(key)
        heapq.heappush(lane.waiting, task)
        self._lane_of[task.file] = lane
        self.waiting += 1
        lane.awaits.pop(_id_of(task.file), None)
        self._show(lane)

    def discard(self, file: str) -> None:
        """Forget a waiting task."""
        lane = self._lane_of.get(file)
        if lane is None or lane.busy == file:
            return
        del self._lane_of[file]
        self.waiting -= 1
        lane.waiting = [task for task in lane.waiting if task.file != file]
        heapq.heapify(lane.waiting)
        self._tidy(lane)

    def first(self, host: Host | None) -> float:
        """Return when the next task that a host may be handed is due (None: that any may); infinity where there is none."""
        heap = self._open.get(host)
        while heap:
            turn, file, key = heap[0]
            lane = self._lanes.get(key)
            if lane is not None and lane.host == host and lane.is_open and lane.waiting[0].file == file:
                return turn
            heapq.heappop(heap)
        return math.inf

    def take(self, source: Host | None, host: Host, now: float) -> str | None:
        """Return the next task for a host, from what is bound to ``source``, and bind its key; None where there is none."""
        if self.first(source) == math.inf:
            return None
        _, file, key = heapq.heappop(self._open[source])
        lane = self._lanes[key]
        heapq.heappop(lane.waiting)
        self.waiting -= 1
        lane.busy, lane.used_at = file, now
        self._bind(lane, host)
        return file

    def clear(self) -> None:
        """Forget what waits, for a scan that begins anew."""
        for lane in self._lanes.values():
            for task in lane.waiting:
                del self._lane_of[task.file]
            lane.waiting.clear()
        self.waiting, self.complete = 0, False
        self._open.clear()

    # -- what was handed out ---------------------------------------------------------------------------------------------

    def ended(self, file: str, now: float, *, returns: bool = False) -> None:
        """A task that was handed out is through; ``returns``: it is to be tried again, and the key waits for it."""
        lane = self._lane_of.get(file)
        if lane is None or lane.busy != file:
            return
        del self._lane_of[file]
        lane.busy, lane.used_at = "", now
        if returns:
            lane.awaits[_id_of(file)] = now
        elif lane.leaves:
            self._bind(lane, None)
        self._tidy(lane)

    def expect(self, key: str, task_id: str, now: float) -> None:
        """Let a key wait for a task that will come back."""
        lane = self._lanes.setdefault(key, Lane(key))
        if not any(_id_of(task.file) == task_id for task in lane.waiting):
            lane.awaits[task_id] = now

    def dismiss(self, task_id: str) -> None:
        """Wait no more for a task."""
        for lane in list(self._lanes.values()):
            if lane.awaits.pop(task_id, None) is not None:
                self._tidy(lane)

    def trust(self, delayed: Collection[str], now: float) -> None:
        """Wait no more for tasks that are not among those that are delayed: somebody took them away."""
        for lane in [lane for lane in self._lanes.values() if lane.awaits]:
            for task_id, since in list(lane.awaits.items()):
                if task_id not in delayed and now - since > _SETTLING_S:
                    del lane.awaits[task_id]
            self._tidy(lane)

    @property
    def awaits(self) -> bool:
        """Whether some key waits for a task that is to come back."""
        return any(lane.awaits for lane in self._lanes.values())

    # -- who has what ----------------------------------------------------------------------------------------------------

    def keep(self, key: str, host: Host, now: float) -> None:
        """A host keeps something under a key, be it the one of the task that it has or another."""
        lane = self._lanes.setdefault(key, Lane(key))
        lane.is_kept, lane.leaves, lane.used_at = True, False, max(lane.used_at, now)
        self._bind(lane, host)
        self._show(lane)  # what waits there already is this host's from now on

    def bound(self, host: Host) -> list[Lane]:
        """Return the lanes that are bound to a host."""
        return [self._lanes[key] for key in sorted(self._keys.get(host, ()))]

    def adopt(self, key: str, host: Host, now: float, *, is_kept: bool, busy: str) -> None:
        """Bind a key to a host as it was: with what is kept under it, and with the task of it that the host has."""
        lane = self._lanes.setdefault(key, Lane(key))
        lane.is_kept, lane.busy, lane.used_at = is_kept, busy, now
        if busy and busy != CLOSING:
            self._lane_of[busy] = lane
        self._bind(lane, host)

    def free(self, key: str, host: Host) -> None:
        """It keeps nothing there any more; the key may go elsewhere next."""
        lane = self._lanes.get(key)
        if lane is not None and lane.host == host:
            lane.is_kept, lane.leaves = False, True
            if lane.busy in ("", CLOSING):
                lane.busy = ""
                self._bind(lane, None)
                self._tidy(lane)

    def lose(self, host: Host) -> list[str]:
        """A host is gone, or takes no more: its keys are bound nowhere. Return those it kept something under."""
        lost = []
        for key in self._keys.pop(host, set()):
            lane = self._lanes[key]
            if lane.is_kept:
                lost.append(key)
            lane.host, lane.is_kept = None, False
            lane.busy = "" if lane.busy == CLOSING else lane.busy
            self._tidy(lane)
        self._open.pop(host, None)
        return lost

    def leave(self, host: Host) -> None:
        """Bind no key to a host any more but those it keeps something under."""
        for key in list(self._keys.get(host, ())):
            lane = self._lanes[key]
            if not lane.is_kept and not lane.busy:
                self._bind(lane, None)
                self._tidy(lane)

    def kept(self, host: Host) -> list[str]:
        """Return the keys a host keeps something under."""
        return sorted(key for key in self._keys.get(host, ()) if self._lanes[key].is_kept)

    def count(self, host: Host) -> int:
        """Return how many keys are bound to a host."""
        return len(self._keys.get(host, ()))

    def expire(self, now: float, idle_s: float) -> list[tuple[Host, str]]:
        """Forget the keys that were not used for so long; return those whose host is to give up what it keeps, and which."""
        unused = [lane for lane in self._lanes.values() if lane.is_unused]
        spare = sorted((lane for lane in unused if not lane.is_kept), key=lambda lane: lane.used_at)
        for place, lane in enumerate(spare):
            if now - lane.used_at > idle_s or len(spare) - place > MAX_UNUSED:
                self._forget(lane)
        found = []
        for lane in unused:
            if lane.is_kept and lane.host is not None and now - lane.used_at > idle_s:
                lane.busy = CLOSING  # what comes meanwhile waits until it is closed
                found.append((lane.host, lane.key))
        return found

    def spare(self, key: str) -> None:
        """Its host can't be told now to give up what it keeps under a key: that goes on as before."""
        lane = self._lanes[key]
        lane.busy = ""
        self._show(lane)

    # -- for whoever looks -----------------------------------------------------------------------------------------------

    def find(self, file: str) -> Lane | None:
        """Return the lane of a task that waits or was handed out."""
        return self._lane_of.get(file)

    def knows(self, key: str) -> bool:
        """Whether something waits, runs or is bound under a key."""
        return key in self._lanes

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._lanes.values())

    # -- below -----------------------------------------------------------------------------------------------------------

    def _show(self, lane: Lane) -> None:
        """Put a lane among those that may be handed out, if it is one."""
        if lane.is_open:
            first = lane.waiting[0]
            heapq.heappush(self._open.setdefault(lane.host, []), (first.turn, first.file, lane.key))

    def _bind(self, lane: Lane, host: Host | None) -> None:
        lane.leaves = False
        if lane.host == host:
            return
        if lane.host is not None and (keys := self._keys.get(lane.host)) is not None:
            keys.discard(lane.key)
        if host is not None:
            self._keys.setdefault(host, set()).add(lane.key)
        lane.host = host

    def _tidy(self, lane: Lane) -> None:
        """Show a lane where it stands now, or forget it where nothing of it is left."""
        if lane.is_unused and lane.host is None:
            self._lanes.pop(lane.key, None)
        else:
            self._show(lane)

    def _forget(self, lane: Lane) -> None:
        self._bind(lane, None)
        del self._lanes[lane.key]


def _id_of(file: str) -> str:
    """Return the id in a task's file name, without its attempt."""
    return file.removesuffix(".json").partition("~")[0]
