"""AMD's GPUs, as amdsmi tells of them, which comes with ROCm; where it cannot be imported there are none.

Its errors by code (amdsmi.h): 34, 51: no driver; 10: no permission; 31, 33, 40, 41: nothing there to tell; 32: open it again.
Source: https://rocm.docs.amd.com/projects/amdsmi, "Python API reference". Its process list is by pid of this host.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from dspy_fastpath.counters import GpuStatus
from dspy_fastpath.counters import GpuValue as Value

from .source import Absent, Anew, Broken, Device

STRIKES = 3  #: failures in a row after which the library is taken for broken
_ABSENT = {10: "no permission to use the AMD GPUs: look at the group of /dev/kfd", 20: "no AMD GPU"} | dict.fromkeys(
    (18, 34, 51), "the AMD driver is not loaded"
)
_MIB = 1 << 20


def is_installed() -> bool:
    """Whether amdsmi is there to be imported."""
    return find_spec("amdsmi") is not None


class Amd:
    """The library as a `Source`."""

    label = "AMD"

    def __init__(self) -> None:
        self.errors = 0
        self._smi: Any = None
        self._known: dict[int, Device] = {}
        self._strikes: Counter[int] = Counter()

    def open(self) -> Mapping[str, str]:
        """Initialize the library and return its version. Raises Absent, Broken."""
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # without its C library it prints, and fails as it likes
                import amdsmi  # type: ignore[import-not-found, unused-ignore]
        except Exception as error:
            raise Absent(f"amdsmi cannot be imported: {error!r}") from error
        self._smi = amdsmi
        try:
            amdsmi.amdsmi_init(amdsmi.AmdSmiInitFlags.INIT_AMD_GPUS)
        except amdsmi.AmdSmiException as error:
            raise self._failure(error) from error
        return {"amdsmi": str(getattr(amdsmi, "__version__", "?"))}

    def close(self) -> None:
        """Shut the library down."""
        if self._smi is not None:
            with contextlib.suppress(self._smi.AmdSmiException):
                self._smi.amdsmi_shut_down()

    def devices(self) -> list[Device]:
        """Return all GPUs. Raises Absent, Anew, Broken."""
        smi = self._smi
        try:
            handles = smi.amdsmi_get_processor_handles()
        except smi.AmdSmiException as error:
            raise self._failure(error) from error
        if not handles:
            raise Absent(_ABSENT[20])
        found: list[Device] = []
        for index, handle in enumerate(handles):
            try:
                device = self._sample(handle)
                self._strikes.pop(index, None)
            except smi.AmdSmiException as error:
                if getattr(error, "err_code", None) == 32:
                    raise Anew(str(error)) from error
                self.errors += 1
                self._strikes[index] += 1
                known = self._known.get(index)
                if known is None:
                    continue
                if self._strikes[index] >= STRIKES:
                    raise Broken(f"{known.uuid}: {error}, {STRIKES} times in a row", struck=True) from error
                device = Device(known.uuid, known.name, known.bus, status=GpuStatus.UNREADABLE, why=str(error))
            self._known[index] = device
            found.append(device)
        return found

    def _sample(self, handle: Any) -> Device:
        smi = self._smi
        uuid = str(smi.amdsmi_get_gpu_device_uuid(handle))
        values: dict[Value, float] = {}
        for read in _FIELDS:
            with contextlib.suppress(smi.AmdSmiException, KeyError):
                values |= {value: told for value, told in read(smi, handle).items() if isinstance(told, int | float)}
        name, bus, listed = "", "", None
        with contextlib.suppress(smi.AmdSmiException):
            name = str(smi.amdsmi_get_gpu_asic_info(handle)["market_name"])
        with contextlib.suppress(smi.AmdSmiException):
            bus = str(smi.amdsmi_get_gpu_device_bdf(handle))
        with contextlib.suppress(smi.AmdSmiException):
            listed = smi.amdsmi_get_gpu_process_list(handle)
        processes = sorted(
            ((int(one["pid"]), int(one["memory_usage"]["vram_mem"])) for one in listed or ()), key=lambda one: -one[1]
        )
        if listed is not None:
            values[Value.PROCESSES] = len(processes)
            values[Value.PROCESS_MEMORY] = sum(memory for _, memory in processes)
        return Device(uuid, name, bus, values=values, processes=tuple(processes))

    def _failure(self, error: Any) -> Exception:
        code = getattr(error, "err_code", None)
        if code in _ABSENT:
            return Absent(_ABSENT[code])
        if code == 32:
            return Anew(str(error))
        self.errors += 1
        return Broken(f"amdsmi: {error}")


def _memory(smi: Any, handle: Any) -> dict[Value, Any]:
    told = smi.amdsmi_get_gpu_vram_usage(handle)  # MiB
    total, used = told["vram_total"] * _MIB, told["vram_used"] * _MIB
    return {Value.MEMORY_TOTAL: total, Value.MEMORY_USED: used, Value.MEMORY_FREE: total - used}


def _activity(smi: Any, handle: Any) -> dict[Value, Any]:
    told = smi.amdsmi_get_gpu_activity(handle)  # percent, or "N/A"
    pairs = ((Value.UTILIZATION, told["gfx_activity"]), (Value.MEMORY_UTILIZATION, told["umc_activity"]))
    return {value: percent / 100 for value, percent in pairs if isinstance(percent, int | float)}


def _power(smi: Any, handle: Any) -> dict[Value, Any]:
    told = smi.amdsmi_get_power_info(handle)  # W; which of the two is told differs by the generation
    watts = [told.get(name) for name in ("current_socket_power", "average_socket_power", "socket_power")]
    return {Value.POWER_W: next((each for each in watts if isinstance(each, int | float) and each), None)}


def _clock(smi: Any, handle: Any) -> dict[Value, Any]:
    told = smi.amdsmi_get_clock_info(handle, smi.AmdSmiClkType.GFX)
    return {Value.SM_CLOCK_MHZ: told["clk"], Value.SM_CLOCK_MAX_MHZ: told["max_clk"]}


def _ecc(smi: Any, handle: Any) -> dict[Value, Any]:
    told = smi.amdsmi_get_gpu_total_ecc_count(handle)
    return {Value.ECC_CORRECTED: told["correctable_count"], Value.ECC_UNCORRECTED: told["uncorrectable_count"]}


def _energy(smi: Any, handle: Any) -> dict[Value, Any]:
    told = smi.amdsmi_get_energy_count(handle)  # in units of so many microjoules
    return {Value.ENERGY_J: told["energy_accumulator"] * told["counter_resolution"] / 1e6}


def _temperature(smi: Any, handle: Any) -> dict[Value, Any]:
    kind, now = smi.AmdSmiTemperatureType.HOTSPOT, smi.AmdSmiTemperatureMetric.CURRENT  # every generation has that one
    return {Value.TEMPERATURE_C: smi.amdsmi_get_temp_metric(handle, kind, now)}


def _slowdown(smi: Any, handle: Any) -> dict[Value, Any]:
    kind, most = smi.AmdSmiTemperatureType.HOTSPOT, smi.AmdSmiTemperatureMetric.CRITICAL
    return {Value.SLOWDOWN_C: smi.amdsmi_get_temp_metric(handle, kind, most)}


_FIELDS = (
    _memory,
    _activity,
    _power,
    _clock,
    _ecc,
    _energy,
    _temperature,
    _slowdown,
    lambda smi, of: {Value.POWER_CAP_W: smi.amdsmi_get_power_cap_info(of)["power_cap"] / 1e6},
    lambda smi, of: {Value.MEMORY_CLOCK_MHZ: smi.amdsmi_get_clock_info(of, smi.AmdSmiClkType.MEM)["clk"]},
)
