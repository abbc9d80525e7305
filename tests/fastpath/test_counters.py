"""The shared page: no add is lost, no record is torn, and another layout is refused in words."""

import math
import os
import random
import resource
import struct
import time
from pathlib import Path

import pytest
from dspy_fastpath import counters as compiled
from dspy_supervisor.task import Cause

from tests.reference import counters as reference

CLASSES = ("cpu_short", "cpu_long", "gpu", "gpu_slurm")
SLOTS = 4


@pytest.fixture(params=[compiled, reference], ids=["compiled", "reference"])
def counters(request):
    return request.param


@pytest.fixture
def path(tmp_path):
    return tmp_path / "queue.page"


@pytest.fixture
def page(counters, path):
    with counters.Page.create(path, "q-1", CLASSES, SLOTS) as page:
        yield page


class Children:
    """Forked processes that begin together: each waits at the gate until open() lets all go at once."""

    def __init__(self):
        self._pids = []
        self._gate, self._key = os.pipe()

    def start(self, work):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(self._key)
                os.read(self._gate, 1)
                work()
                code = 0
            finally:
                os._exit(code)
        self._pids.append(pid)

    def open(self):
        os.close(self._gate)
        os.close(self._key)

    def join(self):
        while self._pids:
            assert os.waitpid(self._pids.pop(), 0)[1] == 0


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def rss_bytes():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def test_who_attaches_reads_what_the_creator_wrote(counters, page, path):
    page.add(0, counters.Counter.DONE)
    page.add(0, counters.Counter.DONE, 41)
    page.set(3, counters.Gauge.LIMIT, 7)
    page.set(3, counters.Gauge.LIMIT, -3)
    page.fail(1, list(Cause).index(Cause.TIMEOUT))
    page.add_global(counters.Global.SWEEPS, 2)
    page.set_global(counters.Global.TOTAL_PENDING, 10**12)
    with counters.Page.attach(path) as reader:
        assert (reader.classes, reader.queue_id, reader.slots) == (CLASSES, "q-1", SLOTS)
        assert reader.pid == os.getpid()
        assert 0 <= time.time() - reader.started_at < 60
        assert reader.counter(0, counters.Counter.DONE) == 42
        assert reader.counter(1, counters.Counter.DONE) == 0
        assert reader.gauge(3, counters.Gauge.LIMIT) == -3
        assert reader.failures(1) == [cause is Cause.TIMEOUT for cause in Cause] + [0] * (16 - len(Cause))
        assert reader.get_global(counters.Global.SWEEPS) == 2
        assert reader.get_global(counters.Global.TOTAL_PENDING) == 10**12
        assert reader.heartbeat_ns == 0
        page.beat()
        assert 0 <= time.monotonic_ns() - reader.heartbeat_ns < 60e9


def test_a_new_page_is_empty(counters, page):
    for klass in range(len(CLASSES)):
        assert [page.counter(klass, i) for i in range(16)] == [0] * 16
        assert [page.gauge(klass, i) for i in range(16)] == [0] * 16
        assert page.failures(klass) == [0] * 16
        assert page.reasons(klass) == [0] * 32
        assert page.histogram(klass, counters.Histogram.RUN) == ([0] * 82, 0.0)
    assert [page.slot(i) for i in range(SLOTS)] == [(0, 0, 0, counters.SlotState.EMPTY, 0, 0, 0, b"")] * SLOTS
    assert [page.gpu_read(i) for i in range(64)] == [None] * 64
    assert page.host_read() is None
    assert page.get_global(counters.Global.TELEMETRY) == counters.Telemetry.UNWATCHED


def test_the_file_is_private_and_alone_in_its_folder(page, path):
    assert path.stat().st_mode & 0o7777 == 0o600
    assert os.listdir(path.parent) == ["queue.page"]


def test_all_of_the_page_is_on_the_disk_from_the_start(path):
    """A hole in it would be filled at first touch, and killed with SIGBUS where the disk is full then."""
    with compiled.Page.create(path, "q", CLASSES, 4096):
        assert path.stat().st_blocks * 512 >= path.stat().st_size


