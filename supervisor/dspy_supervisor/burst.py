"""When a supervisor that was started for a burst has nothing left to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .loop import Supervisor


class Leftover(NamedTuple):
    """What a burst ends with: the tasks that nothing here can run, and why."""

    tasks: int
    reasons: list[str]


class Burst:
    """Watches one supervisor for its end."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self.is_checked = False  #: whether a pass over the folders found nothing after the last task ended

    def leftover(self) -> Leftover | None:
        """Return what is left where the burst is over, or None while something can still be done."""
        supervisor, intake = self._supervisor, self._supervisor.intake
        pools, backlogs = supervisor.pools, supervisor.backlogs
        if supervisor.sweeper.missing or intake.unread or intake.delayed or intake.suspects or intake.trouble:
            return None
        if supervisor.unsettled or any(supervisor.inflight(pool) or pool.trouble for pool in pools.values()):
            return None
        left = {name: len(backlog) for name, backlog in backlogs.items() if backlog}
        if any(not pools[name].failed and not pools[name].paused for name in left):
            return None
        if not self.is_checked:  # what a worker put back last may not have been told of yet
            self.is_checked = True
            intake.rescan()
            return None
        reasons = [f"class {name}: {pools[name].failed or 'paused'}" for name in left]
        reasons += sorted({reason for _, reason in intake.held.values()})
        return Leftover(sum(left.values()) + len(intake.held), reasons)
