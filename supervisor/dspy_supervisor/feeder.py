"""Feeding: which waiting task goes to which worker, now."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from .backlog import Backlog, Shares
from .carrier import Carrier
from .pool import Pool
from .pool_worker import Worker
from .reactor import Reactor

_TICK_S = 0.25  # what runs is looked at so often, for as long as anything runs


class _Bound(NamedTuple):
    """Where the key of the next task is bound; to None: nowhere yet."""

    to: Worker | None


_Offer = tuple[Worker, int, _Bound | None]  # a worker, names it may get, and for tasks with keys, which


class Feeder:
    """Hands names from the backlogs to the pools, by the weights of their classes."""

    def __init__(
        self,
        reactor: Reactor,
        pools: Mapping[str, Pool],
        backlogs: Mapping[str, Backlog],
        carriers: Mapping[str, Carrier],
        *,
        see: Callable[[str], object],  # looks at a name of pending/ again
        show: Callable[[], object],  # called at every tick
    ) -> None:
        self._reactor, self._pools, self._backlogs, self._carriers = reactor, pools, backlogs, carriers
        self._see, self._show = see, show
        self.total_limit = 0  #: tasks at once over all classes; 0: none
        self._shares = Shares(dict.fromkeys(pools, 1.0))
        self.serving = False  #: whether anything is started at all
        self._ticking = False

    def configure(self, total_limit: int, weights: Mapping[str, float]) -> None:
        """Take new limits and weights."""
        self.total_limit = total_limit
        self._shares = Shares(weights)

    @property
    def inflight(self) -> int:
        """Tasks that run, over all classes."""
        return sum(pool.inflight for pool in self._pools.values())

    def offer(self, name: str, file: str) -> bool:
        """Hand a task that just arrived straight to an idle worker; False where it has to wait like the others.

        Only where nothing waits before it, so no order is broken: the backlog would give it back at once.
        """
        if not self.serving or self.total_limit or not self._pools[name].offer(file):
            return False
        self.begin_ticking()
        return True

    def pump(self) -> None:
        """Feed whoever can take something."""
        self._hand_over()
        if self.total_limit:
            self._pump_by_weight()
            return
        # Without a common limit no class takes anything from another.
        for name, backlog in self._backlogs.items():
            pool = self._pools[name]
            while backlog and (offer := self._offer(pool, backlog)):
                self._feed(pool, backlog, *offer)

    def _hand_over(self) -> None:
        """Give the services that carry tasks elsewhere what they have room for."""
        for name, carrier in self._carriers.items():
            backlog = self._backlogs[name]
            while backlog.ready and (room := carrier.room):
                files: list[str] = []
                while len(files) < room and (file := backlog.pop()) is not None:
                    files.append(file)
                if not carrier.feed(files):
                    for file in files:
                        self._see(file)
                    break

    def _pump_by_weight(self) -> None:
        while self.inflight < self.total_limit:
            offers = {}
            for name, backlog in self._backlogs.items():
                if backlog and (offer := self._offer(self._pools[name], backlog)):
                    offers[name] = offer
            chosen = self._shares.next(offers)
            if chosen is None:
                return
            self._feed(self._pools[chosen], self._backlogs[chosen], *offers[chosen])

    @staticmethod
    def _offer(pool: Pool, backlog: Backlog) -> _Offer | None:
        """Return which worker of a class to feed next, and with what."""
        if backlog.lanes.waiting and backlog.lanes.complete and (found := pool.host(backlog.next_turn)):
            worker, source, room = found
            return worker, room, _Bound(source)
        if (ready := backlog.ready) and (hungry := pool.hungry(ready, backlog.next_turn)):
            return *hungry, None
        return None

    def _feed(self, pool: Pool, backlog: Backlog, worker: Worker, room: int, bound: _Bound | None) -> None:
        files: list[str] = []
        if bound is not None:
            source, now = bound.to, time.monotonic()
            while len(files) < room and (file := backlog.take_keyed(source, worker, now)) is not None:
                files.append(file)
                source = worker
        else:
            while len(files) < room and (file := backlog.pop()) is not None:
                files.append(file)
        if not pool.feed(worker, files):
            worker.ending = True  # it is dead, and its end is about to be noticed
            for file in files:
                backlog.lanes.ended(file, time.monotonic(), returns=True)
                self._see(file)
        else:
            self.begin_ticking()

    def begin_ticking(self) -> None:
        """Look at what runs, now and then, from now on."""
        if not self._ticking:
            self._ticking = True
            self._reactor.call_later(_TICK_S, self._tick)

    def _tick(self) -> None:
        """Look at what runs: deadlines, and names that wait behind a task that turned out long."""
        now = time.monotonic()
        for pool in self._pools.values():
            pool.check_deadlines(now)
            pool.hedge(now)
            for file in pool.stuck_names(now):
                self._see(file)
        self._show()
        self._ticking = self.inflight > 0
        if self._ticking:
            self._reactor.call_later(_TICK_S, self._tick)
