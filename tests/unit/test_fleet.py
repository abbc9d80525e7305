"""GPUs as telemetry leaves them in the page: whose they are, which are out of use, and who has their memory."""

import math
import os
import subprocess
import sys

import psutil
import pytest
from dspy_fastpath.counters import Global, GpuStatus, GpuValue, Page, Telemetry
from dspy_supervisor.devices import Need
from dspy_supervisor.fleet import STALE_S, UNWATCHED_S, Fleet

GIB = 1 << 30
NOW = 10_000.0


@pytest.fixture
def page(tmp_path):
    with Page.create(tmp_path / "page", "q", ("gpu",), 4) as page:
        page.set_global(Global.TELEMETRY, Telemetry.WATCHING)
        yield page


def write(page, place, *, at=NOW, status=GpuStatus.HEALTHY, parent=-1, processes=(), **values):
    known = {GpuValue[name.upper()]: value for name, value in values.items()}
    told = {value: known.get(value, math.nan) for value in GpuValue}
    page.gpu_write(place, f"GPU-{place}".encode(), told, at, status, parent, b"x", b"0000:%02x" % place, processes)


def fleet(page, environ=None, limit=0):
    return Fleet(page, environ or {}, limit, NOW)


def uuids(one):
    return [device.uuid for device in one.ledger.devices]


def memory(free, total=24):
    return {"memory_total": total * GIB, "memory_free": free * GIB}


def test_before_telemetry_has_looked_tasks_wait_and_after_a_while_they_are_held(page):
    page.set_global(Global.TELEMETRY, Telemetry.UNWATCHED)
    one = fleet(page)
    assert one.waiting
    one.look(NOW + 1, [])
    assert one.waiting and not one.obstacle
    assert one.look(NOW + UNWATCHED_S + 1, []).obstacle
    assert "has not looked" in one.obstacle
    page.set_global(Global.TELEMETRY, Telemetry.WATCHING)
    write(page, 0, at=NOW + UNWATCHED_S + 2, **memory(20))
    change = one.look(NOW + UNWATCHED_S + 2, [])
    assert change.obstacle and change.devices and not (one.obstacle or one.waiting)
    assert not one.look(NOW + UNWATCHED_S + 3, []).devices


@pytest.mark.parametrize(
    ("state", "said"), [(Telemetry.NO_GPU, "no GPU found"), (Telemetry.REBOOT_NEEDED, "reboot needed")]
)
def test_no_gpu_and_a_driver_of_two_versions_are_obstacles(page, state, said):
    write(page, 0, **memory(20))
    page.set_global(Global.TELEMETRY, state)
    one = fleet(page)
    one.look(NOW, [])
    assert said in one.obstacle


def test_while_the_library_fails_tasks_wait_and_are_not_held(page):
    write(page, 0, **memory(20))
    page.set_global(Global.TELEMETRY, Telemetry.TROUBLED)
    one = fleet(page)
    one.look(NOW, [])
    assert one.waiting == "the GPU driver's library fails" and not one.obstacle
    page.set_global(Global.TELEMETRY, Telemetry.WATCHING)
    one.look(NOW, [])
    assert not one.waiting


def test_a_sample_older_than_three_intervals_is_waited_behind(page):
    write(page, 0, **memory(20))
    one = fleet(page)
    one.configure(0, 2.0)
    one.look(NOW + 5.9, [])
    assert not one.waiting
    one.look(NOW + 6.1, [])
    assert one.waiting == "GPU telemetry is silent for 6 s" and not one.obstacle
    one.configure(0, 0.1)
    one.look(NOW + 2.9, [])
    assert not one.waiting


def test_an_inherited_set_with_nothing_in_it_is_named(page):
    write(page, 0, **memory(20))
    one = fleet(page, {"CUDA_VISIBLE_DEVICES": ""})
    one.look(NOW, [])
    assert "none of the 1 GPUs is ours to use (CUDA_VISIBLE_DEVICES=)" in one.obstacle


def test_slices_are_given_out_and_the_gpu_they_are_cut_from_is_not(page):
    write(page, 0, mig=1, **memory(80, 80))
    write(page, 1, parent=0, **memory(10, 10))
    write(page, 2, **memory(80, 80))
    one = fleet(page)
    one.look(NOW, [])
    assert uuids(one) == ["GPU-1", "GPU-2"]
    write(page, 0, status=GpuStatus.LOST, mig=1, **memory(80, 80))  # and its slices with it
    assert one.look(NOW, []).lost == ["GPU-1"]
    assert "GPU-1" in one.ledger.fenced


@pytest.mark.parametrize(
    ("status", "values", "lost"),
    [
        (GpuStatus.LOST, {}, True),
        (GpuStatus.NEEDS_RESET, {}, True),
        (GpuStatus.UNREADABLE, {}, False),
        (GpuStatus.HEALTHY, {"compute_mode": 2}, False),
    ],
)
def test_what_is_not_well_is_fenced_and_given_back_when_it_is(page, status, values, lost):
    write(page, 0, **memory(20))
    one = fleet(page)
    one.look(NOW, [])
    write(page, 0, status=status, **memory(20), **values)
    assert bool(one.look(NOW, []).lost) == lost
    assert one.ledger.place(Need(1)) is None
    assert not one.look(NOW, []).lost  # once is enough
    write(page, 0, **memory(20))
    one.look(NOW, [])
    assert one.ledger.place(Need(1)) == ("GPU-0",)


