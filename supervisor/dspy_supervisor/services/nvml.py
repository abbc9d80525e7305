"""NVIDIA's GPUs, as pynvml (the distribution nvidia-ml-py) tells of them.

What NVML's errors mean here, by its return codes (nvml.h): 9, 12, 28: no GPU; 18: reboot needed; 15, 16: this GPU is lost,
or needs a reset, and the others go on; 1: initialize again; 3, 4 and functions the library does not have: that number
is not told. Any other failure of what has worked before, three times in a row, is the library's: another process is
to try. What never worked is not told.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dspy_fastpath.counters import GpuStatus
from dspy_fastpath.counters import GpuValue as Value

from .source import Absent, Anew, Broken, Device, Mismatch

STRIKES = 3  #: failures in a row after which the library is taken for broken
_FENCED = {15: GpuStatus.LOST, 16: GpuStatus.NEEDS_RESET}
_ABSENT = {
    4: "no permission to use the GPUs: look at the owner of /dev/nvidiactl",
    9: "the NVIDIA driver is not loaded",
    12: "no NVIDIA driver library (libnvidia-ml.so.1)",
    28: "no NVIDIA GPU",
}
#: invalid argument, not supported, no permission, not found, a list that grew meanwhile, function not found, corrupt
#: inforom, no data, no ECC in a virtual GPU, frequency, argument version, deprecated, not ready
_NOT_TOLD = frozenset({2, 3, 4, 6, 7, 13, 14, 21, 22, 24, 25, 26, 27})
_GONE = frozenset({2, 6, 28})  # of a handle: the list changed between its count and this look
_MOST_WORKED = 10_000
_NONE = frozenset({0xFFFFFFFF, 0xFFFFFFFF / 1000, 0xFFFFFFFFFFFFFFFF})  # also as thousandths


_MODULE = Path("/sys/module/nvidia/version")


class _Fenced(Exception):
    def __init__(self, status: GpuStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class Nvml:
    """The library as a `Source`."""

    label = "NVIDIA"

    def __init__(self) -> None:
        self.errors = 0
        self._nvml: Any = None
        self._known: dict[int, Device] = {}  # by index: a lost GPU does not even tell its UUID
        self._worked: set[tuple[str, str]] = set()
        self._strikes: Counter[tuple[str, str]] = Counter()

    def open(self) -> Mapping[str, str]:
        """Initialize the library and return its versions. Raises Absent, Mismatch, Broken."""
        try:
            import pynvml
        except ImportError as error:
            raise Absent(f"pynvml cannot be imported: {error}") from error
        self._nvml = pynvml
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            if error.value in _ABSENT:
                raise Absent(_ABSENT[error.value]) from error
            raise self._failure("nvmlInit", error) from error
        versions = {}
        for name, function in (("driver", "nvmlSystemGetDriverVersion"), ("nvml", "nvmlSystemGetNVMLVersion")):
            with contextlib.suppress(pynvml.NVMLError):
                versions[name] = str(getattr(pynvml, function)())
        with contextlib.suppress(pynvml.NVMLError):
            cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
            versions["cuda"] = f"{cuda // 1000}.{cuda % 1000 // 10}"
        return versions

    def close(self) -> None:
        """Shut the library down."""
        if self._nvml is not None:
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()

    def devices(self) -> list[Device]:
        """Return all GPUs and their slices, each after its parent. Raises Absent, Mismatch, Anew, Broken."""
        nvml = self._nvml
        try:
            count = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError as error:
            if error.value in _ABSENT:
                raise Absent(_ABSENT[error.value]) from error
            raise self._failure("nvmlDeviceGetCount", error) from error
        if count == 0:
            raise Absent(_ABSENT[28])
        found: list[Device] = []
        for index in range(count):
            handle, device = self._whole(index)
            if device is None:
                continue
            self._known[index] = device
            found.append(device)
            if handle is not None and device.values.get(Value.MIG) == 1:
                found += self._slices(handle, device)
        if len(self._worked) > _MOST_WORKED:  # slices can be cut anew for ever
            there = {device.uuid for device in found}
            self._worked = {(uuid, name) for uuid, name in self._worked if uuid in there}
        return found

    def _whole(self, index: int) -> tuple[Any, Device | None]:
        """Return the handle and the sample of a GPU; no handle where it is not to be asked, None where it is gone."""
        nvml, known = self._nvml, self._known.get(index)
        place = known.uuid if known else f"GPU {index}"
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            uuid = str(nvml.nvmlDeviceGetUUID(handle))
            self._works(uuid, "handle")
            return handle, self._sample(handle, uuid, None)
        except _Fenced as fenced:  # while its numbers were read
            return None, Device(uuid, *_labels(known), status=fenced.status, why=str(fenced))
        except nvml.NVMLError as error:
            if error.value in _GONE:
                return None, None
            status, why = GpuStatus.UNREADABLE, _words("nvmlDeviceGetHandleByIndex", error)
            try:
                self._judge(place, "handle", error)
            except _Fenced as fenced:
                status, why = fenced.status, str(fenced)
            return None, Device(known.uuid, *_labels(known), status=status, why=why) if known else None

    def _slices(self, handle: Any, whole: Device) -> Iterator[Device]:
        nvml = self._nvml
        try:
            most = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
        except nvml.NVMLError as error:
            self._judge(whole.uuid, "slices", error)
            return
        for index in range(most):
            try:
                slice_ = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
                uuid = str(nvml.nvmlDeviceGetUUID(slice_))
            except nvml.NVMLError:  # this place has no slice
                continue
            try:
                yield self._sample(slice_, uuid, whole)
            except _Fenced as fenced:
                yield Device(uuid, whole.name, whole.bus, whole.uuid, fenced.status, str(fenced))

    def _sample(self, handle: Any, uuid: str, whole: Device | None) -> Device:
        values: dict[Value, float] = {}
        processes: dict[int, int] = {}
        for name, read in _FIELDS.items():
            for value, told in self._ask(uuid, name, read, handle, {}).items():
                values[value] = math.nan if told in _NONE else told
        told_any = False
        for kind in _PROCESSES:
            listed = self._ask(uuid, f"{kind} processes", lambda nvml, of, kind=kind: _running(nvml, of, kind), handle)
            told_any |= listed is not None
            for pid, memory in listed or ():
                processes[pid] = max(memory, processes.get(pid, -1))
        if told_any:
            values[Value.PROCESSES] = len(processes)
            known = [memory for memory in processes.values() if memory >= 0]
            if known or not processes:
                values[Value.PROCESS_MEMORY] = sum(known)
        name = self._ask(uuid, "name", lambda nvml, of: nvml.nvmlDeviceGetName(of), handle, "")
        bus = self._ask(uuid, "bus", lambda nvml, of: nvml.nvmlDeviceGetPciInfo_v3(of).busId, handle, b"")
        return Device(
            uuid,
            str(name),
            (bus.decode(errors="replace") if isinstance(bus, bytes) else str(bus)) or (whole.bus if whole else ""),
            whole.uuid if whole else None,
            values=values,
            processes=tuple(sorted(processes.items(), key=lambda one: -one[1])),
        )

    def _ask(self, uuid: str, name: str, read: Any, handle: Any, otherwise: Any = None) -> Any:
        """Return what one function tells, or ``otherwise``. Raises what concerns more than this number."""
        nvml = self._nvml
        try:
            told = read(nvml, handle)
        except nvml.NVMLLibraryMismatchError:  # no NVMLError: the library is older than pynvml's function
            return otherwise
        except nvml.NVMLError as error:
            self._judge(uuid, name, error)
            return otherwise
        self._works(uuid, name)
        return told

    def _works(self, uuid: str, name: str) -> None:
        self._worked.add((uuid, name))
        self._strikes.pop((uuid, name), None)

    def _judge(self, uuid: str, name: str, error: Any) -> None:
        """Pass over what leaves one number out; raise for what does not."""
        code = error.value
        if code in _NOT_TOLD:
            return
        if code in _FENCED:
            raise _Fenced(_FENCED[code], _words(name, error))
        if code in (1, 18):
            raise self._failure(name, error)
        self.errors += 1
        self._strikes[uuid, name] += 1
        if self._strikes[uuid, name] >= STRIKES and (uuid, name) in self._worked:
            raise Broken(f"{uuid}: {_words(name, error)}, {STRIKES} times in a row", struck=True)

    def _failure(self, name: str, error: Any) -> Exception:
        if error.value == 18:
            return Mismatch(f"the NVIDIA driver that runs is {_running_driver()}, the library installed is another")
        if error.value == 1:
            return Anew(_words(name, error))
        self.errors += 1
        return Broken(_words(name, error))


def _running_driver() -> str:
    try:
        return _MODULE.read_text().strip()
    except OSError:
        return "of an unknown version"


def _words(name: str, error: Any) -> str:
    return f"{name}: {error} (NVML {error.value})"


def _labels(known: Device | None) -> tuple[str, str]:
    return (known.name, known.bus) if known else ("", "")


def _memory(nvml: Any, handle: Any) -> dict[Value, float]:
    try:
        told = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    except (nvml.NVMLError_FunctionNotFound, nvml.NVMLError_ArgumentVersionMismatch):  # a driver before 510
        told = nvml.nvmlDeviceGetMemoryInfo(handle)  # its `used` has the driver's own share in it; `free` is right
        return {Value.MEMORY_TOTAL: told.total, Value.MEMORY_FREE: told.free, Value.MEMORY_USED: told.used}
    return {
        Value.MEMORY_TOTAL: told.total,
        Value.MEMORY_FREE: told.free,
        Value.MEMORY_USED: told.used,
        Value.MEMORY_RESERVED: told.reserved,
    }


def _utilization(nvml: Any, handle: Any) -> dict[Value, float]:
    told = nvml.nvmlDeviceGetUtilizationRates(handle)
    return {Value.UTILIZATION: told.gpu / 100, Value.MEMORY_UTILIZATION: told.memory / 100}


def _throttle(nvml: Any, handle: Any) -> dict[Value, float]:
    try:
        return {Value.THROTTLE: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)}
    except nvml.NVMLError_FunctionNotFound:  # its name before driver 535
        return {Value.THROTTLE: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)}


def _capability(nvml: Any, handle: Any) -> dict[Value, float]:
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    return {Value.COMPUTE_CAPABILITY: major + minor / 10}


def _ecc(nvml: Any, handle: Any) -> dict[Value, float]:
    if nvml.nvmlDeviceGetEccMode(handle)[0] != 1:
        return {}
    counts = [
        nvml.nvmlDeviceGetTotalEccErrors(handle, kind, nvml.NVML_VOLATILE_ECC)
        for kind in (nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED)
    ]
    return {Value.ECC_CORRECTED: counts[0], Value.ECC_UNCORRECTED: counts[1]}


def _running(nvml: Any, handle: Any, kind: str) -> list[tuple[int, int]]:
    try:
        told = getattr(nvml, f"nvmlDeviceGet{kind}RunningProcesses_v3")(handle)
    except nvml.NVMLError_FunctionNotFound:  # a driver before 510
        told = getattr(nvml, f"nvmlDeviceGet{kind}RunningProcesses_v2")(handle)
    return [(one.pid, -1 if one.usedGpuMemory is None else one.usedGpuMemory) for one in told]


_PROCESSES = ("Compute", "Graphics", "MPSCompute")
_FIELDS: Mapping[str, Any] = {
    "memory": _memory,
    "utilization": _utilization,
    "throttle reasons": _throttle,
    "compute capability": _capability,
    "ECC": _ecc,
    "MIG mode": lambda nvml, of: {Value.MIG: nvml.nvmlDeviceGetMigMode(of)[0]},
    "temperature": lambda nvml, of: {Value.TEMPERATURE_C: nvml.nvmlDeviceGetTemperature(of, nvml.NVML_TEMPERATURE_GPU)},
    "slowdown temperature": lambda nvml, of: {
        Value.SLOWDOWN_C: nvml.nvmlDeviceGetTemperatureThreshold(of, nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN)
    },
    "power": lambda nvml, of: {Value.POWER_W: nvml.nvmlDeviceGetPowerUsage(of) / 1000},
    "power cap": lambda nvml, of: {Value.POWER_CAP_W: nvml.nvmlDeviceGetEnforcedPowerLimit(of) / 1000},
    "energy": lambda nvml, of: {Value.ENERGY_J: nvml.nvmlDeviceGetTotalEnergyConsumption(of) / 1000},
    "SM clock": lambda nvml, of: {Value.SM_CLOCK_MHZ: nvml.nvmlDeviceGetClockInfo(of, nvml.NVML_CLOCK_SM)},
    "highest SM clock": lambda nvml, of: {
        Value.SM_CLOCK_MAX_MHZ: nvml.nvmlDeviceGetMaxClockInfo(of, nvml.NVML_CLOCK_SM)
    },
    "memory clock": lambda nvml, of: {Value.MEMORY_CLOCK_MHZ: nvml.nvmlDeviceGetClockInfo(of, nvml.NVML_CLOCK_MEM)},
    "fan": lambda nvml, of: {Value.FAN: nvml.nvmlDeviceGetFanSpeed(of) / 100},
    "compute mode": lambda nvml, of: {Value.COMPUTE_MODE: nvml.nvmlDeviceGetComputeMode(of)},
}
