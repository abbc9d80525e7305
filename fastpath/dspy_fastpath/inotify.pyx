# cython: autotestdict=False
"""A watcher of folders: inotify(7), read in one pass that allocates nothing but its result.

Events are hints. The kernel drops them when its queue is full (``overflowed``), and a folder that is deleted, moved
away or unmounted is ``lost``: its number never comes back, and whoever wants the folder again adds its path again. A
folder that is deleted while a process holds it open is reported only when that descriptor is closed; until then its
``st_nlink`` of 0 tells.
"""

import math
import os
import time

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, EINTR, EMFILE, ENOSPC, errno
from libc.stdint cimport uint32_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, strlen


cdef extern from "<sys/inotify.h>" nogil:
    struct inotify_event:
        int wd
        uint32_t mask
        uint32_t cookie
        uint32_t len
        char *name
    const uint32_t c_CLOSE_WRITE "IN_CLOSE_WRITE"
    const uint32_t c_MOVED_TO "IN_MOVED_TO"
    const uint32_t c_CREATE "IN_CREATE"
    const uint32_t c_DELETE_SELF "IN_DELETE_SELF"
    const uint32_t c_MOVE_SELF "IN_MOVE_SELF"
    const uint32_t c_IGNORED "IN_IGNORED"
    const uint32_t c_UNMOUNT "IN_UNMOUNT"
    const uint32_t c_Q_OVERFLOW "IN_Q_OVERFLOW"
    const uint32_t c_ISDIR "IN_ISDIR"
    const uint32_t c_ONLYDIR "IN_ONLYDIR"
    const uint32_t c_DONT_FOLLOW "IN_DONT_FOLLOW"
    const int IN_NONBLOCK, IN_CLOEXEC
    int inotify_init1(int flags)
    int inotify_add_watch(int descriptor, const char *path, uint32_t mask)
    int inotify_rm_watch(int descriptor, int watch)

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    const short POLLIN
    int poll(pollfd *descriptors, unsigned long count, int timeout_ms)

cdef extern from "<unistd.h>" nogil:
    int close(int descriptor)
    Py_ssize_t c_read "read"(int descriptor, void *buffer, size_t size)

IN_CLOSE_WRITE = c_CLOSE_WRITE
IN_MOVED_TO = c_MOVED_TO
IN_CREATE = c_CREATE
IN_ISDIR = c_ISDIR

cdef enum:
    BUFFER = 65536  # bytes: 200 events of the longest name, 4,000 of a short one
    READS = 16  # buffers in one take(), so that a flood does not keep its caller
    LONGEST_MS = 3600000  # of one poll


cdef bint is_passed_over(const char *name, size_t size) noexcept nogil:
    # Names that no task has: a producer's temporary file, an editor's, a lock.
    if name[0] == c".":
        return True
    if size >= 4 and memcmp(name + size - 4, b".tmp", 4) == 0:
        return True
    return size >= 5 and memcmp(name + size - 5, b".lock", 5) == 0


