"""Who is dead: told by locks and boots, else by a counter and our own clock, never by times of others."""

import fcntl
import os
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from dspy_supervisor import nodes
from dspy_supervisor.errors import AlreadyRunning
from dspy_supervisor.layout import read_json, replace_json
from dspy_supervisor.nodes import Observer, Presence, claims_of, node_of


@pytest.fixture
def locks(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def observer(rig, locks):
    return Observer("me", rig.layout, locks, take_after_s=180.0, heartbeat_s=2.0)


def beat(rig, node="far", counter=1, **facts):
    """Write the heartbeat of a node whose lock nobody here can open."""
    replace_json(rig.layout.nodes, f"{node}.hb", {"node": node, "counter": counter, **facts}, durable=False)


def watch(observer, seconds, *, start=0.0, step=2.0, beating=lambda _: True):
    """Let the observer look at intervals, and return when it called somebody dead, or None."""
    now = start
    while now <= start + seconds:
        if observer.dead(now, beating=beating(now)):
            return now - start
        now += step
    return None


def test_a_second_supervisor_of_one_lock_is_refused_naming_the_first(rig, locks):
    with Presence(rig.layout, locks / "lock") as first:
        with pytest.raises(AlreadyRunning, match=str(os.getpid())) as refused:
            Presence(rig.layout, locks / "lock")
        assert refused.value.exit_code == 75
        assert rig.names("nodes") == [f"{first.node}.hb"]
    with Presence(rig.layout, locks / "lock") as second:
        assert second.node != first.node
    assert rig.names("nodes") == []


def test_a_lock_that_its_last_holder_removes_while_it_is_waited_for_is_none(rig, locks):
    """Who opened the file before it was removed would hold a lock that nobody else can see."""
    first = Presence(rig.layout, locks / "lock")
    real, closed = fcntl.flock, []

    def flock(descriptor, how):
        if not closed:
            closed.append(first.close())
        return real(descriptor, how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        second = Presence(rig.layout, locks / "lock")
    with second, pytest.raises(AlreadyRunning):
        Presence(rig.layout, locks / "lock")
    assert closed and os.listdir(locks) == []


def test_only_what_is_old_and_of_nobody_is_cleared(rig, locks):
    for name in ("q.main.page", "q.main.lock", "q.main.boot", "held.main.page", "young.main.page", "mine.txt"):
        (locks / name).touch()
        os.utime(locks / name, (1.0, 1.0))
    os.utime(locks / "young.main.page")
    os.symlink("nowhere", locks / "link.main.lock")
    os.utime(locks / "link.main.lock", (1.0, 1.0), follow_symlinks=False)
    with Presence(rig.layout, locks / "held.main.lock"):
        os.utime(locks / "held.main.lock", (1.0, 1.0))
        assert nodes.clear_dead(locks, time.time()) == 1
        assert set(os.listdir(locks)) == {
            "held.main.lock", "held.main.page", "young.main.page", "mine.txt", "link.main.lock"
        }  # fmt: skip


def test_nothing_stays_open_or_locked_where_a_node_cannot_announce_itself(rig, locks, monkeypatch):
    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(nodes, "replace_json", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        Presence(rig.layout, locks / "lock")
    monkeypatch.undo()
    assert os.listdir("/proc/self/fd") == before
    Presence(rig.layout, locks / "lock").close()


def test_owners_are_never_named_twice(rig, locks):
    with Presence(rig.layout, locks / "a") as first, Presence(rig.layout, locks / "b") as second:
        owners = [presence.new_owner(0) for presence in (first, first, second)]
    assert len(set(owners)) == 3
    assert [node_of(owner) for owner in owners] == [first.node, first.node, second.node]


def test_a_node_whose_lock_is_held_lives_whatever_its_counter_says(rig, locks, observer):
    with Presence(rig.layout, locks / "lock") as alive:
        assert observer.others() == {alive.node}
        assert watch(observer, 1000) is None


def test_a_node_whose_lock_is_free_is_dead_at_once(rig, locks, observer):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            gone = Presence(rig.layout, locks / "lock")
            os.write(write, gone.node.encode())
        os._exit(0)  # as by SIGKILL: nothing is tidied up
    node = os.read(read, 100).decode()
    os.waitpid(pid, 0)
    os.close(read)
    os.close(write)
    assert observer.dead(0.0, beating=True) == {node}
    with Presence(rig.layout, locks / "lock") as successor:  # the lock is held again, by another
        assert observer.dead(1.0, beating=True) == {node}
        assert observer.others() == {node, successor.node}
    observer.forget(node)
    assert observer.others() == set()


def test_a_node_whose_lock_was_removed_is_dead_as_soon_as_its_process_is(rig, locks, observer):
    """As systemd does: it removes the runtime folder of a service that died, and makes another for its next life."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        with Presence(rig.layout, locks / "lock") as mine:
            beat_of = read_json(rig.layout.nodes, f"{mine.node}.hb")
        beat_of |= {"node": "far", "pid": process.pid, "pid_start": nodes._start_ticks(process.pid)}
        replace_json(rig.layout.nodes, "far.hb", beat_of, durable=False)
        assert not (locks / "lock").exists()
        assert observer.dead(0.0, beating=True) == set()  # it lives: its counter will tell
        replace_json(rig.layout.nodes, "far.hb", beat_of | {"pid_start": 1}, durable=False)
        assert observer.dead(0.0, beating=True) == {"far"}  # that process is another
        replace_json(rig.layout.nodes, "far.hb", beat_of, durable=False)
        process.kill()
    assert observer.dead(0.0, beating=True) == {"far"}
    replace_json(rig.layout.nodes, "far.hb", beat_of | {"pid_space": "pid:[1]"}, durable=False)
    assert observer.dead(0.0, beating=True) == set()  # a container of this host, whose processes have other ids


def test_a_lock_that_only_looks_like_the_nodes_says_nothing(rig, locks, observer):
    with Presence(rig.layout, locks / "lock") as node:
        os.rename(locks / "lock", locks / "old")
        (locks / "lock").touch()  # another inode, and free
        assert observer.dead(0.0, beating=True) == set()
        beat_of = read_json(rig.layout.nodes, f"{node.node}.hb")
        for file in ("../run/lock", "absent", "", None, 7):
            replace_json(rig.layout.nodes, "x.hb", beat_of | {"node": "x", "lock": {"file": file}}, durable=False)
            assert "x" not in observer.dead(0.0, beating=True)


def test_a_node_from_before_the_last_boot_is_dead_on_a_local_disk_only(rig, locks, observer, monkeypatch):
    machine = nodes._read_line("/etc/machine-id") or "some-machine"
    monkeypatch.setattr(nodes, "_read_line", lambda _: machine)
    monkeypatch.setattr(nodes, "boot_id", lambda: "this-boot")
    beat(rig, "old", boot_id="boot before", machine_id=machine)
    beat(rig, "cloned", boot_id="boot before", machine_id="")
    beat(rig, "other", boot_id="boot before", machine_id="another machine")
    assert observer.dead(0.0, beating=True) == {"old"}
    rig.layout.filesystem = rig.layout.filesystem._replace(network=True)
    assert observer.dead(1.0, beating=True) == set()


def test_a_silent_node_is_taken_after_its_time_by_our_own_clock(rig, observer):
    beat(rig, counter=5)
    os.utime(rig.path / "nodes/far.hb", (0, 0))  # its clock means nothing
    assert watch(observer, 1000, start=1e6) == pytest.approx(180, abs=4)


def test_a_node_that_beats_however_slowly_lives(rig, observer):
    counter = 0
    for second in range(0, 2000, 10):
        if second % 170 == 0:
            counter += 1
            beat(rig, counter=counter)
        assert observer.dead(float(second), beating=True) == set()


def test_never_by_fewer_than_ten_missed_beats(rig, locks):
    hasty = Observer("me", rig.layout, locks, take_after_s=1.0, heartbeat_s=2.0)
    beat(rig)
    assert watch(hasty, 100) >= 20


def test_only_time_in_which_we_beat_ourselves_counts(rig, observer):
    beat(rig)
    assert watch(observer, 1000, beating=lambda _: False) is None
    assert watch(observer, 1000, start=2000.0, beating=lambda now: now // 2 % 2) is None  # no two beats in a row
    took = watch(observer, 1000, start=4000.0, beating=lambda now: now // 20 % 2)
    assert took is None or took > 300


def test_a_pause_of_ours_proves_nothing_about_others(rig, observer):
    beat(rig)
    assert observer.dead(0.0, beating=True) == set()
    assert observer.dead(1e6, beating=True) == set()  # suspended for days
    assert observer.dead(1e6 + 2, beating=True) == set()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"counter":[]}', '{"boot_id":[],"lock":7,"counter":1}', '{"lock":{"file":{}}}']
)
def test_a_heartbeat_that_cannot_be_read_is_a_node_that_may_live(rig, observer, content):
    (rig.path / "nodes/far.hb").write_text(content)
    assert observer.others() == {"far"}
    assert observer.dead(0.0, beating=True) == set()
    assert watch(observer, 1000, start=10.0) == pytest.approx(180, abs=6)


@pytest.mark.parametrize("kind", ["folder", "link", "fifo"])
def test_a_strangers_thing_in_place_of_a_heartbeat_stops_nobody(rig, observer, tmp_path, kind):
    path = rig.path / "nodes/far.hb"
    {"folder": path.mkdir, "link": lambda: path.symlink_to(tmp_path), "fifo": lambda: os.mkfifo(path)}[kind]()
    assert observer.dead(0.0, beating=True) == set()


def test_claims_tell_of_nodes_that_have_no_heartbeat(rig, observer):
    rig.put("a1")
    rig.claim("a1.json", "far.1.0")
    assert observer.others() == {"far"}
    assert claims_of(rig.layout, {"far"}) == {"far.1.0": ["a1.json"]}
    assert claims_of(rig.layout, {"me"}) == {}
    assert watch(observer, 1000) == pytest.approx(180, abs=4)


def test_a_strangers_file_between_the_owners_stops_nobody(rig, observer, tmp_path):
    (rig.path / "claimed/far.1.0").touch()
    (rig.path / "claimed/link.1.0").symlink_to(tmp_path)
    assert claims_of(rig.layout, {"far", "link"}) == {}
    rig.recover("far", "link")
    assert os.listdir(rig.path / "claimed") == []
    assert len([name for name in rig.names("quarantine") if not name.endswith(".reason")]) == 2
    assert tmp_path.exists()


def test_looking_at_a_lock_keeps_nobody_from_taking_it(rig, locks, observer):
    """An observer tries a lock for a moment: a supervisor that starts at that moment is not refused for it."""
    gone = Presence(rig.layout, locks / "lock")
    os.close(gone._lock)
    held = os.open(locks / "lock", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    attempts = []
    real = fcntl.flock

    def flock(descriptor, how):
        attempts.append(how)
        if len(attempts) == 2:
            real(held, fcntl.LOCK_UN)
        return real(descriptor, how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        Presence(rig.layout, locks / "lock").close()
    os.close(held)
