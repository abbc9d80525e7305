"""The telemetry service: what it writes to the page, what it tells the supervisor, and when it gives up."""

import math
import socket
import threading
import time

import pytest
from dspy_fastpath.counters import Global, GpuStatus, GpuValue, HostValue, Page, Telemetry
from dspy_supervisor.config import load
from dspy_supervisor.gpu import GPUS, read
from dspy_supervisor.link import Link
from dspy_supervisor.parts import ServicePost
from dspy_supervisor.services.source import Device
from dspy_supervisor.services.telemetry import Board, described, known, patient, run
from dspy_supervisor.services.watch import View

from tests.conftest import until
from tests.nvml import H100, LOST, MISMATCH, RTX_4090, UNKNOWN


@pytest.fixture
def page(tmp_path):
    with Page.create(tmp_path / "page", "q", ["gpu"], 0) as page:
        yield page


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield Link(ours), Link(theirs)


class Service:
    """The service in a thread of this process, at the other end of a link."""

    def __init__(self, tmp_path, page, ends):
        self.page, self.link = page, ends[0]
        config = load(
            {"queue_dir": str(tmp_path / "q"), "telemetry_interval_s": "0.1"}, environ={}, cwd=tmp_path
        ).config
        post = ServicePost("telemetry", config, tmp_path / "q", "q", "n", "o", tmp_path / "page", ends[1])
        self.code, self.heard = None, []
        self._thread = threading.Thread(target=lambda: setattr(self, "code", run(post)))
        self._thread.start()

    def until(self, look, what):
        def looked():
            self.heard += self.link.receive(0)
            return look()

        return until(looked, what)

    def state(self):
        self.heard += self.link.receive(0)
        states = [message for message in self.heard if message["op"] == "state"]
        return states[-1] if states else {}

    def stop(self):
        self.link.send({"op": "stop"})
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self.code


@pytest.fixture
def service(tmp_path, page, ends, nvml):
    services = []

    def start():
        services.append(Service(tmp_path, page, ends))
        return services[-1]

    yield start
    for one in services:
        one.stop()


def test_it_writes_gpus_and_host_until_it_is_told_to_stop(nvml, service, page):
    nvml.gpu(0, uuid="GPU-a", bus="00000000:01:00.0", **RTX_4090 | {"processes": "9:5"})
    one = service()
    one.until(lambda: page.get_global(Global.GPU_SAMPLES) >= 3, "three looks")
    sight = read(page)
    (gpu,) = sight.gpus
    assert (sight.state, gpu.uuid, gpu.bus, gpu.processes) == (
        Telemetry.WATCHING,
        "GPU-a",
        "00000000:01:00.0",
        ((9, 5),),
    )
    assert gpu[GpuValue.UTILIZATION] == 0.37
    assert math.isnan(gpu[GpuValue.MIG])
    assert sight.host[HostValue.CPUS] > 0
    assert sight.age_s(time.monotonic()) < 60
    assert one.stop() == 0
    assert one.state() | {"driver": "570.86.10", "gpus": 1, "telemetry": "watching", "fenced": {}} == one.state()


def test_a_lost_gpu_is_told_once_and_the_page_keeps_its_place(nvml, service, page):
    nvml.gpu(0, uuid="GPU-a", **RTX_4090).gpu(1, uuid="GPU-b", **RTX_4090)
    one = service()
    one.until(lambda: len(read(page).gpus) == 2, "two GPUs")
    nvml.fails(0, "*", LOST)
    one.until(lambda: read(page).gpus[0].status == GpuStatus.LOST, "the loss on the page")
    looks = page.get_global(Global.GPU_SAMPLES)
    one.until(lambda: page.get_global(Global.GPU_SAMPLES) > looks + 3, "more looks")
    assert [message["uuid"] for message in one.heard if message["op"] == "gpu_lost"] == ["GPU-a"]
    assert "NVML 15" in one.state()["fenced"]["GPU-a"]
    assert page.get_global(Global.GPU_LOSSES) == 1
    assert math.isnan(read(page).gpus[0][GpuValue.MEMORY_FREE])
    assert read(page).gpus[1].status == GpuStatus.HEALTHY


def test_the_next_process_tells_again_of_what_is_fenced(nvml, service, page):
    page.gpu_write(0, b"GPU-gone", {}, 1.0, GpuStatus.LOST)
    nvml.gpu(0, uuid="GPU-a", **RTX_4090)
    one = service()
    one.until(lambda: any(message["op"] == "gpu_lost" for message in one.heard), "the fence")
    assert [gpu.uuid for gpu in read(page).gpus] == ["GPU-gone", "GPU-a"]
    assert page.get_global(Global.GPU_LOSSES) == 0


def test_memory_that_is_not_told_is_none_and_not_0(nvml, service, page):
    page.gpu_write(0, b"GPU-a", {}, 1.0, GpuStatus.HEALTHY)  # as an earlier process knew it
    nvml.fails("*", "nvmlInitWithFlags", MISMATCH)
    one = service()
    one.until(one.state, "its state")
    assert (one.state()["gpus"], one.state()["gpu_memory"]) == (1, [])
    silent, telling = Device("GPU-b", values={GpuValue.MEMORY_TOTAL: math.nan}), {GpuValue.MEMORY_TOTAL: 24.0}
    view = View(Telemetry.WATCHING, "", (silent, Device("GPU-c", values=telling)))
    assert described(view)["gpu_memory"] == [24]


def test_a_mismatch_says_reboot_needed_in_page_and_status(nvml, service, page):
    nvml.gpu(0, uuid="GPU-a", **RTX_4090).fails("*", "nvmlInitWithFlags", MISMATCH)
    one = service()
    one.until(one.state, "its state")
    assert "reboot needed" in one.state()["why"]
    sight = read(page)
    assert sight.state == Telemetry.REBOOT_NEEDED
    assert "reboot needed" in sight.obstacle(time.monotonic(), 60.0)


def test_a_library_that_fails_as_a_whole_ends_the_process_with_its_reason(nvml, service, page):
    nvml.gpu(0, uuid="GPU-a", **RTX_4090).fails("*", "nvmlDeviceGetCount_v2", UNKNOWN)
    one = service()
    one.until(lambda: one.code is not None, "its end")
    assert one.code == 1
    assert "NVML 999" in one.state()["broken"]
    assert read(page).state == Telemetry.TROUBLED
    assert page.get_global(Global.GPU_ERRORS) == 3


def test_what_an_earlier_process_saw_is_known(page):
    page.gpu_write(2, b"GPU-a", {}, 1.0, name=b"N", bus=b"B")
    page.gpu_write(5, b"MIG-a", {}, 1.0, GpuStatus.LOST, parent=2)
    assert known(page) == [
        Device("GPU-a", "N", "B"),
        Device("MIG-a", parent="GPU-a", status=GpuStatus.LOST, why="lost: it fell off the bus, or is no longer listed"),
    ]


def test_slices_cut_anew_for_ever_find_a_place_and_nothing_else_loses_its_own(page):
    board = Board(page)
    whole, alive = Device("GPU-a"), Device("MIG-live", parent="GPU-a")
    old = ()
    for number in range(3 * GPUS):
        new = Device(f"MIG-{number}", parent="GPU-a")
        gone = tuple(Device(each.uuid, parent="GPU-a", status=GpuStatus.LOST) for each in old)
        view = View(Telemetry.WATCHING, "", (whole, alive, *gone, new), (whole, alive, *gone, new))
        board.write(view, 0, float(number))
        old = (*gone[-5:], new)  # the rest is forgotten, and its places are the first to go
        found = {gpu.uuid: gpu for gpu in read(page).gpus}
        assert (found["GPU-a"].place, found["MIG-live"].place, found[new.uuid].parent) == (0, 1, "GPU-a")
        assert {each.uuid for each in gone} <= found.keys()


def test_who_initializes_says_that_it_lives(ends):
    before = threading.active_count()  # of this process, which other tests have threads in
    with patient(ends[1], slow=True):
        assert {message["op"] for message in ends[0].receive(30)} == {"alive"}
    with patient(ends[1], slow=False):
        pass
    assert threading.active_count() == before


def test_a_sliced_gpu_stands_on_the_page_with_its_slices(nvml, service, page):
    nvml.gpu(0, uuid="GPU-h", **H100 | {"mig": 1})
    nvml.gpu(1, uuid="MIG-1", parent=0, total=40 << 30)
    one = service()
    one.until(lambda: len(read(page).gpus) == 2, "both")
    assert {gpu.uuid: (gpu.parent, gpu.usable) for gpu in read(page).gpus} == {
        "GPU-h": (None, False),
        "MIG-1": ("GPU-h", True),
    }
    one.until(one.state, "its state")
    assert (one.state()["gpus"], one.state()["slices"]) == (1, 1)