@cython.final
@cython.auto_pickle(False)
cdef class Watcher:
    """Watches folders for files that appear or are finished; one inotify instance, closed as a context manager."""

    cdef int descriptor
    cdef int users  # calls that have released the GIL: the descriptor must not be closed under them
    cdef bint taking  # the buffer has one user
    cdef char *buffer
    cdef int *watches  # of the folders we watch: other numbers are of folders that are lost or were removed
    cdef Py_ssize_t count, room

    def __cinit__(self):
        self.descriptor = -1
        self.users = 0
        self.taking = False
        self.watches = NULL
        self.count = self.room = 0
        self.buffer = <char *>malloc(BUFFER)
        if self.buffer == NULL:
            raise MemoryError
        cdef int why = 0
        with nogil:
            self.descriptor = inotify_init1(IN_NONBLOCK | IN_CLOEXEC)
            if self.descriptor < 0:
                why = errno
        if why == EMFILE:
            raise OSError(why, "no inotify instance is left (fs.inotify.max_user_instances), or no descriptor")
        if why != 0:
            raise OSError(why, os.strerror(why))

    def __dealloc__(self):
        if self.descriptor >= 0:
            close(self.descriptor)
        free(self.buffer)
        free(self.watches)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Give the descriptor and all watches back; a second time does nothing."""
        if self.users:
            raise RuntimeError("another thread is using this watcher")
        cdef int descriptor = self.descriptor
        self.descriptor = -1
        self.count = 0
        if descriptor >= 0:
            with nogil:
                close(descriptor)

    def fileno(self):
        """Return the descriptor, which is readable when take() has something to give."""
        return self.open_descriptor()

    cdef int open_descriptor(self) except -1:
        if self.descriptor < 0:
            raise ValueError("the watcher is closed")
        return self.descriptor

    cdef Py_ssize_t place(self, int watch) noexcept:
        cdef Py_ssize_t i
        for i in range(self.count):
            if self.watches[i] == watch:
                return i
        return -1

    cdef bint forget(self, int watch) noexcept:
        cdef Py_ssize_t i = self.place(watch)
        if i < 0:
            return False
        self.count -= 1
        self.watches[i] = self.watches[self.count]
        return True

    def add(self, path):
        """Watch a folder and return its number, the same number where the folder is watched already.

        Raises OSError: no such folder, not a folder, a symbolic link to one, no watch left.
        """
        cdef int descriptor = self.open_descriptor()
        cdef bytes name = os.fsencode(path)
        cdef const char *c_name = name
        cdef int watch, why = 0
        cdef int *larger
        if strlen(c_name) != <size_t>len(name):
            raise ValueError("a path has no NUL byte")
        if self.count == self.room:
            larger = <int *>realloc(self.watches, <size_t>(self.room * 2 + 8) * sizeof(int))
            if larger == NULL:
                raise MemoryError
            self.watches = larger
            self.room = self.room * 2 + 8
        self.users += 1
        with nogil:
            watch = inotify_add_watch(
                descriptor,
                c_name,
                c_MOVED_TO | c_CREATE | c_CLOSE_WRITE | c_MOVE_SELF | c_DELETE_SELF | c_ONLYDIR | c_DONT_FOLLOW,
            )
            if watch < 0:
                why = errno
        self.users -= 1
        if why == ENOSPC:
            raise OSError(why, "no inotify watch is left (fs.inotify.max_user_watches)", path)
        if why != 0:
            raise OSError(why, os.strerror(why), path)
        if self.place(watch) < 0:
            self.watches[self.count] = watch
            self.count += 1
        return watch

    def remove(self, int watch):
        """Stop watching a folder: no event of it comes any more, and it is not reported lost."""
        cdef int descriptor = self.open_descriptor()
        if self.forget(watch):
            with nogil:
                inotify_rm_watch(descriptor, watch)  # fails only where the folder was lost meanwhile

    def take(self):
        """Return (events, lost, overflowed) of what has happened until now, without waiting.

        events: (watch, name, mask) in order; what comes for one name in a row is one event with all its bits.
        lost: numbers of folders that were deleted, moved away or unmounted.
        overflowed: events are missing, so look at every folder.
        Names that begin with a dot or end in .tmp or .lock are left out.
        """
        cdef list events = []
        cdef list lost = []
        cdef bint overflowed = False
        cdef bytes name = None  # of the event that may still grow
        cdef const char *text = NULL
        cdef Py_ssize_t text_size = 0
        cdef int watch = -1
        cdef uint32_t mask = 0
        cdef int descriptor = self.open_descriptor()
        cdef Py_ssize_t got, at
        cdef size_t size
        cdef inotify_event *event
        cdef int why, _
        if self.taking:
            raise RuntimeError("another thread is in take() of this watcher")
        for _ in range(READS):
            self.users += 1
            self.taking = True
            with nogil:
                why = 0
                while True:
                    got = c_read(descriptor, self.buffer, BUFFER)
                    if got >= 0:
                        break
                    why = errno
                    if why != EINTR:
                        break
            self.taking = False
            self.users -= 1
            if got < 0:
                if why == EAGAIN:
                    break
                raise OSError(why, os.strerror(why))
            at = 0
            while at < got:
                event = <inotify_event *>(self.buffer + at)
                at += <Py_ssize_t>sizeof(inotify_event) + event.len
                if event.mask & c_Q_OVERFLOW:
                    overflowed = True
                    continue
                if event.len == 0:
                    if event.mask & (c_IGNORED | c_MOVE_SELF | c_DELETE_SELF | c_UNMOUNT) and self.forget(event.wd):
                        lost.append(event.wd)
                        if event.mask & c_MOVE_SELF:  # the kernel would follow it to where it is nobody's queue
                            inotify_rm_watch(descriptor, event.wd)
                    continue
                size = strlen(event.name)
                if is_passed_over(event.name, size):
                    continue
                if (
                    name is not None and event.wd == watch and <Py_ssize_t>size == text_size
                    and memcmp(event.name, text, size) == 0
                ):
                    mask |= event.mask
                    continue
                if self.place(event.wd) < 0:
                    continue
                if name is not None:
                    events.append((watch, name, mask))
                watch = event.wd
                mask = event.mask
                name = PyBytes_FromStringAndSize(event.name, <Py_ssize_t>size)
                text = name
                text_size = <Py_ssize_t>size
        if name is not None:
            events.append((watch, name, mask))
        return events, lost, overflowed

    def wait(self, double timeout_s):
        """Wait until take() has something to give, at most timeout_s seconds; return whether it has."""
        cdef pollfd ready
        cdef int count, why, timeout_ms
        cdef double left
        if math.isnan(timeout_s):
            raise ValueError("a wait of nan seconds")
        ready.fd = self.open_descriptor()
        ready.events = POLLIN
        cdef double deadline = time.monotonic() + timeout_s
        while True:
            left = deadline - time.monotonic()
            # Rounded up: a wait that ended a fraction of a millisecond early would spin until its deadline.
            timeout_ms = 0 if left <= 0 else LONGEST_MS if left * 1000 >= LONGEST_MS else <int>(left * 1000) + 1
            self.users += 1
            with nogil:
                why = 0
                count = poll(&ready, 1, timeout_ms)
                if count < 0:
                    why = errno
            self.users -= 1
            if count > 0:
                return True
            if why == EINTR:
                PyErr_CheckSignals()
            elif why != 0:
                raise OSError(why, os.strerror(why))
            elif left <= 0:
                return False
