# cython: autotestdict=False
"""The page of numbers that supervisor, workers and readers share; its layout is counters.pxd.

Numbers here are hints for people and controllers: the folders are the truth, and a recount mends what is off. Adds are
atomic, so that none is lost between processes. The file is one page of one run: it is made anew at every start, and a
program of another layout is told so in words.
"""

import math
import os
import stat
import time
from collections import namedtuple

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport errno
from libc.string cimport memcpy, memset


cdef extern from * nogil:
    """
    #include <stdint.h>
    #define page_load(cell) __atomic_load_n((cell), __ATOMIC_RELAXED)
    #define page_load_acquire(cell) __atomic_load_n((cell), __ATOMIC_ACQUIRE)
    #define page_store(cell, value) __atomic_store_n((cell), (value), __ATOMIC_RELAXED)
    #define page_release(cell, value) __atomic_store_n((cell), (value), __ATOMIC_RELEASE)
    #define page_add(cell, n) ((void)__atomic_fetch_add((cell), (n), __ATOMIC_RELAXED))
    #define page_fence_acquire() __atomic_thread_fence(__ATOMIC_ACQUIRE)
    #define page_fence_release() __atomic_thread_fence(__ATOMIC_RELEASE)
    static inline int page_swap(uint64_t *cell, uint64_t *expected, uint64_t desired) {
        return __atomic_compare_exchange_n(cell, expected, desired, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
    }
    """
    int64_t page_load(int64_t *cell)
    uint64_t page_load_acquire(uint64_t *cell)
    int64_t page_acquire "page_load_acquire"(int64_t *cell)
    void page_store(int64_t *cell, int64_t value)
    void page_release(int64_t *cell, int64_t value)
    void page_add(int64_t *cell, int64_t n)
    void page_fence_acquire()
    void page_fence_release()
    bint page_swap(uint64_t *cell, uint64_t *expected, uint64_t desired)

cdef extern from "<sys/mman.h>" nogil:
    const int PROT_READ, PROT_WRITE, MAP_SHARED
    void *MAP_FAILED
    void *mmap(void *address, size_t size, int protection, int flags, int descriptor, long long offset)
    int munmap(void *address, size_t size)

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from "<unistd.h>" nogil:
    int getpid()

cdef extern from "<time.h>" nogil:
    struct timespec:
        long long tv_sec
        long long tv_nsec
    const int CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec *now)

cdef const char *MAGIC = b"DSPYPAGE"
cdef enum:
    PATIENCE_NS = 100000000  # how long a write of 50 ns may take: its process may have lost the processor in it
cdef double[BUCKETS] BOUNDS  # seconds, upper ends
cdef int _bucket
for _bucket in range(BUCKETS - 1):
    BOUNDS[_bucket] = 1e-6 * 2.0 ** (_bucket / 2.0)
BOUNDS[BUCKETS - 1] = math.inf

SlotView = namedtuple(
    "SlotView",
    ("pid", "incarnation", "klass", "state", "start_ns", "deadline_ns", "tasks", "name"),
    module="dspy_fastpath.counters",
)
SlotView.__doc__ = "What a worker slot was at one moment; times are CLOCK_MONOTONIC in ns, 0 for none."
GpuView = namedtuple(
    "GpuView",
    ("uuid", "values", "at", "status", "parent", "name", "bus", "processes"),
    module="dspy_fastpath.counters",
)
GpuView.__doc__ = """The last sample of one GPU: values by GpuValue, nan for what it does not tell, and (pid, bytes) of
its processes, -1 for what is not told; taken at CLOCK_MONOTONIC ``at``, in seconds."""
HostView = namedtuple("HostView", ("values", "at"), module="dspy_fastpath.counters")
HostView.__doc__ = "The last sample of the host: values by HostValue, nan for what it does not tell, and when."


def bounds():
    """Return the upper bounds of a histogram's buckets in seconds, each inside its bucket; the last is inf."""
    return [BOUNDS[i] for i in range(BUCKETS)]


cdef size_t size_of(size_t classes, size_t slots) noexcept:
    return (
        sizeof(Header)
        + classes * sizeof(ClassBlock)
        + sizeof(HostBlock)
        + GPUS * sizeof(GpuBlock)
        + BUDGETS * sizeof(BudgetBlock)
        + slots * sizeof(SlotBlock)
    )


cdef int64_t now_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec * 1000000000 + now.tv_nsec


cdef uint64_t lock(Latch *latch) noexcept nogil:
    # One writer at a time. The word is another for every write, so that one that stays so long is of a writer that is
    # dead or frozen: the lock is taken from it, and what it had begun is a copy that nobody reads.
    cdef uint64_t mine, holder
    cdef uint64_t last = 0
    cdef int64_t since = 0
    while True:
        mine = (<uint64_t>getpid() << 32) | <uint32_t>page_load_acquire(&latch.turn)
        holder = 0
        if page_swap(&latch.writer, &holder, mine):
            return mine
        if holder != last:
            last = holder
            since = now_ns()
        elif now_ns() - since > PATIENCE_NS and page_swap(&latch.writer, &holder, mine):
            return mine
        sched_yield()


cdef void show(Latch *latch, uint64_t turn, uint64_t mine) noexcept nogil:
    # Both fail for a writer that was frozen and lost the lock: turn never goes back.
    page_swap(&latch.turn, &turn, turn + 1)
    page_swap(&latch.writer, &mine, 0)


cdef void read_latched(Latch *latch, const char *copies, size_t size, char *target) noexcept nogil:
    # A copy is rewritten only after turn has gone on from it, so that an unchanged turn proves the bytes one write's.
    # Each new try means that a writer finished meanwhile.
    cdef uint64_t turn
    while True:
        turn = page_load_acquire(&latch.turn)
        memcpy(target, copies + (turn & 1) * size, size)
        page_fence_acquire()
        if page_load_acquire(&latch.turn) == turn:
            return


