"""Windows of measurements: what the controller sees of a class between two looks at the shared page."""

import json
import math
import os
import threading

import pytest
from dspy_fastpath.counters import Counter, Gauge, GpuValue, Histogram, HostValue, Page, SlotState
from dspy_supervisor.environment import numba_cache_folder
from dspy_supervisor.gpu import read
from dspy_supervisor.limit import Input, Reason, new_state, parameters, reason_text, step
from dspy_supervisor.services import controller, windows
from dspy_supervisor.services.controller import Compiler, why
from dspy_supervisor.services.windows import Meter, Record

from tests.conftest import until

CLASSES = ("cpu_short", "cpu_long", "gpu", "gpu_slurm")
GPU = CLASSES.index("gpu")
GIB = 2**30


@pytest.fixture
def page(tmp_path):
    with Page.create(tmp_path / "page", "q-1", CLASSES, 4) as created:
        yield created


def test_a_window_tells_what_happened_in_it_and_nothing_of_before(page):
    page.add(0, Counter.DONE, 7)
    page.observe(0, Histogram.RUN, 100.0)
    meter = Meter(page, 0, 10.0)
    page.set(0, Gauge.LIMIT, 4)
    page.set(0, Gauge.PENDING, 9)
    page.add(0, Counter.DONE, 3)
    page.add(0, Counter.FAILED)
    page.add(0, Counter.RETRIED, 2)
    page.add(0, Counter.TIMEOUTS)
    page.add(0, Counter.OOMS)
    for seconds in (1.0, 3.0):
        page.observe(0, Histogram.RUN, seconds)
        page.observe(0, Histogram.WAIT, seconds / 2)
    page.set(0, Gauge.INFLIGHT, 4)
    meter.glance()
    page.set(0, Gauge.INFLIGHT, 2)
    window = meter.window(12.0, None, (), math.inf)
    told = {Input(name): value for name, value in enumerate(window) if not math.isnan(value)}
    assert told == pytest.approx(
        {
            Input.INTERVAL_S: 2.0,
            Input.LIMIT: 4.0,
            Input.INFLIGHT: 3.0,
            Input.BACKLOG: 9.0,
            Input.DONE: 3.0,
            Input.ERRORS: 3.0,
            Input.TIMEOUTS: 1.0,
            Input.OOMS: 1.0,
            Input.WAIT_S: 1.0,
            Input.RUN_S: 2.0,
            Input.RUN_BASE_S: 2.0,
            Input.DONE_RATE: 1.5,
            Input.THROTTLE: 0.0,
        }
    )
    assert meter.window(14.0, None, (), math.inf)[Input.DONE] == 0


def test_the_baseline_of_run_times_follows_over_minutes(page):
    meter = Meter(page, 0, 0.0)
    page.observe(0, Histogram.RUN, 1.0)
    assert meter.window(2.0, None, (), math.inf)[Input.RUN_BASE_S] == pytest.approx(1.0)
    page.observe(0, Histogram.RUN, 11.0)
    window = meter.window(4.0, None, (), math.inf)
    assert window[Input.RUN_S] == pytest.approx(11.0)
    assert 1.1 < window[Input.RUN_BASE_S] < 1.3


def test_the_host_is_told_with_its_free_memory_as_a_share(page):
    values = [math.nan] * len(HostValue)
    values[HostValue.PSI_CPU], values[HostValue.PSI_MEMORY], values[HostValue.PSI_IO] = 0.1, 0.2, 0.3
    values[HostValue.HOST_MEMORY_FREE], values[HostValue.HOST_MEMORY_LIMIT] = 2.0 * GIB, 8.0 * GIB
    window = Meter(page, 0, 0.0).window(1.0, values, (), math.inf)
    assert [window[name] for name in (Input.PSI_CPU, Input.PSI_MEM, Input.PSI_IO)] == [0.1, 0.2, 0.3]
    assert window[Input.MEM_FREE_SHARE] == 0.25


def gpus(page, *, throttle=0.0, processes=(), **more):
    for place, busy in enumerate((0.4, 0.8)):
        values = {
            GpuValue.UTILIZATION: busy,
            GpuValue.MEMORY_TOTAL: 24.0 * GIB,
            GpuValue.MEMORY_FREE: 10.0 * GIB,
            GpuValue.POWER_W: 300.0,
            GpuValue.POWER_CAP_W: 400.0,
            GpuValue.THROTTLE: throttle,
            GpuValue.TEMPERATURE_C: 71.0 + place,
        }
        page.gpu_write(place, b"GPU-%d" % place, values, 50.0, processes=processes if place else ())
    return read(page).gpus


def test_gpus_are_told_together(page):
    window = Meter(page, GPU, 0.0).window(1.0, None, gpus(page), 0.5)
    assert window[Input.GPU_BUSY] == pytest.approx(0.6)
    assert (window[Input.VRAM_FREE], window[Input.VRAM_TOTAL]) == (20.0 * GIB, 48.0 * GIB)
    assert window[Input.POWER] == pytest.approx(0.75)
    assert window[Input.TELEMETRY_AGE_S] == 0.5
    assert math.isnan(window[Input.VRAM_NEED])


@pytest.mark.parametrize(
    ("bits", "told"),
    [
        (0.0, 0.0),
        (0x1, 0.0),
        (0x4, 0.0),
        (0x8, 1.0),
        (0x20, 1.0),
        (0x40, 1.0),
        (0x80, 2.0),
        (0xC4, 1.0),
        (math.nan, 0.0),
    ],
    ids=["none", "idle", "power cap", "hardware", "heat", "heat by hardware", "brake", "all", "not told"],
)
def test_throttling_is_heat_or_the_power_brake_and_not_the_cap_that_full_load_meets(page, bits, told):
    window = Meter(page, GPU, 0.0).window(1.0, None, gpus(page, throttle=bits), 0.5)
    assert window[Input.THROTTLE] == told


