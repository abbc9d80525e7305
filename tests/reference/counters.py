"""The plain twin of dspy_fastpath.counters: the whole page as one JSON text, rewritten under a lock of the file.

Slow and plainly right. The first 24 bytes are as in counters.pxd (magic, layout, size), the rest is its own.
"""

import bisect
import fcntl
import json
import math
import os
import secrets
import struct
import time
from collections import namedtuple
from contextlib import contextmanager
from enum import IntEnum

MAGIC, LAYOUT = b"DSPYPAGE", 3
HEAD = struct.Struct("<8sIIQ")
PLACES = {"counters": 16, "gauges": 16, "causes": 16, "reasons": 32}
GPUS, VALUES, PROCESSES = 64, 32, 32

Counter = IntEnum("Counter", "CLAIMED DONE FAILED RETRIED RESTARTS REFUSED TIMEOUTS OOMS SUBMITTED", start=0)
Gauge = IntEnum("Gauge", "PENDING INFLIGHT LIMIT WORKERS STATE LIMIT_REASON DELAYED GPU_NEED OLDEST", start=0)
Global = IntEnum(
    "Global",
    "SWEEPS OVERFLOWS LOST_WATCHES DRIFT FSYNCS QUARANTINED UNSCANNED TOTAL_PENDING MAX_PENDING TELEMETRY GPU_SAMPLES "
    "GPU_ERRORS GPU_LOSSES CONTROLLER_STEPS LIMIT_CHANGES SLURM_SUBMITTED SLURM_COMPLETED SLURM_FAILED SLURM_RUNNING "
    "SLURM_PENDING SLURM_CALLS SLURM_CALL_ERRORS SLURM_GPU_SECONDS ERROR_PPM EVENTS",
    start=0,
)
Histogram = IntEnum("Histogram", "WAIT RUN TOTAL", start=0)
SlotState = IntEnum("SlotState", "EMPTY STARTING IDLE BUSY STOPPING", start=0)
SlotView = namedtuple("SlotView", "pid incarnation klass state start_ns deadline_ns tasks name")
Telemetry = IntEnum("Telemetry", "UNWATCHED WATCHING NO_GPU REBOOT_NEEDED TROUBLED", start=0)
GpuStatus = IntEnum("GpuStatus", "HEALTHY LOST NEEDS_RESET UNREADABLE", start=0)
GpuValue = IntEnum(
    "GpuValue",
    "UTILIZATION MEMORY_UTILIZATION MEMORY_TOTAL MEMORY_FREE MEMORY_USED MEMORY_RESERVED POWER_W POWER_CAP_W ENERGY_J "
    "TEMPERATURE_C SLOWDOWN_C SM_CLOCK_MHZ SM_CLOCK_MAX_MHZ MEMORY_CLOCK_MHZ THROTTLE PROCESSES PROCESS_MEMORY MIG "
    "ECC_CORRECTED ECC_UNCORRECTED FAN COMPUTE_MODE COMPUTE_CAPABILITY",
    start=0,
)
HostValue = IntEnum(
    "HostValue",
    "CPUS CPU_BUSY LOAD PSI_CPU PSI_MEMORY PSI_MEMORY_FULL PSI_IO PSI_IO_FULL HOST_MEMORY_LIMIT HOST_MEMORY_FREE "
    "SWAP_FREE OOM_KILLS",
    start=0,
)
GpuView = namedtuple("GpuView", "uuid values at status parent name bus processes")
HostView = namedtuple("HostView", "values at")
EMPTY_SLOT = {
    "pid": 0,
    "incarnation": 0,
    "klass": 0,
    "state": 0,
    "start_ns": 0,
    "deadline_ns": 0,
    "tasks": 0,
    "name": "",
}


def bounds() -> list[float]:
    return [1e-6 * 2 ** (i / 2) for i in range(81)] + [math.inf]


