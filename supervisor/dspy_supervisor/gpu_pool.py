"""The pool of class gpu: a task gets a worker that sees just the devices it was given, once its memory is really free.

A worker's devices are fixed at its fork, by its environment, so a task that needs others gets another worker: an idle one
is replaced. Of the tasks at the front of the backlog the first that fits is fed. What the foremost of those that don't
fit could have as soon as ours have ended is kept free for it, so that small tasks never starve a large one.

With enable_gpu off it is a pool like any other.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dspy_fastpath.counters import Gauge

from .backlog import Shelf
from .channel import Report, pack_names
from .config import ClassConfig
from .cuda_process import started_by
from .devices import Need, environment
from .environment import gpu_environment
from .fleet import Fleet
from .gpu_needs import Asked, bound, default_need, with_memory
from .gpu_worker import ENDED, MEMORY, GpuWorker, Told, hear
from .handover import NeedState, SeatState
from .log import log
from .pool import Owner, Pool
from .pool_worker import Worker
from .task import Cause
from .taskqueue import Unusable
from .vram import Learned, Promise
from .worker import Post

FRONT = 32  #: tasks that are considered, from the front of the backlog
LOOK_S = 0.5  #: between two looks at what telemetry says
#: libraries that take most of a GPU at their start are told not to, since it is shared
_MODEST = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}


@dataclass(slots=True)
class _Seat:
    """The devices of a worker, and what it was used for."""

    devices: tuple[str, ...]
    kind: str = ""  # of its last task: what that loaded is there still
    kept: int = 0  # bytes it is taken to hold on each device, where nobody can tell
    peak: int = 0  # bytes it had of a device at most, during the task in hand


class GpuPool(Pool):
    """The workers of class gpu, each with its own devices."""

    def __init__(self, owner: Owner, klass: int, settings: ClassConfig, backlog: Shelf) -> None:
        super().__init__(owner, klass, settings, backlog.lanes)
        self._backlog = backlog
        backlog.greet = self._know_nothing
        self.fleet = Fleet(owner.page, gpu_environment(), owner.config.gpu_memory_limit, time.monotonic())
        self.learned = Learned()
        self._asked: dict[str, Asked] = {}
        self._seats: dict[Worker, _Seat] = {}
        self._booked: dict[str, tuple[str, ...]] = {}  # tasks that wait for a worker with these devices
        self._seating: tuple[str, ...] = ()  # devices of the worker that is about to be forked
        self._why: dict[str, str] = {}
        self._even = Need()  # what a task gets that names nothing
        self._fruitless: object = None  # how things were when nothing could be fed
        self._events = 0
        self._looking = False

    # -- what the supervisor sees ------------------------------------------------------------------------------------------

    @property
    def uses_gpus(self) -> bool:
        """Whether tasks get devices at all."""
        return self._owner.config.enable_gpu

    @property
    def has_keys(self) -> bool:
        """Not where a task gets devices: which those are decides about its worker."""
        return not self.uses_gpus

    @property
    def obstacle(self) -> str:
        """Why no task can have a GPU, until something outside changes."""
        return self.fleet.obstacle if self.uses_gpus else ""

    def why_waiting(self, file: str) -> str:
        """Return why a task is passed over at the moment."""
        if not self.uses_gpus:
            return ""
        return self.fleet.waiting or self._why.get(file, "")

    def facts(self) -> dict[str, Any]:
        """Return how each GPU is used, and what tasks were seen to need."""
        own = {"gpus": self.fleet.facts(), "gpu_memory_learned": self.learned.facts()} if self.uses_gpus else {}
        return super().facts() | own

    def hungry(self, backlog: int, turn: float) -> tuple[Worker, int] | None:
        """Choose the task that is fed next and return the worker for it, or None where none can start now."""
        if not self.uses_gpus:
            return super().hungry(backlog, turn)
        if self.paused or self.trouble or self.failed or self._draining or not backlog:
            return None
        if self.fleet.obstacle or self.fleet.waiting or self.inflight >= self.limit:
            return None
        state = (self._backlog.changes, self._events, self.limit)
        if state == self._fruitless:
            return None
        self._why.clear()
        self._drop_bookings()
        if (default := self._default()) != self._even:  # what was read before counts on another share
            self._even = default
            self._asked = {file: asked for file, asked in self._asked.items() if asked.started or file in self._booked}
        closed: set[str] = set()
        for file in self._backlog.first(FRONT):
            asked = self._asked.get(file) or self._ask(file)
            if asked is None:
                continue
            asked.given = with_memory(asked, self.fleet.ledger, self.learned)
            if why := self.fleet.ledger.never(asked.given):
                self._set_aside(file, why)
            elif (worker := self._place(file, asked, closed)) is not None:
                self._backlog.choose(file)
                return worker, 1
        self._fruitless = (self._backlog.changes, self._events, self.limit)
        return None

    def offer(self, file: str) -> bool:
        """Hand a task straight to an idle worker; one that gets devices is chosen among those that wait."""
        return not self.uses_gpus and super().offer(file)

    def feed(self, worker: Worker, files: Sequence[str]) -> bool:
        """Hand the task over that was chosen, and give it its devices."""
        if worker not in self._seats or not self.uses_gpus:
            return super().feed(worker, files)
        [file] = files
        asked, ledger, devices = self._asked.get(file), self.fleet.ledger, self._seats[worker].devices
        if asked is None:
            return False
        if self._booked.pop(file, None) is None:
            if not ledger.fits(devices, asked.given):
                return False
            ledger.take(file, devices, asked.given)
        asked.worker, asked.started = worker, time.monotonic()
        self._seats[worker].peak = 0
        try:
            worker.channel.send(pack_names((f"{MEMORY}{bound(asked, devices, ledger)}",)))
        except OSError:  # its death is about to be noticed
            sent = False
        else:
            sent = super().feed(worker, files)
        if not sent:
            self._forget(file)
        return sent

    def lose(self, uuid: str) -> None:
        """Give out nothing more of a GPU that was lost, and let its tasks run elsewhere."""
        self._end_users(self.fleet.lose(uuid, time.monotonic()))

    def adjust(self) -> None:
        """Fork what is missing, as soon as there are devices for it."""
        self._events += 1
        if self.uses_gpus:
            self._begin_to_look()
            if self.fleet.obstacle or not self.fleet.ledger.devices:
                return
        super().adjust()

    # -- which task, where -------------------------------------------------------------------------------------------------

    def _place(self, file: str, asked: Asked, closed: set[str]) -> Worker | None:
        """Return an idle worker for a task; where there is none, see to it that there will be, or say why it waits."""
        idle = [w for w in self.workers if w.ready and not (w.fed or w.ending or w.deaf or w.doom) and w in self._seats]
        if (devices := self._booked.get(file)) is not None:
            self._why[file] = "a worker with its GPUs is being started"
            return next((worker for worker in idle if self._seats[worker].devices == devices), None)
        need, ledger, now = asked.given, self.fleet.ledger, time.monotonic()
        taken = set(self._booked.values())
        fitting = [
            worker
            for worker in idle
            if (devices := self._seats[worker].devices) not in taken
            and closed.isdisjoint(devices)
            and ledger.fits(devices, need)
            and all(self._free(uuid, now, worker) >= need.memory_bytes for uuid in devices)
        ]
        if fitting:
            return min(fitting, key=lambda worker: (self._load(worker), self._seats[worker].kind != asked.kind))
        free = {device.uuid: self._free(device.uuid, now) for device in ledger.devices}
        devices = ledger.place(need, free, closed)
        if devices is not None:
            booked = self._book(file, devices, need, idle)
            self._why[file] = (
                "a worker with its GPUs is being started" if booked else "no worker is free to be replaced"
            )
        elif (roomy := ledger.place(need, None, closed)) is not None:
            short = min(roomy, key=lambda uuid: free[uuid])
            self._why[file] = self.fleet.why_full(short, need, free[short], now)
            self._evict(short, idle, need.memory_bytes - free[short])
            if asked.is_raised and not any(ledger.holders(uuid) for uuid in roomy):
                self.learned.fade(asked.kind, need.memory_bytes, now)
        else:
            fenced = f"; out of use: {', '.join(ledger.fenced)}" if ledger.fenced else ""
            kept = closed and ledger.place(need, free) is not None
            self._why[file] = (
                f"the GPUs it needs are {'kept for a larger task' if kept else 'taken by other tasks'}{fenced}"
            )
            closed.update(ledger.soonest(need))
        return None

    def _book(self, file: str, devices: tuple[str, ...], need: Need, idle: list[Worker]) -> bool:
        """Give devices to a task before it has a worker, and start one that sees them; False where there is no place."""
        booked = set(self._booked.values())
        coming = [w for w in self.workers if not (w.ready or w.ending or w.doom) and w in self._seats]
        if not any(self._seats[worker].devices == devices for worker in coming) or devices in booked:
            staying = [worker for worker in self.workers if not (worker.ending or worker.doom)]
            spare = [worker for worker in idle if self._seats[worker].devices not in booked]
            if len(staying) >= self.size:
                if not spare:
                    return False  # all of them work, or are about to: one that ends its task can be replaced then
                self._let_go(min(spare, key=lambda worker: worker.started))
        self.fleet.ledger.take(file, devices, need)
        self._booked[file] = devices
        self.adjust()
        return True

    def _drop_bookings(self) -> None:
        """Take back what was booked for tasks that are gone, or whose worker will not come."""
        for file, devices in list(self._booked.items()):
            able = [w for w in self.workers if not (w.ending or w.doom or w.fed) and w in self._seats]
            if file not in self._backlog or not any(self._seats[worker].devices == devices for worker in able):
                self._forget(file)

    def _evict(self, uuid: str, idle: list[Worker], missing: float) -> None:
        """Replace an idle worker that holds memory of a GPU, where idle ones hold what is missing; one at a time."""
        holding = [w for w in idle if uuid in self._seats[w].devices and self._held(w, uuid) > 0]
        leaving = any(w.ending and uuid in self._seats[w].devices for w in self.workers if w in self._seats)
        if not leaving and 0 < missing <= sum(self._held(worker, uuid) for worker in holding):
            worker = max(holding, key=lambda worker: self._held(worker, uuid))
            log.info("worker_evicted", worker=worker.pid, gpu=uuid, memory=self._held(worker, uuid))
            self._let_go(worker)
            self._events += 1

    def _free(self, uuid: str, now: float, worker: Worker | None = None) -> float:
        """Return the memory of a GPU that a task can count on: in a worker that has some, that too."""
        promises = []
        for file in self.fleet.ledger.holders(uuid):
            asked = self._asked.get(file)
            if asked is not None:
                used = self.fleet.used_by(asked.worker.pid, uuid) if asked.worker else None
                promises.append(Promise(asked.given.memory_bytes, used, asked.started))
        return self.fleet.free(uuid, now, promises) + (self._held(worker, uuid) if worker else 0)

    def _held(self, worker: Worker, uuid: str) -> int:
        used = self.fleet.used_by(worker.pid, uuid)
        return self._seats[worker].kept if used is None else used

    def _load(self, worker: Worker) -> float:
        ledger = self.fleet.ledger
        return math.fsum(
            need.share or 1.0 for uuid in self._seats[worker].devices for need in ledger.holders(uuid).values()
        )

    # -- what a task needs -------------------------------------------------------------------------------------------------

    def _ask(self, file: str) -> Asked | None:
        """Read what a task needs; None where it can't be read now, or is gone."""
        try:
            task = self._owner.queue.look(file)
        except (Unusable, OSError):
            self._backlog.discard(file)
            self._owner.see(file)  # which finds out what it is now, and what is to be done
            return None
        if task is None:  # another supervisor was faster
            self._backlog.discard(file)
            return None
        asked = Asked.of(task, self.settings, self._default())
        if len(self._asked) > 4 * FRONT + len(self.workers):
            self._asked = {name: one for name, one in self._asked.items() if one.started or name in self._backlog}
        self._asked[file] = asked
        return asked

    def _default(self) -> Need:
        return default_need(self.settings, max(self.settings.workers, self.size), len(self.fleet.ledger.devices))

    def _set_aside(self, file: str, why: str) -> None:
        self._backlog.discard(file)
        self._forget(file)
        self._owner.hold(self, file, why)

    def _know_nothing(self, file: str) -> None:
        """Forget what a task of this name asked for: it comes anew, and another may have had the name before."""
        if self._asked.pop(file, None) is not None and file in self._booked:
            self._forget(file)

    def _forget(self, file: str) -> None:
        """Take back what a task was given."""
        self.fleet.ledger.release(file)
        self._booked.pop(file, None)
        if (asked := self._asked.get(file)) is not None:
            asked.worker, asked.started = None, 0.0
        self._events += 1

    # -- events ------------------------------------------------------------------------------------------------------------

    def _heard(self, worker: Worker, report: Report) -> None:
        self._events += 1
        seat, told = self._seats.get(worker), None
        if seat is not None and report.kind in ENDED:
            text, told = hear(report.text)
            report = report._replace(text=text)
            asked = self._asked.get(report.file)
            if told is not None and asked is not None:
                self._learn(worker, seat, asked, told, done=not text)
        super()._heard(worker, report)
        if seat is not None and report.file and report.file not in worker.fed:
            self._forget(report.file)
            self._asked.pop(report.file, None)

    def _learn(self, worker: Worker, seat: _Seat, asked: Asked, told: Told, *, done: bool) -> None:
        seat.kind, had = asked.kind, asked.given.memory_bytes
        worker.ending = worker.ending or told.spoilt  # nothing that runs there succeeds any more, or its memory is full
        seat.kept = max(seat.kept, had, told.memory_bytes)
        if not asked.given.count:
            return
        if told.ran_out:
            budgets = [self.fleet.ledger.budget_of(device) for device in self.fleet.ledger.devices]
            need = self.learned.ran_out(asked.kind, had, told.memory_bytes, max(budgets, default=0))
            log.warning("gpu_memory_short", klass=self.name, kind=asked.kind, had=had, needs=need, gpus=seat.devices)
        elif done:
            self.learned.measured(asked.kind, max(told.memory_bytes, seat.peak))
        self._owner.page.set(self.klass, Gauge.GPU_NEED, self.learned.need(asked.kind))

    def _exited(self, worker: Worker) -> None:
        self._events += 1
        for file in list(worker.fed):
            self._forget(file)
        super()._exited(worker)
        self._seats.pop(worker, None)

    def _begin_to_look(self) -> None:
        if not self._looking:
            self._looking = True
            self._look()

    def _look(self) -> None:
        """See what telemetry says now, and act on it; again in a moment."""
        self._looking = self.uses_gpus and not (self._draining and not self.workers)
        if not self._looking:
            return
        self._owner.reactor.call_later(LOOK_S, self._look)
        self._events += 1
        self.fleet.configure(self._owner.config.gpu_memory_limit, self._owner.config.telemetry_interval_s)
        change = self.fleet.look(time.monotonic(), [worker.pid for worker in self.workers])
        for worker, seat in self._seats.items():
            if worker.fed:
                seat.peak = max([seat.peak, *(self.fleet.used.get((worker.pid, uuid), 0) for uuid in seat.devices)])
        self._end_users(change.lost)
        if change.devices:
            log.info("gpus", uuids=[device.uuid for device in self.fleet.ledger.devices])
        if change.obstacle:
            log.warning("gpu_obstacle", reason=self.fleet.obstacle or "none any more")
        if change.devices or change.obstacle:
            for file in list(self._backlog) if self.fleet.obstacle else ():
                self._backlog.discard(file)
                self._forget(file)
            self.adjust()
            self._owner.reconsider()

    def _end_users(self, uuids: Sequence[str]) -> None:
        """End what runs on lost GPUs, through no fault of its own, and replace the idle workers that see them."""
        for worker, seat in list(self._seats.items()):
            if lost := set(uuids) & set(seat.devices):
                self.doom(worker, Cause.LOST, f"GPU {', '.join(sorted(lost))} was lost", at_once=True)

    # -- workers -------------------------------------------------------------------------------------------------------------

    def seat_of(self, worker: Worker) -> SeatState | None:
        """Return what a worker has of the GPUs, for the program that takes this process over."""
        seat = self._seats.get(worker)
        if seat is None:
            return None
        state = SeatState(seat.devices, seat.kind, seat.kept, seat.peak)
        for file in worker.fed:
            if (asked := self._asked.get(file)) is not None:
                state = dataclasses.replace(
                    state,
                    file=file,
                    need=NeedState(*dataclasses.astuple(asked.need)),
                    given=NeedState(*dataclasses.astuple(asked.given)),
                    task_kind=asked.kind,
                    declared=asked.declared,
                    started=asked.started,
                )
        return state

    def take_seat(self, worker: Worker, state: SeatState) -> None:
        """Let a worker have what it had of the GPUs; before it is adopted."""
        self._seats[worker] = _Seat(state.devices, state.kind, state.kept, state.peak)
        if state.need is not None and state.given is not None:
            need, given = (Need(*dataclasses.astuple(one)) for one in (state.need, state.given))
            asked = Asked(need, state.task_kind, state.declared, given, worker, state.started)
            self._asked[state.file] = asked
            self.fleet.ledger.hold(state.file, state.devices, given)

    def _fork(self) -> None:
        if not self.uses_gpus:
            super()._fork()
            return
        if self.failed:
            return
        if by := started_by():
            self._give_up(
                f"CUDA was started in the supervisor's own process, by {by}, and a forked worker could not use it: import "
                "such libraries in the handler's module only, or run the supervisor as a program, 'dspy-supervisor start'"
            )
            return
        self._seating = self._next_seat()
        super()._fork()
        self._seats[self.workers[-1]] = _Seat(self._seating)

    def _post(self, slot: int, claims: str, stacks: int) -> Post:
        post = super()._post(slot, claims, stacks)
        if not self.uses_gpus:
            return post
        return dataclasses.replace(post, actor=GpuWorker, variables=environment(self._seating), defaults=_MODEST)

    def _next_seat(self) -> tuple[str, ...]:
        """Return the devices of the next worker: what a task waits for, else where the fewest workers are."""
        staying = [self._seats[w].devices for w in self.workers if w in self._seats and not (w.ending or w.doom)]
        for devices in self._booked.values():
            if devices not in staying:
                return devices
            staying.remove(devices)
        ledger = self.fleet.ledger
        usable = [device.uuid for device in ledger.devices if device.uuid not in ledger.fenced]
        workers = {uuid: sum(uuid in devices for devices in staying) for uuid in usable}
        return tuple(sorted(usable, key=lambda uuid: workers[uuid])[: self._default().count])
