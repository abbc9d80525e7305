# cython: autotestdict=False
"""Processes that don't outlive who started them: what a process asks of the kernel for that, and the start of programs.

The kernel's means is PR_SET_PDEATHSIG (prctl(2)): a signal to a child at the death of its parent. It must be asked for
in the child before exec, which posix_spawn(3) cannot do; so programs are started here.
"""

import os

from cpython.bytes cimport PyBytes_AsString
from libc.errno cimport EINTR, errno
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memset


cdef extern from *:
    """
    #include <sched.h>
    #include <sys/syscall.h>
    #ifndef SYS_close_range
    #define SYS_close_range 436  /* Linux 5.9; the C library's headers may be older than the kernel */
    #endif
    """
    const int CLONE_VM, CLONE_VFORK
    const long SYS_close_range, SYS_getdents64, SYS_rt_sigaction

cdef extern from "<sched.h>" nogil:
    int clone(int (*run)(void *) noexcept nogil, void *stack_end, int flags, void *given, ...)

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    const int SIGCHLD, SIGKILL, SIG_BLOCK, SIG_SETMASK
    int kill(int pid, int number)
    int pthread_sigmask(int how, const sigset_t *mask, sigset_t *before)
    int sigemptyset(sigset_t *mask)
    int sigfillset(sigset_t *mask)

cdef extern from "<sys/prctl.h>" nogil:
    const int PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER
    int prctl(int option, unsigned long, unsigned long, unsigned long, unsigned long)

cdef extern from "<sys/wait.h>" nogil:
    int waitpid(int pid, int *status, int options)

cdef extern from "<fcntl.h>" nogil:
    const int F_DUPFD_CLOEXEC, F_SETFD, FD_CLOEXEC, O_CLOEXEC, O_DIRECTORY, O_RDONLY
    int c_open "open"(const char *path, int flags, ...)
    int fcntl(int descriptor, int command, ...)

cdef extern from "<unistd.h>" nogil:
    void _exit(int code)
    int chdir(const char *path)
    int dup2(int descriptor, int number)
    int execve(const char *path, char *const *argv, char *const *env)
    int fchdir(int descriptor)
    int getpid()
    int getppid()
    int setsid()
    long syscall(long number, ...)

cdef enum:
    SIGNALS = 64
    SIGNAL_SET_BYTES = 8  # as the kernel counts them, not the C library
    CLOSE_RANGE_CLOEXEC = 4  # Linux 5.11
    STACK_BYTES = 65536  # the child needs 8 kB, more where its first call of a function has to be linked

cdef enum Place:  # what the errno of a failed start is about
    PROGRAM
    FOLDER
    STDIN  # and the other two after it

cdef struct Start:  # what a child is told, and what it says where it fails
    const char *program
    char **argv
    char **env
    const char *path  # of the folder, or NULL
    int folder  # descriptor, or -1
    int descriptors[3]
    int parent
    int why  # errno, or 0
    int place


cdef int bind_to(int parent) noexcept nogil:
    # Only after the prctl does getppid tell for good: a parent that dies later takes this process along.
    if prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) != 0:
        return -1
    if getppid() != parent:
        kill(getpid(), SIGKILL)
    return 0


def become_subreaper():
    """Make this process the parent of every descendant whose own parent dies."""
    if prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        why = errno
        raise OSError(why, os.strerror(why), "prctl(PR_SET_CHILD_SUBREAPER)")


def die_with_parent(int expected_parent):
    """Have the kernel kill this process when its parent ends; where that has happened already, die now.

    expected_parent: os.getpid() of the parent, taken before the fork. A fork forgets the setting, an exec keeps it. To
    the kernel the parent is the thread that forked.
    """
    if bind_to(expected_parent) != 0:
        why = errno
        raise OSError(why, os.strerror(why), "prctl(PR_SET_PDEATHSIG)")


cdef int hide_others() noexcept nogil:
    """Let exec close all but the first three descriptors; -1 with errno."""
    cdef unsigned long room[256]
    cdef char *entries = <char *> room
    cdef char *digit
    cdef long size, at
    cdef int folder, descriptor
    if syscall(SYS_close_range, <unsigned int> 3, <unsigned int> 0xFFFFFFFF, <unsigned int> CLOSE_RANGE_CLOEXEC) == 0:
        return 0
    # An older kernel, or a filter of system calls. opendir would allocate, which is not allowed here.
    folder = c_open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    if folder < 0:
        return -1
    while True:
        size = syscall(SYS_getdents64, folder, entries, sizeof(room))
        if size <= 0:
            return <int> size
        at = 0
        while at < size:  # struct linux_dirent64: 8 bytes inode, 8 offset, 2 length, 1 type, and the name
            digit = entries + at + 19
            descriptor = 0
            while c"0" <= digit[0] <= c"9":
                descriptor = 10 * descriptor + digit[0] - c"0"
                digit += 1
            if descriptor > 2:
                fcntl(descriptor, F_SETFD, FD_CLOEXEC)
            at += (<unsigned short *> (entries + at + 16))[0]


cdef int place_descriptors(Start *start) noexcept nogil:
    """Make the three descriptors 0, 1 and 2, in whatever order they come; -1 with errno and start.place."""
    cdef int *descriptors = start.descriptors
    cdef int number
    for number in range(3):  # first out of the way: one that is to become 1 may be 0 now
        start.place = STDIN + number
        if descriptors[number] < 3 and descriptors[number] != number:
            descriptors[number] = fcntl(descriptors[number], F_DUPFD_CLOEXEC, 3)
            if descriptors[number] < 0:
                return -1
    for number in range(3):
        start.place = STDIN + number
        if descriptors[number] == number:  # dup2 would do nothing, and leave it to be closed by exec
            if fcntl(number, F_SETFD, 0) < 0:
                return -1
        elif dup2(descriptors[number], number) < 0:
            return -1
    start.place = PROGRAM
    return 0


