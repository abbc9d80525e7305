"""A supervisor inside an allocation: it ends before the allocation does, or when it had nothing to do for long enough.

Whatever the reason it ends for, what its workers run can learn of it in time to save its work: they see the wish in a
file of this host (checkpoint.py reads it), which is there from the start.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from .environment import set_variable
from .log import log

if TYPE_CHECKING:
    from .loop import Supervisor

_RESERVE_S = 5.0  # beside the drain and the grace: for the last records
_LOOK_S = 1.0  # at most, between two looks at whether there is work


class Allocation:
    """Watches the time of one supervisor."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._wish = supervisor.page_path.with_suffix(".checkpoint")
        self._idle_since = time.monotonic()

    def begin(self) -> None:
        """Let workers to be know where to look, and set the clocks. Called before the first of them is forked."""
        config = self._supervisor.config
        self._wish.write_bytes(b"")
        set_variable("DSPY_CHECKPOINT", str(self._wish))
        if config.ends_at:
            left_s = config.ends_at - time.time() - self.reserve_s
            log.info("allocation", ends_in_s=round(config.ends_at - time.time()), serves_s=round(max(0.0, left_s)))
            self._supervisor.reactor.call_later(max(0.0, left_s), self._end)
        if config.idle_exit_s:
            self._look()

    @property
    def reserve_s(self) -> float:
        """Seconds before the end at which nothing more is started."""
        config = self._supervisor.config
        return config.drain_s + config.kill_grace_s + _RESERVE_S

    def wish(self) -> None:
        """Ask what runs to save its work. Best effort."""
        with (
            contextlib.suppress(OSError),
            self._wish.open("r+b") as file,
        ):  # in place: who looks has it open by its name
            file.write(b"requested\n")

    def close(self) -> None:
        """Remove the file of the wish."""
        with contextlib.suppress(OSError):
            self._wish.unlink()

    def _end(self) -> None:
        log.info("allocation_ends", means="nothing more is started, and what does not end in time is handed back")
        self._supervisor.stop()

    def _look(self) -> None:
        supervisor = self._supervisor
        if supervisor.stopping:
            return
        now, allowed_s = time.monotonic(), supervisor.config.idle_exit_s
        busy = any(supervisor.inflight(pool) for pool in supervisor.pools.values()) or supervisor.intake.unread
        runnable = any(
            backlog and not (supervisor.pools[name].paused or supervisor.pools[name].failed)
            for name, backlog in supervisor.backlogs.items()
        )
        if busy or runnable or supervisor.unsettled or supervisor.sweeper.missing:
            self._idle_since = now
        elif now - self._idle_since >= allowed_s:
            log.info("idle", for_s=round(now - self._idle_since, 1), means="this supervisor ends, as it was told to")
            supervisor.stop()
            return
        supervisor.reactor.call_later(min(_LOOK_S, allowed_s / 4), self._look)
