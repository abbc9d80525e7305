"""Which worker runs the tasks of which key: they are spread over the workers, and stay where something is kept for them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from .channel import LONG_S, release_order
from .lanes import Lanes
from .pool_worker import Worker

_START_S = 5.0  # a worker that starts is waited for so long, where it has the fewest keys


class Hosts:
    """The workers of one class, as its keys see them."""

    def __init__(self, lanes: Lanes) -> None:
        self.lanes = lanes

    def next(
        self,
        workers: Sequence[Worker],
        mean_run_s: float,  # of the class's tasks of late
        other_turn: float,  # when the next task without a key is due; infinity: none waits
    ) -> tuple[Worker, Worker | None] | None:
        """Return the worker to hand the next task of a key to, and the worker that key is bound to, or None for none yet."""
        lanes, best, found = self.lanes, math.inf, None
        for worker in workers:
            if worker.fed or not worker.ready or worker.deaf or worker.doom:
                continue
            # One that is leaving runs nothing else, so nothing else comes before its own.
            if (turn := lanes.first(worker)) < best and (turn <= other_turn or worker.ending):
                best, found = turn, (worker, worker)
        if lanes.first(None) < best and lanes.first(None) <= other_turn:
            roomiest = self._roomiest(workers, mean_run_s)
            if roomiest is not None:
                return roomiest, None
        return found

    def awaited(self, worker: Worker, turn: float) -> bool:
        """Whether a task of a key that came before ``turn`` waits for this worker to have nothing in hand, or for any."""
        lanes = self.lanes
        if not lanes.waiting or not lanes.complete:
            return False
        return min(lanes.first(worker), lanes.first(None)) <= turn

    def leave(self, worker: Worker) -> int:
        """Bind nothing more to a worker that is to go; return how many keys it still keeps something under."""
        self.lanes.leave(worker)
        return len(self.lanes.kept(worker))

    def expire(self, now: float, idle_s: float) -> None:
        """Have what was not used for so long given up."""
        for host, key in self.lanes.expire(now, idle_s):
            if isinstance(host, Worker):
                order = release_order(key)
                try:
                    host.channel.send(order.encode())
                except OSError:  # it is dead, or still closes what it was told before: then it hears of this later
                    self.lanes.spare(key)
                    continue
                host.fed[order] = now

    def facts(self, workers: Sequence[Worker]) -> dict[str, Any]:
        """Return what `status` shows of the keys of a class."""
        kept = {worker: len(self.lanes.kept(worker)) for worker in workers}
        leaving = [
            f"worker {worker.pid} is due to be replaced, and goes when its environments are closed: {number} are open"
            for worker, number in kept.items()
            if number and worker.ending
        ]
        return {"keys": len(self.lanes), "environments": sum(kept.values()), "environments_leaving": leaving}

    def _roomiest(self, workers: Sequence[Worker], mean_run_s: float) -> Worker | None:
        """Return an idle worker for a new key; None where that with the fewest keys will be idle in a moment."""
        now = time.monotonic()
        candidates = [
            worker
            for worker in workers
            if not (worker.ending or worker.deaf or worker.doom) and self._is_soon(worker, mean_run_s, now)
        ]
        chosen = min(candidates, key=lambda w: (self.lanes.count(w), bool(w.fed) or not w.ready), default=None)
        return chosen if chosen is not None and chosen.ready and not chosen.fed else None

    @staticmethod
    def _is_soon(worker: Worker, mean_run_s: float, now: float) -> bool:
        if not worker.ready:
            return now - worker.started < _START_S
        return not worker.fed or (mean_run_s < LONG_S and now - next(iter(worker.fed.values())) < LONG_S)
