# cython: autotestdict=False
"""The moves of the queue by directory descriptor, and one call that claims, checks, reads and scans a task's file.

Folders are open descriptors, names are bytes without a slash. The GIL is released around every system call. What a file
is or holds makes it ``Refused`` or an ``EnvelopeError``; whatever else goes wrong is our own trouble, an ``OSError``.

A file from outside is opened with O_NOFOLLOW and O_NONBLOCK and judged by what was opened, never by what its name stood
for a moment before: a regular file, of a trusted owner, with one name, no larger than the bound.
"""

import os

cimport cython
from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize
from libc.errno cimport (
    EACCES, EEXIST, EINTR, EINVAL, EIO, ELOOP, ENODEV, ENOENT, ENOSYS, ENXIO, EPERM, ESTALE, ETIMEDOUT, errno,
)
from libc.stdint cimport int64_t
from libc.string cimport memchr

from dspy_fastpath.envelope import scan


cdef extern from * nogil:
    """
    #include <stdint.h>
    #define tally_add(cell) ((void)__atomic_fetch_add((cell), 1, __ATOMIC_RELAXED))
    #define tally_load(cell) __atomic_load_n((cell), __ATOMIC_RELAXED)
    """
    void tally_add(int64_t *cell)
    int64_t tally_load(int64_t *cell)

cdef extern from "<sys/stat.h>" nogil:
    ctypedef unsigned int uid_t
    struct timespec:
        long long tv_sec
        long tv_nsec
    struct stat:
        unsigned long long st_dev
        unsigned long long st_ino
        unsigned int st_mode
        unsigned long st_nlink
        uid_t st_uid
        long long st_size
        timespec st_mtim
    int c_fstat "fstat"(int descriptor, stat *found)
    int fstatat(int folder, const char *name, stat *found, int flags)
    bint S_ISREG(unsigned int mode)
    bint S_ISDIR(unsigned int mode)
    bint S_ISLNK(unsigned int mode)
    bint S_ISFIFO(unsigned int mode)
    bint S_ISSOCK(unsigned int mode)

cdef extern from "<fcntl.h>" nogil:
    const int O_RDONLY, O_WRONLY, O_CREAT, O_EXCL, O_NOFOLLOW, O_NONBLOCK, O_NOCTTY, O_CLOEXEC, AT_SYMLINK_NOFOLLOW
    int openat(int folder, const char *name, int flags, ...)

cdef extern from "<stdio.h>" nogil:
    const unsigned int RENAME_NOREPLACE
    int renameat(int source_folder, const char *source, int target_folder, const char *target)
    int renameat2(int source_folder, const char *source, int target_folder, const char *target, unsigned int flags)

cdef extern from "<unistd.h>" nogil:
    int linkat(int source_folder, const char *source, int target_folder, const char *target, int flags)
    int unlinkat(int folder, const char *name, int flags)
    int close(int descriptor)
    int fsync(int descriptor)
    int syncfs(int descriptor)
    Py_ssize_t c_read "read"(int descriptor, void *buffer, size_t size)
    Py_ssize_t c_write "write"(int descriptor, const void *buffer, size_t size)

cdef enum:
    SMALL = 16384  # bytes; a file up to this size is read on the stack in the same stretch without the GIL as its open


class Refused(Exception):
    """A file cannot be accepted for what it is: ``reason`` says why, ``links`` and ``mtime`` come from the same look.

    A producer that publishes by link and unlink shows its file with two names for a moment: whoever condemns for
    ``links`` gives it that moment first.
    """

    def __init__(self, reason, links=1, mtime=0.0):
        super().__init__(reason)
        self.reason = reason
        self.links = links
        self.mtime = mtime

    def __reduce__(self):
        return type(self), (self.reason, self.links, self.mtime)


@cython.final
@cython.auto_pickle(False)
cdef class File:
    """The content of one file and what it was when it was opened."""

    cdef readonly bytes data
    cdef readonly object size  # bytes, when it was opened
    cdef readonly double mtime  # seconds since the epoch
    cdef readonly object inode

    def __init__(self):
        raise TypeError("a File comes from read()")


@cython.final
@cython.auto_pickle(False)
cdef class Claimed:
    """The content of a task's file and what the scan of it found."""

    cdef readonly bytes data
    cdef readonly object fields
    cdef readonly double mtime  # seconds since the epoch

    def __init__(self):
        raise TypeError("a Claimed comes from claim() or peek()")