def test_a_new_page_takes_the_place_of_the_old_whose_readers_keep_theirs(counters, page, path):
    page.add(0, 0)
    with counters.Page.attach(path) as reader, counters.Page.create(path, "q-2", ["only"], 0) as second:
        assert (reader.queue_id, reader.counter(0, 0)) == ("q-1", 1)
        assert (second.queue_id, second.classes, second.counter(0, 0)) == ("q-2", ("only",), 0)
        with counters.Page.attach(path) as other:
            assert other.queue_id == "q-2"


def test_no_add_is_lost_between_processes(counters, page):
    processes, adds = (4, 200_000) if counters is compiled else (4, 50)

    def work():
        for _ in range(adds):
            page.add(1, counters.Counter.DONE)
            page.add_global(counters.Global.FSYNCS)

    children = Children()
    for _ in range(processes):
        children.start(work)
    children.open()
    children.join()
    assert page.counter(1, counters.Counter.DONE) == processes * adds
    assert page.get_global(counters.Global.FSYNCS) == processes * adds


def test_no_observation_is_lost_between_processes(counters, page):
    processes, times = (4, 50_000) if counters is compiled else (3, 30)

    def work():
        for _ in range(times):
            page.observe(0, counters.Histogram.WAIT, 0.25)

    children = Children()
    for _ in range(processes):
        children.start(work)
    children.open()
    children.join()
    counts, total_s = page.histogram(0, counters.Histogram.WAIT)
    assert sum(counts) == processes * times
    assert total_s == processes * times * 0.25


STOP = 63  # a global that nothing else uses: the reader tells the writer that it has seen enough


def seen_while(page, write, look, enough):
    """Let a process write(1), write(2) ... and look() until it returned that many different numbers; look() asserts.

    On a machine so busy that the two seldom run at once, fewer do after five seconds.
    """

    def work():
        i = 0
        while not page.get_global(STOP):
            i += 1
            write(i)

    children = Children()
    children.start(work)
    children.open()
    seen = set()
    begun = time.monotonic()
    try:
        while len(seen) < enough and not (len(seen) > 100 and time.monotonic() > begun + 5):
            assert time.monotonic() < begun + 60, "reader and writer never met"
            seen.add(look())
    finally:
        page.set_global(STOP, 1)
        children.join()


def test_a_record_of_a_slot_is_never_torn(counters, page):
    State = counters.SlotState

    def write(i):
        page.slot_set(2, i, i, i, State.IDLE)
        page.slot_begin(2, i, i, b"%08d" % i * 26)

    def look():
        slot = page.slot(2)
        n = slot.pid
        busy = (n, n, n, State.BUSY, n, n, 0, b"%08d" % n * 26)
        assert slot in (busy, (n, n, n, State.IDLE, 0, 0, 0, b""), (0, 0, 0, State.EMPTY, 0, 0, 0, b""))
        return n

    seen_while(page, write, look, 50_000 if counters is compiled else 5)


def test_a_sample_of_a_gpu_is_never_torn(counters, page):
    def write(i):
        n = b"%d" % i
        page.gpu_write(5, n, dict.fromkeys(range(32), i), i, i % 7, i, n * 3, n, [(i, i)] * (i % 33))

    def look():
        sample = page.gpu_read(5)
        if sample is None:
            return 0
        n = int(sample.at)
        text = b"%d" % n
        assert sample == (text, (n,) * 32, n, n % 7, n, text * 3, text, ((n, n),) * (n % 33))
        return n

    seen_while(page, write, look, 20_000 if counters is compiled else 5)


def test_two_writers_of_one_slot_lose_no_task(counters, page):
    processes, tasks = (2, 100_000) if counters is compiled else (2, 50)

    def work():
        for _ in range(tasks):
            page.slot_end(0)

    children = Children()
    for _ in range(processes):
        children.start(work)
    children.open()
    children.join()
    assert page.slot(0).tasks == processes * tasks


def test_a_writer_that_died_in_a_slot_holds_nobody_up_for_long(path):
    with compiled.Page.create(path, "q", CLASSES, SLOTS) as page:
        page.slot_set(SLOTS - 1, 11, 1, 0, compiled.SlotState.IDLE)
        with open(path, "r+b") as file:
            file.seek(-576 + 8, os.SEEK_END)  # the lock of the last slot: a process that was killed with it
            file.write(struct.pack("<Q", 4711 << 32 | 1))
        began = time.monotonic()
        assert page.slot(SLOTS - 1).pid == 11
        assert time.monotonic() - began < 0.05
        page.slot_begin(SLOTS - 1, 5, 6, b"a.json")
        assert time.monotonic() - began < 5
        assert page.slot(SLOTS - 1).name == b"a.json"
        began = time.monotonic()
        page.slot_end(SLOTS - 1)
        assert time.monotonic() - began < 0.05


