"""The claim: one mover wins, nothing that lies in a folder can hurt the reader, and an error is not a fact."""

import ctypes
import errno
import fcntl
import itertools
import os
import pickle
import platform
import random
import resource
import select
import signal
import socket
import stat
import struct
import time
import traceback
from contextlib import suppress

import pytest
from dspy_fastpath import claim as compiled
from dspy_fastpath.envelope import EnvelopeError

from tests.reference import claim as reference

MIB = 1 << 20
TASK = b'{"id": "a", "class": "gpu", "payload": [1, 2]}'
ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="only root makes devices and files of others")
needs_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="system calls have other numbers here")


@pytest.fixture(params=[compiled, reference], ids=["compiled", "reference"])
def claims(request):
    return request.param


@pytest.fixture
def folders(tmp_path):
    """Descriptors of pending/ and claimed/."""
    descriptors = []
    for name in ("pending", "claimed"):
        (tmp_path / name).mkdir()
        descriptors.append(os.open(tmp_path / name, os.O_RDONLY | os.O_DIRECTORY))
    yield descriptors
    for descriptor in descriptors:
        os.close(descriptor)


@pytest.fixture
def pending(folders):
    return folders[0]


@pytest.fixture
def claimed(folders):
    return folders[1]


def put(folder, name, content=TASK):
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=folder)
    os.write(descriptor, content)
    os.close(descriptor)


def content_of(folder, name):
    descriptor = os.open(name, os.O_RDONLY, dir_fd=folder)
    with open(descriptor, "rb") as file:
        return file.read()


def descriptors():
    return sorted(os.listdir("/proc/self/fd"))