cdef struct Look:  # what one stretch without the GIL found out about a file
    int why  # errno of the call that failed, or 0
    bint seen  # whether st is filled
    stat st
    int descriptor  # open where the content is too large for the stack, else -1
    Py_ssize_t got  # bytes on the stack


cdef int check_name(bytes name) except -1:
    cdef const char *text = name
    cdef Py_ssize_t size = len(name)
    if size == 0 or memchr(text, 0, size) != NULL or memchr(text, b"/", size) != NULL:
        raise ValueError(f"{name!r} is not a name in a folder")
    return 0


cdef object trouble(int why, bytes name):
    return OSError(why, os.strerror(why), name)


cdef bint is_unknown(int why) noexcept nogil:
    # The server may have done it and lost the answer: only a look at what we alone can have made tells.
    return why == ENOENT or why == EIO or why == ESTALE or why == ETIMEDOUT


cdef bint is_deleted(int folder) noexcept nogil:
    # A rename into a folder that was removed is ENOENT too, and must not read as "the source is gone".
    cdef stat st
    return c_fstat(folder, &st) == 0 and st.st_nlink == 0


cdef int gone(int folder, bytes name) except -1:
    cdef bint deleted
    with nogil:
        deleted = is_deleted(folder)
    if deleted:
        raise OSError(ENOENT, "the folder to move into was deleted", name)
    return 0


cdef Py_ssize_t read_all(int descriptor, char *buffer, Py_ssize_t size) noexcept nogil:
    # Bytes read, fewer than size only at the end of the file; -1 with errno.
    cdef Py_ssize_t got = 0
    cdef Py_ssize_t count
    while got < size:
        count = c_read(descriptor, buffer + got, size - got)
        if count < 0:
            if errno == EINTR:
                continue
            return -1
        if count == 0:
            break
        got += count
    return got


cdef void look(int folder, const char *name, long long max_bytes, char *small, Look *found) noexcept nogil:
    cdef int descriptor
    found.why = 0
    found.seen = False
    found.descriptor = -1
    found.got = 0
    while True:
        descriptor = openat(folder, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)
        if descriptor >= 0 or errno != EINTR:
            break
    if descriptor < 0:
        found.why = errno
        # A link, a socket, or a stranger's file that we may not read: its kind and owner say whether that is its fault.
        if found.why in (ELOOP, ENXIO, ENODEV, EACCES, EPERM):
            found.seen = fstatat(folder, name, &found.st, AT_SYMLINK_NOFOLLOW) == 0
        return
    if c_fstat(descriptor, &found.st) != 0:
        found.why = errno
        close(descriptor)
        return
    found.seen = True
    if S_ISREG(found.st.st_mode) and found.st.st_nlink == 1 and found.st.st_size <= max_bytes:
        if found.st.st_size > SMALL:
            found.descriptor = descriptor
            return
        found.got = read_all(descriptor, small, found.st.st_size)
        if found.got < 0:
            found.why = errno
    close(descriptor)


cdef str refusal(const stat *st, long long max_bytes, tuple owners):
    if not S_ISREG(st.st_mode):
        if S_ISLNK(st.st_mode):
            return "a symbolic link"
        if S_ISDIR(st.st_mode):
            return "a folder"
        if S_ISFIFO(st.st_mode):
            return "a FIFO"
        if S_ISSOCK(st.st_mode):
            return "a socket"
        return "a device"
    if owners and st.st_uid not in owners:
        return f"owned by user {st.st_uid}"
    if st.st_nlink != 1:
        return f"has {st.st_nlink} names (hard link)"
    if st.st_size > max_bytes:
        return f"{st.st_size} bytes, more than the bound of {max_bytes}"
    return None


cdef double mtime_of(const stat *st) noexcept:
    return <double>st.st_mtim.tv_sec + 1e-9 * <double>st.st_mtim.tv_nsec


