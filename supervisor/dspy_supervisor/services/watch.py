"""What is to be said of all GPUs, from what their libraries tell: who is fenced, who came back, when to look again.

No page, no link and no clock of its own: a look is a function of the time it is given and of what the libraries say.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from dspy_fastpath.counters import GpuStatus, Telemetry

from ..gpu import GPUS
from .source import Absent, Anew, Broken, Device, Mismatch, Source

AGAIN_S = 60.0  #: until a library without a GPU, or one with a fenced GPU, is opened anew
STRIKES = 3  #: looks in a row that failed before another process is to try
_FENCED = (GpuStatus.LOST, GpuStatus.NEEDS_RESET)


@dataclass(frozen=True, slots=True)
class View:
    """All GPUs after one look. A UUID that was seen once stays a while, as lost where it is no longer listed."""

    state: Telemetry
    why: str  #: words for a state that keeps work away; "" where nothing does
    devices: tuple[Device, ...]
    news: tuple[Device, ...] = ()  #: of these, what this look learned
    fenced: tuple[Device, ...] = ()  #: that this look found lost, or in need of a reset
    back: tuple[str, ...] = ()  #: UUIDs that were fenced and are healthy again
    versions: dict[str, str] = field(default_factory=dict)
    broken: str = ""  #: why another process is to go on; this one can't


class _Library:
    """One source, and whether it is open."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.open = False
        self.fresh = False  # opened in this look: what it says of a fenced GPU counts
        self.opened_at = 0.0
        self.next_s = 0.0  # not to be opened before
        self.strikes = 0
        self.worked = False
        self.state, self.why = Telemetry.UNWATCHED, ""
        self.versions: dict[str, str] = {}
        self.devices: tuple[Device, ...] = ()

    def look(self, now: float) -> None:
        self.fresh = False
        if not self.open and now < self.next_s:
            return
        try:
            self.devices = self._devices(now)
        except Absent as error:
            self._give_up(now, AGAIN_S, Telemetry.NO_GPU, error)
            self.strikes = 0
        except Mismatch as error:
            self._give_up(now, AGAIN_S, Telemetry.REBOOT_NEEDED, error)
            if self.worked:  # the library that is installed now may fit, and only another process loads it
                self.strikes = STRIKES
        except (Anew, Broken) as error:
            self._give_up(now, 0.0, Telemetry.TROUBLED, error)
            self.strikes = STRIKES if getattr(error, "struck", False) else self.strikes + 1
        else:
            self.state, self.why, self.strikes = Telemetry.WATCHING, "", 0
            self.worked = True

    def close(self) -> None:
        if self.open:
            self.source.close()
        self.open = False

    def _devices(self, now: float) -> tuple[Device, ...]:
        if not self.open:
            self._start(now)
        try:
            return tuple(self.source.devices())
        except Anew:
            self.close()
            self._start(now)
            return tuple(self.source.devices())

    def _start(self, now: float) -> None:
        self.versions = dict(self.source.open())
        self.open = self.fresh = True
        self.opened_at = now

    def _give_up(self, now: float, wait_s: float, state: Telemetry, error: Exception) -> None:
        self.close()
        self.next_s = now + wait_s
        self.state, self.why, self.devices = state, str(error), ()


class Watch:
    """Looks at the GPUs of some sources; ``known`` are those that an earlier process saw."""

    def __init__(self, sources: Sequence[Source], known: Iterable[Device] = ()) -> None:
        self._libraries = [_Library(source) for source in sources]
        self._devices = {device.uuid: device for device in known}

    @property
    def errors(self) -> int:
        """How many calls failed so far, beside those a GPU does not support."""
        return sum(library.source.errors for library in self._libraries)

    def look(self, now: float) -> View:
        """Return what all libraries tell at ``now``, in seconds of any steady clock."""
        fenced_before = {uuid for uuid, device in self._devices.items() if device.status in _FENCED}
        for library in self._libraries:
            if self._is_due(library, now):  # a GPU that was reset tells so only to who initializes anew
                library.close()
            library.look(now)
        state, why = self._verdict()
        listed = {device.uuid: (device, library) for library in self._libraries for device in library.devices}
        news: list[Device] = []
        back: list[str] = []
        for uuid, (device, library) in listed.items():
            if uuid in fenced_before and device.status not in _FENCED:
                if not library.fresh or device.status != GpuStatus.HEALTHY:
                    continue  # a fence is not opened by the session it was put up in
                back.append(uuid)
            news.append(device)
        if state in (Telemetry.WATCHING, Telemetry.NO_GPU):  # else the list is not the whole truth
            news += [
                replace(device, status=GpuStatus.LOST, why="its driver no longer lists it", values={}, processes=())
                for uuid, device in self._devices.items()
                if uuid not in listed and uuid not in fenced_before
            ]
        self._devices |= {device.uuid: device for device in news}
        self._forget(set(listed))
        struck = [library for library in self._libraries if library.strikes >= STRIKES]
        return View(
            state,
            why,
            tuple(self._devices.values()),
            tuple(news),
            tuple(device for device in news if device.status in _FENCED and device.uuid not in fenced_before),
            tuple(back),
            {name: text for library in self._libraries for name, text in library.versions.items()},
            struck[0].why if struck else "",
        )

    def is_slow(self, now: float) -> bool:
        """Whether the next look initializes a library, which can take many seconds."""
        return any((not each.open and now >= each.next_s) or self._is_due(each, now) for each in self._libraries)

    def close(self) -> None:
        """Close every library."""
        for library in self._libraries:
            library.close()

    def _is_due(self, library: _Library, now: float) -> bool:
        """Whether an open library is to be opened anew, for GPUs that are fenced. A slice is made anew, never mended."""
        if not library.open or now - library.opened_at < AGAIN_S:
            return False
        listed = {device.uuid for each in self._libraries for device in each.devices}
        ours = {device.uuid for device in library.devices}
        return any(
            uuid in ours or (uuid not in listed and device.parent is None)
            for uuid, device in self._devices.items()
            if device.status in _FENCED
        )

    def _forget(self, listed: set[str]) -> None:
        """Forget the oldest of what is gone where there is too much: slices can be cut anew for ever."""
        gone = [
            uuid for uuid, device in self._devices.items() if uuid not in listed and device.status == GpuStatus.LOST
        ]
        for uuid in gone[: max(0, len(self._devices) - GPUS)]:
            del self._devices[uuid]

    def _verdict(self) -> tuple[Telemetry, str]:
        """Return the state of all: work stays away where one library says so, else one with a GPU is enough."""
        for state in (Telemetry.REBOOT_NEEDED, Telemetry.TROUBLED):
            for library in self._libraries:
                if library.state == state:
                    return state, library.why
        if any(library.state == Telemetry.WATCHING for library in self._libraries):
            return Telemetry.WATCHING, ""
        return Telemetry.NO_GPU, "; ".join(library.why for library in self._libraries if library.why)
