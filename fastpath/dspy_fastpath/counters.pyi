from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from os import PathLike
from types import TracebackType
from typing import NamedTuple, Never, Self, final

class Counter(IntEnum):
    CLAIMED = 0
    DONE = 1
    FAILED = 2
    RETRIED = 3
    RESTARTS = 4
    REFUSED = 5
    TIMEOUTS = 6
    OOMS = 7
    SUBMITTED = 8

class Gauge(IntEnum):
    PENDING = 0
    INFLIGHT = 1
    LIMIT = 2
    WORKERS = 3
    STATE = 4
    LIMIT_REASON = 5
    DELAYED = 6
    GPU_NEED = 7
    OLDEST = 8

class Global(IntEnum):
    SWEEPS = 0
    OVERFLOWS = 1
    LOST_WATCHES = 2
    DRIFT = 3
    FSYNCS = 4
    QUARANTINED = 5
    UNSCANNED = 6
    TOTAL_PENDING = 7
    MAX_PENDING = 8
    TELEMETRY = 9
    GPU_SAMPLES = 10
    GPU_ERRORS = 11
    GPU_LOSSES = 12
    CONTROLLER_STEPS = 13
    LIMIT_CHANGES = 14
    SLURM_SUBMITTED = 15
    SLURM_COMPLETED = 16
    SLURM_FAILED = 17
    SLURM_RUNNING = 18
    SLURM_PENDING = 19
    SLURM_CALLS = 20
    SLURM_CALL_ERRORS = 21
    SLURM_GPU_SECONDS = 22
    ERROR_PPM = 23
    EVENTS = 24

class Histogram(IntEnum):
    WAIT = 0
    RUN = 1
    TOTAL = 2

class SlotState(IntEnum):
    EMPTY = 0
    STARTING = 1
    IDLE = 2
    BUSY = 3
    STOPPING = 4

class Telemetry(IntEnum):
    UNWATCHED = 0
    WATCHING = 1
    NO_GPU = 2
    REBOOT_NEEDED = 3
    TROUBLED = 4

class GpuStatus(IntEnum):
    HEALTHY = 0
    LOST = 1
    NEEDS_RESET = 2
    UNREADABLE = 3

class GpuValue(IntEnum):
    UTILIZATION = 0
    MEMORY_UTILIZATION = 1
    MEMORY_TOTAL = 2
    MEMORY_FREE = 3
    MEMORY_USED = 4
    MEMORY_RESERVED = 5
    POWER_W = 6
    POWER_CAP_W = 7
    ENERGY_J = 8
    TEMPERATURE_C = 9
    SLOWDOWN_C = 10
    SM_CLOCK_MHZ = 11
    SM_CLOCK_MAX_MHZ = 12
    MEMORY_CLOCK_MHZ = 13
    THROTTLE = 14
    PROCESSES = 15
    PROCESS_MEMORY = 16
    MIG = 17
    ECC_CORRECTED = 18
    ECC_UNCORRECTED = 19
    FAN = 20
    COMPUTE_MODE = 21
    COMPUTE_CAPABILITY = 22

class HostValue(IntEnum):
    CPUS = 0
    CPU_BUSY = 1
    LOAD = 2
    PSI_CPU = 3
    PSI_MEMORY = 4
    PSI_MEMORY_FULL = 5
    PSI_IO = 6
    PSI_IO_FULL = 7
    HOST_MEMORY_LIMIT = 8
    HOST_MEMORY_FREE = 9
    SWAP_FREE = 10
    OOM_KILLS = 11

class SlotView(NamedTuple):
    pid: int
    incarnation: int
    klass: int
    state: int
    start_ns: int
    deadline_ns: int
    tasks: int
    name: bytes

class GpuView(NamedTuple):
    uuid: bytes
    values: tuple[float, ...]
    at: float
    status: int
    parent: int
    name: bytes
    bus: bytes
    processes: tuple[tuple[int, int], ...]

class HostView(NamedTuple):
    values: tuple[float, ...]
    at: float

def bounds() -> list[float]: ...

@final
class Page:
    def __init__(self, *args: Never, **kwargs: Never) -> None: ...  # comes from create() or attach()
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def queue_id(self) -> str: ...
    @property
    def pid(self) -> int: ...
    @property
    def started_at(self) -> float: ...
    @property
    def slots(self) -> int: ...
    @property
    def heartbeat_ns(self) -> int: ...
    @classmethod
    def create(
        cls, path: str | bytes | PathLike[str] | PathLike[bytes], queue_id: str, classes: Iterable[str], slots: int
    ) -> Self: ...
    @classmethod
    def attach(cls, path: str | bytes | PathLike[str] | PathLike[bytes], writable: bool = False) -> Self: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def close(self) -> None: ...
    def beat(self) -> None: ...
    def add(self, klass: int, counter: int, n: int = 1) -> None: ...
    def counter(self, klass: int, counter: int) -> int: ...
    def set(self, klass: int, gauge: int, value: int) -> None: ...
    def gauge(self, klass: int, gauge: int) -> int: ...
    def fail(self, klass: int, cause: int) -> None: ...
    def failures(self, klass: int) -> list[int]: ...
    def count_reason(self, klass: int, reason: int) -> None: ...
    def reasons(self, klass: int) -> list[int]: ...
    def add_global(self, number: int, n: int = 1) -> None: ...
    def set_global(self, number: int, value: int) -> None: ...
    def get_global(self, number: int) -> int: ...
    def observe(self, klass: int, which: int, seconds: float) -> None: ...
    def histogram(self, klass: int, which: int) -> tuple[list[int], float]: ...
    def slot_set(self, slot: int, pid: int, incarnation: int, klass: int, state: int) -> None: ...
    def slot_begin(self, slot: int, start_ns: int, deadline_ns: int, name: bytes) -> None: ...
    def slot_end(self, slot: int) -> None: ...
    def slot(self, slot: int) -> SlotView: ...
    def gpu_write(
        self,
        gpu: int,
        uuid: bytes,
        values: Mapping[int, float] | Mapping[GpuValue, float],
        at: float,
        status: int = 0,
        parent: int = -1,
        name: bytes = b"",
        bus: bytes = b"",
        processes: Sequence[tuple[int, int]] = (),
    ) -> None: ...
    def gpu_read(self, gpu: int) -> GpuView | None: ...
    def host_write(self, values: Mapping[int, float] | Mapping[HostValue, float], at: float) -> None: ...
    def host_read(self) -> HostView | None: ...
