"""GPUs that are not there: a libnvidia-ml.so.1 the tests compile, and the scripts that say what it tells.

The real pynvml loads it, unpatched: in a program by LD_LIBRARY_PATH (``script.environ``), in the test's own process
because the fixture ``nvml`` loads it first, and glibc matches what is loaded by its SONAME.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

SONAME = "libnvidia-ml.so.1"
LOST, NEEDS_RESET, UNKNOWN, TIMEOUT, MISMATCH, UNSUPPORTED, FORBIDDEN, ANEW = 15, 16, 999, 10, 18, 3, 4, 1
GIB = 1 << 30

RTX_4090 = {
    "name": "NVIDIA GeForce RTX 4090",
    "total": 24564 << 20,
    "used": 2 * GIB,
    "reserved": 512 << 20,
    "utilization": 37,
    "memory_utilization": 12,
    "temperature": 61,
    "slowdown": 98,
    "power": 213.5,
    "cap": 450,
    "energy": 5000,
    "sm_clock": 2520,
    "sm_clock_max": 3105,
    "memory_clock": 10501,
    "throttle": 0x4,
    "fan": 30,
    "compute_mode": 0,
    "capability": "8.9",
    "processes": "",
}
H100 = RTX_4090 | {
    "name": "NVIDIA H100 80GB HBM3",
    "total": 81559 << 20,
    "cap": 700,
    "capability": "9.0",
    "mig": 0,
    "ecc": 1,
    "ecc_corrected": 3,
    "ecc_uncorrected": 0,
}


def compile_library(folder: Path, *options: str) -> Path:
    """Compile the stand-in into a folder for LD_LIBRARY_PATH; -DOLD makes it that of a driver before 510."""
    folder.mkdir(parents=True, exist_ok=True)
    source = Path(__file__).with_name("standin.c")
    flags = ["-Wall", "-Wextra", "-Wno-format-truncation", "-O1", "-shared", "-fPIC"]
    library = folder / SONAME
    subprocess.run(["gcc", *flags, *options, f"-Wl,-soname,{SONAME}", "-o", library, source], check=True)
    return library


class Script:
    """What the stand-in tells, as a file that is replaced as a whole whenever a line is added.

    ``at`` is a time on its clock, in seconds: a line holds from then on, and the last one that holds wins.
    """

    def __init__(self, path: Path, library: Path) -> None:
        self.path, self.library = path, library
        self.lines = ["driver 570.86.10", "nvml 12.570.86.10", "cuda 12080"]
        self.write()

    @property
    def environ(self) -> dict[str, str]:
        """The variables with which a program meets this driver."""
        old = os.environ.get("LD_LIBRARY_PATH")
        folders = f"{self.library.parent}:{old}" if old else str(self.library.parent)
        return {"LD_LIBRARY_PATH": folders, "NVML_SCRIPT": str(self.path)}

    def add(self, line: str, at: float = 0) -> Script:
        """Add a line as standin.c reads it."""
        self.lines.append(f"@{at:g} {line}" if at else line)
        return self.write()

    def gpu(self, place: int, at: float = 0, **facts: object) -> Script:
        """Say facts of a GPU; a new one has at least a uuid."""
        self.lines += [f"@{at:g} gpu {place} {name} {value}" for name, value in facts.items()]
        return self.write()

    def fails(self, device: int | str, function: str, code: int, at: float = 0) -> Script:
        """Let a function fail for a device, or * for all and for none; code 0 heals it."""
        return self.add(f"error {device} {function} {code}", at)

    def hangs(self, device: int | str, function: str, at: float = 0) -> Script:
        """Let a function never return."""
        return self.add(f"hang {device} {function}", at)

    def clock(self, seconds: float) -> Script:
        """Set the time for programs that are elsewhere."""
        self.lines = [line for line in self.lines if not line.startswith("clock ")]
        return self.add(f"clock {seconds:g}")

    def write(self) -> Script:
        unfinished = self.path.with_name(self.path.name + ".new")
        unfinished.write_text("".join(line + "\n" for line in self.lines))
        unfinished.rename(self.path)
        return self


class Here(Script):
    """The stand-in in this very process."""

    def __init__(self, path: Path, library: Path) -> None:
        super().__init__(path, library)
        self._loaded = ctypes.CDLL(str(library))
        self._loaded.standin_clock.argtypes = [ctypes.c_double]
        self.reset()

    def reset(self) -> None:
        self._loaded.standin_reset()

    def set_clock(self, seconds: float) -> None:
        """Let it be that time, for this process."""
        self._loaded.standin_clock(seconds)


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled stand-in."""
    return compile_library(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def nvml_script(tmp_path: Path, nvml_library: Path) -> Script:
    """A script without a GPU, for programs that run with its ``environ``."""
    return Script(tmp_path / "nvml.script", nvml_library)


@pytest.fixture
def nvml(tmp_path: Path, nvml_library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    """The same for the test's own process: pynvml in it is the real one, and meets the stand-in."""
    monkeypatch.setenv("NVML_SCRIPT", str(tmp_path / "nvml.script"))
    here = Here(tmp_path / "nvml.script", nvml_library)
    yield here
    here.reset()