@pytest.mark.parametrize("by_message", [False, True])
def test_a_gpu_that_cannot_be_read_first_and_is_lost_then_loses_its_tasks(page, by_message):
    write(page, 0, **memory(20))
    one = fleet(page)
    one.look(NOW, [])
    write(page, 0, status=GpuStatus.UNREADABLE, **memory(20))
    assert one.look(NOW + 1, []).lost == []
    if by_message:
        assert one.lose("GPU-0", NOW + 2) == ["GPU-0"]
    write(page, 0, status=GpuStatus.LOST, **memory(20))
    assert one.look(NOW + 2, []).lost == ([] if by_message else ["GPU-0"])
    assert "lost" in one.ledger.fenced["GPU-0"]
    assert one.look(NOW + 3, []).lost == [] and one.lose("GPU-0", NOW + 3) == []
    write(page, 0, at=NOW + 10, **memory(20))
    one.look(NOW + 10, [])
    write(page, 0, at=NOW + 11, status=GpuStatus.LOST, **memory(20))
    assert one.look(NOW + 11, []).lost == ["GPU-0"]


def test_a_gpu_that_was_cut_in_slices_under_a_task_is_not_given_out_again(page):
    write(page, 0, **memory(80, 80))
    one = fleet(page)
    one.look(NOW, [])
    one.ledger.take("a.json", ("GPU-0",), Need(share=0.5))
    write(page, 0, mig=1, **memory(80, 80))
    write(page, 1, parent=0, **memory(10, 10))
    for _ in range(2):
        one.look(NOW, [])
        assert one.ledger.fenced == {"GPU-0": "it is no longer there"}
    one.ledger.release("a.json")
    one.look(NOW, [])
    assert uuids(one) == ["GPU-1"]


def test_a_message_fences_at_once_and_an_older_sample_does_not_undo_it(page):
    write(page, 0, **memory(20))
    one = fleet(page)
    one.look(NOW, [])
    assert one.lose("GPU-0", NOW + 1) == ["GPU-0"]
    assert one.lose("GPU-0", NOW + 1) == [] and one.lose("GPU-unknown", NOW) == []
    one.look(NOW + 2, [])
    assert one.ledger.fenced
    write(page, 0, at=NOW + 10, **memory(20))
    one.look(NOW + 10, [])
    assert not one.ledger.fenced


def test_free_memory_is_what_the_driver_says_and_nothing_when_it_has_not_for_long(page):
    write(page, 0, **memory(20))
    write(page, 1)  # the driver does not say
    one = fleet(page)
    one.look(NOW, [])
    assert one.free("GPU-0", NOW, []) == 20 * GIB
    assert one.free("GPU-0", NOW + STALE_S - 1, []) == 20 * GIB
    assert one.free("GPU-0", NOW + STALE_S + 1, []) == 0
    assert "not looked at" in one.why_full("GPU-0", Need(1), 0.0, NOW + STALE_S + 1)
    assert one.free("GPU-1", NOW, []) == math.inf
    assert one.free("GPU-x", NOW, []) == 0
    assert one.ledger.budget_of(one.ledger.devices[1]) > 1000 * GIB
    assert [fact["free"] for fact in one.facts()] == [20 * GIB, None]


def test_when_none_is_left_or_nobody_looks_tasks_are_held_and_not_only_passed_over(page):
    write(page, 0, **memory(20))
    one = fleet(page)
    one.look(NOW + STALE_S - 1, [])
    assert not one.obstacle
    assert one.look(NOW + STALE_S + 1, []).obstacle and "silent for more than 60 s" in one.obstacle
    write(page, 0, at=NOW + STALE_S + 2, status=GpuStatus.LOST, **memory(20))
    one.look(NOW + STALE_S + 2, [])
    assert "all GPUs are out of use: GPU-0: lost" in one.obstacle
    write(page, 0, at=NOW + STALE_S + 3, **memory(20))
    assert one.look(NOW + STALE_S + 3, []).obstacle and not one.obstacle


def test_a_new_limit_counts_from_the_next_look(page):
    write(page, 0, **memory(20))
    one = fleet(page, limit=8 * GIB)
    one.look(NOW, [])
    assert one.ledger.never(Need(1, memory_bytes=10 * GIB))
    one.configure(16 * GIB, 1.0)
    assert not one.ledger.never(Need(1, memory_bytes=10 * GIB))


def test_memory_of_a_workers_children_is_the_workers(page):
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    worker = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert worker.stdout.readline() == b"1\n"
        [child] = (process.pid for process in psutil.Process(worker.pid).children())
        processes = [(worker.pid, GIB), (child, 2 * GIB), (1, 5 * GIB), (os.getpid(), 3 * GIB), (worker.pid, -1)]
        write(page, 0, processes=processes, **memory(10))
        one = fleet(page)
        one.look(NOW, [])
        assert one.used_by(worker.pid, "GPU-0") is None  # none of these is known to be ours
        one.look(NOW, [worker.pid])
        assert one.used_by(worker.pid, "GPU-0") == 3 * GIB
        assert one.used_by(4711, "GPU-0") == 0
        assert "11.0 GiB are used by others" in one.why_full("GPU-0", Need(1, memory_bytes=GIB), 0.0, NOW)
    finally:
        worker.communicate(b"\n")