def rss_bytes():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def in_child(work):
    """Run work in a forked process and pass on whether it failed."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


NUMBERS = {  # of each call, or of the two by which a C library makes it
    "read": 0,
    "write": 1,
    "close": 3,
    "fsync": 74,
    "openat": 257,
    "fstat": (5, 262),
    "unlinkat": 263,
    "renameat": 264,
    "linkat": 265,
    "renameat2": 316,
}


def break_call(name, why, first=None):
    """Make a system call of this process fail with errno why from now on, where its first argument is ``first``."""

    def code(operation, yes, no, k):
        return struct.pack("=HBBI", operation, yes, no, k)

    load, equal, answer = 0x20, 0x15, 0x06
    given = b"" if first is None else code(load, 0, 0, 16) + code(equal, 0, 1, first)
    program, numbers = b"", NUMBERS[name]
    for number in numbers if isinstance(numbers, tuple) else (numbers,):
        program += code(load, 0, 0, 0) + code(equal, 0, 3 if given else 1, number) + given
        program += code(answer, 0, 0, 0x00050000 | why)
    program += code(answer, 0, 0, 0x7FFF0000)
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(program)
    filters = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, filters, 0, 0) == 0, ctypes.get_errno()  # PR_SET_SECCOMP


def next_descriptor():
    descriptor = os.dup(0)
    os.close(descriptor)
    return descriptor


# moving


def test_a_claim_moves_the_file_and_returns_what_it_holds(claims, pending, claimed, tmp_path):
    put(pending, "a.json")
    task = claims.claim(pending, b"a.json", claimed, MIB, ())
    assert task.data == TASK
    assert (task.fields.id, task.fields.task_class) == ("a", "gpu")
    assert TASK[slice(*task.fields.payload)] == b"[1, 2]"
    assert task.mtime == (tmp_path / "claimed" / "a.json").stat().st_mtime
    assert os.listdir(pending) == []


def test_of_many_workers_exactly_one_wins(claims, pending, claimed):
    put(pending, "a.json")
    gate, key = os.pipe()
    children = []
    for _ in range(8):
        if (pid := os.fork()) == 0:
            won = 100
            try:
                os.close(key)
                os.read(gate, 1)
                won = claims.move(pending, b"a.json", claimed, b"%d" % os.getpid())
            finally:
                os._exit(won)
        children.append(pid)
    os.close(gate)
    os.close(key)
    assert sum(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children) == 1
    assert len(os.listdir(claimed)) == 1


def test_a_claim_of_what_is_gone_is_none(claims, pending, claimed):
    assert claims.claim(pending, b"a.json", claimed, MIB, ()) is None
    assert claims.peek(pending, b"a.json", MIB, ()) is None
    assert claims.move(pending, b"a.json", claimed, b"a.json") is False
    assert claims.move_new(pending, b"a.json", claimed, b"a.json") is False


def test_a_peek_leaves_the_file_where_it_is(claims, pending):
    put(pending, "a.json")
    assert claims.peek(pending, b"a.json", MIB, ()).fields.id == "a"
    assert os.listdir(pending) == ["a.json"]


def test_a_move_replaces_its_target(claims, pending, claimed):
    put(pending, "a.json", b"new")
    put(claimed, "b.json", b"old")
    assert claims.move(pending, b"a.json", claimed, b"b.json") is True
    assert content_of(claimed, "b.json") == b"new"


def test_a_move_to_a_new_name_never_replaces(claims, pending, claimed):
    put(pending, "a.json", b"new")
    put(claimed, "b.json", b"old")
    with pytest.raises(FileExistsError) as raised:
        claims.move_new(pending, b"a.json", claimed, b"b.json")
    assert raised.value.filename == b"b.json"
    assert (content_of(pending, "a.json"), content_of(claimed, "b.json")) == (b"new", b"old")
    assert claims.move_new(pending, b"a.json", claimed, b"c.json") is True
    assert content_of(claimed, "c.json") == b"new"
    assert os.listdir(pending) == []


def test_a_move_to_another_filesystem_keeps_its_errno(claims, pending):
    put(pending, "a.json")
    other = os.open("/dev/shm", os.O_RDONLY)
    try:
        for move in (claims.move, claims.move_new):
            with pytest.raises(OSError) as raised:
                move(pending, b"a.json", other, b"a.json")
            assert (raised.value.errno, raised.value.filename) == (errno.EXDEV, b"a.json")
    finally:
        os.close(other)


def test_a_deleted_target_folder_is_an_error_and_not_a_task_that_is_gone(claims, pending, claimed, tmp_path):
    put(pending, "a.json")
    (tmp_path / "claimed").rmdir()
    with pytest.raises(FileNotFoundError, match="the folder to move into was deleted"):
        claims.claim(pending, b"a.json", claimed, MIB, ())
    for move in (claims.move, claims.move_new):
        with pytest.raises(FileNotFoundError, match="the folder to move into was deleted"):
            move(pending, b"a.json", claimed, b"a.json")
    assert os.listdir(pending) == ["a.json"]


@needs_x86
@pytest.mark.parametrize("why", [errno.EINVAL, errno.ENOSYS])
def test_without_noreplace_a_new_name_is_made_by_link_and_unlink(pending, claimed, why):
    put(pending, "a.json", b"new")
    put(pending, "other.json", b"other")
    put(claimed, "b.json", b"old")
    os.link("other.json", "other.json", src_dir_fd=pending, dst_dir_fd=claimed)  # linked, and the answer was lost

    def work():
        break_call("renameat2", why)
        assert compiled.move_new(pending, b"absent", claimed, b"x") is False
        with pytest.raises(FileExistsError):
            compiled.move_new(pending, b"a.json", claimed, b"b.json")
        assert compiled.move_new(pending, b"a.json", claimed, b"c.json") is True
        assert compiled.move_new(pending, b"other.json", claimed, b"other.json") is True

    in_child(work)
    assert sorted(os.listdir(claimed)) == ["b.json", "c.json", "other.json"]
    assert [content_of(claimed, name) for name in ("b.json", "c.json", "other.json")] == [b"old", b"new", b"other"]
    assert os.stat("c.json", dir_fd=claimed).st_nlink == 1
    assert os.listdir(pending) == []


@needs_x86
@pytest.mark.parametrize("why", [errno.EIO, errno.ESTALE, errno.ENOENT])
def test_a_link_whose_answer_was_lost_is_settled_by_its_inode(pending, claimed, why):
    put(pending, "ours.json")
    os.link("ours.json", "ours.json", src_dir_fd=pending, dst_dir_fd=claimed)
    put(pending, "theirs.json")
    put(claimed, "theirs.json")
    put(pending, "neither.json")

    def work():
        break_call("renameat2", errno.EINVAL)
        break_call("linkat", why)
        assert compiled.move_new(pending, b"ours.json", claimed, b"ours.json") is True
        with pytest.raises(FileExistsError):
            compiled.move_new(pending, b"theirs.json", claimed, b"theirs.json")
        if why == errno.ENOENT:
            assert compiled.move_new(pending, b"neither.json", claimed, b"neither.json") is False
        else:
            with pytest.raises(OSError) as raised:
                compiled.move_new(pending, b"neither.json", claimed, b"neither.json")
            assert raised.value.errno == why

    in_child(work)
    assert sorted(os.listdir(pending)) == ["neither.json", "theirs.json"]


@needs_x86
@pytest.mark.parametrize("why", [errno.ENOENT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_claim_whose_answer_was_lost_is_settled_by_the_claimers_own_folder(claims, pending, claimed, why):
    put(pending, "a.json")
    put(claimed, "b.json")

    def work():
        break_call("renameat", why)
        assert claims.claim(pending, b"b.json", claimed, MIB, ()).fields.id == "a"
        if why == errno.ENOENT:
            assert claims.claim(pending, b"a.json", claimed, MIB, ()) is None
        else:
            with pytest.raises(OSError) as raised:
                claims.claim(pending, b"a.json", claimed, MIB, ())
            assert raised.value.errno == why

    in_child(work)
    assert os.listdir(pending) == ["a.json"]


# what may lie in a folder


def test_what_is_no_file_is_refused_by_its_kind_and_at_once(claims, pending, tmp_path, monkeypatch):
    folder = tmp_path / "pending"
    (folder / "target").write_bytes(TASK)
    (folder / "link").symlink_to("target")
    (folder / "dangling").symlink_to("/nowhere")
    (folder / "loop").symlink_to("loop")
    (folder / "folder").mkdir()
    (folder / "folder-link").symlink_to("folder")
    os.mkfifo(folder / "fifo")
    monkeypatch.chdir(folder)  # the address of a socket has 108 bytes
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        listening.listen()
        expected = {
            b"link": "a symbolic link",
            b"dangling": "a symbolic link",
            b"loop": "a symbolic link",
            b"folder": "a folder",
            b"folder-link": "a symbolic link",
            b".": "a folder",
            b"fifo": "a FIFO",
            b"socket": "a socket",
        }
        before = descriptors()
        began = time.monotonic()
        for name, reason in expected.items():
            for look in (claims.read, claims.peek):
                with pytest.raises(claims.Refused) as raised:
                    look(pending, name, MIB, ())
                assert (name, raised.value.reason, str(raised.value)) == (name, reason, reason)
        assert time.monotonic() - began < 0.05 * len(expected) * 2
        assert descriptors() == before


@needs_root
def test_a_device_is_refused(claims, pending):
    for name, kind, device in [
        ("zero", stat.S_IFCHR, (1, 5)),
        ("tty", stat.S_IFCHR, (5, 0)),
        ("no", stat.S_IFBLK, (99, 9)),
    ]:
        try:
            os.mknod(name, kind | 0o666, os.makedev(*device), dir_fd=pending)
        except PermissionError:
            pytest.skip("no devices in this container")
        with pytest.raises(claims.Refused, match="a device"):
            claims.read(pending, name.encode(), MIB, ())


def test_a_hard_link_is_refused_and_says_how_many_names_it_has(claims, pending, tmp_path):
    put(pending, "secret")
    os.link("secret", "a.json", src_dir_fd=pending, dst_dir_fd=pending)
    with pytest.raises(claims.Refused, match=r"^has 2 names \(hard link\)$") as raised:
        claims.read(pending, b"a.json", MIB, ())
    assert raised.value.links == 2
    assert raised.value.mtime == (tmp_path / "pending" / "secret").stat().st_mtime


def test_a_file_larger_than_the_bound_is_refused_without_being_read(claims, pending, tmp_path):
    put(pending, "small", b"x" * 11)
    put(pending, "sparse")
    for size in (2 << 30, 1 << 40):
        try:
            os.truncate(tmp_path / "pending" / "sparse", size)
        except OSError as error:
            assert error.errno == errno.EFBIG
            continue
        before = rss_bytes()
        began = time.monotonic()
        with pytest.raises(claims.Refused, match=rf"^{size} bytes, more than the bound of {64 * MIB}$"):
            claims.read(pending, b"sparse", 64 * MIB, ())
        assert time.monotonic() - began < 0.05
        assert rss_bytes() - before < MIB
    with pytest.raises(claims.Refused, match=r"^11 bytes, more than the bound of 10$"):
        claims.read(pending, b"small", 10, ())
    assert claims.read(pending, b"small", 11, ()).size == 11


def test_only_a_trusted_owner_is_read(claims, pending):
    put(pending, "a.json")
    me = os.getuid()
    with pytest.raises(claims.Refused, match=rf"^owned by user {me}$"):
        claims.read(pending, b"a.json", MIB, (me + 1, me + 2))
    for owners in ((), (me,), (me + 1, me)):
        assert claims.read(pending, b"a.json", MIB, owners).data == TASK


@needs_root
def test_a_file_that_we_may_not_read_is_our_trouble_unless_a_stranger_owns_it(claims, pending, claimed):
    for name, owner in [("ours", 1001), ("strangers", 1002)]:
        put(pending, name)
        os.chown(name, owner, owner, dir_fd=pending)
        os.chmod(name, 0, dir_fd=pending)
    os.fchmod(pending, 0o777)
    os.fchmod(claimed, 0o777)

    def work():
        os.setresuid(1001, 1001, 1001)
        with pytest.raises(PermissionError):
            claims.read(pending, b"ours", MIB, (1001,))
        for look in (claims.read, claims.peek):
            with pytest.raises(claims.Refused, match=r"^owned by user 1002$"):
                look(pending, b"strangers", MIB, (1001,))
        with pytest.raises(claims.Refused, match=r"^owned by user 1002$"):
            claims.claim(pending, b"strangers", claimed, MIB, (1001,))

    in_child(work)
    assert claims.read(pending, b"ours", MIB, ()).data == TASK  # root may


def test_a_file_under_a_lease_is_an_error_and_no_wait(claims, pending):
    put(pending, "a.json")
    reader, writer = os.pipe()
    holder = os.fork()
    if holder == 0:
        try:
            signal.signal(signal.SIGIO, signal.SIG_IGN)
            fcntl.fcntl(os.open("a.json", os.O_RDWR, dir_fd=pending), fcntl.F_SETLEASE, fcntl.F_WRLCK)
            os.write(writer, b"held")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    try:
        assert select.select([reader], [], [], 10)[0]
        if os.read(reader, 4) != b"held":
            pytest.skip("no leases on this filesystem")
        began = time.monotonic()
        with pytest.raises(BlockingIOError):
            claims.read(pending, b"a.json", MIB, ())
        assert time.monotonic() - began < 0.05
    finally:
        os.close(reader)
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)


@pytest.mark.parametrize("size", [0, 1, 16383, 16384, 16385, 3 * MIB])
def test_every_byte_is_read(claims, pending, size):
    content = random.Random(size).randbytes(size)
    claims.write_new(pending, b"a", content, False)
    found = claims.read(pending, b"a", 3 * MIB, ())
    assert found.data == content
    status = os.stat("a", dir_fd=pending)
    assert (found.size, found.mtime, found.inode) == (size, status.st_mtime, status.st_ino)


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"[1]", b'{"a": NaN}', b'{"priority": "high", "payload": 1}'])
def test_a_claim_of_bad_content_leaves_the_file_with_the_claimer(claims, pending, claimed, content):
    put(pending, "a.json", content)
    with pytest.raises(EnvelopeError):
        claims.peek(pending, b"a.json", MIB, ())
    with pytest.raises(EnvelopeError):
        claims.claim(pending, b"a.json", claimed, MIB, ())
    assert (os.listdir(pending), os.listdir(claimed)) == ([], ["a.json"])
    assert content_of(claimed, "a.json") == content


def test_an_empty_file_is_called_so(claims, pending):
    put(pending, "a.json", b"")
    with pytest.raises(EnvelopeError, match="empty file"):
        claims.peek(pending, b"a.json", MIB, ())


def test_a_refused_claim_leaves_the_file_with_the_claimer(claims, pending, claimed):
    put(pending, "a.json")
    with pytest.raises(claims.Refused):
        claims.claim(pending, b"a.json", claimed, 5, ())
    assert (os.listdir(pending), os.listdir(claimed)) == ([], ["a.json"])


def test_the_depth_bound_reaches_the_scanner(claims, pending, claimed):
    put(pending, "a.json", b'{"payload": ' + b"[" * 50 + b"]" * 50 + b"}")
    with pytest.raises(EnvelopeError):
        claims.peek(pending, b"a.json", MIB, (), max_depth=20)
    with pytest.raises(EnvelopeError):
        claims.claim(pending, b"a.json", claimed, MIB, (), max_depth=20)
    assert claims.peek(claimed, b"a.json", MIB, (), max_depth=60) is not None


@pytest.mark.parametrize("name", [b"-rf", b"a\nb", b"\x1b[2J", b"$(id)", "\u202efdp".encode(), b"\xff\xfe", b"x" * 255])
def test_any_name_of_a_file_is_only_a_name(claims, pending, claimed, name):
    claims.write_new(pending, name, TASK, False)
    assert claims.claim(pending, name, claimed, MIB, ()).data == TASK
    assert claims.move_new(claimed, name, pending, name) is True
    assert os.listdir(os.fsencode(f"/proc/self/fd/{pending}")) == [name]


@pytest.mark.parametrize("name", [b"", b"a/b", b"/etc/passwd", b"../a", b"a\0b", b"a\0"])
def test_what_is_no_name_is_refused_before_the_system_is_asked(claims, pending, claimed, name):
    put(pending, "a")
    uses = [
        lambda: claims.claim(pending, name, claimed, MIB, ()),
        lambda: claims.peek(pending, name, MIB, ()),
        lambda: claims.read(pending, name, MIB, ()),
        lambda: claims.write_new(pending, name, b"", False),
        lambda: claims.move(pending, name, claimed, b"a"),
        lambda: claims.move(pending, b"a", claimed, name),
        lambda: claims.move_new(pending, name, claimed, b"a"),
        lambda: claims.move_new(pending, b"a", claimed, name),
    ]
    for use in uses:
        with pytest.raises(ValueError, match="is not a name in a folder"):
            use()
    assert (os.listdir(pending), os.listdir(claimed)) == (["a"], [])


def test_a_name_is_bytes(claims, pending, claimed):
    for name in ("a", None, 1, bytearray(b"a")):
        for use in (
            lambda: claims.claim(pending, name, claimed, MIB, ()),  # noqa: B023
            lambda: claims.write_new(pending, name, b"", False),  # noqa: B023
            lambda: claims.write_new(pending, b"a", name, False),  # noqa: B023
            lambda: claims.move(pending, b"a", claimed, name),  # noqa: B023
        ):
            with pytest.raises(TypeError):
                use()


def test_a_file_that_changes_while_it_is_read_is_read_to_what_it_was_or_less(claims, pending):
    put(pending, "a", b"x" * MIB)
    writer = os.fork()
    if writer == 0:
        try:
            descriptor = os.open("a", os.O_RDWR, dir_fd=pending)
            while True:
                os.ftruncate(descriptor, 100)
                os.pwrite(descriptor, b"x" * (MIB - 100), 100)
        finally:
            os._exit(1)
    try:
        sizes = set()
        before = descriptors()
        end = time.monotonic() + 60  # how soon a reader meets the writer at work is the scheduler's choice
        for count in itertools.count():
            if count >= 500 and len(sizes) > 1:
                break
            assert time.monotonic() < end, f"every read found {sizes}: the writer was never at work"
            found = claims.read(pending, b"a", 2 * MIB, ())
            assert len(found.data) <= found.size
            assert set(found.data) <= {0, ord("x")}  # the kernel itself shows holes while it truncates
            sizes.add(len(found.data))
        assert descriptors() == before
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)


def test_a_refusal_survives_pickling():
    refusal = pickle.loads(pickle.dumps(compiled.Refused("has 2 names (hard link)", 2, 5.5)))
    assert (refusal.reason, refusal.links, refusal.mtime) == ("has 2 names (hard link)", 2, 5.5)


# writing


def test_a_new_file_has_its_bytes_and_keeps_others_out(claims, pending):
    content = random.Random(5).randbytes(5 * MIB)
    for name, data, sync in [(b"a", content, True), (b"b", content, False), (b"c", b"", True)]:
        assert claims.write_new(pending, name, data, sync) is None
        assert content_of(pending, name) == data
    before = os.umask(0)
    try:
        claims.write_new(pending, b"open", b"", False)
        os.umask(0o077)
        claims.write_new(pending, b"private", b"", False)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat("open", dir_fd=pending).st_mode) == 0o640
    assert stat.S_IMODE(os.stat("private", dir_fd=pending).st_mode) == 0o600


def test_a_new_file_never_takes_a_name_that_is_there(claims, pending, tmp_path):
    put(pending, "a", b"old")
    (tmp_path / "pending" / "link").symlink_to(tmp_path / "planted")
    for name in (b"a", b"link"):
        with pytest.raises(FileExistsError) as raised:
            claims.write_new(pending, name, b"new", False)
        assert raised.value.filename == name
    assert content_of(pending, "a") == b"old"
    assert sorted(os.listdir(pending)) == ["a", "link"]
    assert not (tmp_path / "planted").exists()


def test_a_short_write_is_gone_on_with_and_a_full_disk_leaves_nothing(claims, pending):
    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB))
        before = descriptors()
        with pytest.raises(OSError) as raised:
            claims.write_new(pending, b"a", b"x" * (2 * MIB), False)
        assert (raised.value.errno, raised.value.filename) == (errno.EFBIG, b"a")
        assert descriptors() == before

    in_child(work)
    assert os.listdir(pending) == []


@needs_x86
@pytest.mark.parametrize("call", ["write", "fsync"])
@pytest.mark.parametrize("why", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_file_that_cannot_be_written_whole_leaves_nothing(claims, pending, call, why):
    def work():
        before = descriptors()
        break_call(call, why, next_descriptor())
        with pytest.raises(OSError) as raised:
            claims.write_new(pending, b"a", b"content", True)
        assert (raised.value.errno, raised.value.filename) == (why, b"a")
        assert descriptors() == before

    in_child(work)
    assert os.listdir(pending) == []


@needs_x86
def test_a_close_that_fails_is_a_failed_write(claims, pending):
    def work():
        break_call("close", errno.ENOSPC, next_descriptor())
        with pytest.raises(OSError) as raised:
            claims.write_new(pending, b"a", b"content", False)
        assert raised.value.errno == errno.ENOSPC

    in_child(work)
    assert os.listdir(pending) == []


def test_folders_and_files_are_synced_and_nothing_else(claims, pending):
    assert claims.sync(pending) is None
    reader, writer = os.pipe()
    with pytest.raises(OSError) as raised:
        claims.sync(reader)
    assert raised.value.errno == errno.EINVAL
    os.close(reader)
    os.close(writer)
    with pytest.raises(OSError) as raised:
        claims.sync(1_000_000)
    assert raised.value.errno == errno.EBADF


# our own trouble


@needs_x86
@pytest.mark.parametrize(
    ("call", "whys"),
    [
        ("openat", [errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.EACCES]),
        ("fstat", [errno.EIO, errno.ESTALE, errno.ENOMEM]),
        ("read", [errno.EIO, errno.ESTALE]),
    ],
)
@pytest.mark.parametrize("size", [len(TASK), 100_000])
def test_our_own_trouble_is_never_the_files_fault(claims, pending, claimed, call, whys, size):
    for why in whys:
        put(pending, "a.json", TASK.ljust(size))
        put(claimed, "b.json", TASK.ljust(size))

        def work(why=why):
            before = descriptors()
            break_call(call, why, {"openat": claimed}.get(call, next_descriptor()))
            uses = [
                lambda: claims.read(claimed, b"b.json", MIB, ()),
                lambda: claims.peek(claimed, b"b.json", MIB, ()),
                lambda: claims.claim(pending, b"a.json", claimed, MIB, ()),
            ]
            for use in uses:
                with pytest.raises(OSError) as raised:
                    use()
                assert raised.value.errno == why
            assert os.access("a.json", os.F_OK, dir_fd=claimed)
            os._exit(0 if call == "fstat" or descriptors() == before else 1)

        in_child(work)
        os.unlink("a.json", dir_fd=claimed)
        os.unlink("b.json", dir_fd=claimed)


def test_without_a_free_descriptor_the_task_waits_with_the_claimer(claims, pending, claimed):
    put(pending, "a.json")

    def work():
        soft, hard = len(descriptors()) + 8, resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        taken = []
        with suppress(OSError):
            while True:
                taken.append(os.dup(0))
        with pytest.raises(OSError) as raised:
            claims.claim(pending, b"a.json", claimed, MIB, ())
        assert raised.value.errno == errno.EMFILE
        for descriptor in taken:
            os.close(descriptor)
        assert claims.claim(pending, b"a.json", claimed, MIB, ()).fields.id == "a"

    in_child(work)


def test_signals_neither_break_a_call_nor_lose_a_task(claims, pending, claimed):
    ticks = []
    before = signal.signal(signal.SIGALRM, lambda *_: ticks.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        content = b'{"payload": "' + b"x" * MIB + b'"}'
        for i in range(100):
            claims.write_new(pending, b"%d" % i, content, i % 10 == 0)
            assert claims.claim(pending, b"%d" % i, claimed, 2 * MIB, ()).data == content
            os.unlink(b"%d" % i, dir_fd=claimed)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert ticks


def test_no_way_out_leaves_a_descriptor_open_or_memory_behind(claims, pending, claimed, tmp_path):
    put(pending, "good.json")
    put(pending, "large.json", TASK.ljust(50_000))
    put(pending, "bad.json", b"[")
    put(pending, "twice.json")
    os.link("twice.json", "again.json", src_dir_fd=pending, dst_dir_fd=pending)
    os.mkfifo("fifo", dir_fd=pending)
    os.symlink("good.json", "link", dir_fd=pending)
    names = [os.fsencode(name) for name in [*os.listdir(pending), "absent"]]

    def use(times):
        for _ in range(times):
            for name in names:
                for owners in ((), (os.getuid() + 1,)):
                    for bound in (10, MIB):
                        with suppress(OSError, claims.Refused, EnvelopeError):
                            claims.read(pending, name, bound, owners)
                        with suppress(OSError, claims.Refused, EnvelopeError):
                            claims.peek(pending, name, bound, owners)
                        with suppress(OSError, claims.Refused, EnvelopeError):
                            claims.claim(pending, name, claimed, bound, owners)
                        claims.move(claimed, name, pending, name)
                with suppress(FileExistsError):
                    claims.write_new(pending, name, b"", False)
                with suppress(FileExistsError):
                    claims.move_new(pending, name, pending, b"good.json")
            with suppress(OSError):
                os.unlink("absent", dir_fd=pending)

    use(20)
    before, open_descriptors = rss_bytes(), descriptors()
    use(300)
    assert descriptors() == open_descriptors
    assert rss_bytes() - before < MIB


def test_a_name_exists_whatever_it_leads_to(claims, pending):
    assert not claims.exists(pending, b"a1.json")
    os.symlink("nowhere", "a1.json", dir_fd=pending)
    assert claims.exists(pending, b"a1.json")
    assert not claims.exists(pending, b"../pending")
    assert not claims.exists(pending, b"a1.json\0")
    with pytest.raises(OSError, match="too long"):
        claims.exists(pending, b"x" * 256)


def test_each_sync_is_counted_also_one_that_fails(claims, pending):
    before = claims.syncs()
    claims.write_new(pending, b"a", b"1", True)
    claims.write_new(pending, b"b", b"1", False)
    claims.sync(pending)
    with pytest.raises(OSError, match="Bad file descriptor"):
        claims.sync(1_000_000)
    assert claims.syncs() - before == 3


def test_a_whole_filesystem_is_synced_by_one_call(claims, pending):
    claims.write_new(pending, b"a1.json", TASK, False)
    claims.sync_filesystem(pending)
    with pytest.raises(OSError, match="Bad file descriptor"):
        claims.sync_filesystem(-1)
