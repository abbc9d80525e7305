"""Windows of measurements: what the controller's step is told of each class, from two looks at the shared page.

A record of windows is one JSON object a line for each class and window, oldest first, as `simulate --replay` reads it::

    {"at": 1700000000.0, "class": "gpu", "lowest": 1, "highest": 4, "interval_s": 2.0, "limit": 3, "inflight": 2.9, ...}

``at`` is the end of the window in seconds since the epoch, ``next`` and ``reason`` are what the policy said to it, and
null is what was not known.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import orjson
from dspy_fastpath.counters import Counter, Gauge, GpuValue, Histogram, HostValue, Page, SlotState

from ..gpu import POWER, THERMAL, Gpu
from ..limit_terms import Input

BASE_S = 120.0  #: the memory of a run time's baseline
RECORD_BYTES = 32 << 20  #: of a record, which then becomes FILE.1 in place of the one before
_BRAKE = 0x80  # of POWER: the power supply's brake. Its other bit, the cap, is an everyday thing at full load


class _Sums(NamedTuple):
    """Counters of one class that only grow."""

    done: float
    errors: float
    timeouts: float
    ooms: float
    started: float
    wait_s: float
    ended: float
    run_s: float


class Meter:
    """The windows of one class, each since the one before."""

    def __init__(self, page: Page, klass: int, now: float) -> None:
        self._page, self._klass = page, klass
        self._began = now
        self._before = self._sums()
        self._inflight: list[int] = []
        self._base_s = math.nan
        self._need = math.nan

    def glance(self) -> None:
        """Note how many tasks run now; a window tells the mean."""
        self._inflight.append(self._page.gauge(self._klass, Gauge.INFLIGHT))

    def window(
        self, now: float, host: Sequence[float] | None, gpus: Sequence[Gpu], telemetry_age_s: float
    ) -> list[float]:
        """Return the window that ends now, by `Input`.

        host: by HostValue, or None; gpus: those of this class, none where it uses none; times are monotonic seconds.
        """
        page, klass = self._page, self._klass
        self.glance()
        interval_s = max(1e-3, now - self._began)
        sums, before = self._sums(), self._before
        more = _Sums(*(max(0.0, new - old) for new, old in zip(sums, before, strict=True)))
        run_s = more.run_s / more.ended if more.ended else math.nan
        if math.isnan(self._base_s):
            self._base_s = run_s
        elif more.ended:
            self._base_s += (run_s - self._base_s) * (1.0 - math.exp(-interval_s / BASE_S))
        window = [math.nan] * len(Input)
        window[Input.INTERVAL_S] = interval_s
        window[Input.LIMIT] = page.gauge(klass, Gauge.LIMIT)
        window[Input.INFLIGHT] = sum(self._inflight) / len(self._inflight)
        window[Input.BACKLOG] = page.gauge(klass, Gauge.PENDING)
        window[Input.DONE] = more.done
        window[Input.ERRORS] = more.errors
        window[Input.TIMEOUTS] = more.timeouts
        window[Input.OOMS] = more.ooms
        window[Input.WAIT_S] = more.wait_s / more.started if more.started else math.nan
        window[Input.RUN_S] = run_s
        window[Input.RUN_BASE_S] = self._base_s
        window[Input.DONE_RATE] = more.done / interval_s
        window[Input.THROTTLE] = 0.0
        if host is not None:
            window[Input.PSI_CPU] = host[HostValue.PSI_CPU]
            window[Input.PSI_MEM] = host[HostValue.PSI_MEMORY]
            window[Input.PSI_IO] = host[HostValue.PSI_IO]
            window[Input.MEM_FREE_SHARE] = host[HostValue.HOST_MEMORY_FREE] / host[HostValue.HOST_MEMORY_LIMIT]
        if gpus:
            self._look_at(gpus, telemetry_age_s, window)
        self._began, self._before = now, sums
        self._inflight.clear()
        return [float(value) for value in window]

    def _look_at(self, gpus: Sequence[Gpu], age_s: float, window: list[float]) -> None:
        window[Input.GPU_BUSY] = _mean([gpu[GpuValue.UTILIZATION] for gpu in gpus])
        window[Input.VRAM_FREE] = math.fsum(gpu[GpuValue.MEMORY_FREE] for gpu in gpus)
        window[Input.VRAM_TOTAL] = math.fsum(gpu[GpuValue.MEMORY_TOTAL] for gpu in gpus)
        window[Input.POWER] = _mean([gpu[GpuValue.POWER_W] / gpu[GpuValue.POWER_CAP_W] for gpu in gpus])
        window[Input.TELEMETRY_AGE_S] = age_s
        bits = 0
        for gpu in gpus:
            bits |= 0 if math.isnan(gpu[GpuValue.THROTTLE]) else int(gpu[GpuValue.THROTTLE])
        window[Input.THROTTLE] = 1.0 if bits & THERMAL else 2.0 if bits & POWER & _BRAKE else 0.0
        held: dict[int, int] = {}
        for gpu in gpus:
            for pid, memory in gpu.processes:
                if memory > 0:
                    held[pid] = held.get(pid, 0) + memory
        ours = [float(held[pid]) for pid in self._busy_workers() if pid in held]
        if ours:  # the most that one was seen to hold, forgotten over minutes
            fade = math.exp(-window[Input.INTERVAL_S] / (5 * BASE_S))
            self._need = max(*ours, 0.0 if math.isnan(self._need) else self._need * fade)
        learned = self._page.gauge(self._klass, Gauge.GPU_NEED)  # where the driver lists no process that we know
        window[Input.VRAM_NEED] = learned if math.isnan(self._need) and learned else self._need

    def _busy_workers(self) -> list[int]:
        slots = (self._page.slot(number) for number in range(self._page.slots))
        return [slot.pid for slot in slots if slot.klass == self._klass and slot.state == SlotState.BUSY]

    def _sums(self) -> _Sums:
        page, klass = self._page, self._klass
        waits, wait_s = page.histogram(klass, Histogram.WAIT)
        runs, run_s = page.histogram(klass, Histogram.RUN)
        return _Sums(
            page.counter(klass, Counter.DONE),
            page.counter(klass, Counter.FAILED) + page.counter(klass, Counter.RETRIED),
            page.counter(klass, Counter.TIMEOUTS),
            page.counter(klass, Counter.OOMS),
            sum(waits),
            wait_s,
            sum(runs),
            run_s,
        )


class Record:
    """The file that keeps windows."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(
        self, at: float, workload: str, bounds: tuple[float, float], window: Sequence[float], limit: float, reason: str
    ) -> None:
        """Add one window and what the policy said to it. Raises OSError."""
        line = {
            "at": round(at, 3),
            "class": workload,
            "lowest": bounds[0],
            "highest": bounds[1],
            **{name.name.lower(): None if math.isnan(window[name]) else window[name] for name in Input},
            "next": limit,
            "reason": reason,
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "ab") as file:
            file.write(orjson.dumps(line) + b"\n")  # one write, so that a death leaves one torn line at most
            size = file.tell()
        if size > RECORD_BYTES:
            os.replace(self._path, self._path.with_name(self._path.name + ".1"))


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan
