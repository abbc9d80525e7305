"""What the shared page tells of GPUs, for those who decide by it and for people."""

import json
import math

import pytest
from dspy_fastpath.counters import Global, GpuStatus, GpuValue, Page, Telemetry
from dspy_supervisor.gpu import described, read, throttle_words


@pytest.fixture
def page(tmp_path):
    with Page.create(tmp_path / "page", "q", ["gpu"], 0) as page:
        yield page


def test_a_page_without_a_sample_says_that_nobody_looked(page):
    sight = read(page)
    assert (sight.state, sight.gpus, sight.host, sight.age_s(5.0)) == (Telemetry.UNWATCHED, (), None, math.inf)
    assert "not looked yet" in sight.obstacle(5.0, 1.0)


@pytest.mark.parametrize(
    ("state", "words"),
    [(Telemetry.NO_GPU, "no GPU found"), (Telemetry.REBOOT_NEEDED, "reboot needed"), (Telemetry.TROUBLED, "fails")],
)
def test_what_keeps_all_work_away_is_said_in_words(page, state, words):
    page.set_global(Global.TELEMETRY, state)
    page.host_write({}, 10.0)
    assert words in read(page).obstacle(10.0, 1.0)


def test_telemetry_that_is_silent_for_three_periods_is_not_believed(page):
    page.set_global(Global.TELEMETRY, Telemetry.WATCHING)
    page.gpu_write(0, b"GPU-a", {}, 10.0)
    assert read(page).obstacle(12.9, 1.0) is None
    assert read(page).obstacle(13.1, 1.0) == "GPU telemetry is silent for 3 s"
    page.host_write({}, 11.0)
    assert read(page).obstacle(13.1, 1.0) is None


def test_who_hears_that_telemetry_watches_sees_every_gpu_it_found(page):
    """A look into the midst of the first writing finds some GPUs, and must not take them for all."""

    class Midst:
        def __getattr__(self, name):
            return getattr(page, name)

        def host_read(self):
            page.gpu_write(1, b"GPU-b", {}, 10.0)
            page.set_global(Global.TELEMETRY, Telemetry.WATCHING)
            return page.host_read()

    page.gpu_write(0, b"GPU-a", {}, 10.0)
    early = read(Midst())
    assert (early.state, len(early.gpus)) == (Telemetry.UNWATCHED, 1)
    sight = read(page)
    assert (sight.state, len(sight.gpus)) == (Telemetry.WATCHING, 2)


def test_a_slice_names_the_gpu_it_is_cut_from(page):
    page.gpu_write(3, b"GPU-a", {GpuValue.MIG: 1.0}, 10.0)
    page.gpu_write(0, b"MIG-b", {}, 10.0, parent=3)
    slice_, whole = read(page).gpus
    assert (slice_.place, slice_.uuid, slice_.parent) == (0, "MIG-b", "GPU-a")
    assert (whole.place, whole.uuid, whole.parent) == (3, "GPU-a", None)
    assert slice_.usable
    assert not whole.usable  # CUDA sees its slices only


def test_a_gpu_is_usable_only_while_it_is_healthy_and_open_to_processes(page):
    page.gpu_write(0, b"GPU-a", {GpuValue.COMPUTE_MODE: 0.0}, 10.0)
    page.gpu_write(1, b"GPU-b", {GpuValue.COMPUTE_MODE: 2.0}, 10.0)
    for place, status in enumerate((GpuStatus.LOST, GpuStatus.NEEDS_RESET, GpuStatus.UNREADABLE), 2):
        page.gpu_write(place, b"GPU-%d" % place, {}, 10.0, status)
    assert [gpu.uuid for gpu in read(page).gpus if gpu.usable] == ["GPU-a"]


def test_as_json_what_is_not_told_is_null_and_never_0(page):
    told = {GpuValue.UTILIZATION: 0.0, GpuValue.MEMORY_FREE: 2.0**34, GpuValue.THROTTLE: 0x21}
    page.gpu_write(0, b"GPU-a", told, 10.0, processes=[(7, -1), (8, 1 << 30)])
    document = json.loads(json.dumps(described(read(page).gpus[0])))
    assert (document["utilization"], document["memory_free"], document["power_w"]) == (0, 2**34, None)
    assert document["throttle_reasons"] == ["heat (software)"]
    assert document["process_list"] == [{"pid": 7, "memory": None}, {"pid": 8, "memory": 1 << 30}]
    assert (document["status"], document["obstacle"]) == ("healthy", None)


def test_the_reasons_of_a_slow_gpu_are_named_and_being_idle_is_none():
    assert throttle_words(math.nan) == throttle_words(1.0) == []
    assert throttle_words(float(0x4 | 0x40)) == ["power cap", "heat (hardware)"]
