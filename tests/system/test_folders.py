"""The queue's folder disappears, fills up, or is served by two: work goes on, or waits and then goes on."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dspy_supervisor.control_client import ask
from dspy_supervisor.errors import QueueFull
from dspy_supervisor.layout import Layout
from dspy_supervisor.proctree import look
from dspy_supervisor.producer import Producer

from ..conftest import clean_environ, until
from .invariants import check, runs
from .rig import Rig, cpu_s, events, klass, workers

_CAN_MOUNT = os.geteuid() == 0 and subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0
QUICK_SWEEP: dict[str, object] = {"sweep_s": 0.3}
needs_mount = pytest.mark.skipif(not _CAN_MOUNT, reason="needs the right to mount")


def remove(folder: Path) -> None:
    """Remove a folder in which a supervisor still makes others: again, as long as one came meanwhile."""

    def gone() -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()

    until(gone, f"{folder} is removed")


# -- served by two ------------------------------------------------------------------------------------------------------


def test_two_hosts_on_one_folder_run_every_task_once(rig: Rig, tmp_path: Path) -> None:
    """Two runtime folders are what two hosts have: neither sees the other's lock."""
    for number in range(100):
        rig.drop(f"before{number}")
    first = rig.start()
    second = rig.start(runtime=tmp_path / "run2")
    for number in range(400):
        rig.drop(f"t{number}")
    rig.drain()
    rig.check(drained=True)
    assert set(runs(rig.log).values()) == {1}
    done = {one.pid: sum(c["done"] for c in one.status()["classes"].values()) for one in (first, second)}
    assert sum(done.values()) == 500
    assert first.stop() == 0 and second.stop() == 0


def test_two_instances_on_one_host_share_the_work_and_one_takes_over_at_once(rig: Rig) -> None:
    first = rig.start(workers=1)
    second = rig.start(workers=1, instance="other")
    gates = [rig.gate("a"), rig.gate("b")]
    for gate in gates:
        gate.wait()  # one each
    first.kill()  # its lock is free at once: no time-out is involved
    third = rig.start(workers=1, instance="third")
    until(lambda: runs(rig.log)["a"] + runs(rig.log)["b"] == 3, "the task of the dead one runs again")
    for gate in gates:
        gate.open()
    rig.drain()
    rig.check()
    assert second.stop() == 0 and third.stop() == 0


def test_a_frozen_host_loses_its_tasks_and_its_late_results_are_refused(rig: Rig, tmp_path: Path) -> None:
    settings: dict[str, object] = {"take_after_s": 1, "heartbeat_s": 0.1, "sweep_s": 0.2}
    frozen = rig.start(workers=1, settings=settings)
    late = rig.gate("late")
    late.wait()
    other = rig.start(workers=1, settings=settings, runtime=tmp_path / "run2")
    below = [frozen.pid, *workers(frozen)]
    for pid in below:
        os.kill(pid, signal.SIGSTOP)
    until(lambda: runs(rig.log)["late"] == 2, "the other takes it")
    late.open()
    assert rig.record("late")["attempt"] == 1
    before = (rig.queue / "done" / "late.json").read_bytes()
    assert events(other, "took_from_dead")[0]["tasks"] == 1
    for pid in reversed(below):
        os.kill(pid, signal.SIGCONT)
    # what it had is void; it takes up work again under new owners
    assert other.stop() == 0
    rig.drop("after")
    assert rig.record("after")["status"] == "done"
    assert (rig.queue / "done" / "late.json").read_bytes() == before
    rig.check()
    assert klass(frozen)["state"] == "running"
    assert events(frozen, "claims_void") and not events(frozen, "worker_died")
    assert frozen.stop() == 0
    assert not list((rig.queue / "results").iterdir())


