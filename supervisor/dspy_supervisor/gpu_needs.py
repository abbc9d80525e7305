"""What one task needs of GPUs, from what it says, what its class says, and what tasks of its kind were seen to take."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from .config import ClassConfig
from .devices import Ledger, Need, NeedError, read_need
from .record import Claim
from .vram import GUESS, Learned

if TYPE_CHECKING:
    from .pool_worker import Worker


@dataclass(slots=True)
class Asked:
    """What a task that waits or runs asked for, and what it was given."""

    need: Need
    kind: str  #: of tasks that need alike: also by what they say they need
    declared: bool  #: it says how much memory it needs
    given: Need = field(default_factory=Need)  #: with what is known of the memory of its kind
    worker: Worker | None = None
    started: float = 0.0  #: monotonic seconds; 0: it waits

    @property
    def is_raised(self) -> bool:
        """Whether it is taken to need more memory than it says."""
        return self.given.memory_bytes > self.need.memory_bytes

    @classmethod
    def of(cls, task: Claim, settings: ClassConfig, default: Need) -> Self:
        """Return what a task asks for; nonsense asks for the default, and its worker refuses it."""
        resources = task.fields.resources
        try:
            need = read_need(task.envelope[slice(*resources)] if resources else None, default)
        except NeedError:
            need = default
        kind = task.fields.kind or settings.handler or ""
        declared = need.memory_bytes > 0
        return cls(need, f"{kind} {need.memory_bytes >> 20} MiB" if declared else kind, declared)


def default_need(settings: ClassConfig, workers: int, devices: int) -> Need:
    """Return what a task gets that names nothing: what the class says, or an even share of the devices."""
    share = settings.gpu_share or 1.0 / math.ceil(max(1, workers) / max(1, devices))
    return Need(max(1, round(share))) if share >= 1 else Need(share=share)


def with_memory(asked: Asked, ledger: Ledger, learned: Learned) -> Need:
    """Return a need with the memory that the task names, or its kind was seen to take, or is taken to need."""
    need = asked.need
    memory = max(need.memory_bytes, learned.need(asked.kind))
    if not memory and need.count:
        known = [ledger.budget_of(device) for device in ledger.devices if device.total_bytes]
        memory = int(GUESS * (need.share or 1.0) * min(known, default=0))
    return dataclasses.replace(need, memory_bytes=memory)


def bound(asked: Asked, uuids: Collection[str], ledger: Ledger) -> int:
    """Return the memory that a task may have of each of these GPUs: what it named, else what all together may have.

    0 where the driver does not say how much there is.
    """
    if asked.declared:
        return asked.given.memory_bytes
    return min((ledger.budget_of(d) for d in ledger.devices if d.uuid in uuids and d.total_bytes), default=0)
