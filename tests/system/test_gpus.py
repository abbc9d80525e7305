"""Tasks of class gpu: each sees the devices it was given, and starts when their memory is really free."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ..conftest import Supervised, clean_environ, until
from ..nvml import LOST, RTX_4090, Script
from .gpu_handlers import devices
from .gpu_rig import GIB, A, B, C, D, Gpus, Tell, gpu, let_through, until_it_waits
from .rig import events, klass


def test_each_task_sees_just_the_gpus_it_was_given(gpus: Gpus, tell: Tell) -> None:
    tell(gpu(A), gpu(B), gpu(C))
    gpus.begin(3)
    first, second, third = (gpus.wait_in(name) for name in ("one", "two", "three"))
    let_through(first, second, third)
    seen = [gpus.result(name) for name in ("one", "two", "three")]
    assert sorted(devices(result) for result in seen) == [[A], [B], [C]]
    assert {result["CUDA_DEVICE_ORDER"] for result in seen} == {"PCI_BUS_ID"}
    assert devices(gpus.result(gpus.ask("pair", gpus=2))) == [A, B]
    assert devices(gpus.result(gpus.ask("none", gpus=0))) == []
    assert devices(gpus.result(gpus.ask("again"))) in ([A], [B], [C])
    gpus.check(drained=True)


def test_tasks_share_a_gpu_by_halves_and_a_whole_one_has_no_other(gpus: Gpus, tell: Tell, tmp_path: Path) -> None:
    tell(gpu(A))
    one = gpus.begin(2)
    halves = [gpus.wait_in(name) for name in ("one", "two")]
    for gate in halves:
        gate.wait()
    gpus.ask("alone", gpus=1)
    gpus.ask("small", gpu_share=0.1)
    until_it_waits(one, "alone", "places of class gpu are taken")
    halves[0].open()
    gpus.record("one")
    until_it_waits(one, "alone", "taken by other tasks")
    until_it_waits(one, "small", "kept for a larger task")
    halves[1].open()
    ended = {name: gpus.record(name) for name in ("alone", "small")}
    assert ended["alone"]["completed_at"] <= ended["small"]["started_at"]
    command = [sys.executable, "-m", "dspy_supervisor", "status", "--queue-dir", str(one.queue)]
    environ = clean_environ(tmp_path) | {"DSPY_RUNTIME_DIR": str(one.runtime)}
    said = subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout
    assert f"{A}: 0 tasks have 0.0 GiB of 21.6 GiB, 23.5 GiB are free" in said
    [shown] = klass(one, "gpu")["gpus"]
    assert (shown["uuid"], shown["tasks"], shown["fenced"]) == (A, {}, None)
    gpus.check(drained=True)


def test_a_command_sees_its_gpus_and_its_budget_and_can_run_out_of_it(gpus: Gpus, tell: Tell) -> None:
    tell(gpu(A), gpu(B))
    one = gpus.begin(1, settings={"kinds": "command"})
    look = ["sh", "-c", 'echo "__DSPY_RESULT__:[\\"$CUDA_VISIBLE_DEVICES\\",$DSPY_GPU_MEMORY_LIMIT]"']
    more: dict[str, Any] = {"class": "gpu", "kind": "command"}
    gpus.drop("look", {"argv": look}, **more, resources={"gpus": 1, "gpu_memory": "3G"})
    assert gpus.record("look")["runner_result"] == [A, 3 * GIB]
    runs_out = "[ $DSPY_TASK_ATTEMPT = 1 ] || { echo 'CUDA error: out of memory' >&2; exit 1; }"
    gpus.drop("short", {"argv": ["sh", "-c", runs_out]}, **more, resources={"gpu_memory": "4G"})
    assert gpus.record("short")["history"][0]["cause"] == "out_of_memory"
    [short] = events(one, "gpu_memory_short")
    assert (short["kind"], short["had"], short["needs"]) == ("command 4096 MiB", 4 * GIB, 6 * GIB)
    gpus.check(drained=True)


def test_memory_that_others_use_is_waited_for(gpus: Gpus, tell: Tell) -> None:
    tell(gpu(A, free=4.0))
    one = gpus.begin(2)
    gpus.ask("large", gpu_memory="8G")
    until_it_waits(
        one, "large", "it needs 8.0 GiB of GPU GPU-aaaaaaaa, and 4.0 GiB are free (20.0 GiB are used by others)"
    )
    small = gpus.result(gpus.ask("small", gpu_memory="2G"))  # behind it, and small enough
    assert small["DSPY_GPU_MEMORY_LIMIT"] == str(2 * GIB)
    tell(gpu(A, free=12.0))
    assert gpus.result("large")["DSPY_GPU_MEMORY_LIMIT"] == str(8 * GIB)
    gpus.check(drained=True)


def test_what_was_promised_to_one_is_not_promised_to_the_next(gpus: Gpus, tell: Tell) -> None:
    tell(gpu(A, free=12.0))  # and so it stays: the first has taken none of its memory yet
    one = gpus.begin(2)
    first = gpus.wait_in("first", gpu_memory="8G")
    first.wait()
    gpus.ask("second", gpu_memory="8G")
    until_it_waits(one, "second", "and 4.0 GiB are free")
    first.open()
    gpus.record("first")
    gpus.record("second")
    gpus.check(drained=True)


def test_out_of_memory_raises_the_need_of_its_kind_and_has_a_budget_of_its_own(gpus: Gpus, tell: Tell) -> None:
    tell(gpu(A))
    one = gpus.begin(2, settings={"class.gpu.max_attempts": 1, "class.gpu.max_ooms": 3})
    says = (
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.64 GiB of which 1 GiB is free. "
        "Including non-PyTorch memory, this process has 12.00 GiB memory in use."
    )
    result = gpus.result(gpus.ask("short", {"short": 2, "says": says}))
    assert result["attempt"] == 2
    learned = klass(one, "gpu")["gpu_memory_learned"]["tests.system.gpu_handlers:play"]
    assert 14 * GIB < learned < 24 * GIB
    gate = gpus.wait_in("now")
    gate.wait()
    gpus.ask("next")  # half the GPU, but not half of its memory
    until_it_waits(one, "next", "taken by other tasks")
    gate.open()
    gpus.record("next")
    gpus.ask("never", {"short": 99})
    error = gpus.record("never")["error"]
    assert (error["cause"], error["memory"]) == ("out_of_memory", "gpu")
    assert gpus.record("never")["attempt"] == 2
    assert events(one, "gpu_memory_short")
    until(lambda: not list((gpus.queue / "failed").glob(".*.won")), "the commit is forgotten")
    gpus.check(drained=True, may_fail={"never"})


def test_a_worker_whose_cuda_is_broken_is_replaced(gpus: Gpus, tell: Tell) -> None:
    tell(gpu(A))
    one = gpus.begin(1)
    before = gpus.result(gpus.ask("before"))["pid"]
    gpus.ask("breaks", {"breaks": 1})
    mended = gpus.result("breaks")
    assert mended["attempt"] == 1 and mended["pid"] != before
    assert gpus.result(gpus.ask("after"))["pid"] == mended["pid"]
    assert not events(one, "worker_died", "backing_off")
    gpus.check(drained=True)


def test_a_lost_gpu_is_fenced_and_its_tasks_run_elsewhere_uncharged(gpus: Gpus, tell: Tell) -> None:
    tell(gpu(A), gpu(B))
    one = gpus.begin(2, settings={"class.gpu.max_attempts": 1})
    gates = {name: gpus.wait_in(name) for name in ("one", "two")}
    for gate in gates.values():
        gate.wait()
    [victim] = (held["tasks"] for held in klass(one, "gpu")["gpus"] if held["uuid"] == A)
    [name] = victim
    gates[name].begun.unlink()
    tell(gpu(A, status="LOST"), gpu(B), say={"op": "gpu_lost", "uuid": A})
    until(lambda: events(one, "gpu_fenced"), "it is fenced")
    gates["two" if name == "one" else "one"].open()
    gates[name].wait()
    gates[name].open()
    again = gpus.result(name)
    assert (again["attempt"], devices(again)) == (1, [B])
    assert "was lost" in gpus.record(name)["history"][0]["message"]
    gpus.ask("pair", gpus=2)
    until_it_waits(one, "pair", f"out of use: {A}")
    tell(gpu(A), gpu(B))
    assert devices(gpus.result("pair")) == [A, B]
    assert events(one, "gpu_back")
    gpus.check(drained=True)


def test_without_a_gpu_its_tasks_are_held_with_the_reason_and_the_others_run(gpus: Gpus, tell: Tell) -> None:
    tell(state="NO_GPU")
    one = gpus.begin(1)
    gpus.ask("waits")
    until_it_waits(one, "waits", "no GPU found on this host, and enable_gpu is on")
    gpus.drop("runs")
    assert gpus.record("runs")["status"] == "done"
    shown = klass(one, "gpu")
    assert "no GPU found" in shown["reason"] and (shown["held"], shown["workers"]) == (1, 0)
    tell(gpu(A))
    assert devices(gpus.result("waits")) == [A]
    tell(gpu(A), state="REBOOT_NEEDED")
    until(lambda: "reboot needed" in (klass(one, "gpu")["reason"] or ""), "it says so")
    gpus.ask("later")
    until_it_waits(one, "later", "reboot needed")
    tell(gpu(A))
    gpus.result("later")
    gpus.check(drained=True)


def test_a_burst_without_a_gpu_ends_and_tells_what_is_left(gpus: Gpus, tell: Tell) -> None:
    tell(state="NO_GPU")
    gpus.ask("waits")
    gpus.drop("runs")
    one = gpus.begin(1, "--burst", ready=False)
    assert one.wait() == 69
    [left] = events(one, "tasks_left")
    assert left["tasks"] == 1 and "no GPU found" in left["reasons"][0]


def test_what_no_gpu_here_can_give_is_held_and_nonsense_is_refused(gpus: Gpus, tell: Tell) -> None:
    tell(gpu(A), gpu(B))
    one = gpus.begin(2)
    gpus.ask("many", gpus=3)
    gpus.ask("much", gpu_memory="30G")
    until_it_waits(one, "many", "it needs 3 GPUs, and there are 2 here")
    until_it_waits(one, "much", "it needs 30.0 GiB on each GPU, and none has more than 21.6 GiB to give")
    gpus.ask("nonsense", gpus="all")
    error = gpus.record("nonsense")["error"]
    assert error["cause"] == "refused" and "resources.gpus='all'" in error["message"]
    tell(gpu(A), gpu(B), gpu(C))  # one was added
    assert devices(gpus.result("many")) == [A, B, C]


def test_a_task_under_a_name_that_another_had_gets_what_it_asks_for_itself(gpus: Gpus, tell: Tell) -> None:
    tell(gpu(A), gpu(B))
    one = gpus.begin(2, settings={"sweep_s": 0.5})
    gpus.ask("same", gpus=3)
    until_it_waits(one, "same", "it needs 3 GPUs, and there are 2 here")
    (one.queue / "pending" / "same.json").unlink()
    until(lambda: klass(one, "gpu")["held"] == 0, "it is forgotten")
    assert devices(gpus.result(gpus.ask("same", gpus=2))) == [A, B]
    gpus.check(drained=True)


@pytest.mark.parametrize(
    ("environ", "seen"),
    [
        ({"CUDA_VISIBLE_DEVICES": "2,0"}, {C, A}),
        ({"CUDA_VISIBLE_DEVICES": f"{D},GPU-bb"}, {D, B}),
        ({"SLURM_JOB_GPUS": "1-2"}, {B, C}),
    ],
)
def test_an_inherited_set_is_all_there_is(gpus: Gpus, tell: Tell, environ: dict[str, str], seen: set[str]) -> None:
    tell(*(gpu(uuid) for uuid in (A, B, C, D)))
    one = gpus.begin(2, environ=environ)
    assert set(devices(gpus.result(gpus.ask("pair", gpus=2)))) == seen
    gpus.ask("many", gpus=3)
    until_it_waits(one, "many", "there are 2 here")


def test_slices_are_devices_and_their_gpu_is_none(gpus: Gpus, tell: Tell) -> None:
    slices = [{"uuid": f"MIG-{n}", "parent": A, "total": 10.0, "free": 9.9} for n in (1, 2)]
    tell(gpu(A, mig=1), *slices)
    gpus.begin(2)
    gates = {name: gpus.wait_in(name) for name in ("one", "two")}
    let_through(*gates.values())
    assert sorted(devices(gpus.result(name)) for name in gates) == [["MIG-1"], ["MIG-2"]]
    assert gpus.result("one")["DSPY_GPU_MEMORY_LIMIT"] == str(int(10 * GIB * 0.9))


def test_with_gpus_off_the_class_runs_without(gpus: Gpus, tell: Tell) -> None:
    one = gpus.begin(1, settings={"enable_gpu": "false"}, environ={"CUDA_VISIBLE_DEVICES": "7"})
    assert gpus.result(gpus.ask("plain"))["CUDA_VISIBLE_DEVICES"] == "7"
    assert "gpus" not in klass(one, "gpu")


def test_a_parent_that_started_cuda_is_refused_before_it_forks(gpus: Gpus, tell: Tell, tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "torch").mkdir()
    (code / "torch" / "__init__.py").write_text("from . import cuda\n")
    (code / "torch" / "cuda.py").write_text("def is_initialized():\n    import os\n    return os.path.exists('up')\n")
    (code / "sitecustomize.py").write_text("import torch\n")
    (tmp_path / "up").touch()
    tell(gpu(A))
    one = gpus.begin(1)
    gpus.ask("waits")
    until_it_waits(one, "waits", "CUDA was started in the supervisor's own process, by torch")
    gpus.drop("runs")
    assert gpus.record("runs")["status"] == "done"
    assert klass(one, "gpu")["state"] == "failed" and klass(one, "gpu")["workers"] == 0
    (tmp_path / "up").unlink()
    one.ask("resume")
    gpus.result("waits")


def test_a_task_of_another_size_gets_a_worker_in_place_of_an_idle_one(gpus: Gpus, tell: Tell) -> None:
    tell(gpu(A), gpu(B))
    one = gpus.begin(2)
    for turn in range(3):
        assert devices(gpus.result(gpus.ask(f"pair{turn}", gpus=2))) == [A, B]
        assert len(devices(gpus.result(gpus.ask(f"single{turn}")))) == 1
    assert klass(one, "gpu")["workers"] <= 2
    assert not events(one, "worker_died")
    gpus.check(drained=True)


def test_the_processes_of_a_worker_tell_what_a_task_needs(gpus: Gpus, tell: Tell) -> None:
    tell(gpu(A))
    one = gpus.begin(1)
    gate = gpus.wait_in("heavy")
    gate.wait()
    child = next(pid for pid in (c.pid for c in one.children()) if _is_busy(one, pid))
    tell(gpu(A, free=7.5, processes=[[child, 16.0], [1, 0.5]]))
    until(lambda: klass(one, "gpu")["gpus"][0]["free"] == int(7.5 * GIB), "it is seen")
    gate.open()
    gpus.record("heavy")
    learned = klass(one, "gpu")["gpu_memory_learned"]["tests.system.gpu_handlers:play"]
    assert learned == pytest.approx(16 * 1.1 * GIB, rel=0.01)
    # the same worker has that memory: the next of its kind runs there, though little is free
    assert gpus.result(gpus.ask("again"))["pid"] == child


def test_of_many_tasks_of_all_sizes_no_two_meet_where_one_is_alone(gpus: Gpus, tell: Tell, tmp_path: Path) -> None:
    tell(*(gpu(uuid) for uuid in (A, B, C, D)))
    chance, spans = random.Random(5), tmp_path / "spans"
    asked: dict[str, dict[str, Any]] = {}
    for number in range(60):
        resources = chance.choice([{}, {"gpus": 1}, {"gpus": 2}, {"gpus": 4}, {"gpu_share": 0.5}, {"gpu_share": 0.3}])
        payload = {"spans": str(spans), "s": chance.choice([0.0, 0.01, 0.05])}
        asked[gpus.ask(f"t{number:02d}", payload, **resources)] = resources
    gpus.begin(6)
    gpus.drain()
    ran = [json.loads(line) for line in spans.read_text().splitlines()]
    assert len(ran) == 60
    for one in ran:
        wanted = asked[one["task"]]
        one["gpus"] = set(one["gpus"].split(","))
        assert len(one["gpus"]) == wanted.get("gpus", 1)
        one["share"] = wanted.get("gpu_share", 1.0 if "gpus" in wanted else 0.5)  # six workers on four GPUs
    for one in ran:
        for uuid in one["gpus"]:
            beside = [each for each in ran if uuid in each["gpus"] and each["from"] <= one["from"] < each["to"]]
            assert sum(each["share"] for each in beside) <= 1.0001, (uuid, beside)
    gpus.check(drained=True)


def test_memory_that_runs_out_lowers_the_limit(gpus: Gpus, nvml_script: Script) -> None:
    """With the real telemetry, on a stand-in for the driver, and the real controller."""
    nvml_script.gpu(0, uuid=A, **RTX_4090)
    settings = {"enable_gpu": "true", "telemetry_interval_s": 0.2, "controller_interval_s": 0.5, "policy": "adaptive"}
    handlers = {"cpu_short": "tests.system.handlers:play", "gpu": "tests.system.gpu_handlers:play"}
    one = gpus.start("--workers", "gpu=4", handlers=handlers, settings=settings, environ=nvml_script.environ)
    assert devices(gpus.result(gpus.ask("first"))) == [A]
    gates = [gpus.wait_in(f"wait{number}") for number in range(3)]
    for gate in gates:
        gate.wait()
    gpus.ask("short", {"short": 1})
    until(lambda: any(event["reason"] == "cuda_oom" for event in events(one, "limit")), "the limit is lowered", 60)
    for gate in gates:
        gate.open()
    gpus.drain()
    gpus.check(drained=True)


def test_a_gpu_that_the_driver_loses_loses_its_tasks_to_another(gpus: Gpus, nvml_script: Script) -> None:
    for place, uuid in enumerate((A, B)):
        nvml_script.gpu(place, uuid=uuid, **RTX_4090)
    settings = {"enable_gpu": "true", "telemetry_interval_s": 0.2, "policy": "fixed"}
    handlers = {"cpu_short": "tests.system.handlers:play", "gpu": "tests.system.gpu_handlers:play"}
    one = gpus.start("--workers", "gpu=2", handlers=handlers, settings=settings, environ=nvml_script.environ)
    gates = {name: gpus.wait_in(name) for name in ("one", "two")}
    for gate in gates.values():
        gate.wait()
    victim = next(name for shown in klass(one, "gpu")["gpus"] if shown["uuid"] == A for name in shown["tasks"])
    gates[victim].begun.unlink()
    gates["two" if victim == "one" else "one"].open()
    nvml_script.fails(0, "*", LOST)
    gates[victim].wait()
    gates[victim].open()
    assert devices(gpus.result(victim)) == [B]
    gpus.check(drained=True)


def test_idle_workers_that_keep_memory_are_replaced_where_that_helps(gpus: Gpus, tell: Tell) -> None:
    tell(gpu(A))
    one = gpus.begin(2)
    gates = [gpus.wait_in(name, gpu_memory="9G") for name in ("first", "second")]
    let_through(*gates)
    keepers = [gpus.result(name)["pid"] for name in ("first", "second")]

    def keep(free: float) -> None:
        """Let both keep what they loaded for the next of their kind."""
        alive = {child.pid for child in one.children()}
        tell(gpu(A, free=free, processes=[[pid, 9.0] for pid in keepers if pid in alive]))
        until(lambda: klass(one, "gpu")["gpus"][0]["free"] == int(free * GIB), "it is seen")

    keep(1.5)
    gpus.ask("huge", gpu_memory="21G")
    until_it_waits(one, "huge", "1.5 GiB are free")
    assert not events(one, "worker_evicted")  # it would not do
    assert gpus.result(gpus.ask("fits", gpu_memory="10G"))["pid"] in keepers  # with what it has it is enough
    keep(5.0)
    gpus.ask("large", gpu_memory="20G")
    until(lambda: len({child.pid for child in one.children()} & set(keepers)) == 1, "one of them is replaced")
    keep(14.0)
    assert gpus.result("large")["pid"] in keepers
    gpus.result("huge")
    gpus.check(drained=True)


def _is_busy(one: Supervised, pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"gpu worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False