def test_a_slot_tells_the_life_of_its_worker(counters, page):
    State = counters.SlotState
    page.slot_set(1, 0, 7, 2, State.STARTING)
    assert page.slot(1) == (0, 7, 2, State.STARTING, 0, 0, 0, b"")
    page.slot_set(1, 4711, 7, 2, State.IDLE)
    page.slot_begin(1, 1000, 5000, b"a1~2x1.json")
    assert page.slot(1) == (4711, 7, 2, State.BUSY, 1000, 5000, 0, b"a1~2x1.json")
    page.slot_end(1)
    assert page.slot(1) == (4711, 7, 2, State.IDLE, 0, 0, 1, b"")
    page.slot_begin(1, 2000, 0, b"")
    page.slot_set(1, 4711, 7, 2, State.STOPPING)
    assert page.slot(1) == (4711, 7, 2, State.STOPPING, 2000, 0, 1, b"")
    page.slot_end(1)
    assert page.slot(1) == (4711, 7, 2, State.STOPPING, 0, 0, 2, b"")
    page.slot_set(1, 0, 8, 2, State.STARTING)
    assert page.slot(1) == (0, 8, 2, State.STARTING, 0, 0, 0, b"")
    assert page.slot(0).state == page.slot(2).state == State.EMPTY


def test_a_slot_keeps_the_longest_name_whole_and_refuses_a_longer_one(counters, page):
    name = bytes(random.Random(1).choices(range(1, 256), k=208))
    page.slot_begin(0, 1, 2, name)
    assert page.slot(0).name == name
    with pytest.raises(ValueError, match="at most 208"):
        page.slot_begin(0, 1, 2, name + b"x")
    assert page.slot(0).name == name


def test_a_sample_keeps_what_a_gpu_does_not_tell(counters, page):
    Value = counters.GpuValue
    known = {Value.UTILIZATION: 0.5, Value.MEMORY_FREE: 7e10, Value.POWER_W: 450, Value.FAN: math.nan}
    page.gpu_write(63, b"GPU-" + b"x" * 96, known, 12.5)
    sample = page.gpu_read(63)
    assert sample.uuid == b"GPU-" + b"x" * 96
    assert [sample.values[i] for i in (Value.UTILIZATION, Value.MEMORY_FREE, Value.POWER_W)] == [0.5, 7e10, 450]
    assert sum(map(math.isnan, sample.values)) == 32 - 3
    assert sample[2:] == (12.5, counters.GpuStatus.HEALTHY, -1, b"", b"", ())
    for uuid in (b"", b"x" * 101):
        with pytest.raises(ValueError, match="expected"):
            page.gpu_write(63, uuid, known, 13.0)
    for number in (-1, 32):
        with pytest.raises(IndexError):
            page.gpu_write(63, b"x", {number: 1.0}, 13.0)
    assert page.gpu_read(63).at == 12.5


def test_a_sample_names_the_gpu_its_slices_and_its_processes(counters, page):
    processes = [(pid, -1 if pid % 2 else pid << 30) for pid in range(40)]
    page.gpu_write(1, b"MIG-1", {}, 1.0, counters.GpuStatus.LOST, 0, b"n" * 200, b"b" * 33, processes)
    sample = page.gpu_read(1)
    assert (sample.status, sample.parent) == (counters.GpuStatus.LOST, 0)
    assert (sample.name, sample.bus) == (b"n" * 96, b"b" * 32)
    assert sample.processes == tuple(processes[:32])


def test_a_sample_of_the_host_keeps_what_it_does_not_tell(counters, page):
    Value = counters.HostValue
    page.host_write({Value.LOAD: 3.5, Value.HOST_MEMORY_LIMIT: 1 << 40}, 7.0)
    sample = page.host_read()
    assert (sample.values[Value.LOAD], sample.values[Value.HOST_MEMORY_LIMIT], sample.at) == (3.5, 2.0**40, 7.0)
    assert sum(map(math.isnan, sample.values)) == 32 - 2