def test_a_queue_behind_a_link_is_served_with_events(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    rig.queue.symlink_to("real")
    supervisor = rig.start(settings={"sweep_s": 60})
    rig.drop("a1")
    assert rig.record("a1")["status"] == "done"  # no sweep comes within this time
    assert not events(supervisor, "no_events")
    rig.check()


# -- removed, replaced, unmounted -------------------------------------------------------------------------------------


def test_a_folder_that_is_removed_and_made_again_is_served_on(rig: Rig) -> None:
    supervisor = rig.start(settings=QUICK_SWEEP)
    rig.drop("a1")
    rig.record("a1")
    remove(rig.queue)
    rig.put_ids.clear()
    (rig.queue / "pending").mkdir(parents=True)
    rig.queue.chmod(0o700)
    rig.drop("a2")
    assert rig.record("a2")["status"] == "done"
    assert supervisor.status()["problem"] is None
    rig.check()


def command(rig: Rig, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command on the rig's queue, found by its folder alone."""
    where = ("--queue-dir", str(rig.queue), "--runtime-dir", str(rig.folder / "run"))
    line = [sys.executable, "-m", "dspy_supervisor", *words, *where]
    return subprocess.run(line, capture_output=True, text=True, cwd=rig.folder, env=clean_environ(rig.folder))


def test_while_the_folder_is_gone_status_says_what_is_waited_for(rig: Rig) -> None:
    supervisor = rig.start(settings=QUICK_SWEEP)
    remove(rig.queue)
    until(lambda: events(supervisor, "queue_missing"), "it is missed")
    told = command(rig, "status").stdout
    assert f"{rig.queue} was removed, or moved away" in told and f"mkdir -m 700 {rig.queue}" in told
    rig.queue.mkdir(0o700)
    rig.drop("a1")
    assert rig.record("a1")["status"] == "done"
    assert command(rig, "stop").returncode == 0
    assert supervisor.wait() == 0


@pytest.mark.parametrize("sweep_s", [0.3, 2.0], ids=["missed first", "replaced at once"])
def test_of_two_supervisors_of_a_name_the_one_whose_folder_was_removed_ends(rig: Rig, sweep_s: float) -> None:
    """Who is told to 'start' where the folder is gone has one supervisor after it, not two."""
    first = rig.start(settings={"sweep_s": sweep_s})
    remove(rig.queue)
    if sweep_s < 1:
        until(lambda: events(first, "queue_missing"), "it is missed")
    second = rig.start()
    assert first.wait() == 75
    (taken,) = events(first, "queue_taken")
    assert f"(pid {second.pid})" in taken["error"]
    rig.drop("a1")
    assert rig.record("a1")["status"] == "done"
    assert second.status()["pid"] == second.pid and len(list(rig.queue.glob("nodes/*.hb"))) == 1
    assert command(rig, "stop").returncode == 0
    assert second.wait() == 0
    rig.check(drained=True)


def test_a_queue_of_another_id_is_served_by_its_own_lock_socket_and_page(rig: Rig) -> None:
    """The other's supervisor is dead when it is found: so it is adopted, and found by its folder from then on."""
    first = rig.start(settings=QUICK_SWEEP | {"durability": "none"})
    away, other = rig.queue.with_name("away"), rig.queue.with_name("other")
    with Layout.open(rig.queue) as layout, Layout.open(other, create=True) as another:
        before, now = layout.queue_id, another.queue_id
    rig.queue.rename(away)
    other.rename(rig.queue)
    until(lambda: events(first, "queue_replaced"), "it is noticed")
    rig.drop("a1")
    assert rig.record("a1")["status"] == "done"
    assert json.loads(command(rig, "status", "--json").stdout)["queue_id"] == now
    names = {path.name for path in first.runtime.iterdir()}
    assert {f"{now}.main.{kind}" for kind in ("lock", "sock", "page")} <= names
    assert {name for name in names if name.startswith(before)} <= {f"{before}.main.checkpoint"}
    assert command(rig, "queue", "fsck", "--repair").returncode == 75
    third = rig.start(ready=False)
    assert third.wait() == 75
    fourth = rig.start(queue=away)  # the queue that was served before is free for another
    assert fourth.stop() == 0
    assert command(rig, "upgrade").returncode == 0
    rig.drop("a2")
    assert rig.record("a2")["status"] == "done"
    assert command(rig, "stop").returncode == 0
    assert first.wait() == 0
    rig.check(drained=True)


def test_an_identity_that_is_lost_while_it_is_served_is_written_again_as_it_was(rig: Rig) -> None:
    supervisor = rig.start("--durability", "full", settings=QUICK_SWEEP)
    before = (rig.queue / "queue.json").read_bytes()
    (rig.queue / "queue.json").unlink()
    until(lambda: events(supervisor, "identity_kept"), "it is missed")
    assert json.loads((rig.queue / "queue.json").read_bytes()) == json.loads(before)
    supervisor.stop()
    (rig.queue / "queue.json").unlink()
    again = rig.start()
    (lost,) = events(again, "identity_lost")
    assert lost["durability"] == "task" and "nobody knows what was chosen before" in lost["means"]


def test_a_folder_that_is_made_again_keeps_its_durability(rig: Rig) -> None:
    rig.start("--durability", "full").stop()
    supervisor = rig.start(settings=QUICK_SWEEP)
    remove(rig.queue)
    rig.queue.mkdir(0o700)
    until(lambda: events(supervisor, "queue_replaced"), "it is noticed")
    assert supervisor.status()["durability"] == "full"


def test_a_task_that_ran_when_the_folder_went_does_no_harm(rig: Rig) -> None:
    rig.start(workers=1, settings=QUICK_SWEEP)
    gate = rig.gate("a1")
    gate.wait()
    remove(rig.queue)
    rig.put_ids.clear()
    (rig.queue / "pending").mkdir(parents=True)
    rig.queue.chmod(0o700)
    rig.drop("a2")
    assert rig.record("a2")["status"] == "done"
    gate.open()
    rig.drop("a3")
    assert rig.record("a3")["status"] == "done"
    rig.check()


def test_a_key_whose_task_ran_when_the_folder_went_is_free_again(rig: Rig) -> None:
    rig.start(workers=1, settings=QUICK_SWEEP)
    rig.gate("a1", affinity="k").wait()
    remove(rig.queue)
    rig.put_ids.clear()
    rig.drop("a2", affinity="k")
    assert rig.record("a2")["status"] == "done"


def test_a_removed_pending_is_made_again_and_what_ran_runs_again(rig: Rig) -> None:
    rig.start(workers=1, settings=QUICK_SWEEP)
    gate = rig.gate("running")
    gate.wait()
    remove(rig.queue / "pending")
    until(lambda: rig.claims() == ["running~1x0.json"], "it runs again")
    gate.open()
    rig.drop("a2")
    assert rig.record("a2")["status"] == "done"
    assert rig.record("running")["attempt"] == 1
    rig.check()


def test_a_folder_that_is_moved_away_and_back_loses_nothing(rig: Rig) -> None:
    supervisor = rig.start(settings={"sweep_s": 0.2})
    ends, stays = rig.gate("ends"), rig.gate("stays")
    ends.wait()
    stays.wait()
    away = rig.queue.with_name("away")
    rig.queue.rename(away)
    until(lambda: events(supervisor, "queue_missing"), "it is missed")
    ends.open()
    until((away / "done" / "ends.json").exists, "what runs ends where the folder is")
    away.rename(rig.queue)
    rig.drop("after")
    assert rig.record("after")["status"] == "done"
    stays.open()
    assert rig.record("ends")["attempt"] == rig.record("stays")["attempt"] == 0
    rig.check()


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A small filesystem of its own, whose place can be left and taken again."""
    place, kept = tmp_path / "disk", tmp_path / "kept"
    place.mkdir()
    kept.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "none", str(kept)], check=True)
    subprocess.run(["mount", "--bind", str(kept), str(place)], check=True)
    yield place
    for path in (place, kept):
        while subprocess.run(["umount", "-l", str(path)], capture_output=True).returncode == 0:
            pass


@needs_mount
def test_a_bare_mount_point_is_no_queue_and_work_goes_on_when_the_disk_is_back(rig: Rig, mounted: Path) -> None:
    rig.queue = mounted
    supervisor = rig.start(workers=1, settings={"sweep_s": 0.2})
    gate = rig.gate("running")
    gate.wait()
    socket = supervisor.socket
    subprocess.run(["umount", "-l", str(mounted)], check=True)
    until(lambda: events(supervisor, "queue_missing"), "it is missed")
    assert list(mounted.iterdir()) == []
    gate.open()
    assert "another filesystem" in ask(socket, {"do": "status"})["problem"]
    subprocess.run(["mount", "--bind", str(mounted.with_name("kept")), str(mounted)], check=True)
    rig.drop("after")
    assert rig.record("after")["status"] == "done"
    assert rig.record("running")["attempt"] == 0
    rig.check()
    assert supervisor.stop() == 0


# -- full --------------------------------------------------------------------------------------------------------------


@needs_mount
def test_a_full_disk_refuses_puts_and_keeps_results_until_there_is_room(rig: Rig, mounted: Path) -> None:
    rig.queue = mounted
    supervisor = rig.start(workers=1)
    big = rig.gate("big", "big", payload={"bytes": 300_000})
    big.wait()
    rig.drop("waits")
    with Layout.open(mounted) as layout:
        producer = Producer(layout)
        with contextlib.suppress(OSError), (mounted / "filler").open("wb") as filler:
            while True:
                filler.write(b"x" * 4096)
                filler.flush()
        with pytest.raises(QueueFull):
            producer.put("refused", b"{}")
        big.open()
        until(lambda: klass(supervisor)["reason"], "the class says why it waits")
        assert "No space left" in klass(supervisor)["reason"]
        assert rig.claims() == ["big.json"]
        assert [path.name for path in (mounted / "pending").iterdir()] == ["waits.json"]
        assert not list((mounted / "failed").iterdir()) and not list((mounted / "quarantine").iterdir())
        (mounted / "filler").unlink()
        assert len(rig.record("big")["runner_result"]) == 300_000
        assert runs(rig.log).get("big", 1) == 1
        assert rig.record("waits")["status"] == "done"
        producer.put("accepted", json.dumps({"payload": {"do": "echo"}}).encode())
    assert rig.record("accepted")["status"] == "done"
    until(lambda: klass(supervisor)["reason"] is None, "all is well again")
    rig.check()


@needs_mount
def test_the_reserve_lets_running_tasks_complete_when_puts_are_refused(rig: Rig, mounted: Path) -> None:
    rig.queue = mounted
    rig.start(workers=1)
    gate = rig.gate("running")
    gate.wait()
    with Layout.open(mounted) as layout:
        producer = Producer(layout)
        accepted = []
        with pytest.raises(QueueFull):
            for number in range(1000):
                producer.put(f"t{number}", json.dumps({"payload": {"do": "echo", "fill": "x" * 20_000}}).encode())
                accepted.append(f"t{number}")
    assert accepted
    gate.open()
    assert rig.record("running")["status"] == "done"
    rig.drain(1 + len(accepted), 90.0) if len(accepted) < 30 else None
    check(mounted, ["running"])


@needs_mount
def test_a_poison_task_on_a_full_disk_is_settled_when_there_is_room(rig: Rig, mounted: Path) -> None:
    rig.queue = mounted
    supervisor = rig.start(workers=1, settings={"class.cpu_short.max_crashes": 1})
    gate = rig.gate("poison", "gate_then_die")
    gate.wait()
    with contextlib.suppress(OSError), (mounted / "filler").open("wb") as filler:
        while True:
            filler.write(b"x" * 4096)
            filler.flush()
    gate.open()
    until(lambda: events(supervisor, "disk_trouble"), "the disk doesn't take what became of it")
    (mounted / "filler").unlink()
    assert rig.record("poison")["error"]["signal"] == "SIGKILL"
    rig.drop("next")
    assert rig.record("next")["status"] == "done"
    rig.check(may_fail=["poison"])


# -- out of descriptors, out of events -------------------------------------------------------------------------------


def test_a_supervisor_out_of_descriptors_harms_no_task_and_recovers(rig: Rig) -> None:
    supervisor = rig.start(workers=1, settings={"sweep_s": 0.2})
    rig.drop("warm")
    rig.record("warm")
    soft, hard = resource.prlimit(supervisor.pid, resource.RLIMIT_NOFILE)
    most = max(map(int, os.listdir(f"/proc/{supervisor.pid}/fd")))
    resource.prlimit(supervisor.pid, resource.RLIMIT_NOFILE, (most + 1, hard))
    for number in range(20):
        rig.drop(f"t{number}")
    [worker] = workers(supervisor)
    os.kill(worker, signal.SIGKILL)
    with contextlib.suppress(Exception):
        supervisor.ask("status")
    until(lambda: events(supervisor, "cannot_fork", "cannot_read", "disk_trouble"), "it says what is wrong")
    assert look(supervisor.pid)
    resource.prlimit(supervisor.pid, resource.RLIMIT_NOFILE, (soft, hard))
    rig.drain(within_s=30.0)
    rig.check()
    assert klass(supervisor)["state"] == "running"


def test_after_an_overflow_of_events_nothing_is_missed(rig: Rig) -> None:
    supervisor = rig.start(settings={"sweep_s": 600, "durability": "none"})
    supervisor.signal(signal.SIGSTOP)
    pending = rig.queue / "pending"
    noise = pending / ".noise.tmp"
    noise.touch()
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    for number in range(limit + 1000):
        os.rename(noise, pending / f".noise{number % 2}.tmp")
        noise = pending / f".noise{number % 2}.tmp"
    for number in range(50):
        rig.drop(f"t{number}")
    supervisor.signal(signal.SIGCONT)
    rig.drain()
    assert events(supervisor, "inotify_overflow")
    rig.check()


def test_without_events_sweeps_find_all_there_is(rig: Rig) -> None:
    """No instance is left for this user: what a host with many programs that watch looks like, in a namespace of its own."""
    bound = "/proc/sys/user/max_inotify_instances"  # of the user namespace that writes it
    if subprocess.run(["unshare", "--user", "--map-root-user", "true"], capture_output=True).returncode:
        assert "CI" not in os.environ, "CI must have user namespaces"
        pytest.skip("needs a user namespace")
    inside = ("unshare", "--user", "--map-root-user", "sh", "-c", f'echo 0 > {bound}; exec "$@"', "sh")
    supervisor = rig.start(settings={"sweep_network_s": 0.1}, prefix=inside)
    assert events(supervisor, "no_events")
    rig.drop("a1")
    rig.drop("a2", {"do": "raise_until", "until": 1})
    assert rig.record("a1")["status"] == "done"
    assert rig.record("a2")["status"] == "done"
    enter = ("nsenter", "--user", "--preserve-credentials", "--target", str(supervisor.pid))
    subprocess.run([*enter, "sh", "-c", f"echo 128 > {bound}"], check=True)
    until(lambda: supervisor.status() and rig.drop("b1") and rig.record("b1"), "it goes on with events")
    rig.check()


def test_a_supervisor_with_nothing_to_do_costs_nothing(rig: Rig) -> None:
    supervisor = rig.start()
    rig.drop("a1")
    rig.record("a1")
    before, began = cpu_s(supervisor.pid), time.monotonic()
    until(lambda: time.monotonic() - began > 2.0, "two seconds pass")
    assert cpu_s(supervisor.pid) - before <= 0.02
