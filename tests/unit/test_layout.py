"""The folders: made once, opened safely, and known again."""

import errno
import os
import shutil
import stat

import orjson
import pytest
from dspy_supervisor.errors import ConfigError, QueueFormat, QueueMissing, QueueUnsafe
from dspy_supervisor.layout import FOLDERS, Layout, list_folder, read_json, replace_json, walk_folder

from tests.queues import Steps

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files of others")


def make(path, **options):
    with Layout.open(path, create=True, **options) as layout:
        return layout.queue_id


def test_a_queue_is_made_private_and_found_again(tmp_path):
    queue_id = make(tmp_path / "new" / "queue")
    assert stat.S_IMODE((tmp_path / "new" / "queue").stat().st_mode) == 0o700
    with Layout.open(tmp_path / "new" / "queue") as layout:
        assert layout.queue_id == queue_id
        assert set(os.listdir(layout.path)) == {*FOLDERS, "queue.json"}
        assert layout.is_current()


def test_an_empty_folder_is_no_queue(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(QueueMissing, match="start --queue-dir"):
            Layout.open(path)
    assert os.listdir(tmp_path) == []


def test_a_queue_that_is_expected_is_not_made_on_a_bare_mount_point(tmp_path):
    with pytest.raises(QueueMissing):
        Layout.open(tmp_path / "absent", create=True, queue_id="known")
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"format":1'])
def test_a_torn_identity_is_refused_and_never_made_anew(tmp_path, content):
    make(tmp_path / "queue")
    (tmp_path / "queue/queue.json").write_text(content)
    for create in (False, True):
        with pytest.raises(QueueMissing, match=r"queue\.json can't be read.* fsck"):
            Layout.open(tmp_path / "queue", create=create)
    assert (tmp_path / "queue/queue.json").read_text() == content


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("format", 2, QueueFormat), ("durability", "much", ConfigError), ("queue_id", 7, ConfigError),
        ("max_pending", "many", ConfigError), ("max_pending", -1, ConfigError), ("max_pending_bytes", None, ConfigError),
    ],
)  # fmt: skip
def test_an_identity_that_says_nonsense_is_refused_in_words(tmp_path, key, value, error):
    make(tmp_path / "queue")
    path = tmp_path / "queue/queue.json"
    path.write_bytes(orjson.dumps(orjson.loads(path.read_bytes()) | {key: value}))
    with pytest.raises(error, match=r"queue\.json"):
        Layout.open(tmp_path / "queue")


def test_level_and_bounds_are_kept_for_every_producer(tmp_path):
    make(tmp_path / "queue", durability="full", bounds=(10, 1000))
    with Layout.open(tmp_path / "queue") as layout:
        assert (layout.durability, layout.max_pending, layout.max_pending_bytes) == ("full", 10, 1000)
        assert layout.syncs_results
    make(tmp_path / "queue", durability="none")
    with Layout.open(tmp_path / "queue") as layout:
        assert (layout.durability, layout.max_pending, layout.syncs) == ("none", 10, False)


def test_who_comes_first_decides_the_identity(tmp_path):
    ids = {make(tmp_path / "queue") for _ in range(3)}
    assert len(ids) == 1


@pytest.mark.parametrize("name", [".", "pending", "done", "claimed"])
def test_a_folder_that_others_may_write_is_refused_naming_the_bit(tmp_path, name):
    make(tmp_path / "queue")
    os.chmod(tmp_path / "queue" / name, 0o777)
    with pytest.raises(QueueUnsafe, match=r"o\+w"):
        Layout.open(tmp_path / "queue")
    Layout.open(tmp_path / "queue", insecure=True).close()


def test_a_parent_that_others_may_write_is_refused_unless_sticky(tmp_path):
    open_parent = tmp_path / "open"
    open_parent.mkdir()
    make(open_parent / "queue")
    os.chmod(open_parent, 0o777)
    with pytest.raises(QueueUnsafe, match="not sticky"):
        Layout.open(open_parent / "queue")
    os.chmod(open_parent, 0o1777)
    Layout.open(open_parent / "queue").close()


@needs_root
@pytest.mark.parametrize("name", [".", "pending"])
def test_a_folder_of_a_stranger_is_refused(tmp_path, name):
    make(tmp_path / "queue")
    os.chown(tmp_path / "queue" / name, 12345, -1)
    with pytest.raises(QueueUnsafe, match="12345"):
        Layout.open(tmp_path / "queue")