def test_a_sample_of_the_host_is_never_torn(counters, page):
    def look():
        sample = page.host_read()
        assert sample is None or sample == ((sample.at,) * 32, sample.at)
        return sample and sample.at

    seen_while(
        page, lambda i: page.host_write(dict.fromkeys(range(32), i), i), look, 20_000 if counters is compiled else 5
    )


def test_changes_of_a_limit_are_counted_by_reason(counters, page):
    for reason in (0, 31, 31):
        page.count_reason(2, reason)
    assert page.reasons(2) == [1, *[0] * 30, 2]
    assert page.reasons(1) == [0] * 32


def test_the_bounds_grow_by_half_octaves_from_a_microsecond_to_twelve_days(counters):
    bounds = counters.bounds()
    assert len(bounds) == 82
    assert (bounds[0], bounds[2], bounds[80], bounds[81]) == (1e-6, 2e-6, 1e-6 * 2**40, math.inf)
    assert bounds == sorted(bounds) == reference.bounds()


def test_a_time_falls_into_the_first_bucket_whose_bound_holds_it(counters, page):
    bounds = counters.bounds()
    for i, bound in enumerate(bounds[:-1]):
        page.observe(0, 0, bound)
        page.observe(0, 0, math.nextafter(bound, math.inf))
        counts, _ = page.histogram(0, 0)
        assert counts[i] == (1 if i == 0 else 2)
        assert counts[i + 1] == 1


def test_a_time_that_cannot_be_is_bounded_or_refused(counters, page):
    for seconds in (-1.0, 0.0, math.inf, 1e300):
        page.observe(2, 1, seconds)
    counts, total_s = page.histogram(2, 1)
    assert (counts[0], counts[-1], sum(counts)) == (2, 2, 4)
    assert total_s == 2e9
    with pytest.raises(ValueError, match="nan"):
        page.observe(2, 1, math.nan)


def test_twins_agree_on_random_times(page, tmp_path):
    random_times = random.Random(7)
    with compiled.Page.create(tmp_path / "other", "q", CLASSES, 0) as other:
        for _ in range(300):
            seconds = 10 ** random_times.uniform(-8, 8)
            page.observe(0, 0, seconds)
            other.observe(0, 0, seconds)
        assert page.histogram(0, 0) == other.histogram(0, 0)


WRITES = [
    lambda page: page.add(0, 0),
    lambda page: page.set(0, 0, 1),
    lambda page: page.fail(0, 0),
    lambda page: page.add_global(0),
    lambda page: page.set_global(0, 1),
    lambda page: page.observe(0, 0, 1.0),
    lambda page: page.slot_set(0, 1, 1, 0, 1),
    lambda page: page.slot_begin(0, 1, 2, b"a"),
    lambda page: page.slot_end(0),
    lambda page: page.gpu_write(0, b"u", {0: 0.0}, 1.0, 0, -1, b"n", b"b", ((1, 2),)),
    lambda page: page.host_write({0: 0.0}, 1.0),
    lambda page: page.count_reason(0, 0),
    lambda page: page.beat(),
]
READS = [
    lambda page: page.counter(0, 0),
    lambda page: page.gauge(0, 0),
    lambda page: page.failures(0),
    lambda page: page.get_global(0),
    lambda page: page.histogram(0, 0),
    lambda page: page.slot(0),
    lambda page: page.gpu_read(0),
    lambda page: page.host_read(),
    lambda page: page.reasons(0),
    lambda page: page.heartbeat_ns,
]


def test_a_reader_cannot_write(counters, page, path):
    before = path.read_bytes()
    with counters.Page.attach(path) as reader:
        for write in WRITES:
            with pytest.raises(ValueError, match="reading only"):
                write(reader)
        for read in READS:
            read(reader)
    assert path.read_bytes() == before


def test_who_attaches_to_write_can(counters, page, path):
    with counters.Page.attach(path, writable=True) as writer:
        for write in WRITES:
            write(writer)
    assert page.counter(0, 0) == 1
    assert page.slot(0).tasks == 1


def test_a_closed_page_says_so(counters, path):
    page = counters.Page.create(path, "q", CLASSES, SLOTS)
    page.close()
    page.close()
    for use in WRITES + READS:
        with pytest.raises(ValueError, match="closed"):
            use(page)


