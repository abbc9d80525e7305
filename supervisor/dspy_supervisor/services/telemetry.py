"""The service that owns the GPUs' libraries: it looks at GPUs and host every interval and writes the shared page.

Tells the supervisor ``gpu_lost`` of a GPU whose tasks are to go elsewhere, and as its state what `status` shows. A
hang of a library is the silence of this process, for which it is replaced.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from dspy_fastpath.counters import Global, GpuStatus, GpuValue, Page, Telemetry

from ..gpu import GPUS, STATES, STATUSES, read
from ..host import Host
from ..link import ALIVE_S, Link
from ..log import log
from ..parts import ServicePost
from . import amd
from .nvml import Nvml
from .source import Device, Source
from .watch import View, Watch

OPENING_S = 60.0  #: what a library may take to initialize: it wakes each GPU, one after another


def run(post: ServicePost) -> int:
    """Look at GPUs and host until told to stop; an exit code that is not 0 asks for another process."""
    interval_s = post.config.telemetry_interval_s
    with Page.attach(post.page, writable=True) as page:
        watch = Watch(sources(), known(page))
        board = Board(page)
        host = Host()
        told: dict[str, object] = {}
        try:
            while True:
                began = time.monotonic()
                with patient(post.link, watch.is_slow(began)):
                    view = watch.look(began)
                board.write(view, watch.errors, began)
                page.host_write(host.sample(began), began)
                for device in board.to_fence(view):
                    post.link.send({"op": "gpu_lost", "uuid": device.uuid, "why": device.why})
                if (state := described(view)) != told:
                    post.link.send({"op": "state", **state})
                    _log(view, told)
                    told = state
                if view.broken:
                    return 1
                if _stopped(post.link, began + interval_s):
                    return 0
        finally:
            watch.close()


def sources() -> list[Source]:
    """Return the vendors' libraries to ask: AMD's only where it is installed."""
    return [Nvml(), *([amd.Amd()] if amd.is_installed() else [])]


def known(page: Page) -> list[Device]:
    """Return the GPUs that an earlier process wrote to the page."""
    return [
        Device(gpu.uuid, gpu.name, gpu.bus, gpu.parent, gpu.status, STATUSES[gpu.status] or "")
        for gpu in read(page).gpus
    ]


class Board:
    """The page's places of GPUs: a UUID keeps its own as long as the page lives."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._places = {gpu.uuid: gpu.place for gpu in read(page).gpus}
        self._fenced: set[str] = set()  # that this process told of: an earlier one may have died before it could
        self._errors = 0

    def write(self, view: View, errors: int, at: float) -> None:
        """Write what a look learned, at ``at`` (CLOCK_MONOTONIC, seconds)."""
        for device in view.news:
            if (place := self._place(device, view.devices)) is None:
                continue
            self._page.gpu_write(
                place,
                device.uuid.encode()[:100],
                device.values,
                at,
                device.status,
                self._places.get(device.parent or "", -1),
                device.name.encode(),
                device.bus.encode(),
                device.processes,
            )
        self._page.set_global(Global.TELEMETRY, view.state)
        self._page.add_global(Global.GPU_SAMPLES)
        self._page.add_global(Global.GPU_ERRORS, errors - self._errors)
        self._page.add_global(Global.GPU_LOSSES, len(view.fenced))
        self._errors = errors

    def to_fence(self, view: View) -> list[Device]:
        """Return the fenced GPUs that the supervisor was not told of by this process."""
        fenced = {d.uuid: d for d in view.devices if d.status in (GpuStatus.LOST, GpuStatus.NEEDS_RESET)}
        new = [device for uuid, device in fenced.items() if uuid not in self._fenced]
        self._fenced = set(fenced)
        return new

    def _place(self, device: Device, devices: Sequence[Device]) -> int | None:
        if (place := self._places.get(device.uuid)) is not None:
            return place
        free = set(range(GPUS)) - set(self._places.values())
        if not free:  # slices that were cut anew again and again: those that are gone for good make room
            kept = {each.uuid: each.status != GpuStatus.LOST for each in devices}
            gone = sorted((uuid for uuid in self._places if not kept.get(uuid)), key=lambda uuid: uuid in kept)
            if not gone:
                return None
            free = {self._places.pop(gone[0])}
        self._places[device.uuid] = min(free)
        return min(free)


def described(view: View) -> dict[str, object]:
    """Return what `status` shows of a look: small, and the same as long as nothing changes."""
    healthy = [device for device in view.devices if device.status == GpuStatus.HEALTHY]
    wholes = [device for device in healthy if device.parent is None]
    state: dict[str, object] = {
        "telemetry": view.state.name.lower(),
        "why": f"{STATES[view.state]}: {view.why}" if view.why else STATES[view.state] or "",
        "gpus": len(wholes),
        "slices": len(healthy) - len(wholes),
        "gpu_memory": [int(total) for d in wholes if (total := d.values.get(GpuValue.MEMORY_TOTAL, math.nan)) > 0],
        "fenced": {d.uuid: d.why for d in view.devices if d.status != GpuStatus.HEALTHY},
        **view.versions,
    }
    return state | ({"broken": view.broken} if view.broken else {})


@contextmanager
def patient(link: Link, slow: bool) -> Iterator[None]:
    """Say that we live while a library initializes, for as long as that may take; in all else silence is a hang."""
    if not slow:
        yield
        return
    done = threading.Event()

    def speak() -> None:
        deadline = time.monotonic() + OPENING_S
        while not done.wait(ALIVE_S / 2) and time.monotonic() < deadline:
            link.send({"op": "alive"})

    speaker = threading.Thread(target=speak, daemon=True)
    speaker.start()
    try:
        yield
    finally:
        done.set()
        speaker.join()


def _stopped(link: Link, until: float) -> bool:
    """Wait until a monotonic time, and return whether the supervisor said to stop."""
    while True:
        link.alive()
        left_s = until - time.monotonic()
        if any(message["op"] == "stop" for message in link.receive(min(left_s, ALIVE_S / 2))):
            return True
        if left_s <= 0:
            return False


def _log(view: View, told: dict[str, object]) -> None:
    if view.state.name.lower() != told.get("telemetry"):
        healthy = sum(device.status == GpuStatus.HEALTHY for device in view.devices)
        state, versions = view.state.name.lower(), dict(view.versions)
        if view.state in (Telemetry.WATCHING, Telemetry.NO_GPU):
            log.info("telemetry", state=state, gpus=healthy, versions=versions, why=view.why)
        else:
            consequence = "no new task is given to a GPU"
            log.error("telemetry", state=state, gpus=healthy, versions=versions, why=view.why, next=consequence)
    for device in view.fenced:
        log.error("gpu_fenced", uuid=device.uuid, reason=device.why, next="its tasks go back to the queue")
    for uuid in view.back:
        log.info("gpu_back", uuid=uuid)
    if view.broken:
        log.error("telemetry_broken", reason=view.broken, next="another process takes over")