class Page:
    def __init__(self) -> None:
        raise TypeError("a Page comes from Page.create() or Page.attach()")

    @classmethod
    def _opened(cls, descriptor: int, writable: bool):
        page = object.__new__(cls)
        page._descriptor, page._writable = descriptor, writable
        with page._content(False) as content:
            page.classes, page.queue_id = tuple(content["names"]), content["queue_id"]
            page.pid, page.started_at, page.slots = content["pid"], content["started_at"], len(content["slots"])
        return page

    @classmethod
    def create(cls, path, queue_id: str, classes, slots: int):
        names = [str(name) for name in classes]
        if not names or len(names) > 64 or len(set(names)) != len(names):
            raise ValueError("expected different names")
        if any(not 1 <= len(name.encode()) <= 127 or "\0" in name for name in names):
            raise ValueError("expected names of 1 to 127 bytes")
        if len(queue_id.encode()) > 64 or "\0" in queue_id:
            raise ValueError("expected a queue id of at most 64 bytes")
        if not 0 <= slots <= 65536:
            raise ValueError("expected 0 to 65536 slots")
        content = {
            "names": names,
            "queue_id": queue_id,
            "pid": os.getpid(),
            "started_at": time.time(),
            "heartbeat_ns": 0,
            "globals": [0] * 64,
            "classes": [
                {key: [0] * count for key, count in PLACES.items()} | {"histograms": [[[0] * 82, 0] for _ in range(4)]}
                for _ in names
            ],
            "slots": [EMPTY_SLOT] * slots,
            "gpus": [None] * GPUS,
            "host": None,
            "budgets": [],
        }
        size = HEAD.size + 200000 + 9000 * len(names) + 2000 * slots
        place = os.fsdecode(path)
        folder, name = os.path.split(place)
        unfinished = os.path.join(folder, f".{name}.{secrets.token_hex(8)}.tmp")
        descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(
                descriptor, HEAD.pack(MAGIC, LAYOUT, 0, size) + json.dumps(content).encode().ljust(size - HEAD.size)
            )
            os.rename(unfinished, place)
        except BaseException:
            os.close(descriptor)
            os.unlink(unfinished)
            raise
        return cls._opened(descriptor, True)

    @classmethod
    def attach(cls, path, writable: bool = False):
        flags = os.O_RDWR if writable else os.O_RDONLY
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            head = os.pread(descriptor, HEAD.size, 0)
            if head[:8] != MAGIC:
                raise ValueError(f"{path} is no page of dspy-supervisor: it begins with {head[:8]!r}")
            if len(head) >= 12 and (layout := int.from_bytes(head[8:12], "little")) != LAYOUT:
                raise ValueError(
                    f"{path} has layout {layout}, this program reads layout {LAYOUT}: restart the supervisor"
                )
            if len(head) < HEAD.size or os.fstat(descriptor).st_size != HEAD.unpack(head)[3]:
                raise ValueError(f"{path} is damaged; restart the supervisor")
            return cls._opened(descriptor, writable)
        except BaseException:
            os.close(descriptor)
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            self.close()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @contextmanager
    def _content(self, writing: bool):
        if self._descriptor < 0:
            raise ValueError("the page is closed")
        if writing and not self._writable:
            raise ValueError("the page is attached for reading only")
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX if writing else fcntl.LOCK_SH)
        try:
            size = os.fstat(self._descriptor).st_size - HEAD.size
            content = json.loads(os.pread(self._descriptor, size, HEAD.size))
            yield content
            if writing:
                os.pwrite(self._descriptor, json.dumps(content).encode().ljust(size), HEAD.size)
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    @contextmanager
    def _row(self, klass: int, key: str, number: int, writing: bool):
        with self._content(writing) as content:
            if klass < 0 or number < 0:
                raise IndexError(klass, number)
            row = content["classes"][klass][key]
            row[number]  # IndexError
            yield row

    def _get(self, klass: int, key: str, number: int) -> int:
        with self._row(klass, key, number, False) as row:
            return row[number]

    @property
    def heartbeat_ns(self) -> int:
        with self._content(False) as content:
            return content["heartbeat_ns"]

    def beat(self) -> None:
        with self._content(True) as content:
            content["heartbeat_ns"] = time.monotonic_ns()

    def add(self, klass: int, counter: int, n: int = 1) -> None:
        with self._row(klass, "counters", counter, True) as row:
            row[counter] += n

    def counter(self, klass: int, counter: int) -> int:
        return self._get(klass, "counters", counter)

    def set(self, klass: int, gauge: int, value: int) -> None:
        with self._row(klass, "gauges", gauge, True) as row:
            row[gauge] = value

    def gauge(self, klass: int, gauge: int) -> int:
        return self._get(klass, "gauges", gauge)

    def fail(self, klass: int, cause: int) -> None:
        with self._row(klass, "causes", cause, True) as row:
            row[cause] += 1

    def failures(self, klass: int) -> list[int]:
        with self._row(klass, "causes", 0, False) as row:
            return row

    def count_reason(self, klass: int, reason: int) -> None:
        with self._row(klass, "reasons", reason, True) as row:
            row[reason] += 1

    def reasons(self, klass: int) -> list[int]:
        with self._row(klass, "reasons", 0, False) as row:
            return row

    @contextmanager
    def _globals(self, number: int, writing: bool):
        with self._content(writing) as content:
            if not 0 <= number < 64:
                raise IndexError(number)
            yield content["globals"]

    def add_global(self, number: int, n: int = 1) -> None:
        with self._globals(number, True) as row:
            row[number] += n

    def set_global(self, number: int, value: int) -> None:
        with self._globals(number, True) as row:
            row[number] = value

    def get_global(self, number: int) -> int:
        with self._globals(number, False) as row:
            return row[number]

    def observe(self, klass: int, which: int, seconds: float) -> None:
        if math.isnan(seconds):
            raise ValueError("a time of nan seconds")
        seconds = min(max(seconds, 0.0), 1e9)
        with self._row(klass, "histograms", which, True) as row:
            row[which][0][bisect.bisect_left(bounds(), seconds)] += 1
            row[which][1] += int(seconds * 1e9 + 0.5)

    def histogram(self, klass: int, which: int) -> tuple[list[int], float]:
        counts, sum_ns = self._get(klass, "histograms", which)
        return counts, sum_ns / 1e9

    @contextmanager
    def _slot(self, slot: int, writing: bool):
        with self._content(writing) as content:
            if slot < 0:
                raise IndexError(slot)
            yield content["slots"][slot]

    def slot_set(self, slot: int, pid: int, incarnation: int, klass: int, state: int) -> None:
        with self._slot(slot, True) as found:
            if found["incarnation"] != incarnation:
                found.update(EMPTY_SLOT)
            found.update(pid=pid, incarnation=incarnation, klass=klass, state=state)

    def slot_begin(self, slot: int, start_ns: int, deadline_ns: int, name: bytes) -> None:
        if len(name) > 208:
            raise ValueError("expected a name of at most 208 bytes")
        with self._slot(slot, True) as found:
            found.update(state=SlotState.BUSY, start_ns=start_ns, deadline_ns=deadline_ns, name=name.decode("latin-1"))

    def slot_end(self, slot: int) -> None:
        with self._slot(slot, True) as found:
            state = SlotState.IDLE if found["state"] == SlotState.BUSY else found["state"]
            found.update(state=state, start_ns=0, deadline_ns=0, name="", tasks=found["tasks"] + 1)

    def slot(self, slot: int) -> SlotView:
        with self._slot(slot, False) as found:
            return SlotView(**found | {"name": found["name"].encode("latin-1")})

    def gpu_write(self, gpu, uuid, values, at, status=0, parent=-1, name=b"", bus=b"", processes=()) -> None:
        if not 1 <= len(uuid) <= 100:
            raise ValueError("expected a uuid of 1 to 100 bytes")
        places = _places(values)
        with self._content(True) as content:
            if gpu < 0:
                raise IndexError(gpu)
            texts = [text.decode("latin-1") for text in (uuid, name[:96], bus[:32])]
            content["gpus"][gpu] = [*texts, places, at, status, parent, processes[:PROCESSES]]

    def gpu_read(self, gpu: int) -> GpuView | None:
        with self._content(False) as content:
            if gpu < 0:
                raise IndexError(gpu)
            if content["gpus"][gpu] is None:
                return None
            *texts, values, at, status, parent, processes = content["gpus"][gpu]
            uuid, name, bus = (text.encode("latin-1") for text in texts)
            return GpuView(uuid, tuple(values), at, status, parent, name, bus, tuple(map(tuple, processes)))

    def host_write(self, values, at: float) -> None:
        places = _places(values)
        with self._content(True) as content:
            content["host"] = [places, at]

    def host_read(self) -> HostView | None:
        with self._content(False) as content:
            return content["host"] and HostView(tuple(content["host"][0]), content["host"][1])


def _places(values) -> list[float]:
    row = [math.nan] * VALUES
    for number, value in values.items():
        if number < 0:
            raise IndexError(number)
        row[number] = float(value)
    return row
