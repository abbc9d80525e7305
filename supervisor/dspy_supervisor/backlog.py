"""What waits to be fed, in the order it will be: one heap a class, priorities that age, classes by weight.

A task's key is the time it arrived, less ``ageing_s`` for each step of priority. Waiting therefore raises a task exactly
as fast as every other, so the order never has to be computed anew, a task of priority p overtakes only those that
arrived at most p * ageing_s seconds before it, and no priority starves. Among classes that compete for one total limit
the next is chosen by stride scheduling (Waldspurger and Weihl, 1995): in proportion to their weights, so no class starves.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from .lanes import Host, Lanes, Waiting


class Entry(NamedTuple):
    """One waiting task, as the heap orders it."""

    key: float  #: seconds: arrival less the head start of its priority
    file: str  #: its name in pending/; breaks ties, so that tasks of one moment run in the order of their names
    priority: int


class Backlog:
    """The tasks of one class that are known to wait in pending/."""

    def __init__(self, ageing_s: float) -> None:
        self._ageing_s = ageing_s
        self._heap: list[Entry] = []
        self._files: dict[str, float] = {}  # to the key of its entry: one that came again has older entries, too
        self._arrivals: list[tuple[float, str]] = []  # heap; entries of tasks that are gone are passed over
        self.lanes = Lanes()  #: those of its tasks that have a key

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __contains__(self, file: str) -> bool:
        return file in self._files

    def add(self, file: str, arrived: float, priority: int) -> bool:
        """Take a task that arrived at ``arrived`` (epoch seconds); False where it is known already."""
        if file in self._files:
            return False
        key = self._files[file] = arrived - priority * self._ageing_s
        heapq.heappush(self._heap, Entry(key, file, priority))
        heapq.heappush(self._arrivals, (arrived, file))
        return True

    @property
    def oldest(self) -> float | None:
        """When the task that waits longest arrived, epoch seconds, whatever its priority; None where nothing waits."""
        arrivals = self._arrivals
        if len(arrivals) > 64 and len(arrivals) > 2 * len(self._files):
            arrivals = self._arrivals = [entry for entry in arrivals if entry[1] in self._files]
            heapq.heapify(arrivals)
        while arrivals and arrivals[0][1] not in self._files:
            heapq.heappop(arrivals)
        return arrivals[0][0] if arrivals else None

    @property
    def ready(self) -> int:
        """Tasks that any worker may be handed, one after another: those without a key."""
        return len(self._files) - self.lanes.waiting

    @property
    def next_turn(self) -> float:
        """When the next of these is due among the tasks that have a key; infinity where there is none."""
        while self._heap and not self._is_current(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0].key if self._heap else math.inf

    def add_keyed(self, file: str, arrived: float, priority: int, key: str, *, is_new: bool) -> bool:
        """Take a task that has a key; ``is_new``: it was never tried. False where it is known already."""
        if file in self._files:
            return False
        self._files[file] = math.nan  # it is in a lane, and has no entry
        heapq.heappush(self._arrivals, (arrived, file))
        self.lanes.add(key, Waiting(is_new, arrived, file, arrived - priority * self._ageing_s))
        return True

    def take_keyed(self, source: Host | None, host: Host, now: float) -> str | None:
        """Return the next task for a worker of those bound to ``source``, and forget it; None where there is none."""
        file = self.lanes.take(source, host, now)
        if file is not None:
            self._files.pop(file, None)
        return file

    def discard(self, file: str) -> bool:
        """Forget a task; False where it wasn't known."""
        if file not in self._files:
            return False
        self._files.pop(file, None)  # its entry is passed over when it comes up
        if self.lanes.waiting:
            self.lanes.discard(file)
        if len(self._heap) > 64 and len(self._heap) > 2 * len(self._files):
            self._heap = [entry for entry in self._heap if self._is_current(entry)]
            heapq.heapify(self._heap)
        return True

    def pop(self) -> str | None:
        """Return the task that is next, and forget it; None where nothing waits."""
        while self._heap:
            entry = heapq.heappop(self._heap)
            if self._is_current(entry):
                del self._files[entry.file]
                return entry.file
        return None

    def position(self, file: str) -> int:
        """Return how many tasks come before this one; for one with a key, of that key."""
        if (lane := self.lanes.find(file)) is not None:
            return lane.position(file)
        ahead = self._in_order()
        return ahead.index(file) if file in ahead else len(ahead)

    def _in_order(self) -> list[str]:
        """Return what waits, first the next."""
        return list(dict.fromkeys(entry.file for entry in sorted(self._heap) if self._is_current(entry)))

    def _is_current(self, entry: Entry) -> bool:
        """Whether its task waits, and waits by this entry."""
        return self._files.get(entry.file) == entry.key

    def clear(self) -> None:
        """Forget everything that waits, for a scan that begins anew."""
        self._heap.clear()
        self._arrivals.clear()
        self._files.clear()
        self.lanes.clear()


