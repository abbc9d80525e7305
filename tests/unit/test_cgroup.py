"""Which control groups are ours, and what a worker's group holds; that the kernel keeps to it is shown in tests/guest."""

import os

import pytest
from dspy_supervisor import cgroup
from dspy_supervisor.cgroup import Cgroups
from dspy_supervisor.config import ClassConfig

BOUNDED = ClassConfig(name="cpu_short", memory_bytes=1 << 30, max_processes=32, cpu_weight=50)


@pytest.fixture
def mount(tmp_path):
    """A folder that looks like a mounted hierarchy with one service."""
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    (tmp_path / "system.slice" / "x.service" / "supervisor").mkdir(parents=True)
    return tmp_path


def delegate(folder):
    try:
        os.setxattr(folder, "user.delegate", b"1")
    except OSError:
        pytest.skip("no user xattrs on this filesystem")


def test_a_group_is_ours_only_where_a_service_manager_says_so(mount):
    folder, why = cgroup.find("0::/system.slice/x.service\n", mount)
    assert folder is None and "Delegate=cpu memory pids" in why
    service = mount / "system.slice" / "x.service"
    delegate(service)
    assert cgroup.find("0::/system.slice/x.service\n", mount) == (service, "")


def test_where_a_users_manager_marks_nothing_the_unit_names_its_group(mount, monkeypatch):
    monkeypatch.setenv("SUPERVISOR_DELEGATED", "x.service")
    assert cgroup.find("0::/system.slice/x.service\n", mount) == (mount / "system.slice" / "x.service", "")
    (mount / "system.slice" / "x.service" / "worker-1").mkdir()
    folder, _ = cgroup.find("0::/system.slice/x.service/worker-1\n", mount)
    assert folder is None, "the group of a worker is not a supervisor's that a task starts"


def test_after_it_replaced_itself_it_finds_the_same_group(mount):
    delegate(mount / "system.slice" / "x.service")
    own = "12:pids:/\n0::/system.slice/x.service/supervisor\n"
    assert cgroup.find(own, mount) == (mount / "system.slice" / "x.service", "")


def test_groups_of_the_old_kind_are_told_apart(tmp_path):
    assert cgroup.find("4:memory:/docker/1\n", tmp_path) == (None, "control groups of version 2 are not mounted here")


def fake_kernel(monkeypatch, folder, files):
    """Let a new group have its files, as the kernel makes them."""
    made = type(folder).mkdir

    def mkdir(path, *args, **kwargs):
        made(path, *args, **kwargs)
        for name in files:
            (path / name).touch()

    monkeypatch.setattr(type(folder), "mkdir", mkdir)


def test_a_worker_has_the_bounds_of_its_class(tmp_path, monkeypatch):
    fake_kernel(monkeypatch, tmp_path, ["memory.oom.group", "memory.max", "pids.max", "cpu.weight", "cgroup.procs"])
    group = Cgroups(tmp_path, ["cpu", "memory", "pids"]).enter("7", 4711, BOUNDED)
    held = {path.name: path.read_text().strip() for path in (tmp_path / "worker-7").iterdir()}
    assert held == {
        "memory.oom.group": "1",
        "memory.max": str(1 << 30),
        "pids.max": "32",
        "cpu.weight": "50",
        "cgroup.procs": "4711",
    }
    assert group.holds and group.ooms == 0
    (tmp_path / "worker-7" / "memory.events.local").write_text("low 0\nmax 8\noom 1\noom_kill 3\noom_group_kill 1\n")
    assert group.ooms == 3


def test_without_memory_and_pids_the_watch_from_outside_goes_on(tmp_path, monkeypatch):
    fake_kernel(monkeypatch, tmp_path, ["cpu.weight", "cgroup.procs"])
    assert not Cgroups(tmp_path, ["cpu"]).enter("7", 4711, BOUNDED).holds


def test_a_group_that_the_kernel_refuses_leaves_nothing_behind(tmp_path):
    assert Cgroups(tmp_path, ["memory"]).enter("7", 4711, BOUNDED) is None  # no kernel made its files
    assert list(tmp_path.iterdir()) == []


def test_a_group_with_processes_in_it_is_removed_later(tmp_path):
    groups = Cgroups(tmp_path, [])
    busy = tmp_path / "worker-1"
    (busy / "alive").mkdir(parents=True)
    groups.leave(busy, kill=False)
    assert busy.exists()
    (busy / "alive").rmdir()
    groups.leave(tmp_path / "worker-2", kill=False)
    assert not busy.exists()
