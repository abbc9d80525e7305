"""What the supervisor writes into its queue's history, once a minute; and how many attempts fail of late."""

from __future__ import annotations

import contextlib
import math
import os
import re
import socket
import time
from collections import deque
from typing import Any

import orjson
from dspy_fastpath.counters import Counter, Gauge, Global, GpuValue, HostValue, Page

from .gpu import read
from .history import DAYS, FOLDER, MAX_BYTES, MAX_FILE_BYTES, begun_at, file_name, files, pack
from .host import Host
from .layout import Layout
from .limit_terms import Reason
from .log import log
from .times import KINDS, Times

PERIOD_S = 60.0
_LOOK_S = 5.0  # between two looks at errors and devices
_ERRORS_S = 60.0  # an error rate is that of the last so many seconds
_LATE_S = 120.0  # a device that told nothing for so long tells nothing of this minute
_COUNTERS = {
    "submitted": Counter.SUBMITTED,
    "done": Counter.DONE,
    "failed": Counter.FAILED,
    "retried": Counter.RETRIED,
    "timeouts": Counter.TIMEOUTS,
    "ooms": Counter.OOMS,
}
_GPU = {
    "utilization": GpuValue.UTILIZATION,
    "memory_free": GpuValue.MEMORY_FREE,
    "memory_total": GpuValue.MEMORY_TOTAL,
    "power_w": GpuValue.POWER_W,
    "temperature_c": GpuValue.TEMPERATURE_C,
}
_HOST = {
    "cpus": HostValue.CPUS,
    "cpu_busy": HostValue.CPU_BUSY,
    "memory_free": HostValue.HOST_MEMORY_FREE,
    "memory_limit": HostValue.HOST_MEMORY_LIMIT,
    "psi_cpu": HostValue.PSI_CPU,
    "psi_memory": HostValue.PSI_MEMORY,
    "psi_io": HostValue.PSI_IO,
}

_Counts = tuple[dict[str, int], dict[str, Times]]  # of one class: by name of _COUNTERS, by name of KINDS