cdef int become(Start *start) noexcept nogil:
    """Become the program; returns only where that fails, -1 with errno and start.place."""
    cdef sigset_t none
    cdef unsigned long as_default[8]
    cdef int number
    # What is ignored would stay so over exec, and a handler must not run here: its variables are the parent's. The
    # kernel is asked directly, since the C library keeps 32 and 33 to itself. It refuses SIGKILL and SIGSTOP.
    memset(as_default, 0, sizeof(as_default))
    for number in range(1, SIGNALS + 1):
        syscall(SYS_rt_sigaction, number, as_default, NULL, SIGNAL_SET_BYTES)
    setsid()  # can't fail in a new process
    if bind_to(start.parent) != 0:
        return -1
    start.place = FOLDER
    if start.path != NULL and chdir(start.path) != 0:
        return -1
    if start.folder >= 0 and fchdir(start.folder) != 0:
        return -1
    if place_descriptors(start) != 0 or hide_others() != 0:
        return -1
    sigemptyset(&none)
    pthread_sigmask(SIG_SETMASK, &none, NULL)
    return execve(start.program, start.argv, start.env)


cdef int child(void *given) noexcept nogil:
    cdef Start *start = <Start *> given
    become(start)
    start.why = errno
    _exit(127)
    return 127


cdef int launch(Start *start, char *stack) noexcept nogil:
    """Return the pid of a child that became the program; -1 with start.why and nothing left to reap."""
    cdef sigset_t every, before
    cdef int pid
    start.why = 0
    start.place = PROGRAM
    sigfillset(&every)
    pthread_sigmask(SIG_BLOCK, &every, &before)
    # The fork line. Until exec the child runs in this memory, with a stack of its own, while this thread waits; other
    # threads go on, and may hold any lock. So below child() are only calls that are safe in a signal handler.
    pid = clone(child, stack + STACK_BYTES, CLONE_VM | CLONE_VFORK | SIGCHLD, start)
    if pid < 0:
        start.why = errno
    elif start.why != 0:
        while waitpid(pid, NULL, 0) < 0 and errno == EINTR:
            pass
        pid = -1
    pthread_sigmask(SIG_SETMASK, &before, NULL)
    return pid


cdef int check_text(object text, str what) except -1:
    if not isinstance(text, bytes):
        raise TypeError(f"{what} is bytes, not {type(text).__name__}")
    if memchr(PyBytes_AsString(text), 0, len(text)) != NULL:
        raise ValueError(f"{what} {text!r} has a NUL")
    return 0


cdef char **pointers(tuple texts) except NULL:
    cdef Py_ssize_t at, size = len(texts)
    cdef char **found = <char **> malloc((size + 1) * sizeof(char *))
    if found == NULL:
        raise MemoryError
    for at in range(size):
        found[at] = PyBytes_AsString(texts[at])
    found[size] = NULL
    return found


def spawn(
    list argv not None, list env not None, cwd, int stdin, int stdout, int stderr, *,
    bytes program=None,
):
    """Start a program that the kernel kills when this process ends, however it ends; return the pid, to be waited for.

    argv: the program and its arguments; program: the file to run, where that is not argv[0]. No PATH is searched.
    env: all it sees of variables, each NAME=value. cwd: path or descriptor of the folder it starts in, which the
    program's relative path counts from; None: this process's. stdin, stdout, stderr: descriptors it has as 0, 1 and 2,
    and no others. It leads a session of its own, with no signal ignored or blocked.

    Raises OSError for a program that can't be run; its filename is cwd where the folder can't be entered, the
    descriptor where one of the three is none, else the program.

    Killed is what this starts, not what that starts in turn: a fork forgets the setting. So does the exec of a
    set-user-ID program or one with capabilities. To the kernel the parent is the thread that called: call this from one
    that stays, as the main thread does.
    """
    cdef tuple words = tuple(argv), variables = tuple(env)  # other threads may change the lists meanwhile
    cdef Start start
    cdef char *stack = NULL
    cdef int pid
    if not words:
        raise ValueError("argv is empty: it needs the program at least")
    for text in words:
        check_text(text, "an argument")
    for text in variables:
        check_text(text, "a variable")
        if text.find(b"=") < 1:
            raise ValueError(f"a variable is NAME=value, not {text!r}")
    if program is None:
        program = words[0]
    check_text(program, "the program")
    start.program = program
    start.path = NULL
    start.folder = -1
    if isinstance(cwd, int):
        start.folder = cwd
        if start.folder < 0:
            raise ValueError(f"cwd={cwd}: expected a descriptor")
    elif cwd is not None:
        check_text(cwd, "cwd")
        start.path = PyBytes_AsString(cwd)
    start.descriptors[:] = [stdin, stdout, stderr]
    start.parent = getpid()
    start.argv = start.env = NULL
    try:
        start.argv = pointers(words)
        start.env = pointers(variables)
        stack = <char *> malloc(STACK_BYTES)
        if stack == NULL:
            raise MemoryError
        with nogil:
            pid = launch(&start, stack)
    finally:
        free(stack)
        free(start.env)
        free(start.argv)
    if pid >= 0:
        return pid
    about = (program, cwd, stdin, stdout, stderr)[start.place]
    raise OSError(start.why, os.strerror(start.why), about)
