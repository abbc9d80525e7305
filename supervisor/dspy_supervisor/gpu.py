"""GPUs as telemetry left them in the shared page: what each one told last, and whether work can be given to it.

A number that a GPU does not tell is nan, never 0. A slice of a GPU (MIG) is a GPU of its own here, with a parent. A
sample has the CLOCK_MONOTONIC time at which it was taken: who decides by it minds its age, since telemetry may hang.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dspy_fastpath.counters import Global, GpuStatus, GpuValue, HostValue, Page, Telemetry

GPUS = 64  #: places on the page
STALE_PERIODS = 3  #: a sample older than this many intervals is not believed
THERMAL = 0x8 | 0x20 | 0x40  #: bits of THROTTLE: slowed by hardware, by software for heat, by hardware for heat
POWER = 0x4 | 0x80  #: bits of THROTTLE: the power cap, the power supply's brake
#: what NVML calls the bits of the clocks event reasons (nvml.h), the idle GPU's own first
THROTTLE_WORDS = {
    0x1: "idle",
    0x2: "clocks set by hand",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "heat (software)",
    0x40: "heat (hardware)",
    0x80: "power brake",
    0x100: "display clocks",
}
#: for people, by state and by status; None where nothing keeps work away
STATES = {
    Telemetry.UNWATCHED: "telemetry has not looked yet",
    Telemetry.WATCHING: None,
    Telemetry.NO_GPU: "no GPU found",
    Telemetry.REBOOT_NEEDED: "the GPU driver and its library are of two versions: reboot needed",
    Telemetry.TROUBLED: "the GPU driver's library fails",
}
STATUSES = {
    GpuStatus.HEALTHY: None,
    GpuStatus.LOST: "lost: it fell off the bus, or is no longer listed",
    GpuStatus.NEEDS_RESET: "needs a reset (nvidia-smi --gpu-reset)",
    GpuStatus.UNREADABLE: "cannot be read",
}


@dataclass(frozen=True, slots=True)
class Gpu:
    """The last sample of one GPU, or of one slice of a GPU."""

    place: int  #: on the page; a UUID keeps its place as long as the page lives
    uuid: str
    name: str
    bus: str  #: PCI address
    parent: str | None  #: UUID of the GPU this slice is cut from
    status: GpuStatus
    values: tuple[float, ...]  #: by GpuValue
    processes: tuple[tuple[int, int], ...]  #: (pid, bytes), -1 where the bytes are not told; foreign ones too
    at: float  #: CLOCK_MONOTONIC, seconds

    def __getitem__(self, value: GpuValue) -> float:
        return self.values[value]

    @property
    def usable(self) -> bool:
        """Whether CUDA can start on it: healthy, not cut in slices, and open to more processes."""
        return self.status == GpuStatus.HEALTHY and self[GpuValue.MIG] != 1 and self[GpuValue.COMPUTE_MODE] != 2


@dataclass(frozen=True, slots=True)
class Sight:
    """All that telemetry knows at one moment."""

    state: Telemetry
    gpus: tuple[Gpu, ...]
    host: tuple[float, ...] | None  #: by HostValue
    at: float  #: CLOCK_MONOTONIC of the last look, in seconds; 0 before the first

    def age_s(self, now: float) -> float:
        """Return how old the last look is; inf before the first."""
        return now - self.at if self.at else math.inf

    def obstacle(self, now: float, interval_s: float) -> str | None:
        """Return why no new work may go to any GPU now, in words, or None."""
        if (why := STATES[self.state]) is not None:
            return why
        age_s = self.age_s(now)
        return f"GPU telemetry is silent for {age_s:.0f} s" if age_s > STALE_PERIODS * interval_s else None


def read(page: Page) -> Sight:
    """Return what the page tells of GPUs and host."""
    state = Telemetry(page.get_global(Global.TELEMETRY))  # first: it is written last, when all GPUs are there
    found = {place: view for place in range(GPUS) if (view := page.gpu_read(place)) is not None}
    gpus = tuple(
        Gpu(
            place,
            view.uuid.decode(errors="replace"),
            view.name.decode(errors="replace"),
            view.bus.decode(errors="replace"),
            found[view.parent].uuid.decode(errors="replace") if view.parent in found else None,
            GpuStatus(view.status),
            view.values,
            view.processes,
            view.at,
        )
        for place, view in found.items()
    )
    host = page.host_read()
    at = max([one.at for one in gpus] + ([host.at] if host else []), default=0.0)
    return Sight(state, gpus, host.values if host else None, at)


def throttle_words(bits: float) -> list[str]:
    """Return why a GPU runs below its clocks, beside being idle; nothing for nan."""
    if math.isnan(bits):
        return []
    return [word for bit, word in THROTTLE_WORDS.items() if int(bits) & bit and bit != 0x1]


def described(gpu: Gpu, why: str | None = None) -> dict[str, Any]:
    """Return a sample as JSON, null for what it does not tell; ``why`` says more of a status that is not healthy."""
    return {
        "uuid": gpu.uuid,
        "name": gpu.name,
        "bus": gpu.bus,
        "parent": gpu.parent,
        "status": gpu.status.name.lower(),
        "obstacle": why or STATUSES[gpu.status],
        **dict(_named(GpuValue, gpu.values)),
        "throttle_reasons": throttle_words(gpu[GpuValue.THROTTLE]),
        "process_list": [{"pid": pid, "memory": memory if memory >= 0 else None} for pid, memory in gpu.processes],
    }


def described_host(values: tuple[float, ...]) -> dict[str, Any]:
    """Return a sample of the host as JSON, null for what it does not tell."""
    return {name.removeprefix("host_"): value for name, value in _named(HostValue, values)}


def _named(table: type[GpuValue] | type[HostValue], values: tuple[float, ...]) -> Iterator[tuple[str, Any]]:
    for value in table:
        told = values[value]
        yield value.name.lower(), None if math.isnan(told) else int(told) if told.is_integer() else round(told, 4)
