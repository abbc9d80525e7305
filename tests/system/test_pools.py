"""Pools: workers that die at their start, that are worn, that share limits; and a supervisor that ends when all is done."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from dspy_fastpath.counters import Page
from dspy_supervisor import intake
from dspy_supervisor.backlog import Backlog
from dspy_supervisor.layout import Layout
from dspy_supervisor.producer import Producer
from dspy_supervisor.task import WorkloadClass
from dspy_supervisor.taskqueue import TaskQueue

from ..conftest import until
from .rig import PLAY, Rig, events, klass, workers


def _module(tmp_path: Path, name: str, text: str) -> Path:
    folder = tmp_path / "code"
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.py"
    path.write_text(text)
    return path


def test_a_class_whose_workers_die_at_their_start_is_failed_and_others_go_on(rig: Rig, tmp_path: Path) -> None:
    code = _module(tmp_path, "broken", "import os\nos._exit(3)\ndef run(task): return 'mended'\n")
    handlers = {"cpu_short": PLAY, "cpu_long": "broken:run"}
    supervisor = rig.start(handlers=handlers)
    rig.drop("long", **{"class": "cpu_long"})
    rig.drop("short")
    assert rig.record("short")["status"] == "done"
    until(lambda: klass(supervisor, "cpu_long")["state"] == "failed", "the breaker opens")
    assert "died at their start" in klass(supervisor, "cpu_long")["reason"]
    delays = [event["delay_s"] for event in events(supervisor, "backing_off")]
    assert delays == sorted(delays) and len(delays) == 4
    assert (rig.queue / "pending" / "long.json").exists()
    assert "has failed" in supervisor.ask("explain", id="long")["explanation"]
    code.write_text("def run(task): return 'mended'\n")
    supervisor.ask("resume")
    assert rig.record("long")["runner_result"] == "mended"
    assert klass(supervisor, "cpu_long")["state"] == "running"


def test_a_handler_that_cannot_be_imported_is_named(rig: Rig) -> None:
    supervisor = rig.start(handlers={"cpu_short": "no_such_module:run"}, settings={"breaker_starts": 2})
    until(lambda: klass(supervisor)["state"] == "failed", "the breaker opens")
    assert "no_such_module" in klass(supervisor)["reason"]


def test_workers_are_replaced_after_their_number_of_tasks(rig: Rig) -> None:
    rig.start(workers=1, settings={"class.cpu_short.max_tasks": 10})
    for number in range(40):
        rig.drop(f"t{number:02d}", {"do": "pid"})
    rig.drain()
    pids = [rig.record(f"t{number:02d}")["runner_result"] for number in range(40)]
    assert len(set(pids)) >= 3
    assert all(9 <= pids.count(pid) <= 11 + 10 for pid in list(dict.fromkeys(pids))[:-1])
    rig.check()


def test_workers_are_replaced_when_old_or_large_and_no_task_notices(rig: Rig) -> None:
    limit = 200 << 20
    settings = {"class.cpu_short.max_rss_bytes": limit, "class.cpu_short.max_age_s": 1, "sweep_s": 0.1}
    supervisor = rig.start(workers=1, settings=settings)
    rig.drop("large", {"do": "grow", "bytes": limit})
    grown = rig.record("large")["runner_result"]
    rig.drop("after", {"do": "pid"})
    assert rig.record("after")["runner_result"] != grown
    young = set(until(lambda: workers(supervisor), "a worker"))
    until(lambda: workers(supervisor) and not young & set(workers(supervisor)), "it is replaced for its age")
    assert not events(supervisor, "worker_died", "backing_off")


def test_burst_ends_with_0_when_all_is_done_retries_too(rig: Rig) -> None:
    for number in range(50):
        rig.drop(f"t{number}", {"do": "raise_until", "until": number % 3})
    rig.drop("later", not_before=time.time() + 0.5)
    supervisor = rig.start("--burst", ready=False)
    assert supervisor.wait() == 0
    rig.check(drained=True)
    assert rig.ended() == 51


def test_burst_ends_at_once_on_an_empty_queue(rig: Rig) -> None:
    assert rig.start("--burst", ready=False).wait() == 0


def test_burst_tells_what_it_had_to_leave(rig: Rig) -> None:
    rig.drop("short")
    rig.drop("nobody", **{"class": "gpu"})
    supervisor = rig.start("--burst", ready=False)
    assert supervisor.wait() == 69
    [left] = events(supervisor, "tasks_left")
    assert left["tasks"] == 1 and "gpu" in left["reasons"][0]
    assert rig.record("short")["status"] == "done"


def test_burst_ends_when_a_class_cannot_work(rig: Rig) -> None:
    rig.drop("short")
    supervisor = rig.start("--burst", handlers={"cpu_short": "no_such_module:run"}, ready=False)
    assert supervisor.wait() == 69
    assert (rig.queue / "pending" / "short.json").exists()


def _order(rig: Rig) -> list[str]:
    return [line.split()[0] for line in rig.log.read_text().splitlines()]


def test_higher_priorities_go_first_and_age_lets_none_starve(rig: Rig) -> None:
    supervisor = rig.start(workers=1, settings={"ageing_s": 3600})
    supervisor.ask("pause")
    for number in range(5):
        rig.drop(f"low{number}", priority=-1)
        rig.drop(f"high{number}", priority=5)
        rig.drop(f"mid{number}")
    until(lambda: klass(supervisor)["pending"] == 15, "all are known")
    supervisor.ask("resume")
    rig.drain()
    assert [name.rstrip("01234") for name in _order(rig)] == ["high"] * 5 + ["mid"] * 5 + ["low"] * 5


def test_an_old_task_of_low_priority_is_not_overtaken_for_ever(rig: Rig) -> None:
    supervisor = rig.start(workers=1, settings={"ageing_s": 0.1})
    supervisor.ask("pause")
    rig.drop("old", priority=-5)  # half a second behind
    until(lambda: klass(supervisor)["pending"] == 1, "it is known")
    began = time.monotonic()
    until(lambda: time.monotonic() - began > 0.7, "it has waited its half second")
    for number in range(5):
        rig.drop(f"new{number}")
    until(lambda: klass(supervisor)["pending"] == 6, "all are known")
    supervisor.ask("resume")
    rig.drain()
    assert _order(rig)[0] == "old"


def test_classes_share_a_total_limit_by_their_weights(rig: Rig) -> None:
    settings = {"total_limit": 1, "class.cpu_short.weight": 3, "class.cpu_long.weight": 1}
    handlers = {"cpu_short": PLAY, "cpu_long": PLAY}
    supervisor = rig.start("--workers", "cpu_long=1", workers=1, settings=settings, handlers=handlers)
    supervisor.ask("pause")
    for number in range(40):
        rig.drop(f"short{number:02d}", {"do": "sleep", "s": 0.01})
        rig.drop(f"long{number:02d}", {"do": "sleep", "s": 0.01}, **{"class": "cpu_long"})
    until(lambda: klass(supervisor)["pending"] + klass(supervisor, "cpu_long")["pending"] == 80, "all are known")
    supervisor.ask("resume")
    rig.drain()
    first = _order(rig)[:40]
    long = sum(name.startswith("long") for name in first)
    assert 8 <= long <= 12  # a quarter of them


def test_no_more_tasks_run_at_once_than_the_total_limit(rig: Rig) -> None:
    handlers = {"cpu_short": PLAY, "cpu_long": PLAY}
    supervisor = rig.start("--workers", "cpu_long=2", settings={"total_limit": 2}, handlers=handlers)
    gates = [rig.gate(f"s{n}") for n in range(2)] + [rig.gate(f"l{n}", **{"class": "cpu_long"}) for n in range(2)]
    until(lambda: sum(gate.begun.exists() for gate in gates) == 2, "two run")
    rig.drop("probe")
    until(lambda: klass(supervisor)["pending"] + klass(supervisor, "cpu_long")["pending"] == 3, "three wait")
    assert sum(gate.begun.exists() for gate in gates) == 2
    for gate in gates:
        gate.open()
    rig.drain()


def test_where_no_events_come_a_look_at_everything_is_not_begun_anew_by_each_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks with a key wait for one: in a folder that takes longer to read than a sweep, they waited for ever."""
    names = tuple(str(name) for name in WorkloadClass)
    with Layout.open(tmp_path / "queue", create=True) as layout, Page.create(tmp_path / "page", "q", names, 4) as page:
        Producer(layout).put_many([(f"task{number:03d}", b'{"payload": 1}') for number in range(20)])
        known = intake.Intake(
            TaskQueue(layout), page, {name: Backlog(30.0) for name in names}, why_held=lambda _: "",
            keys_of=lambda _: None, offer=lambda *_: False, fed=set(), has_idle=lambda: False, partial_grace_s=10.0,
        )  # fmt: skip
        monkeypatch.setattr(intake, "SLICE", 5)
        monkeypatch.setattr(intake, "Watcher", lambda: (_ for _ in ()).throw(OSError(24, "no instance left")))

        def whole() -> bool:
            assert known.watch() is None  # as each sweep tries
            known.scan_slice()
            return known.whole

        until(whole, "all of it was read")
        known.unwatch()
        assert not known.whole  # what comes next may be another folder