@pytest.mark.parametrize(
    "use",
    [
        lambda page, bad: page.add(bad, 0),
        lambda page, bad: page.add(0, bad),
        lambda page, bad: page.counter(bad, 0),
        lambda page, bad: page.counter(0, bad),
        lambda page, bad: page.set(bad, 0, 1),
        lambda page, bad: page.set(0, bad, 1),
        lambda page, bad: page.gauge(0, bad),
        lambda page, bad: page.fail(bad, 0),
        lambda page, bad: page.fail(0, bad),
        lambda page, bad: page.failures(bad),
        lambda page, bad: page.add_global(bad),
        lambda page, bad: page.set_global(bad, 1),
        lambda page, bad: page.get_global(bad),
        lambda page, bad: page.observe(bad, 0, 1.0),
        lambda page, bad: page.observe(0, bad, 1.0),
        lambda page, bad: page.histogram(bad, 0),
        lambda page, bad: page.histogram(0, bad),
        lambda page, bad: page.slot_set(bad, 0, 0, 0, 0),
        lambda page, bad: page.slot_begin(bad, 0, 0, b""),
        lambda page, bad: page.slot_end(bad),
        lambda page, bad: page.slot(bad),
        lambda page, bad: page.gpu_write(bad, b"u", {}, 1.0),
        lambda page, bad: page.count_reason(bad, 0),
        lambda page, bad: page.count_reason(0, bad),
        lambda page, bad: page.reasons(bad),
        lambda page, bad: page.gpu_read(bad),
    ],
)
def test_a_place_that_is_not_on_the_page_is_an_index_error(page, path, use):
    before = path.read_bytes()
    for bad in (-1, 64, 2**31 - 1, -(2**31)):
        with pytest.raises(IndexError):
            use(page, bad)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("classes", "slots", "queue_id"),
    [
        ([], 1, "q"),
        (["a", "a"], 1, "q"),
        ([""], 1, "q"),
        (["a\0b"], 1, "q"),
        (["x" * 128], 1, "q"),
        ([str(i) for i in range(65)], 1, "q"),
        (["a"], -1, "q"),
        (["a"], 65537, "q"),
        (["a"], 1, "q" * 65),
        (["a"], 1, "q\0"),
    ],
)
def test_a_page_that_cannot_be_is_refused_before_a_file_is_made(counters, path, classes, slots, queue_id):
    with pytest.raises(ValueError, match="expected"):
        counters.Page.create(path, queue_id, classes, slots)
    assert os.listdir(path.parent) == []


def test_the_largest_names_come_back_whole(counters, path):
    names = ("ä" * 63, "x" * 127, "y")
    with counters.Page.create(path, "i" * 64, names, 1), counters.Page.attach(path) as reader:
        assert reader.classes == names
        assert reader.queue_id == "i" * 64


def test_another_layout_is_refused_in_words(counters, page, path):
    with open(path, "r+b") as file:
        file.seek(8)
        file.write(struct.pack("<I", 2))
    with pytest.raises(ValueError, match=r"queue\.page has layout 2, this program reads layout 3: restart the superv"):
        counters.Page.attach(path)


def test_a_file_that_is_no_page_is_refused_in_words(counters, path):
    for content in (b"", b"x", b"{}" * 50_000):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is no page of dspy-supervisor: it begins with"):
            counters.Page.attach(path)


def test_a_page_of_another_size_is_refused_in_words(counters, page, path):
    whole = path.read_bytes()
    for size in (8, 11, 12, 24, 100, 3000, len(whole) - 1, len(whole) + 1):
        path.write_bytes(whole[:size].ljust(size, b"\0"))
        with pytest.raises(ValueError, match="damaged; restart the supervisor"):
            counters.Page.attach(path)


def test_a_header_that_lies_about_its_counts_is_refused_in_words(path):
    with compiled.Page.create(path, "q", CLASSES, SLOTS):
        whole = path.read_bytes()
    for offset, value in [(12, 0), (12, 5), (12, 2**32 - 1), (16, 5), (16, 2**32 - 1), (20, 0), (20, 17), (24, 0)]:
        path.write_bytes(whole[:offset] + struct.pack("<I", value) + whole[offset + 4 :])
        with pytest.raises(ValueError, match="damaged; restart the supervisor"):
            compiled.Page.attach(path)


