"""CUDA in this very process, through the libraries that are there already: nothing is imported to ask.

CUDA does not survive a fork, so the process that forks must not have started it; and a worker can tell and bound the
memory that its libraries take.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

_LIBRARIES = ("torch", "cupy", "jax", "tensorflow", "numba.cuda", "onnxruntime")
_NOT_INITIALISED = 3  # CUDA_ERROR_NOT_INITIALIZED: cuInit was not called
_DEVICES = ("/dev/nvidia-uvm", "/dev/kfd")  # opened by CUDA and by ROCm when they start, and by nothing else


def started_by() -> str:
    """Return by which libraries CUDA may have been started in this process, "" where it was not."""
    torch: Any = sys.modules.get("torch")
    with contextlib.suppress(Exception):  # the library's own code, perhaps half imported
        if torch is not None and torch.cuda.is_initialized():
            return "torch"
    if _is_driver_up():
        return " or ".join(name for name in _LIBRARIES if name in sys.modules) or "a library"
    return ""


def peak_bytes() -> int:
    """Return the most memory that tasks of this process had since `reset_peak`; 0 where nobody counts it."""
    torch = _torch()
    with contextlib.suppress(Exception):
        if torch is not None:
            return max(int(torch.cuda.max_memory_reserved(number)) for number in range(torch.cuda.device_count()))
    return 0


def reset_peak() -> None:
    """Count the most memory anew."""
    torch = _torch()
    with contextlib.suppress(Exception):
        for number in range(torch.cuda.device_count() if torch is not None else 0):
            torch.cuda.reset_peak_memory_stats(number)


def bound(memory_bytes: int) -> bool:
    """Let torch have at most so many bytes of each GPU; False where it has not started CUDA here yet."""
    torch = _torch()
    with contextlib.suppress(Exception):
        for number in range(torch.cuda.device_count() if torch is not None else 0):
            total = torch.cuda.get_device_properties(number).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, memory_bytes / total), number)
    return torch is not None


def _torch() -> Any:
    torch: Any = sys.modules.get("torch")
    with contextlib.suppress(Exception):
        return torch if torch is not None and torch.cuda.is_initialized() else None
    return None


def _is_driver_up() -> bool:
    with open("/proc/self/maps", "rb") as file:
        maps = file.read()
    if b"/libcuda.so" in maps:
        import ctypes

        number = ctypes.c_int()
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL("libcuda.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW)
            if library.cuDeviceGetCount(ctypes.byref(number)) != _NOT_INITIALISED:
                return True
    if b"/libcuda.so" not in maps and b"/libamdhip64.so" not in maps:
        return False
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}") in _DEVICES:
                return True
    return False
