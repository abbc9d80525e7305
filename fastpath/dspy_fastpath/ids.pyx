# cython: autotestdict=False
"""Ids of tasks: UUIDs of version 7 (RFC 9562), strictly increasing within a process.

::

    48 bits   milliseconds since 1970
     4 bits   7, the version
    12 bits   counter, high part
     2 bits   binary 10, the variant
    30 bits   counter, low part
    32 bits   random

The counter of 42 bits starts at a random number below 2**41 in each new millisecond and goes up by one with each id
(RFC 9562, 6.2, method 1). A clock that stands or steps back does not matter: the milliseconds only go up, by one if
the counter is spent.

A forked child starts a millisecond later with a counter and random bits of its own: what was drawn before the fork
is known to its parent and its siblings as well.
"""

import os
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec

cdef extern from "<sys/random.h>" nogil:
    ssize_t getrandom(void *room, size_t size, unsigned int flags)

cdef extern from "<pthread.h>" nogil:
    int pthread_atfork(void (*before)() noexcept nogil, void (*parent)() noexcept nogil, void (*child)() noexcept nogil)

cdef enum:
    POOL_SIZE = 256  # bytes; the kernel fills as many without an interruption

cdef int64_t LAST_MS = (1 << 48) - 1
cdef uint64_t COUNTER_END = 1 << 42

cdef int64_t last_ms = -1
cdef uint64_t counter
cdef uint8_t pool[POOL_SIZE]
cdef int pool_left = 0
cdef bint watches_forks = False
cdef bint is_new_child = False


cdef void on_fork() noexcept nogil:
    global is_new_child
    is_new_child = True


cdef int draw(void *room, int size) except -1:
    """Fill room with random bytes, none of which is drawn again."""
    global pool_left
    if pool_left < size:
        if getrandom(pool, POOL_SIZE, 0) != POOL_SIZE:
            raise OSError(errno, os.strerror(errno), "getrandom")
        pool_left = POOL_SIZE
    pool_left -= size
    memcpy(room, pool + pool_left, size)
    return 0


cdef int64_t now_ms() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_REALTIME, &now)
    return <int64_t> now.tv_sec * 1000 + now.tv_nsec // 1000000


cdef int advance(int64_t ms) except -1:
    """Set last_ms and counter to what no id of this process had yet."""
    global counter, last_ms, pool_left, is_new_child, watches_forks
    cdef uint64_t fresh
    cdef int failed
    if not watches_forks:
        failed = pthread_atfork(NULL, NULL, on_fork)
        if failed:
            raise OSError(failed, os.strerror(failed), "pthread_atfork")
        watches_forks = True
    if is_new_child:
        pool_left = 0
        ms = max(ms, last_ms + 1)
    elif ms <= last_ms:
        if counter + 1 < COUNTER_END:
            counter += 1
            return 0
        ms = last_ms + 1
    draw(&fresh, sizeof(fresh))
    counter = fresh & (COUNTER_END // 2 - 1)
    last_ms = ms
    is_new_child = False
    return 0


def uuid7(unix_ms: int | None = None) -> str:
    """Return a new UUIDv7 in its canonical 36 characters, greater than all this process had before.

    unix_ms: a reading of the clock, in milliseconds since 1970; None reads the clock.
    """
    cdef const char *digits = "0123456789abcdef"
    cdef char text[36]
    cdef uint64_t high, low
    cdef uint32_t tail
    cdef int64_t ms
    cdef int place, shift = 60
    if unix_ms is None:
        ms = now_ms()
    elif 0 <= unix_ms <= LAST_MS:
        ms = unix_ms
    else:
        raise ValueError(f"unix_ms={unix_ms}: expected a number from 0 to {LAST_MS}")
    advance(ms)
    draw(&tail, sizeof(tail))
    high = (<uint64_t> last_ms << 16) | 0x7000 | (counter >> 30)
    low = (<uint64_t> 2 << 62) | ((counter & 0x3FFFFFFF) << 32) | tail
    for place in range(36):
        if place == 8 or place == 13 or place == 18 or place == 23:
            text[place] = c"-"
            continue
        text[place] = digits[(high >> shift) & 15]
        shift -= 4
        if shift < 0:
            shift = 60
            high = low
    return text[:36].decode("ascii")