def test_what_a_busy_worker_holds_of_the_gpus_is_what_a_task_needs(page):
    page.slot_set(0, 4711, 1, GPU, SlotState.BUSY)
    page.slot_set(1, 4712, 2, GPU, SlotState.IDLE)
    found = gpus(page, processes=((4711, 3 * GIB), (4712, 9 * GIB), (99, 12 * GIB)))
    assert Meter(page, GPU, 0.0).window(1.0, None, found, 0.5)[Input.VRAM_NEED] == 3.0 * GIB


def test_where_the_driver_lists_no_process_of_ours_the_need_that_tasks_showed_counts(page):
    page.set(GPU, Gauge.GPU_NEED, 5 * GIB)
    assert Meter(page, GPU, 0.0).window(1.0, None, gpus(page), 0.5)[Input.VRAM_NEED] == 5.0 * GIB


def test_a_reason_is_told_with_its_figures(page):
    window = Meter(page, GPU, 0.0).window(1.0, None, found := gpus(page), 0.5)
    assert why(Reason.VRAM, window, found) == "VRAM 28.0 of 48.0 GiB"
    assert why(Reason.THERMAL, window, found) == "a GPU throttles at 72 degrees"
    assert why(Reason.NOT_BINDING, window) == "0.0 tasks run, 0 wait"


def test_a_reason_without_figures_is_told_in_words_alone():
    assert why(Reason.VRAM, [math.nan] * len(Input)) == reason_text(Reason.VRAM)
    assert all(why(reason, [math.nan] * len(Input)) for reason in Reason)


def test_a_record_is_one_line_a_window_that_json_can_read(tmp_path):
    record = Record(tmp_path / "new" / "windows.jsonl")
    window = [math.nan] * len(Input)
    window[Input.LIMIT] = 3.0
    record.write(1.5, "gpu", (1.0, 4.0), window, 4.0, "grow")
    record.write(3.5, "gpu", (1.0, 4.0), window, 4.0, "hold")
    first, second = map(json.loads, (tmp_path / "new" / "windows.jsonl").read_text().splitlines())
    assert (first["at"], first["class"], first["limit"], first["next"], first["reason"]) == (1.5, "gpu", 3, 4, "grow")
    assert (first["lowest"], first["highest"], first["gpu_busy"]) == (1, 4, None)
    assert second["reason"] == "hold"


def test_a_record_that_is_long_enough_begins_anew_and_keeps_the_one_before(tmp_path, monkeypatch):
    monkeypatch.setattr(windows, "RECORD_BYTES", 2000)
    path = tmp_path / "windows.jsonl"
    for at in range(40):
        Record(path).write(at, "gpu", (1.0, 4.0), [0.0] * len(Input), 1.0, "hold")
    files = sorted(file.name for file in tmp_path.iterdir())
    assert set(files) <= {"windows.jsonl", "windows.jsonl.1"}
    assert all(file.stat().st_size < 3000 for file in tmp_path.iterdir())
    assert len((tmp_path / "windows.jsonl.1").read_text().splitlines()) > 2


def test_the_step_runs_plain_at_once_and_compiled_as_soon_as_it_is(monkeypatch):
    gate = threading.Event()

    def compile_step(*, cache):
        assert gate.wait(60) and not cache
        return step

    monkeypatch.setattr(controller, "compile_step", compile_step)
    compiler = Compiler(None)
    assert (compiler.step, compiler.state) == (step, "plain")
    gate.set()
    until(lambda: compiler.state == "compiled", "the step is compiled")
    window, state, again = [0.5] * len(Input), new_state(), new_state()
    params = parameters(1.0, 8.0)
    assert compiler.step(4, window, state, params) == step(4, window, again, params)
    assert state == again


def test_a_step_that_does_not_compile_stays_plain_and_says_why(monkeypatch):
    def compile_step(*, cache):
        raise RuntimeError("no LLVM today")

    monkeypatch.setattr(controller, "compile_step", compile_step)
    compiler = Compiler(None)
    until(lambda: "no LLVM today" in (compiler.problem or ""), "the problem is told")
    assert (compiler.step, compiler.state) == (step, "plain")


# -- where compiled code is kept ---------------------------------------------------------------------------------------------


def test_compiled_code_is_kept_in_the_service_s_cache_before_the_user_s(tmp_path):
    environ = {"CACHE_DIRECTORY": f"{tmp_path}/service", "XDG_CACHE_HOME": f"{tmp_path}/user"}
    assert numba_cache_folder(tmp_path, environ) == tmp_path / "service" / "numba"
    del environ["CACHE_DIRECTORY"]
    assert numba_cache_folder(tmp_path, environ) == tmp_path / "user" / "dspy-supervisor" / "numba"
    assert numba_cache_folder(tmp_path, {}) == tmp_path / "numba"


def test_a_cache_that_others_may_write_is_not_used(tmp_path):
    folder = tmp_path / "user" / "dspy-supervisor" / "numba"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    found = numba_cache_folder(tmp_path / "run", {"XDG_CACHE_HOME": f"{tmp_path}/user"})
    assert found == tmp_path / "run" / "numba"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_without_a_writable_folder_there_is_no_cache(tmp_path):
    tmp_path.chmod(0o500)
    assert numba_cache_folder(tmp_path, {"HOME": str(tmp_path)}) is None


def test_a_folder_whose_place_is_taken_by_a_file_is_passed_over(tmp_path):
    (tmp_path / "cache").write_text("")
    assert numba_cache_folder(tmp_path / "run", {"XDG_CACHE_HOME": f"{tmp_path}/cache"}) == tmp_path / "run" / "numba"