def test_files_of_strangers_are_trusted_only_where_the_group_was_let_in(tmp_path):
    make(tmp_path / "queue")
    with Layout.open(tmp_path / "queue") as layout:
        assert set(layout.owners) >= {os.geteuid()}
    os.chmod(tmp_path / "queue", 0o770)
    with Layout.open(tmp_path / "queue") as layout:
        assert layout.owners == ()


@pytest.mark.parametrize("kind", ["link", "file", "absent"])
def test_a_folder_that_is_none_is_refused(tmp_path, kind):
    make(tmp_path / "queue")
    (tmp_path / "queue/done").rmdir()
    if kind == "link":
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "queue/done").symlink_to(tmp_path / "elsewhere")
    elif kind == "file":
        (tmp_path / "queue/done").write_text("")
    with pytest.raises(QueueMissing, match="done"):
        Layout.open(tmp_path / "queue")


@pytest.mark.parametrize("which", [".", "pending", "nodes"])
def test_a_folder_that_was_removed_or_replaced_is_noticed(tmp_path, which):
    make(tmp_path / "queue")
    with Layout.open(tmp_path / "queue") as layout:
        shutil.rmtree(tmp_path / "queue" / which)
        assert not layout.is_current()
        if which == ".":
            make(tmp_path / "queue")
        else:
            (tmp_path / "queue" / which).mkdir()
        assert not layout.is_current()


def test_nothing_stays_open_after_a_failure(tmp_path):
    make(tmp_path / "queue")
    (tmp_path / "queue/results").rmdir()
    before = os.listdir("/proc/self/fd")
    with pytest.raises(QueueMissing):
        Layout.open(tmp_path / "queue")
    assert os.listdir("/proc/self/fd") == before


def test_a_listing_is_of_now_and_from_its_beginning(rig):
    for number in range(5):
        (rig.path / "pending" / f"{number}.json").touch()
        assert len(list_folder(rig.layout.pending)) == number + 1
        assert set(walk_folder(rig.layout.pending)) == set(list_folder(rig.layout.pending))


def test_a_walk_that_is_left_early_closes_its_descriptor(rig):
    for number in range(5):
        (rig.path / "pending" / f"{number}.json").touch()
    before = os.listdir("/proc/self/fd")
    walk = walk_folder(rig.layout.pending)
    next(walk)
    walk.close()
    assert os.listdir("/proc/self/fd") == before


def test_a_document_is_replaced_in_one_step_or_not(rig):
    folder = rig.layout.nodes
    replace_json(folder, "x", {"n": 0}, durable=True)
    with Steps() as steps:
        replace_json(folder, "x", {"n": 0}, durable=True)
    assert steps.calls == ["write_new", "rename", "sync"]
    for at in range(steps.count):
        with pytest.raises(OSError), Steps(at, "error"):
            replace_json(folder, "x", {"n": 1}, durable=True)
        assert read_json(folder, "x") in ({"n": 0}, {"n": 1})
        assert os.listdir(folder) == ["x"]


@pytest.mark.parametrize("kind", ["absent", "torn", "list", "folder", "fifo", "link", "huge"])
def test_what_is_no_document_of_ours_reads_as_none(rig, tmp_path, kind):
    path = rig.path / "nodes" / "x.hb"
    if kind == "torn":
        path.write_text('{"a":')
    elif kind == "list":
        path.write_text("[1]")
    elif kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        (tmp_path / "secret").write_text('{"a":1}')
        path.symlink_to(tmp_path / "secret")
    elif kind == "huge":
        path.write_bytes(b'{"a":"' + b"x" * (2 << 20) + b'"}')
    before = os.listdir("/proc/self/fd")
    assert read_json(rig.layout.nodes, "x.hb") is None
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EIO, errno.ESTALE])
def test_a_replacement_whose_reply_is_lost_is_done(rig, number):
    folder = rig.layout.nodes
    replace_json(folder, "x", {"n": 0}, durable=True)
    with Steps(1, "lost", number) as steps:
        replace_json(folder, "x", {"n": 1}, durable=True)
    assert "rename" in steps.calls
    assert read_json(folder, "x") == {"n": 1}
    assert os.listdir(folder) == ["x"]