class Recorder:
    """Measures one supervisor, and writes its minutes down."""

    def __init__(self, page: Page, instance: str, folder: str = FOLDER) -> None:
        self._page, self._folder = page, folder
        self._writer = f"{re.sub(r'[^A-Za-z0-9_-]', '_', socket.gethostname())[:40]}.{instance}"
        self._host = Host()
        self._host.sample(time.monotonic())
        self._began = self._integrated = time.monotonic()
        self._inflight = [0.0] * len(page.classes)  # task seconds of this minute
        self._before = self._counts()
        self._attempts: deque[tuple[float, int, int]] = deque([(self._began, *self._ends())])  # when, ended, failed
        self._file = ""
        self._trouble = ""

    def look(self, now: float) -> None:
        """Take what runs into account until ``now`` (monotonic seconds); called whenever the page was brought up to date."""
        page, elapsed_s = self._page, now - self._integrated
        self._integrated = now
        for klass in range(len(page.classes)):
            self._inflight[klass] += elapsed_s * page.gauge(klass, Gauge.INFLIGHT)
        if now - self._attempts[-1][0] < _LOOK_S:
            return
        ended, bad = self._ends()
        self._attempts.append((now, ended, bad))
        while len(self._attempts) > 2 and now - self._attempts[1][0] >= _ERRORS_S:
            self._attempts.popleft()
        first = self._attempts[0]
        of_late = ended - first[1]
        page.set_global(Global.ERROR_PPM, round(1e6 * (bad - first[2]) / of_late) if of_late else 0)

    def _ends(self) -> tuple[int, int]:
        """Return how many attempts have ended, and how many of them failed."""
        page, classes = self._page, range(len(self._page.classes))
        bad = sum(page.counter(klass, name) for klass in classes for name in (Counter.FAILED, Counter.RETRIED))
        return bad + sum(page.counter(klass, Counter.DONE) for klass in classes), bad

    def write(self, layout: Layout, now: float | None = None) -> None:
        """Add the minute that ends now to the history; a disk that doesn't take it is told of once."""
        now = time.time() if now is None else now
        line = orjson.dumps(self.minute(now), option=orjson.OPT_APPEND_NEWLINE)
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self._folder, 0o700, dir_fd=layout.root)
            self._append(layout, line, now)
            self._trouble = ""
        except OSError as error:
            if not self._trouble:
                log.warning("history_not_written", error=str(error), next="trying again each minute")
            self._trouble = str(error)

    def minute(self, now: float) -> dict[str, Any]:
        """Return the line of the time since the last one, and begin anew. ``now``: epoch seconds."""
        moment = time.monotonic()
        self.look(moment)
        seconds = max(1e-3, moment - self._began)
        counts = self._counts()
        classes = {}
        for klass, name in enumerate(self._page.classes):
            classes[name] = self._of_class(klass, counts[klass], self._before[klass], seconds)
        self._before, self._began = counts, moment
        self._inflight = [0.0] * len(classes)
        found = {"at": round(now, 3), "s": round(seconds, 3), "classes": classes}
        return found | self._devices(moment)

    def _of_class(self, klass: int, now: _Counts, before: _Counts, seconds: float) -> dict[str, Any]:
        page = self._page
        row: dict[str, Any] = {
            "pending": page.gauge(klass, Gauge.PENDING),
            "inflight": float(f"{self._inflight[klass] / seconds:.4g}"),
            "limit": page.gauge(klass, Gauge.LIMIT),
            "workers": page.gauge(klass, Gauge.WORKERS),
        }
        row |= {name: now[0][name] - before[0][name] for name in _COUNTERS}
        reason = page.gauge(klass, Gauge.LIMIT_REASON)
        if 0 < reason < len(Reason):
            row["reason"] = Reason(reason).name.lower()
        row |= {kind: pack(new) for kind in KINDS if (new := now[1][kind].since(before[1][kind])).number}
        return {key: value for key, value in row.items() if value}

    def _devices(self, now: float) -> dict[str, Any]:
        sight = read(self._page)
        host = sight.host
        if host is None or sight.age_s(now) > _LATE_S:
            sample = self._host.sample(now)
            host = tuple(sample.get(value, math.nan) for value in HostValue)
        found: dict[str, Any] = {"host": _known({name: host[value] for name, value in _HOST.items()})}
        gpus = {
            gpu.uuid: _known({name: gpu[value] for name, value in _GPU.items()})
            for gpu in sight.gpus
            if now - gpu.at < _LATE_S
        }
        return found | ({"gpus": gpus} if gpus else {})

    def _counts(self) -> list[_Counts]:
        page = self._page
        return [
            (
                {name: page.counter(klass, counter) for name, counter in _COUNTERS.items()},
                {kind: Times.of(page, klass, which) for kind, which in KINDS.items()},
            )
            for klass in range(len(page.classes))
        ]

    def _append(self, layout: Layout, line: bytes, now: float) -> None:
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=layout.root)
        try:
            begun = begun_at(self._file)
            if begun is None or begun // 86400 != now // 86400 or self._size(folder) > MAX_FILE_BYTES:
                self._file = file_name(now, self._writer)
                _clear(layout, self._folder, folder, now)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            file = os.open(self._file, flags, 0o640, dir_fd=folder)
            try:
                os.write(file, line)
            finally:
                os.close(file)
        finally:
            os.close(folder)

    def _size(self, folder: int) -> int:
        try:
            return os.stat(self._file, dir_fd=folder, follow_symlinks=False).st_size
        except FileNotFoundError:
            return 0


def _clear(layout: Layout, name: str, folder: int, now: float) -> None:
    """Remove what is too old, and the oldest of what is too much."""
    there = files(layout.path / name)
    size = sum(one[2] for one in there)
    for begun, file, size_bytes in there:
        if begun > now - DAYS * 86400 and size <= MAX_BYTES - MAX_FILE_BYTES:
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file, dir_fd=folder)
        size -= size_bytes


def _known(values: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.5g}") for name, value in values.items() if not math.isnan(value)}