cdef bytes accept(Look *found, const char *small, bytes name, long long max_bytes, tuple owners):
    """Return the content of what was looked at, or raise what is wrong with it. Closes the descriptor it left open."""
    cdef bytes content
    cdef char *target
    cdef Py_ssize_t size, got
    cdef int why = 0
    try:
        if found.seen:
            reason = refusal(&found.st, max_bytes, owners)
            if reason is not None:
                raise Refused(reason, found.st.st_nlink, mtime_of(&found.st))
        if found.why:
            raise trouble(found.why, name)
        if found.descriptor < 0:
            return PyBytes_FromStringAndSize(small, found.got)
        size = found.st.st_size
        content = PyBytes_FromStringAndSize(NULL, size)
        target = PyBytes_AsString(content)
        with nogil:
            got = read_all(found.descriptor, target, size)
            if got < 0:
                why = errno
        if got < 0:
            raise trouble(why, name)
        return content if got == size else content[:got]
    finally:
        if found.descriptor >= 0:
            close(found.descriptor)


cdef Claimed scanned(bytes content, double mtime, int max_depth):
    cdef Claimed result = Claimed.__new__(Claimed)
    result.data = content
    result.fields = scan(content, max_depth)
    result.mtime = mtime
    return result


def exists(int dir_fd, bytes name not None):
    """Return whether a folder has a name, whatever it leads to."""
    cdef const char *c_name = name
    cdef stat found
    cdef int why = 0
    if memchr(c_name, b"/", len(name)) != NULL or memchr(c_name, 0, len(name)) != NULL:
        return False  # no name that a folder can have: nothing outside it is looked at
    with nogil:
        if fstatat(dir_fd, c_name, &found, AT_SYMLINK_NOFOLLOW) != 0:
            why = errno
    if why == ENOENT:
        return False
    if why != 0:
        raise trouble(why, name)
    return True


def move(int source_fd, bytes source not None, int target_fd, bytes target not None):
    """Rename a file from one folder to another, over whatever has the target's name.

    Returns True when this call moved it, False when the source is gone (on NFS: or when the answer was lost).
    """
    cdef const char *c_source = source
    cdef const char *c_target = target
    cdef int why = 0
    check_name(source)
    check_name(target)
    with nogil:
        if renameat(source_fd, c_source, target_fd, c_target) != 0:
            why = errno
    if why == 0:
        return True
    if why == ENOENT:
        gone(target_fd, target)
        return False
    raise trouble(why, source)


cdef int move_by_link(int source_fd, const char *source, int target_fd, const char *target) noexcept nogil:
    # For filesystems without RENAME_NOREPLACE. An answer can be lost on the way (EEXIST for our own link, ENOENT for
    # our own unlink), so that the inode under the target's name decides and not the error.
    cdef stat ours, theirs
    cdef int why
    if fstatat(source_fd, source, &ours, AT_SYMLINK_NOFOLLOW) != 0:
        return errno
    if linkat(source_fd, source, target_fd, target, 0) != 0:
        why = errno
        if why != EEXIST and not is_unknown(why):
            return why
        if fstatat(target_fd, target, &theirs, AT_SYMLINK_NOFOLLOW) != 0:
            return why
        if theirs.st_ino != ours.st_ino or theirs.st_dev != ours.st_dev:
            return EEXIST
    if unlinkat(source_fd, source, 0) != 0 and errno != ENOENT:
        return errno
    return 0


def move_new(int source_fd, bytes source not None, int target_fd, bytes target not None):
    """Rename a file from one folder to another, unless the target's name is taken: then FileExistsError.

    Returns True when this call moved it, False when the source is gone.
    """
    cdef const char *c_source = source
    cdef const char *c_target = target
    cdef int why = 0
    check_name(source)
    check_name(target)
    with nogil:
        if renameat2(source_fd, c_source, target_fd, c_target, RENAME_NOREPLACE) != 0:
            why = errno
            if why == EINVAL or why == ENOSYS:
                why = move_by_link(source_fd, c_source, target_fd, c_target)
    if why == 0:
        return True
    if why == ENOENT:
        gone(target_fd, target)
        return False
    raise trouble(why, target if why == EEXIST else source)


