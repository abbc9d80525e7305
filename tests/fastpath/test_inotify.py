"""The watcher says what appeared, what was lost, and when it does not know."""

import errno
import os
import resource
import select
import signal
import sys
import time
import tracemalloc
import warnings
from pathlib import Path

import pytest
from dspy_fastpath import inotify as compiled

from tests.reference import inotify as reference

QUEUE = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
INSTANCES = int(Path("/proc/sys/fs/inotify/max_user_instances").read_text())


@pytest.fixture(params=[compiled, reference], ids=["compiled", "reference"])
def watching(request):
    return request.param


@pytest.fixture
def watcher(watching):
    with watching.Watcher() as watcher:
        yield watcher


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "pending"
    folder.mkdir()
    return folder


def descriptors():
    return sorted(os.listdir("/proc/self/fd"))


def rss_bytes():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def put(folder, name):
    os.close(os.open(os.path.join(os.fsencode(folder), os.fsencode(name)), os.O_WRONLY | os.O_CREAT, 0o600))


# what appears


def test_a_file_written_in_place_is_one_event_with_both_of_its_bits(watching, watcher, folder):
    watch = watcher.add(folder)
    put(folder, "a.json")
    assert watcher.wait(10)
    assert watcher.take() == ([(watch, b"a.json", watching.IN_CREATE | watching.IN_CLOSE_WRITE)], [], False)
    assert watcher.take() == ([], [], False)


def test_a_file_that_is_moved_in_is_an_event_and_its_temporary_name_is_none(watching, watcher, folder):
    watch = watcher.add(folder)
    for name in (".a.json.tmp", "a.json.tmp", ".hidden", "queue.lock", ".tmp", "x.tmp", ".", "..."):
        if name != ".":
            put(folder, name)
    os.rename(folder / ".a.json.tmp", folder / "a.json")
    os.rename(folder / "a.json.tmp", folder / ".b")
    assert watcher.take() == ([(watch, b"a.json", watching.IN_MOVED_TO)], [], False)


def test_only_whole_endings_are_passed_over(watcher, folder):
    watcher.add(folder)
    names = [b"tmp", b"lock", b"atmp", b"a.tmp.json", b"a.lock.json", b"a.tmpx", b"a.TMP", b"a.", b"~a"]
    for name in names:
        put(folder, name)
    assert [name for _, name, _ in watcher.take()[0]] == names


def test_a_link_is_seen_when_it_is_made(watching, watcher, folder):
    put(folder, ".a")
    watch = watcher.add(folder)
    os.link(folder / ".a", folder / "a.json")
    assert watcher.take()[0] == [(watch, b"a.json", watching.IN_CREATE)]


def test_a_new_folder_is_told_from_a_file(watching, watcher, folder):
    watch = watcher.add(folder)
    (folder / "sub").mkdir()
    assert watcher.take()[0] == [(watch, b"sub", watching.IN_CREATE | watching.IN_ISDIR)]


def test_events_of_one_name_in_a_row_are_one_and_others_keep_their_order(watching, watcher, folder, tmp_path):
    other = tmp_path / "delayed"
    other.mkdir()
    first, second = watcher.add(folder), watcher.add(other)
    both = watching.IN_CREATE | watching.IN_CLOSE_WRITE
    for _ in range(3):
        put(folder, "a")
        put(folder, ".between")  # is not seen, and so does not part them
    put(folder, "b")
    put(folder, "a")
    put(other, "a")
    put(folder, "a")
    assert watcher.take()[0] == [
        (first, b"a", both),
        (first, b"b", both),
        (first, b"a", watching.IN_CLOSE_WRITE),
        (second, b"a", both),
        (first, b"a", watching.IN_CLOSE_WRITE),
    ]


def test_a_name_may_hold_every_byte_but_a_slash_and_nul(watcher, folder):
    watcher.add(folder)
    every = bytes(i for i in range(1, 256) if i != ord("/"))
    names = [every[1:], every[::-1], b"\n", b" ", b"-rf", b"\xff", "ä\u202e".encode(), b"x" * 255]
    for name in names:
        put(folder, name)
    assert [name for _, name, _ in watcher.take()[0]] == names


def test_names_of_every_length_come_whole(watcher, folder):
    watcher.add(folder)
    names = [b"x" * length for length in range(1, 256)]
    for name in names:
        put(folder, name)
    assert [name for _, name, _ in watcher.take()[0]] == names


def test_one_take_gives_more_than_one_buffer_of_events(watcher, folder):
    watcher.add(folder)
    for i in range(3000):  # 3000 * 2 * 32 bytes: three buffers
        put(folder, f"{i:05}")
    events, lost, overflowed = watcher.take()
    assert [name for _, name, _ in events] == [b"%05d" % i for i in range(3000)]
    assert (lost, overflowed) == ([], False)