@cython.final
@cython.auto_pickle(False)
cdef class Page:
    """One mapped page. It works on in a forked child; close it, or use it as a context manager.

    Classes are numbered by their place in ``classes``, counters and gauges by the enums of this module.
    """

    def __cinit__(self):
        self.base = NULL

    def __init__(self):
        raise TypeError("a Page comes from Page.create() or Page.attach()")

    def __dealloc__(self):
        if self.base != NULL:
            munmap(self.base, self.size)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Unmap the page; the file stays. A second time does nothing."""
        if self.base != NULL:
            munmap(self.base, self.size)
            self.base = NULL

    @classmethod
    def create(cls, path, str queue_id not None, classes, int slots):
        """Make a new page (mode 0600) and put it at path, over the page of an earlier run.

        Its memory is reserved, so that a full filesystem is an OSError here and no SIGBUS later.
        """
        names = tuple(str(name) for name in classes)
        encoded = [name.encode() for name in names]
        identity = queue_id.encode()
        if not 1 <= len(names) <= MAX_CLASSES or len(set(names)) != len(names):
            raise ValueError(f"classes={names!r}: expected 1 to {MAX_CLASSES} different names")
        for name in encoded:
            if not 1 <= len(name) < CLASS_NAME or b"\0" in name:
                raise ValueError(f"class {name!r}: expected 1 to {CLASS_NAME - 1} bytes without NUL")
        if len(identity) > QUEUE_ID or b"\0" in identity:
            raise ValueError(f"queue_id={queue_id!r}: expected at most {QUEUE_ID} bytes without NUL")
        if not 0 <= slots <= MAX_SLOTS:
            raise ValueError(f"slots={slots}: expected 0 to {MAX_SLOTS}")
        place = os.fsdecode(path)
        folder, file_name = os.path.split(place)
        unfinished = os.path.join(folder, f".{file_name}.{os.getpid()}.{os.urandom(8).hex()}.tmp")
        cdef size_t size = size_of(len(names), slots)
        descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
            page = mapped(descriptor, size, True, place)
            fill(page, identity, encoded, slots)
            describe(page)
            os.rename(unfinished, place)
        except BaseException:
            os.unlink(unfinished)
            raise
        finally:
            os.close(descriptor)
        return page

    @classmethod
    def attach(cls, path, bint writable=False):
        """Map the page of a running supervisor, to read or also to write.

        ValueError says in words why a file is no page that this program can read. FileNotFoundError: there is none.
        """
        cdef Header header
        place = os.fsdecode(path)
        access = os.O_RDWR if writable else os.O_RDONLY
        descriptor = os.open(place, access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise ValueError(f"{place} is no regular file, and so no page")
            if os.geteuid() and found.st_uid not in (0, os.geteuid()):
                raise ValueError(f"{place} belongs to user {found.st_uid}, who could change it under its reader")
            head = os.pread(descriptor, sizeof(Header), 0)
            if head[:8] != MAGIC[:8]:
                raise ValueError(f"{place} is no page of dspy-supervisor: it begins with {head[:8]!r}")
            if len(head) < 12:
                raise ValueError(f"{place} has only {len(head)} bytes: it is damaged; restart the supervisor")
            layout = int.from_bytes(head[8:12], "little")
            if layout != LAYOUT:
                raise ValueError(
                    f"{place} has layout {layout}, this program reads layout {LAYOUT}: "
                    f"restart the supervisor, so that both are of one version"
                )
            if len(head) < <Py_ssize_t>sizeof(Header):
                raise ValueError(f"{place} has only {len(head)} bytes: it is damaged; restart the supervisor")
            memcpy(&header, <const char *>head, sizeof(Header))
            if not (1 <= header.classes <= MAX_CLASSES and header.slots <= MAX_SLOTS and header.gpus == GPUS):
                raise ValueError(
                    f"{place} says it has {header.classes} classes, {header.slots} slots and {header.gpus} GPUs: "
                    f"it is damaged; restart the supervisor"
                )
            size = size_of(header.classes, header.slots)
            if not header.size == size == found.st_size:
                raise ValueError(
                    f"{place} has {found.st_size} bytes, its header says {header.size}, its content needs {size}: "
                    f"it is damaged; restart the supervisor"
                )
            page = mapped(descriptor, size, writable, place)
            describe(page)
            return page
        finally:
            os.close(descriptor)

    cdef int check(self, bint writing) except -1:
        if self.base == NULL:
            raise ValueError("the page is closed")
        if writing and not self.writable:
            raise ValueError("the page is attached for reading only")
        return 0

    cdef ClassBlock *block(self, int klass, int number, int places, bint writing) except NULL:
        self.check(writing)
        if not 0 <= klass < self.class_count:
            raise IndexError(f"class {klass}: this page has {self.class_count}")
        if not 0 <= number < places:
            raise IndexError(f"number {number}: expected 0 to {places - 1}")
        return &self.class_blocks[klass]

    @property
    def heartbeat_ns(self):
        """CLOCK_MONOTONIC in ns when the supervisor last said that it is alive; 0 before the first time."""
        self.check(False)
        return page_load(&self.header.heartbeat_ns.value)

    def beat(self):
        """Say that the supervisor is alive now."""
        self.check(True)
        page_store(&self.header.heartbeat_ns.value, time.monotonic_ns())

    def add(self, int klass, int counter, long long n=1):
        """Add to a counter of a class; no add of any process is lost."""
        page_add(&self.block(klass, counter, COUNTERS, True).counters[counter].value, n)

    def counter(self, int klass, int counter):
        """Return a counter of a class."""
        return page_load(&self.block(klass, counter, COUNTERS, False).counters[counter].value)

    def set(self, int klass, int gauge, long long value):
        """Set a gauge of a class."""
        page_store(&self.block(klass, gauge, GAUGES, True).gauges[gauge].value, value)

    def gauge(self, int klass, int gauge):
        """Return a gauge of a class."""
        return page_load(&self.block(klass, gauge, GAUGES, False).gauges[gauge].value)

    def fail(self, int klass, int cause):
        """Count an attempt that did not succeed by its cause: the place in task.Cause. FAILED is counted apart."""
        page_add(&self.block(klass, cause, CAUSES, True).causes[cause].value, 1)

    def failures(self, int klass):
        """Return how many attempts of a class did not succeed, by cause."""
        cdef ClassBlock *found = self.block(klass, 0, 1, False)
        return [page_load(&found.causes[i].value) for i in range(CAUSES)]

    def count_reason(self, int klass, int reason):
        """Count a change of a class's limit by its reason."""
        page_add(&self.block(klass, reason, REASONS, True).reasons[reason], 1)

    def reasons(self, int klass):
        """Return how often the limit of a class was changed, by reason."""
        cdef ClassBlock *found = self.block(klass, 0, 1, False)
        return [page_load(&found.reasons[i]) for i in range(REASONS)]

    cdef int64_t *global_cell(self, int number, bint writing) except NULL:
        self.check(writing)
        if not 0 <= number < GLOBALS:
            raise IndexError(f"number {number}: expected 0 to {GLOBALS - 1}")
        return &self.header.globals[number].value

    def add_global(self, int number, long long n=1):
        """Add to a counter that belongs to no class."""
        page_add(self.global_cell(number, True), n)

    def set_global(self, int number, long long value):
        """Set a gauge that belongs to no class; who reads it sees what was written to the page before."""
        page_release(self.global_cell(number, True), value)

    def get_global(self, int number):
        """Return a counter or gauge that belongs to no class."""
        return page_acquire(self.global_cell(number, False))

    def observe(self, int klass, int which, double seconds):
        """Count one time in a histogram of a class; below 0 counts as 0, above 1e9 s as 1e9 s."""
        cdef HistogramBlock *found = &self.block(klass, which, HISTOGRAMS, True).histograms[which]
        cdef int low = 0
        cdef int high = BUCKETS - 1
        cdef int middle
        if math.isnan(seconds):
            raise ValueError("a time of nan seconds")
        seconds = min(max(seconds, 0.0), 1e9)
        while low < high:
            middle = (low + high) // 2
            if seconds <= BOUNDS[middle]:
                high = middle
            else:
                low = middle + 1
        page_add(&found.counts[low], 1)
        page_add(&found.sum_ns.value, <int64_t>(seconds * 1e9 + 0.5))

    def histogram(self, int klass, int which):
        """Return (counts, sum in seconds): a count for each of bounds(), not cumulative."""
        cdef HistogramBlock *found = &self.block(klass, which, HISTOGRAMS, False).histograms[which]
        return [page_load(&found.counts[i]) for i in range(BUCKETS)], page_load(&found.sum_ns.value) / 1e9

    cdef SlotBlock *slot_block(self, int slot, bint writing) except NULL:
        self.check(writing)
        if not 0 <= slot < self.slots:
            raise IndexError(f"slot {slot}: this page has {self.slots}")
        return &self.slot_blocks[slot]

    def slot_set(self, int slot, int pid, long long incarnation, int klass, int state):
        """Say who is in a slot; a new incarnation begins with no task and a count of 0."""
        cdef SlotBlock *found = self.slot_block(slot, True)
        cdef uint64_t mine = lock(&found.latch)
        cdef uint64_t turn = page_load_acquire(&found.latch.turn)
        cdef SlotRecord record = found.copies[turn & 1]
        if record.incarnation != incarnation:
            memset(&record, 0, sizeof(SlotRecord))
        record.pid = pid
        record.incarnation = incarnation
        record.klass = klass
        record.state = state
        page_fence_release()
        found.copies[(turn + 1) & 1] = record
        show(&found.latch, turn, mine)

    def slot_begin(self, int slot, long long start_ns, long long deadline_ns, bytes name not None):
        """Say that the worker in a slot is busy with a task until deadline_ns (0: no deadline)."""
        cdef SlotBlock *found = self.slot_block(slot, True)
        cdef Py_ssize_t size = len(name)
        if size > TASK_NAME:
            raise ValueError(f"a task's name of {size} bytes: expected at most {TASK_NAME}")
        cdef uint64_t mine = lock(&found.latch)
        cdef uint64_t turn = page_load_acquire(&found.latch.turn)
        cdef SlotRecord record = found.copies[turn & 1]
        record.state = SlotState.BUSY
        record.start_ns = start_ns
        record.deadline_ns = deadline_ns
        record.name_size = <int32_t>size
        memcpy(record.name, <const char *>name, size)
        page_fence_release()
        found.copies[(turn + 1) & 1] = record
        show(&found.latch, turn, mine)

    def slot_end(self, int slot):
        """Say that the task of a slot ended: idle again, unless it was to stop."""
        cdef SlotBlock *found = self.slot_block(slot, True)
        cdef uint64_t mine = lock(&found.latch)
        cdef uint64_t turn = page_load_acquire(&found.latch.turn)
        cdef SlotRecord record = found.copies[turn & 1]
        if record.state == SlotState.BUSY:
            record.state = SlotState.IDLE
        record.tasks += 1
        record.start_ns = record.deadline_ns = 0
        record.name_size = 0
        page_fence_release()
        found.copies[(turn + 1) & 1] = record
        show(&found.latch, turn, mine)

    def slot(self, int slot):
        """Return what a slot is, as one writer wrote it."""
        cdef SlotBlock *found = self.slot_block(slot, False)
        cdef SlotRecord record
        read_latched(&found.latch, <const char *>found.copies, sizeof(SlotRecord), <char *>&record)
        return SlotView(
            record.pid,
            record.incarnation,
            record.klass,
            record.state,
            record.start_ns,
            record.deadline_ns,
            record.tasks,
            PyBytes_FromStringAndSize(record.name, min(max(record.name_size, 0), TASK_NAME)),
        )

    cdef GpuBlock *gpu_block(self, int gpu, bint writing) except NULL:
        self.check(writing)
        if not 0 <= gpu < GPUS:
            raise IndexError(f"GPU {gpu}: a page has room for {GPUS}")
        return &self.gpu_blocks[gpu]

    def gpu_write(
        self,
        int gpu,
        bytes uuid not None,
        values not None,
        double at,
        int status=0,
        int parent=-1,
        bytes name not None=b"",
        bytes bus not None=b"",
        processes=(),
    ):
        """Write the sample of a GPU, taken at CLOCK_MONOTONIC ``at`` in seconds.

        values: a mapping by GpuValue; what it leaves out is nan. name and bus are cut to their places, and so are
        processes, pairs of pid and bytes (-1: not told).
        """
        cdef GpuBlock *found = self.gpu_block(gpu, True)
        cdef GpuRecord record
        cdef int i
        if not 1 <= len(uuid) <= UUID:
            raise ValueError(f"uuid={uuid!r}: expected 1 to {UUID} bytes")
        memset(&record, 0, sizeof(GpuRecord))
        record.at = at
        record.status = status
        record.parent = parent
        put_values(record.values, GPU_VALUES, values)
        name, bus = name[:GPU_NAME], bus[:BUS_ID]
        record.uuid_size = <int32_t>len(uuid)
        memcpy(record.uuid, <const char *>uuid, record.uuid_size)
        record.name_size = <int32_t>len(name)
        memcpy(record.name, <const char *>name, record.name_size)
        record.bus_size = <int32_t>len(bus)
        memcpy(record.bus, <const char *>bus, record.bus_size)
        for i, (pid, memory) in enumerate(processes[:GPU_PROCESSES]):
            record.processes[i].pid = pid
            record.processes[i].memory = memory
            record.listed = i + 1
        cdef uint64_t mine = lock(&found.latch)
        cdef uint64_t turn = page_load_acquire(&found.latch.turn)
        page_fence_release()
        found.copies[(turn + 1) & 1] = record
        show(&found.latch, turn, mine)

    def gpu_read(self, int gpu):
        """Return the last sample of a GPU as it was written, None where there was none."""
        cdef GpuBlock *found = self.gpu_block(gpu, False)
        cdef GpuRecord record
        cdef int i
        read_latched(&found.latch, <const char *>found.copies, sizeof(GpuRecord), <char *>&record)
        if record.uuid_size == 0:
            return None
        return GpuView(
            PyBytes_FromStringAndSize(record.uuid, min(max(record.uuid_size, 0), UUID)),
            tuple([record.values[i] for i in range(GPU_VALUES)]),
            record.at,
            record.status,
            record.parent,
            PyBytes_FromStringAndSize(record.name, min(max(record.name_size, 0), GPU_NAME)),
            PyBytes_FromStringAndSize(record.bus, min(max(record.bus_size, 0), BUS_ID)),
            tuple([
                (record.processes[i].pid, record.processes[i].memory)
                for i in range(min(max(record.listed, 0), GPU_PROCESSES))
            ]),
        )

    cdef BudgetBlock *budget_block(self, int budget, bint writing) except NULL:
        self.check(writing)
        if not 0 <= budget < BUDGETS:
            raise IndexError(f"budget {budget}: a page has room for {BUDGETS}")
        return &self.budget_blocks[budget]

    def host_write(self, values not None, double at):
        """Write the sample of the host, a mapping by HostValue taken at CLOCK_MONOTONIC ``at`` in seconds."""
        self.check(True)
        cdef HostRecord record
        memset(&record, 0, sizeof(HostRecord))
        record.at = at
        put_values(record.values, HOST_VALUES, values)
        cdef uint64_t mine = lock(&self.host_block.latch)
        cdef uint64_t turn = page_load_acquire(&self.host_block.latch.turn)
        page_fence_release()
        self.host_block.copies[(turn + 1) & 1] = record
        show(&self.host_block.latch, turn, mine)

    def host_read(self):
        """Return the last sample of the host, None where there was none."""
        self.check(False)
        cdef HostRecord record
        cdef int i
        read_latched(
            &self.host_block.latch, <const char *>self.host_block.copies, sizeof(HostRecord), <char *>&record
        )
        return HostView(tuple([record.values[i] for i in range(HOST_VALUES)]), record.at) if record.at else None


