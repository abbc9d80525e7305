"""The shared page: the one definition of its layout, for C and, through the enums, for Python.

::

    Header | one ClassBlock a class | HostBlock | GPUS GpuBlocks | BUDGETS BudgetBlocks | one SlotBlock a worker slot

Every counter and gauge has a cache line of its own, so that two writers never pull one line back and forth. What must
be read together (a slot, the sample of a GPU or of the host) is kept twice: a writer fills the copy not shown and
then advances ``turn``, whose lowest bit says which copy is. A writer that dies half way leaves the shown copy whole.

A change of any struct, constant or order here is a new LAYOUT.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t


cdef enum:
    LAYOUT = 3
    MAX_CLASSES = 64
    MAX_SLOTS = 65536
    COUNTERS = 16  # places a class, so that a new counter is no new layout
    GAUGES = 16
    CAUSES = 16
    REASONS = 32  # of changes of a limit
    GLOBALS = 64
    HISTOGRAMS = 4
    BUCKETS = 82  # 1 us to 1.1e6 s in half octaves, and one above
    BUCKET_PLACES = 88  # whole cache lines
    GPUS = 64  # eight GPUs of seven slices each, and themselves
    GPU_VALUES = 32
    GPU_PROCESSES = 32
    HOST_VALUES = 32
    CLASS_NAME = 128  # bytes, zero-terminated
    QUEUE_ID = 64  # bytes, zero-filled
    UUID = 100  # bytes; NVML's buffers have 96
    TASK_NAME = 208  # bytes
    GPU_NAME = 96  # bytes; NVML's buffers have as many
    BUS_ID = 32  # bytes; NVML's buffers have as many
    BUDGETS = 64
    BUDGET_NAME = 56  # bytes, zero-filled
    BUDGET_VALUES = 8


cpdef enum Counter:
    CLAIMED
    DONE
    FAILED  # tasks that ended in failed/
    RETRIED
    RESTARTS  # of workers
    REFUSED  # files that went to quarantine/
    TIMEOUTS  # attempts whose time was up, whether they were tried again or not
    OOMS  # attempts that ended out of memory, likewise
    SUBMITTED  # tasks that arrived, those included that waited at the start


cpdef enum Gauge:
    PENDING
    INFLIGHT
    LIMIT
    WORKERS
    STATE  # 0 running, 1 paused, 2 failed
    LIMIT_REASON
    DELAYED
    GPU_NEED  # bytes of each GPU that tasks of late needed, as their runs showed; 0: not known
    OLDEST  # when the oldest task that waits arrived, ns since the epoch; 0: none waits


cpdef enum Global:
    SWEEPS
    OVERFLOWS
    LOST_WATCHES
    DRIFT  # tasks by which a recount corrected the gauges
    FSYNCS  # of files and folders, by workers and the supervisor
    QUARANTINED
    UNSCANNED
    TOTAL_PENDING
    MAX_PENDING
    TELEMETRY  # one of Telemetry
    GPU_SAMPLES  # rounds over all GPUs
    GPU_ERRORS  # calls of the driver's library that failed, beside those a GPU does not support
    GPU_LOSSES
    CONTROLLER_STEPS
    LIMIT_CHANGES
    SLURM_SUBMITTED
    SLURM_COMPLETED
    SLURM_FAILED
    SLURM_RUNNING
    SLURM_PENDING
    SLURM_CALLS
    SLURM_CALL_ERRORS
    SLURM_GPU_SECONDS
    ERROR_PPM  # attempts of the last minute that failed, in millionths of those that ended
    EVENTS  # that were published for others: lines of the action log


cpdef enum Histogram:
    WAIT  # from the task's arrival to its start
    RUN
    TOTAL  # from the task's arrival to its record


cpdef enum SlotState:
    EMPTY
    STARTING
    IDLE
    BUSY
    STOPPING


cpdef enum Telemetry:
    UNWATCHED  # no telemetry ran yet
    WATCHING
    NO_GPU  # no driver, or no GPU that this process may see; it looks again
    REBOOT_NEEDED  # driver and library are of two versions: what runs goes on, nothing new can start
    TROUBLED  # the library fails as a whole, and is tried anew


cpdef enum GpuStatus:
    HEALTHY
    LOST  # fell off the bus, or is no longer listed: nothing runs there any more
    NEEDS_RESET  # what runs there fails until an administrator resets it
    UNREADABLE  # the driver's library fails on it in another way


cpdef enum GpuValue:
    UTILIZATION  # 0 to 1: share of the last second or less in which a kernel ran; a duty cycle
    MEMORY_UTILIZATION  # 0 to 1: the same for the memory's bus
    MEMORY_TOTAL  # bytes
    MEMORY_FREE  # bytes: what new work can have
    MEMORY_USED  # bytes, without what the driver keeps
    MEMORY_RESERVED  # bytes the driver keeps
    POWER_W
    POWER_CAP_W
    ENERGY_J  # since the driver was loaded
    TEMPERATURE_C
    SLOWDOWN_C  # the temperature at which the GPU slows itself down
    SM_CLOCK_MHZ
    SM_CLOCK_MAX_MHZ
    MEMORY_CLOCK_MHZ
    THROTTLE  # the bits of NVML's clocks event reasons
    PROCESSES  # how many use the GPU, also those that are not listed
    PROCESS_MEMORY  # bytes of all of them
    MIG  # 1 where the GPU is cut in slices
    ECC_CORRECTED  # errors since the driver was loaded
    ECC_UNCORRECTED
    FAN  # 0 to 1
    COMPUTE_MODE  # 0 shared, 2 nobody may use it, 3 one process at a time
    COMPUTE_CAPABILITY  # 8.9


cpdef enum HostValue:
    CPUS  # that this process may use, by affinity and by quota
    CPU_BUSY  # 0 to 1, share of them in use since the last sample
    LOAD  # runnable tasks of the whole machine, mean of a minute
    PSI_CPU  # 0 to 1: share of the last 10 s in which some task waited for a processor
    PSI_MEMORY  # the same for memory
    PSI_MEMORY_FULL  # share in which all waited
    PSI_IO
    PSI_IO_FULL
    HOST_MEMORY_LIMIT  # bytes: the least that the machine and each group above allow
    HOST_MEMORY_FREE  # bytes that can still be had below each of those limits, caches counted as free
    SWAP_FREE  # bytes
    OOM_KILLS  # by the kernel in this process's group, since it was made


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
    int64_t reasons[REASONS]  # one writer, so that they may share lines
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


cdef struct GpuProcess:
    int64_t memory  # bytes, -1 where it is not told
    int32_t pid
    int32_t rest


cdef struct GpuRecord:
    double at  # CLOCK_MONOTONIC, seconds
    double values[GPU_VALUES]
    int32_t status
    int32_t parent  # the GPU a slice is cut from, by its place here; -1 for a whole one
    int32_t listed  # processes
    int32_t uuid_size
    int32_t name_size
    int32_t bus_size
    char uuid[UUID]
    char name[GPU_NAME]
    char bus[BUS_ID]
    char rest[60]
    GpuProcess processes[GPU_PROCESSES]


cdef struct GpuBlock:
    Latch latch
    GpuRecord copies[2]


cdef struct HostRecord:
    double at  # CLOCK_MONOTONIC, seconds; 0 before the first sample
    double values[HOST_VALUES]
    char rest[56]


cdef struct HostBlock:
    Latch latch
    HostRecord copies[2]


cdef struct BudgetBlock:
    uint64_t owner  # 0: nobody has the place
    char name[BUDGET_NAME]
    int64_t values[BUDGET_VALUES]


cdef class Page:
    cdef char *base
    cdef size_t size
    cdef bint writable
    cdef readonly tuple classes
    cdef readonly str queue_id
    cdef readonly int pid  # of the supervisor
    cdef readonly double started_at  # seconds since the epoch
    cdef readonly int slots
    cdef int class_count
    cdef Header *header
    cdef ClassBlock *class_blocks
    cdef HostBlock *host_block
    cdef GpuBlock *gpu_blocks
    cdef BudgetBlock *budget_blocks
    cdef SlotBlock *slot_blocks
    cdef int check(self, bint writing) except -1
    cdef ClassBlock *block(self, int klass, int number, int places, bint writing) except NULL
    cdef int64_t *global_cell(self, int number, bint writing) except NULL
    cdef SlotBlock *slot_block(self, int slot, bint writing) except NULL
    cdef GpuBlock *gpu_block(self, int gpu, bint writing) except NULL
    cdef BudgetBlock *budget_block(self, int budget, bint writing) except NULL
