"""A stand-in for AMD's amdsmi, which needs the whole of ROCm to be imported: as much of it as is asked.

Its answers have the shapes of amdsmi 7.0 (amdsmi_interface.py): memory in MiB, the power cap in microwatts, "N/A" for what
is not told. ``gpus`` are the GPUs; ``faults`` the error code of a function, for all GPUs or, with its handle, for one.
"""

from enum import IntEnum

__version__ = "7.0.2"

AmdSmiInitFlags = IntEnum("AmdSmiInitFlags", "INIT_AMD_CPUS INIT_AMD_GPUS")
AmdSmiTemperatureType = IntEnum("AmdSmiTemperatureType", "EDGE HOTSPOT", start=0)
AmdSmiTemperatureMetric = IntEnum("AmdSmiTemperatureMetric", "CURRENT CRITICAL", start=0)
AmdSmiClkType = IntEnum("AmdSmiClkType", {"GFX": 0, "MEM": 4})

gpus = {}
faults = {}


class AmdSmiException(Exception):
    """Anything that goes wrong."""


class AmdSmiLibraryException(AmdSmiException):
    """A call came back with a code."""

    def __init__(self, code):
        super().__init__(f"Error code:\n\t{code} | of the stand-in")
        self.err_code = code


def _call(name, handle=None):
    if code := faults.get((name, handle), faults.get(name)):
        raise AmdSmiLibraryException(code)
    return gpus.get(handle, {})


def amdsmi_init(flag):
    assert flag is AmdSmiInitFlags.INIT_AMD_GPUS
    _call("init")
    if faults.get("handles") == 32:  # not initialized
        del faults["handles"]


def amdsmi_shut_down():
    _call("shut_down")


def amdsmi_get_processor_handles():
    _call("handles")
    return list(gpus)


def amdsmi_get_gpu_device_uuid(handle):
    return _call("uuid", handle)["uuid"]


def amdsmi_get_gpu_asic_info(handle):
    return {"market_name": _call("asic", handle)["name"], "vendor_name": "AMD"}


def amdsmi_get_gpu_device_bdf(handle):
    return _call("bdf", handle)["bdf"]


def amdsmi_get_gpu_vram_usage(handle):
    gpu = _call("vram", handle)
    return {"vram_total": gpu["total"], "vram_used": gpu["used"]}


def amdsmi_get_gpu_activity(handle):
    return {"gfx_activity": _call("activity", handle)["busy"], "umc_activity": "N/A", "mm_activity": "N/A"}


def amdsmi_get_power_info(handle):
    watts = _call("power", handle)["power"]
    return {"current_socket_power": "N/A", "average_socket_power": watts, "power_limit": 300}


def amdsmi_get_power_cap_info(handle):
    _call("cap", handle)
    return {"power_cap": 300_000_000}


def amdsmi_get_temp_metric(handle, kind, metric):
    assert kind is AmdSmiTemperatureType.HOTSPOT
    return _call("temperature", handle)["heat"] if metric is AmdSmiTemperatureMetric.CURRENT else 110


def amdsmi_get_clock_info(handle, kind):
    _call("clock", handle)
    return {"clk": 1700 if kind is AmdSmiClkType.GFX else "N/A", "max_clk": 2100}


def amdsmi_get_gpu_total_ecc_count(handle):
    _call("ecc", handle)
    return {"correctable_count": 1, "uncorrectable_count": 0, "deferred_count": 0}


def amdsmi_get_energy_count(handle):
    _call("energy", handle)
    return {"energy_accumulator": 2_000_000, "counter_resolution": 15.3, "timestamp": 1}


def amdsmi_get_gpu_process_list(handle):
    _call("processes", handle)
    return [{"pid": 12, "mem": 0, "memory_usage": {"gtt_mem": 0, "cpu_mem": 0, "vram_mem": 4096}}]
