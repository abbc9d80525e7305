"""The truth, now and then: whether the queue's folders are still those that are open, and who else serves them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from .control_client import ask, socket_path
from .errors import AlreadyRunning, NotRunning, QueueMissing, SupervisorError
from .layout import IDENTITY, has_lost_identity
from .log import log
from .settle import recover, take_dead_nodes

if TYPE_CHECKING:
    from .loop import Supervisor

_BACK_S = 1.0  # a queue that is missing is looked for so often
_ANSWER_S = 0.5  # that a supervisor which holds our queue has to answer


class Sweeper:
    """Looks at the queue's folder at intervals, and serves the one that has its name."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self.missing = ""  #: why the queue can't be served at the moment
        self._is_taken = False  # another supervisor of this name serves the queue: this one ends
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
        if self._is_taken:
            return
        try:
            if not self._supervisor.layout.is_current() or not self._has_our_id():
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
        mount point is not. On another filesystem it must say itself that it is this queue. Where it is a queue already,
        of another id, all that is ours goes by that id from then on, or another supervisor has it, and this one ends.
        """
        supervisor = self._supervisor
        path = supervisor.config.queue_dir
        if not path.exists():
            raise QueueMissing(
                f"{path} was removed, or moved away: bring it back, or begin anew by 'mkdir -m 700 {path}', which is noticed; "
                f"'dspy-supervisor stop --queue-dir {path}' ends what waits for it"
            )
        if path.stat().st_dev != supervisor.layout.device and not _is_queue(path, supervisor.layout.queue_id):
            raise QueueMissing(f"{path} is on another filesystem than before, and not this queue: is its disk mounted?")
        layout = supervisor.open_layout(before=supervisor.layout)
        try:
            lock = supervisor.take_lock_of(layout)
        except AlreadyRunning as error:
            layout.close()
            if not self._is_served(layout.queue_id):
                raise  # by a command, for a moment
            self._end(str(error))
            return
        log.warning("queue_replaced", path=str(path), means="what ran is void; serving the folder that is there now")
        self.missing = "being replaced"
        for pool in supervisor.pools.values():
            pool.end_now("the queue's folder was replaced")
        supervisor.move_to(layout, lock)
        self.missing = ""
        supervisor.crew.restart()
        recover(supervisor, anew=True)
        supervisor.watch()
        supervisor.notifier.send(STATUS=f"serving {supervisor.layout.path}")
        for pool in supervisor.pools.values():
            pool.adjust()

    def _has_our_id(self) -> bool:
        """Whether the folder that is served says that it is our queue; where queue.json is gone, it is written again."""
        layout = self._supervisor.layout
        try:
            if has_lost_identity(layout.path):
                layout.write_identity()
                means = "queue.json was gone, and is written again as it was"
                log.warning("identity_kept", path=str(layout.path), durability=layout.durability, means=means)
            return layout.id_now() in ("", layout.queue_id)  # "": it is torn, and fsck tells of that
        except OSError:
            return True  # an error is not a fact

    def _is_served(self, queue_id: str) -> bool:
        """Whether what has the lock of a queue is a supervisor."""
        config = self._supervisor.config
        try:
            ask(socket_path(config.runtime_dir, queue_id, config.instance), {"do": "status"}, _ANSWER_S)
        except NotRunning:
            return False
        except SupervisorError:  # it is slow, or ending
            pass
        return True

    def _end(self, why: str) -> None:
        """End, and leave the queue to another supervisor of this name."""
        supervisor = self._supervisor
        self._is_taken, self.missing = True, why
        log.error("queue_taken", path=str(supervisor.config.queue_dir), error=why, next="ending: what ran is void")
        supervisor.exit_code = AlreadyRunning.exit_code
        for pool in supervisor.pools.values():
            pool.end_now("the queue's folder was replaced, and another supervisor serves it")
        supervisor.stop(now=True)

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