cdef int put_values(double *target, int places, values) except -1:
    cdef int i
    for i in range(places):
        target[i] = math.nan
    for number, value in values.items():
        if not 0 <= number < places:
            raise IndexError(f"value {number}: expected 0 to {places - 1}")
        target[<int>number] = value
    return 0


cdef Page mapped(int descriptor, size_t size, bint writable, str place):
    cdef Page page = Page.__new__(Page)
    cdef void *base = mmap(NULL, size, PROT_READ | (PROT_WRITE if writable else 0), MAP_SHARED, descriptor, 0)
    if base == MAP_FAILED:
        raise OSError(errno, os.strerror(errno), place)
    page.base = <char *>base
    page.size = size
    page.writable = writable
    return page


cdef int fill(Page page, bytes queue_id, list names, int slots) except -1:
    cdef Header *header = <Header *>page.base
    cdef ClassBlock *blocks = <ClassBlock *>(page.base + sizeof(Header))
    cdef bytes name
    cdef int i
    header.layout = LAYOUT
    header.classes = <uint32_t>len(names)
    header.slots = slots
    header.gpus = GPUS
    header.size = page.size
    header.pid = getpid()
    header.started_at = time.time()
    memcpy(header.queue_id, <const char *>queue_id, len(queue_id))
    for i in range(len(names)):
        name = names[i]
        memcpy(blocks[i].name, <const char *>name, len(name))
    memcpy(header.magic, MAGIC, 8)
    return 0


cdef int describe(Page page) except -1:
    # Counts are read once, here, where they were checked: what someone writes over the header later moves no pointer.
    cdef Header *header = <Header *>page.base
    cdef int i
    page.header = header
    page.class_count = header.classes
    page.slots = header.slots
    page.pid = <int>header.pid
    page.started_at = header.started_at
    page.queue_id = header.queue_id[:QUEUE_ID].rstrip(b"\0").decode(errors="replace")
    page.class_blocks = <ClassBlock *>(page.base + sizeof(Header))
    page.host_block = <HostBlock *>(page.class_blocks + page.class_count)
    page.gpu_blocks = <GpuBlock *>(page.host_block + 1)
    page.budget_blocks = <BudgetBlock *>(page.gpu_blocks + GPUS)
    page.slot_blocks = <SlotBlock *>(page.budget_blocks + BUDGETS)
    page.classes = tuple([
        page.class_blocks[i].name[:CLASS_NAME].rstrip(b"\0").decode(errors="replace") for i in range(page.class_count)
    ])
    return 0
