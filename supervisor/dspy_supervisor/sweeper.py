"""The truth, now and then: whether the queue's folders are still those that are open, and who else serves them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from .errors import QueueMissing, SupervisorError
from .layout import IDENTITY
from .log import log
from .settle import recover, take_dead_nodes

if TYPE_CHECKING:
    from .loop import Supervisor

_BACK_S = 1.0  # a queue that is missing is looked for so often


class Sweeper:
    """Looks at the queue's folder at intervals, and serves the one that has its name."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self.missing = ""  #: why the queue can't be served at the moment
        self._beating = False
        self._beat_ok = time.monotonic()  # when our heartbeat was last written

    @property
    def is_silent(self) -> bool:
        """Whether others may soon take us for dead: then nothing new is started here."""
        return self._beating and time.monotonic() - self._beat_ok > self._supervisor.config.take_after_s / 2

    @property
    def interval_s(self) -> float:
        """Seconds between two sweeps: fewer where the filesystem tells nothing of what other hosts do."""
        config, filesystem = self._supervisor.config, self._supervisor.layout.filesystem
        told = filesystem.events and not filesystem.network and not self._supervisor.intake.blind
        return config.sweep_s if told else config.sweep_network_s

    def sweep(self) -> None:
        """Look at everything."""
        supervisor = self._supervisor
        self.check_folders()
        if not self.missing:
            supervisor.guard(supervisor.orders.apply_pause)
            supervisor.guard(self.look_at_others)
            supervisor.settle()
            supervisor.try_to_watch()
            supervisor.intake.rescan()
            if not supervisor.unsettled:
                supervisor.intake.trust_lanes()
            for pool in supervisor.pools.values():
                pool.adjust()
                pool.hosts.expire(time.monotonic(), supervisor.config.env_idle_s)
            supervisor.show()
        supervisor.page.beat()
        supervisor.reactor.call_later(_BACK_S if self.missing else self.interval_s, self.sweep)

    def look_at_others(self) -> None:
        """Begin to show that we live, and to judge whether others do, where there are others or may be."""
        supervisor = self._supervisor
        supervisor.alive = supervisor.observer.others()
        if (supervisor.alive or supervisor.layout.filesystem.network) and not self._beating:
            self._beating = True
            self._beat_ok = time.monotonic()
            self._beat()

    def check_folders(self) -> None:
        """Notice a queue that was removed, replaced or unmounted, and one that is back."""
        try:
            if not self._supervisor.layout.is_current():
                self._adopt()
            elif self.missing:
                self._return()
        except (OSError, SupervisorError) as error:
            if not self.missing:
                log.error("queue_missing", error=str(error), next="waiting for it to come back")
            self.missing = str(error) or type(error).__name__
            self._supervisor.notifier.send(STATUS=f"queue missing: {self.missing}")

    def _return(self) -> None:
        """Go on with the very folders that were served before: they were only out of sight."""
        supervisor = self._supervisor
        log.info("queue_back", path=str(supervisor.layout.path))
        self.missing = ""
        supervisor.watch()
        supervisor.settle()
        supervisor.notifier.send(STATUS=f"serving {supervisor.layout.path}")

    def _adopt(self) -> None:
        """Serve the folder that has the queue's name now. Raises where there is none, or it is another filesystem's.

        A folder that was made again on the same filesystem is taken for the queue's, even when it is empty; an empty
        mount point is not. On another filesystem it must say itself that it is this queue.
        """
        supervisor = self._supervisor
        path = supervisor.config.queue_dir
        if path.stat().st_dev != supervisor.layout.device and not _is_queue(path, supervisor.layout.queue_id):
            raise QueueMissing(f"{path} is on another filesystem than before, and not this queue: is its disk mounted?")
        layout = supervisor.open_layout(queue_id=supervisor.layout.queue_id)
        log.warning("queue_replaced", path=str(path), means="what ran is void; serving the folder that is there now")
        self.missing = "being replaced"
        for pool in supervisor.pools.values():
            pool.end_now("the queue's folder was replaced")
        supervisor.move_to(layout)
        self.missing = ""
        supervisor.crew.restart()
        recover(supervisor, anew=True)
        supervisor.watch()
        supervisor.notifier.send(STATUS=f"serving {supervisor.layout.path}")
        for pool in supervisor.pools.values():
            pool.adjust()

    def _beat(self) -> None:
        supervisor = self._supervisor
        written = False
        if not self.missing:
            try:
                supervisor.presence.beat()
                self._beat_ok, written = time.monotonic(), True
            except OSError as error:
                log.warning("heartbeat_lost", error=str(error))
            supervisor.guard(lambda: take_dead_nodes(supervisor, beating=written))
        self._beating = supervisor.layout.filesystem.network or bool(supervisor.alive)
        if self._beating:
            supervisor.reactor.call_later(supervisor.config.heartbeat_s, self._beat)


def _is_queue(path: Path, queue_id: str) -> bool:
    """Whether a folder says that it is the queue of this id."""
    try:
        identity = orjson.loads((path / IDENTITY).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(identity, dict) and identity.get("queue_id") == queue_id