def test_a_full_class_hides_no_other_class_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million tasks of a paused class lie before those of another: in the small, with bounds as small."""
    monkeypatch.setattr(intake, "HIGH_WATER", 20)
    monkeypatch.setattr(intake, "_LOW_WATER", 10)
    monkeypatch.setattr(intake, "SLICE", 5)
    monkeypatch.setattr(intake, "_WHOLE_S", 0.1)
    names = ("cpu_short", "cpu_long", "gpu", "gpu_slurm")
    with Layout.open(tmp_path / "queue", create=True) as layout, Page.create(tmp_path / "page", "q", names, 4) as page:
        tasks = [(f"short{number:03d}", b'{"payload": 1}') for number in range(2000)]
        tasks += [(f"long{number}", b'{"class": "cpu_long", "payload": 1}') for number in range(2)]
        Producer(layout).put_many(tasks)
        backlogs = {name: Backlog(30.0) for name in names}
        known = intake.Intake(
            TaskQueue(layout),
            page,
            backlogs,
            why_held=lambda _: "",
            keys_of=lambda _: None,
            offer=lambda *_: False,
            fed=set(),
            has_idle=lambda: not backlogs["cpu_long"],
            partial_grace_s=10.0,
        )

        def found() -> bool:
            known.scan_slice()
            return bool(backlogs["cpu_long"])

        until(found, "a task of the other class is known")
        assert len(backlogs["cpu_short"]) <= 20
        known.unwatch()
