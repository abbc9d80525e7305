"""The GPUs of one supervisor: which are its own, who holds what of them, and what is free, as telemetry sees it.

The page is read some times a second. A GPU that is lost is fenced: nothing more is given out of it, and who holds it is
told. What a process of ours has there is known where the driver lists processes by pids that are ours to see; inside a
container it may not, and then a task counts with all it needs until it had time to take it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from dspy_fastpath.counters import GpuStatus, GpuValue, Page, Telemetry

from . import proctree
from .devices import Device, Ledger, Need, gib, inherited, universe
from .gpu import STATES, STATUSES, Gpu, Sight, read
from .log import log
from .vram import Promise, really_free

STALE_S = 60.0  #: a sample so old says nothing about what others have taken meanwhile
UNWATCHED_S = 30.0  #: telemetry that has said nothing for so long will not soon
_PROHIBITED, _EXCLUSIVE = 2, 3  # of COMPUTE_MODE
_INTERVAL_S = 1.0  # least time between two samples that is counted with: a busy host is late, and not silent
_BACK_S = 5.0  # a GPU that was said to be lost must be well again for so long
_MAX_DEPTH = 16  # of processes below a worker
_LOST = (GpuStatus.LOST, GpuStatus.NEEDS_RESET)


@dataclass(slots=True)
class Change:
    """What a look at the page brought."""

    devices: bool = False  #: others are there to be given out
    obstacle: bool = False  #: whether any can be given out at all
    lost: list[str] = field(default_factory=list)  #: what ran there can't go on


class Fleet:
    """All GPUs, by UUID."""

    def __init__(
        self, page: Page, environ: Mapping[str, str], memory_limit: int, started: float, interval_s: float = 1.0
    ) -> None:
        """``environ``: the variables that bound this process to some GPUs. ``started``: monotonic seconds."""
        self._page, self._environ, self._started, self._interval_s = page, environ, started, interval_s
        self._memory_limit = memory_limit
        self.ledger = Ledger((), memory_limit)
        self.obstacle = ""  #: why none can be given out, until something outside changes
        self.waiting = STATES[Telemetry.UNWATCHED] or ""  #: why none can be given out yet
        self.sees_pids = False  #: whether the driver lists our processes
        self.used: dict[tuple[int, str], int] = {}  #: bytes by pid of the worker and UUID
        self._gpus: dict[str, Gpu] = {}
        self._lost_at: dict[str, float] = {}
        self._lost: set[str] = set()  # whose holders were told
        self._note = ""

    def configure(self, memory_limit: int, interval_s: float) -> None:
        """Take a new limit of each GPU's memory, and a new time between two samples."""
        self._interval_s = max(interval_s, _INTERVAL_S)
        if memory_limit != self._memory_limit:
            self._memory_limit = self.ledger.memory_limit = memory_limit
            self.ledger.adopt(self.ledger.devices)

    def look(self, now: float, workers: Iterable[int]) -> Change:
        """Read the page at ``now`` (monotonic seconds); ``workers``: their pids."""
        sight, change = read(self._page), Change()
        self._gpus = {one.uuid: one for one in sight.gpus}
        before = self.obstacle, [device.uuid for device in self.ledger.devices]
        whole = sorted(sight.gpus, key=lambda one: (one.bus, one.parent is not None, one.place))
        found = [_device(one) for one in whole]
        visible, variable = inherited(self._environ, found)
        mine, note = universe(found, visible)
        self.ledger.adopt(mine)
        for device in self.ledger.devices:
            change.lost += self._judge(device, now, device in mine)
        self._see(sight, now, found, mine, f"{variable}={visible}")
        if note and note != self._note:
            log.warning("gpus_left_out", variable=variable, value=visible, reason=note)
        self._note = note
        change.obstacle = self.obstacle != before[0]
        change.devices = [device.uuid for device in self.ledger.devices] != before[1]
        self._find_users(set(workers))
        return change

    def lose(self, uuid: str, now: float) -> list[str]:
        """Fence a GPU that telemetry says is lost, with its slices; return the UUIDs of which we held something."""
        lost = []
        for device in self.ledger.devices:
            if uuid in (device.uuid, device.parent):
                self._lost_at[device.uuid] = now
                if not (device.uuid in self._lost and device.uuid in self.ledger.fenced):
                    lost.append(device.uuid)
                    self._lost.add(device.uuid)
                    self._fence(device.uuid, STATUSES[GpuStatus.LOST] or "")
        return lost

    def free(self, uuid: str, now: float, promises: Iterable[Promise]) -> float:
        """Return the bytes of a GPU that one more task can count on: 0 where nobody looked for too long."""
        one = self._gpus.get(uuid)
        if one is None or now - one.at > STALE_S:
            return 0.0
        return really_free(one[GpuValue.MEMORY_FREE], one.at, promises)

    def used_by(self, pid: int, uuid: str) -> int | None:
        """Return what a worker and all below it have of a GPU's memory; None where that can't be known."""
        return self.used.get((pid, uuid), 0) if self.sees_pids else None

    def why_full(self, uuid: str, need: Need, free: float, now: float) -> str:
        """Return in words why a task can't have the memory it needs of a GPU."""
        one = self._gpus.get(uuid)
        if one is None or now - one.at > STALE_S:
            return f"GPU {uuid} was not looked at for more than {STALE_S:.0f} s"
        ours = sum(used for (_, device), used in self.used.items() if device == uuid)
        others = one[GpuValue.MEMORY_TOTAL] - one[GpuValue.MEMORY_FREE] - ours
        text = f"it needs {gib(need.memory_bytes)} of GPU {uuid}, and {gib(max(0.0, free))} are free"
        if self.sees_pids or not ours:
            text += f" ({gib(others)} are used by others)" if others > 0 else ""
        return text

    def facts(self) -> list[dict[str, object]]:
        """Return how each GPU is used, for people."""
        fenced = self.ledger.fenced
        return [
            {
                "uuid": device.uuid,
                "memory": device.total_bytes,
                "budget": self.ledger.budget_of(device),
                "free": self._shown(device.uuid),
                "fenced": fenced.get(device.uuid),
                "tasks": {
                    holder.removesuffix(".json"): {
                        "share": 1.0 if need.gpus else need.share,
                        "memory": need.memory_bytes,
                    }
                    for holder, need in self.ledger.holders(device.uuid).items()
                },
            }
            for device in self.ledger.devices
        ]

    def _shown(self, uuid: str) -> int | None:
        one = self._gpus.get(uuid)
        free = one[GpuValue.MEMORY_FREE] if one else math.nan
        return None if math.isnan(free) else int(free)

    def _see(self, sight: Sight, now: float, found: list[Device], mine: tuple[Device, ...], wish: str) -> None:
        """Say whether GPUs can be given out at all."""
        state = sight.state
        why = STATES[state] or ""
        self.waiting = self.obstacle = ""
        if state is Telemetry.UNWATCHED:
            if now - self._started > UNWATCHED_S:
                self.obstacle = f"{why}, for {UNWATCHED_S:.0f} s and more: see services in 'dspy-supervisor status'"
            else:
                self.waiting = why
        elif state is Telemetry.NO_GPU:
            self.obstacle = f"{why} on this host, and enable_gpu is on: with --set enable_gpu=false they run without"
        elif state is Telemetry.REBOOT_NEEDED:
            self.obstacle = why
        elif not found:
            self.waiting = why or "no GPU was read yet"
        elif not mine:
            self.obstacle = f"none of the {len(found)} GPUs is ours to use ({wish})"
        elif len(fenced := self.ledger.fenced) == len(self.ledger.devices):
            self.obstacle = "all GPUs are out of use: " + "; ".join(f"{uuid}: {why}" for uuid, why in fenced.items())
        elif all(now - one.at > STALE_S for one in self._gpus.values()):
            self.obstacle = f"GPU telemetry has been silent for more than {STALE_S:.0f} s"
        else:  # what passes by itself, or becomes one of these
            self.waiting = sight.obstacle(now, self._interval_s) or ""

    def _judge(self, device: Device, now: float, is_ours: bool) -> list[str]:
        """Fence a device or give it back, by what telemetry says; return its UUID where what runs there is lost."""
        one = self._gpus.get(device.uuid)
        if one is None:
            return []
        above = self._gpus.get(device.parent, one)
        worst = max(one.status, above.status, key=lambda status: (status in _LOST, status))
        why = STATUSES[worst]
        if one[GpuValue.COMPUTE_MODE] == _PROHIBITED:
            why = "its compute mode forbids any process (nvidia-smi -c)"
        fenced = self.ledger.fenced.get(device.uuid)
        is_lost = worst in _LOST and not (fenced and device.uuid in self._lost)  # perhaps only unreadable until now
        if why and (is_lost or not fenced):
            self._fence(device.uuid, why)
        if is_lost:
            self._lost.add(device.uuid)
            return [device.uuid]
        if fenced and is_ours and not why and one.at > self._lost_at.get(device.uuid, -math.inf) + _BACK_S:
            self.ledger.unfence(device.uuid)
            self._lost.discard(device.uuid)
            log.info("gpu_back", uuid=device.uuid, was=fenced)
        return []

    def _fence(self, uuid: str, why: str) -> None:
        holders = self.ledger.fence(uuid, why)
        log.error("gpu_fenced", uuid=uuid, reason=why, tasks=holders)

    def _find_users(self, workers: set[int]) -> None:
        """Find which worker each process on a GPU belongs to: itself, or whatever is below it."""
        self.used = {}
        owners: dict[int, int | None] = {}
        for one in self._gpus.values():
            for pid, used in one.processes:
                if pid not in owners:
                    owners[pid] = _worker_above(pid, workers)
                owner = owners[pid]
                if owner is not None and used >= 0:
                    self.sees_pids = True
                    self.used[owner, one.uuid] = self.used.get((owner, one.uuid), 0) + used


def _device(one: Gpu) -> Device:
    total = one[GpuValue.MEMORY_TOTAL]
    return Device(
        one.uuid,
        0 if math.isnan(total) else int(total),
        one.parent or "",
        sliced=one[GpuValue.MIG] == 1,
        exclusive=one[GpuValue.COMPUTE_MODE] == _EXCLUSIVE,
    )


def _worker_above(
    pid: int, workers: set[int], look: Callable[[int], proctree.Process | None] = proctree.look
) -> int | None:
    for _ in range(_MAX_DEPTH):
        if pid in workers:
            return pid
        process = look(pid) if pid > 1 else None
        if process is None:
            return None
        pid = process.parent
    return None
