"""The supervisor: one process, one thread, one loop. It owns signals, intake, pools and timers, and every child.

It forks, so it imports nothing that starts threads, and calls no handler's code. What it knows is a hint; what lies in the
queue's folders is the truth, so it may be killed at any moment, and the next one recovers in one sweep.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dspy_fastpath.claim import syncs
from dspy_fastpath.counters import Counter, Gauge, Global, Page

from . import budget, proctree
from .allocation import Allocation
from .backlog import Backlog, Shelf
from .burst import Burst
from .carrier import Carrier, carried
from .cgroup import Cgroups
from .cgroup import settle as settle_cgroups
from .channel import Kind, Report
from .compat import CompatFiles
from .config import Config, Loaded
from .control import Control
from .crew import Crew, look_after_rented
from .dispatch import Dispatch
from .environment import journal_stream, notify_environment
from .environments import Marks
from .errors import ServiceUnavailable, SupervisorError
from .feeder import Feeder
from .gpu_pool import GpuPool
from .guard import Guard
from .handover import Handover, hear_signals
from .intake import Intake, Keys
from .layout import Layout, has_lost_identity
from .log import configure, log
from .migration import bring_up_to_date
from .nodes import Held, Observer, Presence, clear_dead, take_lock
from .notify import Notifier
from .orders import Orders
from .pause import Pause
from .pool import Pool
from .pool_worker import Death, Worker
from .reactor import Reactor
from .record import Claim
from .recorder import PERIOD_S, Recorder
from .recovery import clear_old
from .requests import requests
from .runtime import make_runtime_folder
from .settle import recover, settle_death
from .sidecar import Sidecar
from .sweeper import Sweeper
from .task import Cause, WorkloadClass
from .taskqueue import TaskQueue
from .traces import Traces
from .undertaker import Undertaker
from .upgrade import Upgrade, adopt, take

SLOTS = 1024  #: workers of one supervisor
_TROUBLE_S = 5.0  # before a class that met an error of ours tries again
_CLEAR_S = 3600.0
_LONGEST_S = 60.0  # of a wait for events
_STEER_S = 5.0  # between two looks at whether the controller still steers
_UNKNOWN = "queue.json was gone: nobody knows what was chosen before; --durability chooses again"
_STRAY_S = 1.0  # that the loop waits for a killed process to go


class Supervisor:
    """Serves one queue until told to stop."""

    def __init__(self, loaded: Loaded, program: Sequence[str] = (), before: Handover | None = None) -> None:
        """``program``: what started this process; ``before``: what the program before this one in it has left."""
        self.loaded = loaded
        self.config: Config = loaded.config
        self._before = before
        self.started_at = time.time() if before is None else before.started_at
        self.reactor = Reactor()
        config = self.config
        make_runtime_folder(config.runtime_dir)
        if before is None:
            bring_up_to_date(config)
        self.layout = self.open_layout()
        self._stem = self._stem_of(self.layout)
        held = Held(before.node, before.lock, before.beats, before.owners) if before is not None else None
        self.presence = Presence(self.layout, self._beside(".lock"), held)
        self.queue = TaskQueue(self.layout, max_bytes=config.max_task_bytes, max_depth=config.max_depth)
        self.cgroups: Cgroups | None = None
        self.ungrouped = "not looked for yet"  #: why there are none
        kept = self._kept_page() if before is not None else None
        self._same_page = kept is not None
        self.page = kept or self._new_page()
        budget.configure(self.page, config.llm_budgets)
        used = {worker.slot for worker in before.workers} if before is not None else set()
        self._slots = [slot for slot in range(SLOTS - 1, -1, -1) if slot not in used]
        self.fed: set[str] = set()
        gpus = Shelf(config.ageing_s)
        self.backlogs = {
            name: gpus if name == WorkloadClass.GPU else Backlog(config.ageing_s) for name in config.classes
        }
        self.pools = {
            name: GpuPool(self, index, settings, gpus)
            if name == WorkloadClass.GPU
            else Pool(self, index, settings, self.backlogs[name].lanes)
            for index, (name, settings) in enumerate(config.classes.items())
        }
        self.gpus = next(pool for pool in self.pools.values() if isinstance(pool, GpuPool))
        ends = (before.traces[0], before.traces[1]) if before is not None and before.traces else None
        self.traces = Traces(ends) if config.otel_endpoint is not None else None
        self.crew = Crew(self)
        self.carriers = {
            name: Carrier(self.crew, service, self.pools[name], self.fed) for name, service in carried(config).items()
        }
        self.undertaker = Undertaker(self.queue, self.presence)
        self.guard_process = Guard(
            self.presence.node,
            lambda: look_after_rented(self.config, Path(self.layout.path)),
            *((before.guard, before.guard_pipe) if before else ()),
        )
        self.pause = Pause(self.layout)
        self.compat = self._new_compat()
        self.feeder = Feeder(self.reactor, self.pools, self.backlogs, self.carriers, see=self.see, show=self.show)
        self.intake = Intake(
            self.queue,
            self.page,
            self.backlogs,
            self.why_held,
            self.keys_of,
            self.feeder.offer,
            self.fed,
            self.has_idle,
            config.partial_grace_s,
        )
        self.observer = self._new_observer()
        self.sweeper = Sweeper(self)
        self.notify = notify_environment()
        self.notifier = Notifier(*self.notify)
        self.control = Control(self.reactor, self.socket_path, requests(self), before.control if before else None)
        self.alive: set[str] = set()  #: other nodes that serve this queue
        self.stopping = False
        self.exit_code = 0
        self.unsettled: list[tuple[Pool, Worker, Death]] = []  # the disk did not take what became of their tasks
        self.orders = Orders(self)
        self.upgrade = Upgrade(self, program, before)
        self.dispatch = Dispatch(self)
        self.burst = Burst(self)
        self.allocation = Allocation(self)
        self._watch_descriptor: int | None = None
        self.recorder = Recorder(self.page, config.instance)
        self._synced = 0  # calls of fsync that are on the page

    @property
    def socket_path(self) -> Path:
        """Where this supervisor listens."""
        return self._beside(".sock")

    @property
    def page_path(self) -> Path:
        """Where the shared page lies."""
        return self._beside(".page")

    @property
    def boot_note(self) -> Path:
        """Where it is noted in which run of the kernel the queue was recovered last."""
        return self._beside(".boot")

    def _beside(self, suffix: str) -> Path:
        """Return a name in the runtime folder, of this instance on this queue."""
        return _beside(self._stem, suffix)

    def _new_page(self) -> Page:
        spent = budget.saved(self.page_path)  # by the run before
        page = Page.create(self.page_path, self.layout.queue_id, tuple(self.config.classes), SLOTS)
        budget.restore(page, spent, self.config.llm_budgets)
        return page

    def _kept_page(self) -> Page | None:
        """Return the page that the workers of the program before this one have, where it is one of ours."""
        try:
            page = Page.attach(self.page_path, writable=True)
        except (OSError, ValueError):  # of another layout
            return None
        if (page.classes, page.slots, page.pid) == (tuple(self.config.classes), SLOTS, os.getpid()):
            return page
        page.close()
        return None

    # -- the life ----------------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Serve the queue; return the exit code."""
        proctree.become_subreaper()
        on_signal = self.reactor.on_signal
        on_signal((signal.SIGTERM, signal.SIGINT), lambda _: self.stop(now=self.stopping))
        on_signal((signal.SIGHUP,), lambda _: self.orders.try_to_reload())
        on_signal((signal.SIGUSR1,), lambda _: self.orders.try_to_reopen_logs())
        on_signal((signal.SIGUSR2,), lambda _: self.upgrade.try_to_begin())
        on_signal(
            (signal.SIGTTIN, signal.SIGTTOU),
            lambda number: self.orders.shift_limits(1 if number == signal.SIGTTIN else -1),
        )
        on_signal((signal.SIGCHLD,), lambda _: self._reap_strays())
        hear_signals()
        self._say_start()
        before = self._before
        with contextlib.suppress(OSError):
            clear_dead(self.config.runtime_dir, time.time())
        self.cgroups, self.ungrouped = settle_cgroups([one.group for one in before.workers] if before else ())
        for pool in self.pools.values():
            self.page.set(pool.klass, Gauge.LIMIT, pool.settings.most)
        self.configure_feeder()
        if before is None:
            recover(self)
        else:
            adopt(self, before, same_page=self._same_page)
        self.watch()
        self.orders.apply_pause()
        self.allocation.begin()
        self.crew.start()
        for pool in self.pools.values():
            pool.adjust()
        self._every(_STEER_S, lambda: self.orders.decay(time.monotonic()))
        self.sweeper.look_at_others()
        self.reactor.call_later(self.sweeper.interval_s, self.sweeper.sweep)
        self._every(PERIOD_S, lambda: self.recorder.write(self.layout))
        self._every(_CLEAR_S, lambda: self.guard(lambda: clear_old(self.layout)))
        if self.notifier.watchdog_s:
            self._every(self.notifier.watchdog_s, lambda: self.notifier.send(WATCHDOG=1))
        self.notifier.send(READY=1, WATCHDOG=1, STATUS=f"serving {self.layout.path}")
        while not self._is_over():
            self._turn()
        self.settle()
        if not self.sweeper.missing:
            self.recorder.write(self.layout)
        log.info("stopped", exit=self.exit_code)
        return self.exit_code

    def stop(self, *, now: bool = False) -> None:
        """Start nothing more; end when what runs has ended, or its time to do so is over. ``now``: at once."""
        drain_s, grace_s = self.config.drain_s, self.config.kill_grace_s
        if now:
            self._end_running("the supervisor was told to end at once", at_once=True)
        if self.stopping:
            return
        self.stopping = True
        self.allocation.wish()
        running = self.feeder.inflight
        log.info("stopping", running=running, drain_s=drain_s)
        self.notifier.send(
            STOPPING=1, EXTEND_TIMEOUT_USEC=int((drain_s + grace_s + 5) * 1e6), STATUS=f"draining {running} tasks"
        )
        for pool in self.pools.values():
            pool.drain()
        self.crew.stop()
        self.reactor.call_later(
            drain_s, lambda: self._end_running(f"it did not end within the {drain_s:g} s of the drain")
        )

    def close(self) -> None:
        """Give everything back; children that are left are killed."""
        self.orders.close()
        self.crew.end_now()
        for pool in self.pools.values():
            pool.end_now("the supervisor ended")
        self.control.close()
        self.notifier.close()
        self._unwatch()
        with contextlib.suppress(OSError):
            self.undertaker.close()
        self.compat.close()
        self.guard_process.close()
        self.allocation.close()
        if self.traces is not None:
            self.traces.close()
        is_spent = any(reading.sent for reading in budget.readings(self.page))
        self.page.close()
        if not is_spent:  # else the next run goes on with it
            with contextlib.suppress(OSError):
                self.page_path.unlink()
        self.presence.close()
        self.layout.close()
        self.reactor.close()

    def _turn(self) -> None:
        """One turn of the loop: feed, wait, look further into the folder."""
        serving = not (self.stopping or self.sweeper.missing or self.sweeper.is_silent)
        self.feeder.serving = serving
        if serving:
            self.guard(self.intake.promote_due)
            self.feeder.pump()
        reading = not self.stopping and not self.sweeper.missing and self.intake.has_work
        next_s = self.intake.next_due_s if serving else _LONGEST_S
        self.reactor.run_once(0.0 if reading else min(next_s, _LONGEST_S))
        if reading:
            self.guard(self.intake.scan_slice)

    def _is_over(self) -> bool:
        if self.config.burst and not self.stopping and (left := self.burst.leftover()) is not None:
            if left.reasons:
                self.exit_code = ServiceUnavailable.exit_code
                log.error("tasks_left", tasks=left.tasks, reasons=left.reasons)
            self.stop()
        if not self.stopping or any(pool.workers for pool in self.pools.values()):
            return False
        self.crew.stop(last=True)
        return not self.crew.pids

    def _end_running(self, why: str, *, at_once: bool = False) -> None:
        self.crew.end_now(spare_last=True)
        for pool in self.pools.values():
            for worker in list(pool.workers):
                pool.doom(worker, Cause.LOST, why, at_once=at_once)

    # -- what waits -------------------------------------------------------------------------------------------

    def has_idle(self) -> bool:
        """Whether a class could run tasks and knows of none."""
        if any(carrier.room and not self.backlogs[name] for name, carrier in self.carriers.items()):
            return True
        return any(
            pool.limit and not (self.backlogs[name] or pool.paused or pool.failed) for name, pool in self.pools.items()
        )

    def see(self, file: str) -> None:
        """Look at a name of pending/ again."""
        self.intake.see(file)

    def why_held(self, task: Claim) -> str:
        """Return why a task can't run under this configuration, or nothing."""
        kind, settings = task.fields.kind, self.config.classes[task.workload.value]
        if (carrier := self.carriers.get(settings.name)) and carrier.is_on and not settings.most:
            return ""
        enabled = (*self.config.kinds, *self.config.kind_handlers)
        if kind is not None and kind not in enabled:
            return f"kind {kind!r} is not enabled here (kinds = {', '.join(enabled) or 'none'})"
        if kind is None and settings.handler is None:
            return f"no handler for class {settings.name}: start with --handler {settings.name}=module:function"
        if not self.pools[settings.name].limit:
            return f"class {settings.name} has no workers here: start with --workers {settings.name}=1"
        return self.pools[settings.name].obstacle

    def keys_of(self, task: Claim) -> Keys | None:
        """Return how tasks of this kind and class are bound to workers by their keys, or None where they are not."""
        kind, settings = task.fields.kind, self.config.classes[task.workload.value]
        if ((carrier := self.carriers.get(settings.name)) and carrier.is_on) or not self.pools[settings.name].has_keys:
            return None
        handler = settings.handler if kind is None else self.config.kind_handlers.get(kind, kind)
        return Keys(handler == "environment", partial(self._elsewhere, settings.name))

    def _elsewhere(self, klass: str, key: str) -> str:
        """Return why a key's tasks are another supervisor's: what is kept under it is kept there."""
        mark = Marks(self.layout).read(klass, key)
        if mark is None or mark.node not in self.alive:
            return ""
        return f"what is kept under its key {key!r} is with worker {mark.owner} of another supervisor"

    def hold(self, pool: Pool, file: str, why: str) -> None:
        """Set a waiting task aside, with its reason, until something changes."""
        self.intake.hold(file, pool.name, why)

    def reconsider(self) -> None:
        """Look again at all that could not run."""
        self.intake.reconsider()

    # -- what pools report -----------------------------------------------------------------------------------------------------

    def reported(self, pool: Pool, report: Report) -> None:
        """One thing happened to one task."""
        kind, file = report.kind, report.file
        self.burst.is_checked = False
        if kind is Kind.DONE:
            self.compat.ended(file)
            log.debug("done", task=file, run_s=round(report.run_s, 6))
        elif kind is Kind.FAILED:
            self.compat.ended(file)
            log.info("failed", task=file, klass=pool.name, cause=report.text)
        elif kind is Kind.RETRIED:
            log.info("retried", task=file, klass=pool.name, cause=report.text)
        elif kind is Kind.GONE and report.run_s:
            log.warning("result_void", task=file, klass=pool.name, means="its claim was taken while it ran")
        elif kind is Kind.RETURNED:
            if report.text:
                self.intake.held[file] = (pool.name, report.text)
            else:
                self.intake.see(file)
        elif kind is Kind.QUARANTINED:
            self.page.add(pool.klass, Counter.REFUSED)
            log.warning("quarantined", file=file, reason=report.text)
        elif kind is Kind.BROKEN:
            log.error("worker_broken", klass=pool.name, reason=report.text)
        elif kind is Kind.TROUBLE:
            self._trouble(pool, report.text)
            if file:
                self.intake.rescan()

    def died(self, pool: Pool, worker: Worker, death: Death) -> None:
        """A worker is gone: settle what it had in hand, and give back what it was only fed."""
        self.unsettled.append((pool, worker, death))
        self.settle()
        self._reap_strays()

    def settle(self) -> None:
        """Settle the deaths that are not: at once, or when the disk takes it again."""
        for entry in list(self.unsettled):
            if self.sweeper.missing:
                return
            if self.guard(partial(settle_death, self, *entry)):
                self.unsettled.remove(entry)

    def heard(self, sidecar: Sidecar, message: Mapping[str, Any]) -> None:
        """A service said something."""
        self.dispatch.heard(sidecar, message)

    def ended(self, sidecar: Sidecar) -> None:
        """A service is gone, and was reaped."""
        self.dispatch.ended(sidecar)
        self._reap_strays()

    def take_slot(self) -> int:
        """Return a free slot of the shared page."""
        if not self._slots:
            raise OSError(11, f"all {SLOTS} worker slots are in use")
        return self._slots.pop()

    def trace_end(self, task_id: str) -> None:
        """Tell tracing of a task that has a record, and that no worker told of."""
        if self.traces is not None:
            self.traces.ended(task_id)

    def free_slot(self, slot: int) -> None:
        """Give a slot back."""
        self.page.slot_set(slot, 0, 0, 0, 0)
        self._slots.append(slot)

    def _trouble(self, pool: Pool, why: str) -> None:
        """An error of ours stops the feeding of a class for a while; no task comes to harm by it."""
        if not pool.trouble:
            log.error("class_paused", klass=pool.name, reason=why, next=f"trying again in {_TROUBLE_S:.0f} s")

            def again() -> None:
                pool.trouble = ""
                self.intake.rescan()

            self.reactor.call_later(_TROUBLE_S, again)
        pool.trouble = why

    def guard(self, action: Callable[[], object]) -> bool:
        """Do something with the queue's folders; False where an error of the disk, which must not end us, forbids it."""
        try:
            action()
        except OSError as error:
            self.sweeper.check_folders()
            if not self.sweeper.missing:
                log.error("disk_trouble", error=str(error), next=f"trying again in {_TROUBLE_S:.0f} s")

                def again() -> None:
                    self.settle()
                    self.intake.rescan()

                self.reactor.call_later(_TROUBLE_S, again)
                self.intake.postpone()
            return False
        return True

    # -- the queue's folders ---------------------------------------------------------------------------------------------

    def open_layout(self, before: Layout | None = None) -> Layout:
        """Open the configured queue, and make what is missing of it, as it was ``before``."""
        config = self.config
        has_lost = has_lost_identity(config.queue_dir)
        layout = Layout.open(
            config.queue_dir,
            create=True,
            insecure=config.insecure,
            durability=config.durability,
            bounds=(config.max_pending, config.max_pending_bytes),
            queue_id=before.queue_id if before is not None else None,
            usual=before.durability if before is not None else None,
        )
        if has_lost:
            log.warning("identity_lost", path=str(layout.path), durability=layout.durability, means=_UNKNOWN)
        return layout

    def take_lock_of(self, layout: Layout) -> int | None:
        """Take the lock of a queue of another id than ours; None where we have it. Raises AlreadyRunning."""
        if layout.queue_id == self.layout.queue_id:
            return None
        return take_lock(_beside(self._stem_of(layout), ".lock"), self.presence.node, layout.path)

    def move_to(self, layout: Layout, lock: int | None) -> None:
        """Serve these folders instead; nothing is running, and a watch must follow.

        ``lock``: of that queue, where it is of another id: then all that is named by the id gets another name.
        """
        for pool, worker, _ in self.unsettled:
            for file in worker.fed:
                pool.hosts.lanes.ended(file, time.monotonic())
        self.unsettled.clear()  # what is left of them there, recovery finds
        self._unwatch()
        old, self.layout, self.queue.layout = self.layout, layout, layout
        if lock is None:
            self.presence.adopt(layout)
        else:
            self._move_names(layout, lock)
        self.undertaker = Undertaker(self.queue, self.presence)
        self.pause = Pause(layout)
        self.compat.close()
        self.compat = self._new_compat()
        self.observer = self._new_observer()
        old.close()

    def _move_names(self, layout: Layout, lock: int) -> None:
        """Be found, and found to live, by the id of another queue than before."""
        page, note = self.page_path, self.boot_note
        self._stem = self._stem_of(layout)
        self.presence.move(layout, self._beside(".lock"), lock)
        control = Control(self.reactor, self.socket_path, requests(self))
        self.control.close()
        self.control = control
        with contextlib.suppress(FileNotFoundError):  # a service manager may have emptied the folder
            page.rename(self.page_path)
        note.unlink(missing_ok=True)

    def _stem_of(self, layout: Layout) -> Path:
        return self.config.runtime_dir / f"{layout.queue_id}.{self.config.instance}"

    def watch(self) -> None:
        """Watch the queue's folders, and scan them."""
        self._unwatch()
        self.try_to_watch()

    def try_to_watch(self) -> None:
        """Watch, where that is not so already; where the kernel has no watch left, sweeps find what there is."""
        if self._watch_descriptor is None and (descriptor := self.intake.watch()) is not None:
            self._watch_descriptor = descriptor
            self.reactor.add(descriptor, self._arrived)

    def worker_of(self, file: str) -> Worker | None:
        """Return the worker that has this task in hand."""
        for pool in self.pools.values():
            for worker in pool.workers:
                if file in worker.fed and self.page.slot(worker.slot).name == file.encode():
                    return worker
        return None

    # -- below -----------------------------------------------------------------------------------------------------------------

    def _reap_strays(self) -> None:
        """End what a dead worker's tasks left running: it is our child now, and no worker."""
        try:
            self.guard_process.renew()
            keep = {worker.pid for pool in self.pools.values() for worker in pool.workers}
            keep |= self.crew.pids | self.upgrade.pids | self.orders.pids | {self.guard_process.pid}
            proctree.reap_orphans(keep, _STRAY_S)
        except OSError as error:  # it waits for a disk, or we are out of descriptors: the next death tries again
            log.warning("stray_left", error=str(error))

    def show(self) -> None:
        """Write down how full everything is, for whoever looks."""
        depths = {}
        for name, pool in self.pools.items():
            pending = self.intake.pending_of(name)
            self.page.set(pool.klass, Gauge.PENDING, pending)
            self.page.set(pool.klass, Gauge.OLDEST, int((self.backlogs[name].oldest or 0.0) * 1e9))
            inflight = self.inflight(pool)
            self.page.set(pool.klass, Gauge.INFLIGHT, inflight)
            self.page.set(pool.klass, Gauge.WORKERS, len(pool.workers))
            depths[name] = pending + inflight
        self.page.set_global(Global.TOTAL_PENDING, self.intake.depth)
        self.page.set_global(Global.UNSCANNED, int(self.intake.unread))
        self.page.set_global(Global.EVENTS, self.compat.published)
        self.recorder.look(time.monotonic())
        if (synced := syncs()) != self._synced:
            self.page.add_global(Global.FSYNCS, synced - self._synced)
            self._synced = synced
        self.compat.show(depths)

    def inflight(self, pool: Pool) -> int:
        """Tasks of a class that run, here or elsewhere."""
        carrier = self.carriers.get(pool.name)
        return pool.inflight + (carrier.inflight if carrier else 0)

    def _say_start(self) -> None:
        filesystem, config = self.layout.filesystem, self.config
        log.info(
            "starting",
            queue=str(self.layout.path),
            mode=config.mode,
            durability=self.layout.durability,
            filesystem=filesystem.name,
            workers={name: settings.workers for name, settings in config.classes.items()},
        )
        if filesystem.volatile:
            log.warning("volatile", filesystem=filesystem.name, means="nothing in this queue survives a reboot")
        if config.insecure:
            log.warning("insecure", means="whoever may write the queue's folder may run programs as this user")

    def configure_feeder(self) -> None:
        """Let the feeder know limits and weights."""
        weights = {name: settings.weight for name, settings in self.config.classes.items()}
        self.feeder.configure(self.config.total_limit, weights)
        # with pilots its tasks stay where these find them
        self.carriers["gpu_slurm"].window = 0 if self.config.slurm_pilots_max else self.config.slurm_max_jobs

    def _new_compat(self) -> CompatFiles:
        config = self.config
        return CompatFiles(
            self.layout, metrics=config.compat_files, actions=config.action_log, results=config.env_result_files
        )

    def _new_observer(self) -> Observer:
        config = self.config
        return Observer(self.presence.node, self.layout, config.runtime_dir, config.take_after_s, config.heartbeat_s)

    def _unwatch(self) -> None:
        if self._watch_descriptor is not None:
            self.reactor.remove(self._watch_descriptor)  # before it is closed
            self._watch_descriptor = None
        self.intake.unwatch()

    def _arrived(self) -> None:
        self.guard(self.intake.take_events)
        if self.intake.lost:
            self.reactor.call_later(0.0, self.sweeper.check_folders)

    def _every(self, period_s: float, action: Any) -> None:
        def again() -> None:
            action()
            self.reactor.call_later(period_s, again)

        self.reactor.call_later(period_s, again)


def _beside(stem: Path, suffix: str) -> Path:
    """Return a name in the runtime folder: an instance may have a dot in its name."""
    return stem.with_name(stem.name + suffix)


def run(loaded: Loaded, program: Sequence[str] = (), document: int | None = None) -> int:
    """Serve the queue of a configuration in the foreground; return the exit code.

    ``program``: what started this process, where the same again starts a supervisor; ``document``: a descriptor that the
    program before this one left in it.
    """
    before, why = None, ""
    if document is not None:
        try:
            before = take(loaded, document)
        except SupervisorError as error:
            why = str(error)
    configure(loaded.config.log_level, loaded.config.log_file, journal=journal_stream())
    if why:
        log.error("handover_unreadable", error=why, next="starting anew, as after a kill")
    supervisor = Supervisor(loaded, program, before)
    try:
        return supervisor.run()
    finally:
        supervisor.close()
