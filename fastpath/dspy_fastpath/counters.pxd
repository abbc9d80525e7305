"""The shared page: the one definition of its layout, for C and, through the enums, for Python.

::

    Header | one ClassBlock a class | GPUS GpuBlocks | one SlotBlock a worker slot

Every counter and gauge has a cache line of its own, so that two writers never pull one line back and forth. What must
be read together (a slot, a GPU's sample) is kept twice: a writer fills the copy that is not shown and then advances
``turn``, whose lowest bit says which copy is. A writer that dies half way leaves the shown copy whole.

A change of any struct, constant or order here is a new LAYOUT.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t


cdef enum:
    LAYOUT = 1
    MAX_CLASSES = 64
    MAX_SLOTS = 65536
    COUNTERS = 16  # places a class, so that a new counter is no new layout
    GAUGES = 16
    CAUSES = 12
    GLOBALS = 32
    HISTOGRAMS = 2
    BUCKETS = 82  # 1 us to 1.1e6 s in half octaves, and one above
    BUCKET_PLACES = 88  # whole cache lines
    GPUS = 16
    GPU_VALUES = 7
    CLASS_NAME = 128  # bytes, zero-terminated
    QUEUE_ID = 64  # bytes, zero-filled
    UUID = 100  # bytes; NVML's buffers have 96
    TASK_NAME = 208  # bytes


cpdef enum Counter:
    CLAIMED
    DONE
    FAILED  # tasks that ended in failed/
    RETRIED
    RESTARTS  # of workers
    REFUSED  # files that went to quarantine/


cpdef enum Gauge:
    PENDING
    INFLIGHT
    LIMIT
    WORKERS
    STATE  # 0 running, 1 paused, 2 failed
    LIMIT_REASON
    DELAYED


cpdef enum Global:
    SWEEPS
    OVERFLOWS
    LOST_WATCHES
    DRIFT  # tasks by which a recount corrected the gauges
    FSYNCS
    QUARANTINED
    UNSCANNED
    TOTAL_PENDING
    MAX_PENDING


cpdef enum Histogram:
    WAIT  # from the task's arrival to its start
    RUN


cpdef enum SlotState:
    EMPTY
    STARTING
    IDLE
    BUSY
    STOPPING


cdef struct Cell:
    int64_t value
    char rest[56]


cdef struct Header:
    char magic[8]
    uint32_t layout
    uint32_t classes
    uint32_t slots
    uint32_t gpus
    uint64_t size  # bytes of the whole page
    int64_t pid  # of the supervisor
    double started_at  # seconds since the epoch
    char rest[16]
    char queue_id[QUEUE_ID]
    Cell heartbeat_ns  # CLOCK_MONOTONIC
    Cell globals[GLOBALS]


cdef struct HistogramBlock:
    Cell sum_ns
    int64_t counts[BUCKET_PLACES]


cdef struct ClassBlock:
    char name[CLASS_NAME]
    Cell counters[COUNTERS]
    Cell gauges[GAUGES]
    Cell causes[CAUSES]
    HistogramBlock histograms[HISTOGRAMS]


cdef struct Latch:
    uint64_t turn  # advances with every write; its lowest bit is the copy to read
    uint64_t writer  # 0, or (pid << 32 | low bits of turn) of the writer at work
    char rest[48]


cdef struct SlotRecord:
    int64_t incarnation
    int64_t start_ns  # CLOCK_MONOTONIC
    int64_t deadline_ns  # CLOCK_MONOTONIC, 0 for none
    int64_t tasks  # ended in this incarnation
    int32_t pid
    int32_t klass
    int32_t state
    int32_t name_size
    char name[TASK_NAME]


cdef struct SlotBlock:
    Latch latch
    SlotRecord copies[2]


cdef struct GpuRecord:
    double at
    double values[GPU_VALUES]
    int32_t uuid_size
    char uuid[UUID]
    char rest[24]


cdef struct GpuBlock:
    Latch latch
    GpuRecord copies[2]