def test_two_watchers_see_the_same_as_inotify_simple(folder):
    with compiled.Watcher() as ours, reference.Watcher() as theirs:
        ours.add(folder)
        theirs.add(folder)
        for i in range(2000):
            put(folder, f"{i % 7}")
            os.rename(folder / f"{i % 7}", folder / f"{i % 3}.json")
            if i % 5 == 0:
                os.unlink(folder / f"{i % 3}.json")
            if i % 97 == 0:
                assert ours.take() == theirs.take()
        assert ours.take() == theirs.take()


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="pyinotify needs asyncore, which is gone")
def test_pyinotify_sees_the_same_names(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import pyinotify
    manager = pyinotify.WatchManager()
    seen = []
    notifier = pyinotify.Notifier(manager, lambda event: seen.append(os.fsencode(event.name)) or True)
    try:
        with compiled.Watcher() as watcher:
            watcher.add(folder)
            manager.add_watch(str(folder), pyinotify.IN_CLOSE_WRITE | pyinotify.IN_MOVED_TO)
            for i in range(200):
                put(folder, f".{i}")
                os.rename(folder / f".{i}", folder / f"{i}.json")
                put(folder, f"{i}.txt")
            while notifier.check_events(0):
                notifier.read_events()
                notifier.process_events()
            assert [name for _, name, _ in watcher.take()[0]] == [name for name in seen if name[:1] != b"."]
            assert len(seen) == 600
    finally:
        notifier.stop()


# what is lost


def test_an_overflow_is_told_and_the_watcher_goes_on(watching, watcher, folder):
    watch = watcher.add(folder)
    for i in range(QUEUE // 2 + 100):  # two events each
        put(folder, f"{i}")
    names = []
    told = 0
    while watcher.wait(0):
        events, lost, overflowed = watcher.take()
        names += [name for _, name, _ in events]
        told += overflowed
        assert lost == []
    assert told == 1
    assert names == [b"%d" % i for i in range(QUEUE // 2)]
    put(folder, "after")
    assert watcher.take() == ([(watch, b"after", watching.IN_CREATE | watching.IN_CLOSE_WRITE)], [], False)


def test_a_deleted_folder_is_lost_once_and_can_be_watched_again(watcher, folder):
    first = watcher.add(folder)
    put(folder, "a")
    os.unlink(folder / "a")
    folder.rmdir()
    events, lost, overflowed = watcher.take()
    assert [event[:2] for event in events] == [(first, b"a")]
    assert (lost, overflowed) == ([first], False)
    assert watcher.take() == ([], [], False)
    with pytest.raises(FileNotFoundError):
        watcher.add(folder)
    folder.mkdir()
    put(folder, "unseen")
    second = watcher.add(folder)
    assert second != first
    put(folder, "b")
    assert [event[:2] for event in watcher.take()[0]] == [(second, b"b")]


def test_a_folder_deleted_and_made_again_before_the_take_is_lost(watcher, folder):
    first = watcher.add(folder)
    folder.rmdir()
    folder.mkdir()
    put(folder, "a")
    assert watcher.take() == ([], [first], False)


def test_a_deleted_folder_that_is_held_open_is_lost_when_it_is_closed(watcher, folder):
    watch = watcher.add(folder)
    held = os.open(folder, os.O_RDONLY)
    folder.rmdir()
    assert watcher.take() == ([], [], False)
    assert os.fstat(held).st_nlink == 0  # what a sweep can see meanwhile
    os.close(held)
    assert watcher.take() == ([], [watch], False)


def test_a_folder_that_was_moved_away_is_lost_and_not_followed(watcher, folder, tmp_path):
    first = watcher.add(folder)
    os.rename(folder, tmp_path / "away")
    put(tmp_path / "away", "a")
    assert watcher.take()[1:] == ([first], False)
    put(tmp_path / "away", "b")
    assert watcher.take() == ([], [], False)
    os.rename(tmp_path / "away", folder)
    second = watcher.add(folder)
    assert second != first
    put(folder, "c")
    assert watcher.take()[0][0][:2] == (second, b"c")


def test_a_removed_watch_is_silent(watcher, folder, tmp_path):
    other = tmp_path / "delayed"
    other.mkdir()
    first, second = watcher.add(folder), watcher.add(other)
    put(folder, "unread")
    watcher.remove(first)
    watcher.remove(first)
    watcher.remove(12345)
    put(folder, "a")
    put(other, "a")
    folder.joinpath("x").mkdir()
    assert [event[:2] for event in watcher.take()[0]] == [(second, b"a")]
    assert watcher.add(folder) not in (first, second)


def test_many_folders_come_and_go(watcher, tmp_path):
    folders = [tmp_path / f"{i}" for i in range(100)]
    for folder in folders:
        folder.mkdir()
    watches = [watcher.add(folder) for folder in folders]
    assert len(set(watches)) == 100
    assert [watcher.add(folder) for folder in folders] == watches
    for folder in folders[::2]:
        folder.rmdir()
    assert sorted(watcher.take()[1]) == sorted(watches[::2])
    for folder in folders[1::2]:
        put(folder, "a")
    assert [event[0] for event in watcher.take()[0]] == watches[1::2]


# waiting


def test_a_wait_ends_at_its_deadline_and_not_before(watcher, folder):
    watcher.add(folder)
    for timeout_s in (0.0, -1.0, 0.0301):
        began = time.monotonic()
        assert watcher.wait(timeout_s) is False
        assert time.monotonic() - began >= timeout_s
    with pytest.raises(ValueError, match="nan"):
        watcher.wait(float("nan"))


def test_a_wait_ends_when_another_process_writes(watcher, folder):
    watcher.add(folder)
    gate, key = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(key)
        os.read(gate, 1)
        put(folder, "a")
        os._exit(0)
    os.close(gate)
    os.close(key)
    assert watcher.wait(30) is True
    assert watcher.take()[0][0][1] == b"a"
    os.waitpid(pid, 0)


def test_a_signal_handler_runs_during_a_wait_and_may_end_it(folder):
    class Rang(Exception):
        pass

    rings = []

    def ring(*_):
        rings.append(1)
        if len(rings) == 3:
            signal.setitimer(signal.ITIMER_REAL, 0)  # here: it would ring again before the wait has ended
            raise Rang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    try:
        with compiled.Watcher() as watcher, pytest.raises(Rang):
            watcher.wait(60)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(rings) == 3


def test_signals_do_not_shorten_or_lengthen_a_wait(watcher):
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
    try:
        began = time.monotonic()
        assert watcher.wait(0.1) is False
        assert 0.1 <= time.monotonic() - began < 5
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_the_descriptor_works_in_a_loop_of_others(watcher, folder):
    watcher.add(folder)
    assert select.select([watcher], [], [], 0)[0] == []
    put(folder, "a")
    assert select.select([watcher], [], [], 0)[0] == [watcher]
    assert not os.get_inheritable(watcher.fileno())


# errors and ends


def test_only_a_folder_is_watched(watcher, folder, tmp_path):
    put(folder, "file")
    (tmp_path / "link").symlink_to(folder)
    for path, why in [
        (folder / "file", errno.ENOTDIR),
        (tmp_path / "link", errno.ENOTDIR),
        (tmp_path / "absent", errno.ENOENT),
        (b"x" * 300, errno.ENAMETOOLONG),
    ]:
        with pytest.raises(OSError) as raised:
            watcher.add(path)
        assert raised.value.errno == why
    with pytest.raises(ValueError, match="NUL"):
        watcher.add(f"{folder}\0")
    with pytest.raises(TypeError):
        watcher.add(3)
    assert watcher.add(str(folder)) == watcher.add(os.fsencode(folder)) == watcher.add(folder)


def test_an_error_names_the_folder(tmp_path):
    with compiled.Watcher() as watcher, pytest.raises(FileNotFoundError) as raised:
        watcher.add(tmp_path / "absent")
    assert raised.value.filename == tmp_path / "absent"


def test_without_an_instance_the_error_says_which_limit():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))  # the same errno, and no other process of ours is hurt
    try:
        with pytest.raises(OSError, match=r"fs\.inotify\.max_user_instances") as raised:
            compiled.Watcher()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert raised.value.errno == errno.EMFILE


def test_a_closed_watcher_says_so(watching, folder):
    watcher = watching.Watcher()
    watch = watcher.add(folder)
    watcher.close()
    watcher.close()
    for use in (
        watcher.fileno,
        watcher.take,
        lambda: watcher.wait(0),
        lambda: watcher.add(folder),
        lambda: watcher.remove(watch),
    ):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_whoever_ends_gives_the_descriptor_back(watching, folder):
    before = descriptors()
    for i in range(2 * INSTANCES):  # more than the kernel lends at once
        watcher = watching.Watcher()
        watcher.add(folder)
        if i % 2:
            watcher.close()
        else:
            with watcher:
                pass
        del watcher
    assert descriptors() == before


def test_a_forgotten_watcher_is_closed(folder):
    before = descriptors()
    for _ in range(2 * INSTANCES):
        compiled.Watcher().add(folder)
    assert descriptors() == before


def test_taking_allocates_nothing_but_its_result(watcher, folder):
    watcher.add(folder)

    def flood(times):
        for i in range(times):
            for name in (".a", "a.tmp", "b.lock"):
                put(folder, name)
            put(folder, "a")
            if i % 100 == 0:
                watcher.take()
        watcher.take()

    flood(200)
    before, open_descriptors = rss_bytes(), descriptors()
    flood(5000)
    assert rss_bytes() - before < 1 << 20
    assert descriptors() == open_descriptors


def test_what_is_passed_over_costs_no_memory(folder):
    with compiled.Watcher() as watcher:
        watcher.add(folder)
        for i in range(4000):
            put(folder, f".{i}")
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            assert watcher.take() == ([], [], False)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak - before < 2000