class Shelf(Backlog):
    """A backlog whose first few can be looked at, and of which one can be chosen to be the next that is popped."""

    def __init__(self, ageing_s: float) -> None:
        super().__init__(ageing_s)
        self._front: list[Entry] = []  # sorted; what was taken from the heap to be looked at
        self._chosen: str | None = None
        self.changes = 0  #: advances whenever a task comes or goes
        self.greet: Callable[[str], object] = str  #: is told of each that comes

    def add(self, file: str, arrived: float, priority: int) -> bool:
        """Take a task, as any backlog does."""
        added = super().add(file, arrived, priority)
        if added:
            self.changes += 1
            self.greet(file)
            if self._front and self._heap[0] < self._front[-1]:  # it overtakes what is being looked at
                heapq.heappush(self._heap, self._front.pop())
                bisect.insort(self._front, heapq.heappop(self._heap))
        return added

    def discard(self, file: str) -> bool:
        """Forget a task, as any backlog does."""
        self.changes += 1
        return super().discard(file)

    def first(self, number: int) -> list[str]:
        """Return the tasks that come first, in their order."""
        known = set()
        front = []
        for entry in self._front:
            if self._is_current(entry) and entry.file not in known:
                known.add(entry.file)
                front.append(entry)
        while len(front) < number and self._heap:
            entry = heapq.heappop(self._heap)
            if self._is_current(entry) and entry.file not in known:
                known.add(entry.file)
                front.append(entry)
        self._front = front
        return [entry.file for entry in front[:number]]

    def choose(self, file: str) -> None:
        """Let a task be the next."""
        self._chosen = file

    def pop(self) -> str | None:
        """Return the task that was chosen, else the first, and forget it."""
        file, self._chosen = self._chosen, None
        if file not in self._files:
            file = next(iter(self.first(1)), None)
        if file is not None:
            self._files.pop(file, None)
            self.changes += 1
        return file

    def _in_order(self) -> list[str]:
        """Return what waits, first what is being looked at."""
        return list(dict.fromkeys([*self.first(len(self._front)), *super()._in_order()]))

    def clear(self) -> None:
        """Forget everything."""
        super().clear()
        self._front.clear()
        self.changes += 1


class Shares:
    """Whose turn it is among classes that share one total limit."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = dict(weights)
        self._pass: dict[str, float] = dict.fromkeys(weights, 0.0)

    def next(self, ready: Iterable[str]) -> str | None:
        """Return the class of these that had the least for its weight, and charge it for one task."""
        candidates = list(ready)
        if not candidates:
            return None
        # A class that was away doesn't come back with a claim to all it missed: it starts level with the others.
        floor = min(self._pass[name] for name in candidates)
        for name in self._pass:
            if name not in candidates:
                self._pass[name] = max(self._pass[name], floor)
        chosen = min(candidates, key=lambda name: (self._pass[name], name))
        self._pass[chosen] += 1.0 / self._weights[chosen]
        return chosen
