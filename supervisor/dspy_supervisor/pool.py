"""The workers of one class: forked, fed, watched, ended, replaced.

Each worker has a socket pair, which tells who is idle, so a limit holds by not feeding; a pidfd, which tells at once that
it died; and a folder of claims that was never used before, so that what it had in hand is one listing. Names that were
fed but not claimed are in pending/ still, and go back to the backlog.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import time
from collections.abc import Sequence
from typing import Any, Protocol

from dspy_fastpath.counters import Counter, Gauge, Page, SlotState

from . import proctree
from .birth import fork
from .bounds import Running, Watch, resident_bytes
from .breaker import Breaker
from .cgroup import Cgroups
from .channel import (
    LONG_S,
    MAX_NAMES,
    MAX_PACKET,
    RELEASE,
    SHORT_S,
    Kind,
    Report,
    pack_names,
    release_order,
    unpack,
)
from .config import ClassConfig, Config
from .hedges import SECOND, Hedges, may_run_twice, second_of, second_order
from .hosts import Hosts
from .lanes import Lanes
from .log import log
from .nodes import Presence
from .pool_worker import Death, Doom, Worker, explain, oom_kills
from .reactor import Reactor
from .task import Cause
from .taskqueue import TaskQueue, Unusable
from .traces import Traces
from .worker import Post, live
from .worker import Worker as WorkerProcess

#: counted as they are heard of: a worker may die between a record and its count, and then the record tells
_COUNTERS = {Kind.DONE: Counter.DONE, Kind.FAILED: Counter.FAILED, Kind.RETRIED: Counter.RETRIED}
_CAUSES = {str(cause): place for place, cause in enumerate(Cause)}
_NEWS = frozenset({Kind.KEPT, Kind.FREED, Kind.SECOND_DONE, Kind.SECOND_FAILED})
_STACKS_S = 0.2  # what a stuck worker gets to write its stacks
_FORK_AGAIN_S = 5.0  # a host that is out of processes, memory or descriptors is given time
_DEATH_S = 5.0  # SIGKILL takes effect at once, but for a process that waits for a disk
_PAUSE_S = 1.0  # between two looks at deadlines, several times what is meant
_HEALTHY_S = 30.0  # a worker that lived so long did not die of its start


class Owner(Protocol):
    """What a pool asks of the supervisor."""

    config: Config
    queue: TaskQueue
    page: Page
    presence: Presence
    reactor: Reactor
    cgroups: Cgroups | None  #: None: nobody delegated any
    fed: set[str]  #: names that some worker was handed and did not report on
    traces: Traces | None

    def reported(self, pool: Pool, report: Report) -> None:
        """One thing happened to one task."""

    def died(self, pool: Pool, worker: Worker, death: Death) -> None:
        """A worker is gone, and was reaped."""

    def take_slot(self) -> int:
        """Return a free slot of the shared page."""

    def free_slot(self, slot: int) -> None:
        """Give a slot back."""

    def hold(self, pool: Pool, file: str, why: str) -> None:
        """Set a waiting task aside, with its reason, until something changes."""

    def see(self, file: str) -> None:
        """Look at a name of pending/ again."""

    def reconsider(self) -> None:
        """Look again at all that could not run."""


class Pool:
    """The workers of one class."""

    def __init__(self, owner: Owner, klass: int, settings: ClassConfig, lanes: Lanes | None = None) -> None:
        self._owner = owner
        self.hedges = Hedges()
        self.hosts = Hosts(Lanes() if lanes is None else lanes)
        self.klass, self.settings = klass, settings
        self.workers: list[Worker] = []
        self.size = settings.most  #: processes to have; the limit, which may be lower, holds by not feeding
        self.trouble: str = ""  #: why nothing is fed at the moment
        self.paused = self.suspended = False
        self.mean_run_s = 1.0  #: of the tasks of late
        self._watch = Watch()
        self._looked_at = 0.0  # monotonic seconds, when deadlines were checked
        self._breaker = self._new_breaker()
        self._spawn_at = 0.0  # monotonic seconds
        self.renew = False  #: the configuration changed: workers that know the old one are replaced
        self._broken = ""  # what a worker said before it ended at its start
        self._draining = False

    # -- what the supervisor sees ------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The class."""
        return self.settings.name

    @property
    def failed(self) -> str:
        """Why no worker is started any more, or nothing."""
        return self._breaker.failed

    @property
    def limit(self) -> int:
        """Tasks of this class that may run at once: whoever wrote it last into the shared page decides."""
        return self._owner.page.gauge(self.klass, Gauge.LIMIT)

    @property
    def inflight(self) -> int:
        """Workers that have work."""
        return sum(bool(worker.fed) for worker in self.workers)

    def hungry(self, backlog: int, turn: float) -> tuple[Worker, int] | None:
        """Return a worker to feed and how many names it may get; None where the limit or the workers are used up.

        ``turn``: when the next task is due. A worker that a task with a key waits for from before then is let run empty.
        """
        if self.paused or self.trouble or self.failed or self._draining or not backlog:
            return None
        prefetch = self._prefetch(backlog)
        able = [w for w in self.workers if w.ready and not (w.ending or w.deaf or w.doom)]
        if self.inflight < self.limit and (idle := next((w for w in able if not w.fed), None)):
            return idle, prefetch
        if prefetch > 1:
            low = (w for w in able if 0 < len(w.fed) <= prefetch // 2 and not self.hosts.awaited(w, turn))
            if (found := next(low, None)) is not None:
                return found, prefetch - len(found.fed)
        return None

    def host(self, other_turn: float) -> tuple[Worker, Worker | None, int] | None:
        """Return the worker to feed tasks of keys to, the one the first of them is bound to, and how many it may get.

        ``other_turn``: when the next task without a key is due. None where none can be fed, or that comes first.
        """
        if self.paused or self.trouble or self.failed or self._draining or self.inflight >= self.limit:
            return None
        found = self.hosts.next(self.workers, self.mean_run_s, other_turn)
        room = 1 if self.mean_run_s >= SHORT_S else min(MAX_NAMES, int(SHORT_S / max(self.mean_run_s, 5e-5)))
        return None if found is None else (*found, room)

    def offer(self, file: str) -> bool:
        """Hand one name to an idle worker; False where there is none, or the limit is reached."""
        if self.paused or self.trouble or self.failed or self._draining:
            return False
        idle, busy = None, 0
        for worker in self.workers:
            if worker.fed:
                busy += 1
            elif worker.ready and not (worker.ending or worker.deaf or worker.doom):
                idle = idle or worker
        return idle is not None and busy < self.limit and self.feed(idle, (file,))

    def _prefetch(self, backlog: int) -> int:
        """Return how many names a worker may hold: one, unless tasks are so short that it would wait for us between them."""
        if self.mean_run_s >= SHORT_S or backlog <= 2 * len(self.workers):
            return 1
        share = backlog // (2 * max(1, min(self.limit, len(self.workers))))
        return max(1, min(MAX_NAMES, share, int(SHORT_S / max(self.mean_run_s, 5e-5))))

    def stuck_names(self, now: float) -> list[str]:
        """Return, and forget, the names that wait in workers behind a task that turned out long."""
        found = []
        for worker in self.workers:
            if len(worker.fed) < 2:
                continue
            slot = self._owner.page.slot(worker.slot)
            if slot.start_ns and now - slot.start_ns / 1e9 > LONG_S:
                in_hand = slot.name.decode()
                # Those with a key wait for this very worker, which gives them back by itself.
                find = self.hosts.lanes.find
                names = [
                    f for f in worker.fed if f != in_hand and find(f) is None and not f.startswith((RELEASE, SECOND))
                ]
                for file in names:
                    del worker.fed[file]
                self._owner.fed.difference_update(names)
                found += names
        return found

    def feed(self, worker: Worker, files: Sequence[str]) -> bool:
        """Hand names to a worker; False where it is gone, and the names are the caller's again."""
        try:
            worker.channel.send(pack_names(files))
        except OSError:
            return False  # its death is about to be noticed
        now = time.monotonic()
        for file in files:
            worker.fed[file] = now
        self._owner.fed.update(files)
        return True

    @property
    def has_keys(self) -> bool:
        """Whether tasks with a key stay with the worker that had the one before."""
        return True

    @property
    def obstacle(self) -> str:
        """Why no task of this class can run here, until something outside changes."""
        return ""

    def why_waiting(self, file: str) -> str:
        """Return why a task of this class is passed over at the moment, as far as that is the pool's doing."""
        return ""

    def facts(self) -> dict[str, Any]:
        """Return what `status` shows beside what all pools have."""
        hedges = {"hedges": self.hedges.facts()} if self.settings.hedge else {}
        return self.hosts.facts(self.workers) | hedges

    # -- the number of workers -------------------------------------------------------------------------------------------

    def adjust(self) -> None:
        """Fork what is missing, and let go what is too many or due to be replaced."""
        if self._draining or self.failed or self.suspended:
            return
        now = time.monotonic()
        config = self._owner.config
        wanted = self.size if self.settings.handler or config.kinds or config.kind_handlers else 0
        staying = [worker for worker in self.workers if not worker.ending and worker.doom is None]
        for worker in staying:
            if self.renew or self._is_worn(worker, now):
                self._let_go(worker)
        self.renew = False
        staying = [worker for worker in staying if not worker.ending]
        for worker in sorted(staying, key=lambda w: (bool(self.hosts.lanes.kept(w)), bool(w.fed)))[
            : max(0, len(staying) - wanted)
        ]:
            self._let_go(worker)
            staying.remove(worker)
        if now < self._spawn_at:
            return
        for _ in range(wanted - len(staying)):
            try:
                self._fork()
            except OSError as error:  # EAGAIN, ENOMEM, EMFILE: ours, and it may pass
                self._spawn_at = now + _FORK_AGAIN_S
                log.error("cannot_fork", klass=self.name, error=str(error), next=f"again in {_FORK_AGAIN_S:.0f} s")
                self._owner.reactor.call_later(_FORK_AGAIN_S, self.adjust)
                return

    def adopt(self, worker: Worker) -> None:
        """Take a worker of the program before this one: it ends what it has in hand, and another takes its place."""
        self._owner.fed.update(worker.fed)
        self._enlist(worker)
        self._let_go(worker)

    def drain(self) -> None:
        """Start nothing more, and let every worker end when it has nothing in hand."""
        self._draining = True
        for worker in list(self.workers):
            self._let_go(worker)

    def end_now(self, why: str) -> None:
        """Kill every worker, reap it, and start none: what they ran is settled, or void."""
        self.suspended = True
        for worker in list(self.workers):
            self.doom(worker, Cause.LOST, why, at_once=True)
            proctree.wait_gone([worker.pid], time.monotonic() + _DEATH_S)
            self._exited(worker)
        self.suspended = False

    def doom(self, worker: Worker, cause: Cause, message: str, file: str = "", *, at_once: bool = False) -> None:
        """End a worker whatever it does: its stacks, TERM, KILL, each in its time, to the whole tree of its processes.

        ``file``: the task that is the reason; where that ends by itself before TERM is sent, the worker lives.
        """
        if worker.doom is not None and not at_once:
            return
        worker.doom = worker.doom or Doom(cause, message, file)
        reactor, grace_s = self._owner.reactor, self._owner.config.kill_grace_s
        if at_once:
            self._signal(worker, signal.SIGKILL)
            return
        self._signal(worker, signal.SIGUSR2, tree=False)

        def terminate() -> None:
            if file and worker in self.workers and self._owner.page.slot(worker.slot).name != file.encode():
                worker.doom = None
                return
            self._signal(worker, signal.SIGTERM)
            reactor.call_later(grace_s, lambda: self._signal(worker, signal.SIGKILL))

        reactor.call_later(_STACKS_S, terminate)

    def check_deadlines(self, now: float) -> None:
        """End the workers whose task is out of time or uses too much, and those that don't take what they were fed."""
        # A pause of our own, as a frozen host makes it, proves nothing about the worker.
        elapsed_s = now - self._looked_at
        elapsed_s = elapsed_s if elapsed_s < _PAUSE_S else 0.0
        self._looked_at = now
        running = {}
        for worker in self.workers:
            if not worker.fed or worker.doom is not None:
                continue
            slot = self._owner.page.slot(worker.slot)
            if slot.deadline_ns and now * 1e9 > slot.deadline_ns:
                ran = now - slot.start_ns / 1e9
                self.doom(worker, Cause.TIMEOUT, f"out of time after {ran:.1f} s", slot.name.decode())
            if slot.start_ns:
                running[worker.pid] = (worker, slot)
            worker.silent_s = 0.0 if slot.start_ns else worker.silent_s + elapsed_s
            if worker.silent_s > self._patience_s:
                self.doom(worker, Cause.LOST, f"it took up no task within {self._patience_s:g} s")
        tasks = [
            Running(pid, slot.start_ns, worker.settings, worker.group is not None and worker.group.holds)
            for pid, (worker, slot) in running.items()
        ]
        for pid, cause, message in self._watch.look(tasks, now):
            worker, slot = running[pid]
            # At once: what eats memory does not wait for the end of a grace.
            self.doom(worker, cause, message, slot.name.decode(), at_once=cause is Cause.HOST_OOM)

    @property
    def _patience_s(self) -> float:
        """How long a worker may be silent with names to take: one that others would suspect by then is stopped."""
        return self._owner.config.take_after_s / 3

    # -- events --------------------------------------------------------------------------------------------------------------

    def _readable(self, worker: Worker) -> None:
        if worker.deaf:
            return
        try:
            while packet := worker.channel.recv(MAX_PACKET):
                worker.silent_s = 0.0
                for report in unpack(packet):
                    self._heard(worker, report)
        except BlockingIOError:
            return
        except ConnectionError:  # it died before it read what it was sent last
            pass
        # The other end is closed: by its death, which the pidfd tells, or by a task that closes what it finds.
        self._owner.reactor.remove(worker.channel.fileno())
        worker.deaf = True

    def _heard(self, worker: Worker, report: Report) -> None:
        if report.kind is Kind.READY:
            worker.ready = True
            self._owner.page.slot_set(worker.slot, worker.pid, worker.incarnation, self.klass, SlotState.IDLE)
        elif report.kind is Kind.BROKEN:
            self._broken = report.text
            self._owner.reported(self, report)
        elif report.kind is Kind.VOID:
            log.warning("claims_void", worker=worker.pid, klass=self.name, reason=report.text)
            worker.ending = True
        elif report.kind in _NEWS:
            self._told(worker, report)
        else:
            if worker.fed.pop(report.file, None) is not None:
                self._owner.fed.discard(report.file)
            if worker.is_blind:
                self._owner.page.slot_end(worker.slot)
            if self.hosts.lanes.find(report.file) is not None:
                self._ended_keyed(report)
            if self.settings.hedge:
                if report.kind is Kind.DONE:
                    self.hedges.learn(report.run_s)
                second = self.hedges.ended(report.file)
                if second is not None and second_order(worker.owner, report.file) in second.fed:
                    self._end_run(second, "the first run of its task ended")
            if (counter := _COUNTERS.get(report.kind)) is not None:
                self._owner.page.add(self.klass, counter)
                if report.kind is Kind.FAILED:
                    self._owner.page.fail(self.klass, _CAUSES[report.text])
                worker.tasks += 1
                self._breaker.failures = 0
                self.mean_run_s += 0.2 * (report.run_s - self.mean_run_s)
            self._owner.reported(self, report)
            if not worker.fed and (worker.ending or self._is_worn(worker, time.monotonic())):
                self._let_go(worker)

    def _told(self, worker: Worker, report: Report) -> None:
        """Take in what a worker says of what it keeps, or of a second run."""
        if report.kind is Kind.KEPT:
            self.hosts.lanes.keep(report.text, worker, time.monotonic())
        elif report.kind is Kind.FREED:
            self.hosts.lanes.free(report.text, worker)
            worker.fed.pop(release_order(report.text), None)
            if not worker.fed and worker.ending:
                self._let_go(worker)
        else:
            self._second_ended(worker, report)

    def _ended_keyed(self, report: Report) -> None:
        """Let the next of a key come, unless the one that was handed out comes back."""
        aside = report.kind is Kind.RETURNED and bool(report.text)
        returns = report.kind in (Kind.RETRIED, Kind.TROUBLE) or aside
        self.hosts.lanes.ended(report.file, time.monotonic(), returns=returns)
        if report.kind in (Kind.GONE, Kind.TROUBLE):
            self._owner.see(report.file)  # it may wait again: then it comes before the others

    def hedge(self, now: float) -> None:
        """Have tasks that take unusually long, and may run twice, run a second time on idle workers."""
        if not self.settings.hedge or self.paused or self.trouble or self._draining or not self.has_keys:
            return
        slots = [(w, self._owner.page.slot(w.slot)) for w in self.workers if w.fed and w.doom is None]
        running = [(w, s.name.decode(), s.start_ns / 1e9) for w, s in slots if s.start_ns and s.name.decode() in w.fed]
        for worker, file in self.hedges.late(running, now):
            idle = next((w for w in self.workers if w.ready and not (w.fed or w.ending or w.deaf or w.doom)), None)
            if idle is None or self.inflight >= self.limit:
                return
            if self.hosts.lanes.find(file) is not None or not self._may_run_twice(worker, file):
                self.hedges.refuse(file)
                continue
            order = second_order(worker.owner, file)
            try:
                idle.channel.send(order.encode())
            except OSError:
                return  # its death is about to be noticed
            idle.fed[order] = now
            self.hedges.begin(file, worker, idle)

    def _may_run_twice(self, worker: Worker, file: str) -> bool:
        queue = self._owner.queue
        with contextlib.suppress(OSError, Unusable):
            folder = queue.open_owner(worker.owner)
            try:
                held = queue.read_claim(file, folder)
            finally:
                os.close(folder)
            return held is not None and may_run_twice(held)
        return False

    def _second_ended(self, worker: Worker, report: Report) -> None:
        """A second run is over: where it succeeded, the first is ended, and what becomes of its task is settled then."""
        worker.fed.pop(report.file, None)
        _, file = second_of(report.file)
        if report.kind is Kind.SECOND_FAILED:
            self.hedges.failed(file)
        else:
            if (first := self.hedges.first(file)) is not None:
                self._readable(first)  # it may have ended the task, too, and be at the next one
            first = self.hedges.succeeded(file)
            if first is not None and self._owner.page.slot(first.slot).name == file.encode():
                self._end_run(first, "its second run was first")
        if not worker.fed and worker.ending:
            self._let_go(worker)

    def end_seconds(self) -> bool:
        """End all second runs, which says nothing of their tasks; return whether there were any."""
        seconds = self.hedges.drop()
        for worker in seconds:
            self._end_run(worker, "this program makes room for the next one")
        return bool(seconds)

    def _end_run(self, worker: Worker, why: str) -> None:
        """Kill a worker whose run is of no use any more."""
        worker.is_spare = True
        self.doom(worker, Cause.LOST, why, at_once=True)

    def _exited(self, worker: Worker) -> None:
        """Reap a worker, whatever ended it, and let the supervisor settle what it had in hand."""
        self._readable(worker)  # what it said before it died
        _, status = os.waitpid(worker.pid, 0)
        owner = self._owner
        owner.reactor.remove(worker.channel.fileno())
        owner.reactor.remove(worker.pidfd)
        death = explain(worker, status, self.name)
        for descriptor in (worker.pidfd, worker.stacks):
            os.close(descriptor)
        worker.channel.close()
        if worker.group is not None:
            worker.group.close(keep_children=worker.settings.keep_children)
        self.workers.remove(worker)
        owner.fed.difference_update(worker.fed)
        death.lost = self.hosts.lanes.lose(worker)
        self.hedges.gone(worker, lambda second: self._end_run(second, "the worker of the first run of its task died"))
        death.start_ns = owner.page.slot(worker.slot).start_ns
        owner.free_slot(worker.slot)
        owner.page.add(self.klass, Counter.RESTARTS, int(not death.wanted))
        owner.died(self, worker, death)
        if not death.wanted and not worker.doom:
            lived = time.monotonic() - worker.started
            if not worker.ready or (not worker.tasks and lived < _HEALTHY_S and not worker.fed):
                self._back_off(self._broken or death.message)
        self.adjust()

    # -- below ---------------------------------------------------------------------------------------------------------------

    def _fork(self) -> None:
        owner = self._owner
        parent = os.getpid()
        with contextlib.ExitStack() as undo:  # of all that was made, where the next thing can't be
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(ours.close)
            with theirs:
                stacks = os.memfd_create("stacks", os.MFD_CLOEXEC)
                undo.callback(os.close, stacks)
                slot = owner.take_slot()
                undo.callback(owner.free_slot, slot)
                claims = owner.presence.new_owner(slot)
                os.close(owner.queue.open_owner(claims))  # there before the worker is: its death is then one listing
                undo.callback(owner.queue.close_owner, claims)
                post = self._post(slot, claims, stacks)
                pid = fork(lambda: live(post, owner.queue, theirs, owner.page, parent))
            undo.callback(_end_child, pid)
            pidfd = os.pidfd_open(pid)
            undo.pop_all()
        group = owner.cgroups.enter(claims.partition(".")[2], pid, self.settings) if owner.cgroups else None
        ours.setblocking(False)
        limit = self.settings.max_tasks
        worker = Worker(
            pid, pidfd, slot, int(claims.split(".")[1]), claims, ours, stacks, time.monotonic(), self.settings,
            retire_after=limit and max(1, round(limit * random.uniform(0.9, 1.1))),
            oom_kills=oom_kills(), group=group,
        )  # fmt: skip
        owner.page.slot_set(slot, pid, worker.incarnation, self.klass, SlotState.STARTING)
        self._enlist(worker)

    def _enlist(self, worker: Worker) -> None:
        """Listen to a worker that lives, and wait for its end."""
        self.workers.append(worker)
        if not worker.deaf:
            self._owner.reactor.add(worker.channel.fileno(), lambda: self._readable(worker))
        self._owner.reactor.add(worker.pidfd, lambda: self._exited(worker))

    def _post(self, slot: int, claims: str, stacks: int) -> Post:
        """Return what the next worker is told."""
        return Post(
            slot,
            claims,
            self.klass,
            self.settings,
            self._owner.config,
            stacks,
            -1 if (traces := self._owner.traces) is None else traces.writer,
            WorkerProcess,
        )

    def _let_go(self, worker: Worker) -> None:
        """Tell a worker to end as soon as it has nothing in hand."""
        kept = self.hosts.leave(worker)
        if kept and not worker.ending and not self._draining:
            log.info("worker_stays", worker=worker.pid, klass=self.name, environments=kept, until="they are closed")
        worker.ending = True
        if not worker.fed and (not kept or self._draining):
            with contextlib.suppress(OSError):
                worker.channel.send(pack_names(()))

    def _is_worn(self, worker: Worker, now: float) -> bool:
        settings = worker.settings
        if worker.retire_after and worker.tasks >= worker.retire_after:
            return True
        # The slot's number spreads what was started together.
        if settings.max_age_s and now - worker.started > settings.max_age_s * (0.9 + 0.2 * (worker.slot % 16) / 16):
            return True
        return bool(settings.max_rss_bytes) and resident_bytes(worker.pid) > settings.max_rss_bytes

    def _signal(self, worker: Worker, number: signal.Signals, *, tree: bool = True) -> None:
        if worker not in self.workers:
            return
        if tree:
            proctree.kill_tree([worker.pid], number)
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(worker.pidfd, number)

    def _back_off(self, why: str) -> None:
        delay_s = self._breaker.trip(why)
        if self.failed:
            self._say_failed()
            return
        self._spawn_at = time.monotonic() + delay_s
        log.warning("backing_off", klass=self.name, delay_s=delay_s, reason=why)
        self._owner.reactor.call_later(delay_s, self.adjust)

    def _give_up(self, why: str) -> None:
        """Start no worker any more, for a reason that more tries don't change."""
        self._breaker.failed = why
        self._say_failed()

    def _say_failed(self) -> None:
        self._owner.page.set(self.klass, Gauge.STATE, 2)
        log.error("class_failed", klass=self.name, reason=self.failed, retry="'queue resume' or a reload tries again")

    def mend(self) -> None:
        """Try again after the breaker opened."""
        self._breaker, self._spawn_at = self._new_breaker(), 0.0
        self._owner.page.set(self.klass, Gauge.STATE, 1 if self.paused else 0)
        self.adjust()

    def _new_breaker(self) -> Breaker:
        return Breaker(self._owner.config.breaker_starts, self._owner.config.backoff_cap_s)


def _end_child(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