cdef int write_all(int descriptor, const char *data, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t written
    while size > 0:
        written = c_write(descriptor, data, size)
        if written < 0:
            if errno == EINTR:
                continue
            return errno
        if written == 0:
            return EIO
        data += written
        size -= written
    return 0


cdef int64_t synced = 0


cdef int sync_all(int descriptor) noexcept nogil:
    # Repeated for EINTR alone: after any other failure the pages count as clean and a second call would lie.
    tally_add(&synced)
    while fsync(descriptor) != 0:
        if errno != EINTR:
            return errno
    return 0


def write_new(int dir_fd, bytes name not None, bytes data not None, bint sync):
    """Write a new file (mode 0640 less the umask) with exactly these bytes, on the disk already where sync is true.

    The close is checked too: a full server may speak only there. On any failure nothing of the file stays.
    """
    cdef const char *c_name = name
    cdef const char *content = data
    cdef Py_ssize_t size = len(data)
    cdef int descriptor, why = 0
    check_name(name)
    with nogil:
        while True:
            descriptor = openat(dir_fd, c_name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o640)
            if descriptor >= 0 or errno != EINTR:
                break
        if descriptor < 0:
            why = errno
        else:
            why = write_all(descriptor, content, size)
            if why == 0 and sync:
                why = sync_all(descriptor)
            # Linux closes the descriptor whatever close() answers; EINTR there says nothing about the bytes.
            if close(descriptor) != 0 and why == 0 and errno != EINTR:
                why = errno
            if why != 0:
                unlinkat(dir_fd, c_name, 0)
    if why != 0:
        raise trouble(why, name)


def sync(int fd):
    """Put what was written to this file, or the names in this folder, on the disk."""
    cdef int why
    with nogil:
        why = sync_all(fd)
    if why != 0:
        raise OSError(why, os.strerror(why))


def syncs():
    """Return how many files and folders this process put on the disk, or tried to, in calls of this module."""
    return tally_load(&synced)


def sync_filesystem(int fd):
    """Put everything that was written to the filesystem of this descriptor on the disk, in one call."""
    cdef int why = 0
    with nogil:
        if syncfs(fd) != 0:
            why = errno
    if why != 0:
        raise OSError(why, os.strerror(why))


def read(int dir_fd, bytes name not None, long long max_bytes, tuple owners not None):
    """Return the content of a regular file with one name, or raise Refused for what is none.

    owners: user ids whose files are trusted; an empty tuple trusts all. FileNotFoundError when it is gone.
    """
    cdef const char *c_name = name
    cdef char small[SMALL]
    cdef Look found
    check_name(name)
    with nogil:
        look(dir_fd, c_name, max_bytes, small, &found)
    cdef File result = File.__new__(File)
    result.data = accept(&found, small, name, max_bytes, owners)
    result.size = found.st.st_size
    result.mtime = mtime_of(&found.st)
    result.inode = found.st.st_ino
    return result


def peek(int dir_fd, bytes name not None, long long max_bytes, tuple owners not None, *, int max_depth=128):
    """Read and scan a task's file where it lies; None when it is gone.

    Raises Refused for a file that is none of ours to read, EnvelopeError for its content.
    """
    cdef const char *c_name = name
    cdef char small[SMALL]
    cdef Look found
    check_name(name)
    with nogil:
        look(dir_fd, c_name, max_bytes, small, &found)
    if found.why == ENOENT:
        return None
    return scanned(accept(&found, small, name, max_bytes, owners), mtime_of(&found.st), max_depth)


def claim(
    int pending_fd, bytes name not None, int claimed_fd, long long max_bytes, tuple owners not None, *,
    int max_depth=128,
):
    """Move a task's file into the claimer's own folder under the same name, read and scan it; None when it is gone.

    The folder claimed_fd belongs to the caller alone, so that a file found there is ours whatever the rename answered.
    After Refused, EnvelopeError or an OSError of the reading the file lies in claimed_fd; whether the move was made
    before an OSError, a look there tells.
    """
    cdef const char *c_name = name
    cdef char small[SMALL]
    cdef Look found
    cdef int why = 0
    check_name(name)
    with nogil:
        if renameat(pending_fd, c_name, claimed_fd, c_name) != 0:
            why = errno
        if why == 0 or is_unknown(why):
            look(claimed_fd, c_name, max_bytes, small, &found)
    if why != 0 and (not is_unknown(why) or found.why == ENOENT):
        if why != ENOENT:
            raise trouble(why, name)
        gone(claimed_fd, name)
        return None
    if found.why == ENOENT:  # taken from us between the rename and the open
        return None
    return scanned(accept(&found, small, name, max_bytes, owners), mtime_of(&found.st), max_depth)
