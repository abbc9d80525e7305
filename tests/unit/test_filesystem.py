"""What is below a folder, judged by the mount table and by real mounts where the tests may make them."""

import os
from pathlib import Path

import pytest
from dspy_supervisor.filesystem import classify, existing, filesystem


@pytest.mark.parametrize(
    "name", ["nfs", "nfs4", "cifs", "smb3", "9p", "lustre", "gpfs", "fuse.sshfs", "fuse", "fuse.mystery"]
)
def test_a_folder_that_other_hosts_share_is_known_and_its_events_are_not_believed(name):
    kind = classify(name)
    assert kind.network
    assert not kind.events


@pytest.mark.parametrize("name", ["ext4", "xfs", "btrfs", "zfs", "f2fs", "fuseblk"])
def test_a_disk_of_this_host_keeps_what_it_holds_and_tells_of_changes(name):
    assert classify(name)[:4] == (name, False, False, True)


def test_what_memory_or_a_container_holds_is_lost_at_a_reboot():
    assert classify("tmpfs") == ("tmpfs", False, True, True, "", False)
    assert classify("overlay").volatile
    assert not classify("overlay").events
    assert classify("fuse.fuse-overlayfs").volatile


def test_the_kernel_names_the_mount_of_a_path_and_of_a_descriptor(tmp_path):
    proc = filesystem("/proc")
    assert (proc.name, proc.mount_point) == ("proc", "/proc")
    fd = os.open("/proc/self", os.O_RDONLY)
    try:
        assert filesystem(fd).name == "proc"
    finally:
        os.close(fd)
    here = filesystem(tmp_path)
    assert here.name != "unknown"
    assert tmp_path.is_relative_to(here.mount_point)
    assert not here.read_only


def test_a_tmpfs_is_found_below_a_disk():
    if not Path("/dev/shm").is_dir():
        pytest.skip("no /dev/shm on this machine")
    assert filesystem("/dev/shm").volatile


def test_a_missing_folder_is_an_error_with_its_name_and_its_nearest_parent_is_not(tmp_path):
    missing = tmp_path / "a" / "b"
    with pytest.raises(FileNotFoundError, match=r"'.*/a/b'"):
        filesystem(missing)
    assert existing(missing) == tmp_path


def test_without_a_mount_table_nothing_is_promised(tmp_path, monkeypatch):
    monkeypatch.setattr("dspy_supervisor.filesystem._mount_of", lambda fd: None)
    assert filesystem(tmp_path)[:4] == ("unknown", False, False, False)


def test_a_fifo_does_not_block_the_question(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert filesystem(tmp_path / "pipe").name == filesystem(tmp_path).name


@pytest.mark.parametrize(
    ("name", "tears"), [("ext4", False), ("xfs", False), ("btrfs", True), ("nfs4", True), ("?", True)]
)
def test_only_where_a_rename_is_one_step_of_a_journal_is_none_torn(name, tears):
    assert classify(name).tears_renames is tears
