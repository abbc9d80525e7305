"""What a vendor's library tells of GPUs: the interface that NVIDIA's and AMD's fit, and the ways it fails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from dspy_fastpath.counters import GpuStatus, GpuValue


@dataclass(frozen=True, slots=True)
class Device:
    """What the library tells of one GPU, or of one slice of a GPU, at one moment."""

    uuid: str
    name: str = ""
    bus: str = ""
    parent: str | None = None  #: UUID of the GPU that a slice is cut from
    status: GpuStatus = GpuStatus.HEALTHY
    why: str = ""  #: words for a status that is not healthy
    values: Mapping[GpuValue, float] = field(default_factory=dict)  #: what is missing is not told
    processes: tuple[tuple[int, int], ...] = ()  #: (pid, bytes or -1), those with most memory first


class Absent(Exception):
    """There is no GPU that this process may use; that can change."""


class Mismatch(Exception):
    """Driver and library are of two versions: nothing new can start before a reboot."""


class Anew(Exception):
    """The library forgot that it was initialized: open it again."""


class Broken(Exception):
    """The library fails in a way that only another process may mend; ``struck``: it had its chances."""

    def __init__(self, why: str, *, struck: bool = False) -> None:
        super().__init__(why)
        self.struck = struck


class Source(Protocol):
    """One vendor's library. Every call may hang, which only the death of the process ends."""

    label: str  #: who makes these GPUs
    errors: int  #: calls that failed so far, beside those a GPU does not support

    def open(self) -> Mapping[str, str]:
        """Initialize the library and return its versions. Raises Absent, Mismatch, Broken."""

    def devices(self) -> list[Device]:
        """Return all GPUs and their slices, each after its parent. Raises Absent, Mismatch, Anew, Broken."""

    def close(self) -> None:
        """Give up what open() got; never fails."""
