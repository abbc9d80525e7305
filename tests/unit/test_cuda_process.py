"""CUDA in a process is found out without starting it: by torch's own word, and by the driver's library."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
from dspy_supervisor import cuda_process
from dspy_supervisor.attempt import Outcome
from dspy_supervisor.gpu_worker import Told, _told, hear, tell
from dspy_supervisor.task import Cause

from tests.conftest import clean_environ

GIB = 1 << 30
#: a driver's library that counts devices only after cuInit, as the real one does
DRIVER = """
static int up;
int cuInit(unsigned flags) { (void)flags; up = 1; return 0; }
int cuDeviceGetCount(int *count) { if (!up) return 3; *count = 1; return 0; }
"""


class Torch(SimpleNamespace):
    """What is asked of torch, on two GPUs of 20 GiB."""

    def __init__(self, started=True):
        self.fractions, self.resets, self.started = {}, [], started
        super().__init__(cuda=self)

    def is_initialized(self):
        return self.started

    def device_count(self):
        return 2

    def get_device_properties(self, number):
        return SimpleNamespace(total_memory=20 * GIB)

    def set_per_process_memory_fraction(self, fraction, number):
        self.fractions[number] = fraction

    def max_memory_reserved(self, number):
        return (number + 1) * GIB

    def reset_peak_memory_stats(self, number):
        self.resets.append(number)


def test_nothing_started_cuda_here():
    assert cuda_process.started_by() == ""
    assert cuda_process.peak_bytes() == 0 and not cuda_process.bound(GIB)
    cuda_process.reset_peak()


def test_torch_is_asked_and_bounded_where_it_started_cuda(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", torch := Torch())
    assert cuda_process.started_by() == "torch"
    assert cuda_process.peak_bytes() == 2 * GIB
    assert cuda_process.bound(5 * GIB) and torch.fractions == {0: 0.25, 1: 0.25}
    cuda_process.reset_peak()
    assert torch.resets == [0, 1]
    assert cuda_process.bound(50 * GIB) and torch.fractions[0] == 1.0


@pytest.mark.parametrize("module", [Torch(started=False), object(), None])
def test_a_library_that_is_only_imported_or_half_there_started_nothing(monkeypatch, module):
    monkeypatch.setitem(sys.modules, "torch", module)
    assert cuda_process.started_by() == ""
    assert cuda_process.peak_bytes() == 0 and not cuda_process.bound(GIB)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    folder = tmp_path_factory.mktemp("driver")
    (folder / "cuda.c").write_text(DRIVER)
    library = folder / "libcuda.so.1"
    flags = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
    subprocess.run(["gcc", *flags, "-o", library, folder / "cuda.c"], check=True)
    return library


@pytest.mark.parametrize(("start", "said"), [("library.cuInit(0)", "cupy"), ("pass", "")])
def test_the_driver_tells_whether_any_library_started_it(driver, tmp_path, start, said):
    code = f"""
import ctypes, sys, types
sys.modules["cupy"] = types.ModuleType("cupy")
library = ctypes.CDLL({str(driver)!r})
{start}
from dspy_supervisor.cuda_process import started_by
print(started_by())
"""
    environ = clean_environ(tmp_path)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ, check=True)
    assert found.stdout.strip() == said


def test_what_a_worker_tells_travels_behind_the_text_of_its_report():
    told = Told(5 * GIB, True, False)
    assert hear("raised" + tell(told)) == ("raised", told)
    assert hear(tell(told)) == ("", told)
    assert hear("raised") == ("raised", None)


def test_a_worker_tells_what_a_task_took_or_would_have_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", Torch())
    assert _told(Outcome(True, b"1")) == Told(2 * GIB, False, False)
    short = Outcome(False, cause=Cause.OUT_OF_MEMORY, message="x", details={"memory": "gpu"})
    assert _told(short) == Told(2 * GIB, True, True)
    said = "Tried to allocate 2.00 GiB. this process has 4.00 GiB memory in use"
    short = Outcome(False, cause=Cause.OUT_OF_MEMORY, details={"memory": "gpu", "stderr_tail": said})
    assert _told(short) == Told(6 * GIB, True, True)
    host = Outcome(False, cause=Cause.OUT_OF_MEMORY, message="MemoryError")
    assert _told(host) == Told(0, False, False)
    assert _told(Outcome(False, cause=Cause.RAISED, message="CUDA error: misaligned address")).spoilt