def test_a_link_a_folder_and_a_fifo_are_no_page(counters, page, path):
    (path.parent / "link").symlink_to(path)
    os.mkfifo(path.parent / "fifo")
    open_descriptors = descriptors()
    for name in ("link", "fifo", ".", "absent"):
        with pytest.raises((OSError, ValueError)):
            counters.Page.attach(path.parent / name)
    assert descriptors() == open_descriptors


def test_a_page_that_a_stranger_owns_is_refused(path):
    with compiled.Page.create(path, "q", CLASSES, SLOTS):
        pass
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chmod(path.parent, 0o755)
    os.chmod(path, 0o644)
    os.chown(path, 1001, 1001)
    folder = os.open(path.parent, os.O_RDONLY)  # tmp_path itself lies where a stranger may not look

    def work():
        os.fchdir(folder)
        os.setresuid(1002, 1002, 1002)
        with pytest.raises(ValueError, match="belongs to user 1001"):
            compiled.Page.attach("queue.page")

    children = Children()
    children.start(work)
    children.open()
    children.join()
    os.close(folder)


def test_a_page_that_does_not_fit_on_the_disk_is_an_error_and_leaves_nothing(path):
    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
        open_descriptors = descriptors()
        with pytest.raises(OSError, match="File too large"):
            compiled.Page.create(path, "q", CLASSES, 4096)
        assert descriptors() == open_descriptors
        assert os.listdir(path.parent) == []

    children = Children()
    children.start(work)
    children.open()
    children.join()


def test_creating_in_a_missing_folder_leaks_nothing(counters, tmp_path):
    open_descriptors = descriptors()
    for _ in range(20):
        with pytest.raises(FileNotFoundError):
            counters.Page.create(tmp_path / "absent" / "page", "q", CLASSES, SLOTS)
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        counters.Page.create(tmp_path / "folder", "q", CLASSES, SLOTS)
    assert descriptors() == open_descriptors
    assert os.listdir(tmp_path) == ["folder"]


def test_both_twins_name_the_same_numbers():
    for name in (
        *("Counter", "Gauge", "Global", "Histogram", "SlotState"),
        *("Telemetry", "GpuStatus", "GpuValue", "HostValue"),
    ):
        ours = getattr(compiled, name).__members__
        assert {key: int(value) for key, value in ours.items()} == dict(getattr(reference, name).__members__)


def test_every_cause_has_a_place():
    assert len(Cause) <= 16


def test_the_size_of_layout_3_stays(tmp_path):
    """Whoever changes a struct of counters.pxd changes its LAYOUT, and then this."""
    sizes = []
    for classes, slots in [(1, 0), (2, 0), (1, 1)]:
        compiled.Page.create(tmp_path / "page", "q", CLASSES[:classes], slots).close()
        sizes.append((tmp_path / "page").stat().st_size)
    head, klass, slot = sizes[0], sizes[1] - sizes[0], sizes[2] - sizes[0]
    assert (head - klass, klass, slot) == (4288 + 704 + 64 * 2240 + 64 * 128, 6528, 576)
    assert (tmp_path / "page").read_bytes()[:12] == b"DSPYPAGE" + struct.pack("<I", 3)


def test_many_thousand_uses_leave_no_memory_behind(path):
    with compiled.Page.create(path, "q", CLASSES, SLOTS) as page:

        def use(times):
            for i in range(times):
                for write in WRITES:
                    write(page)
                for read in READS:
                    read(page)
                with pytest.raises(IndexError):
                    page.add(99, i)
                with compiled.Page.attach(path) as reader:
                    reader.slot(0)

        use(500)
        before, open_descriptors = rss_bytes(), descriptors()
        use(5000)
        assert rss_bytes() - before < 1 << 20
        assert descriptors() == open_descriptors


def test_mapped_pages_are_given_back(path):
    def mappings():
        return Path("/proc/self/maps").read_text().count("queue.page")

    page = compiled.Page.create(path, "q", CLASSES, SLOTS)
    assert mappings() == 1
    reader = compiled.Page.attach(path)
    assert mappings() == 2
    page.close()
    del reader
    assert mappings() == 0
