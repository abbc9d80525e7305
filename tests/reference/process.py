"""Twin of dspy_fastpath.process, by fork and a pipe that the child's exec closes."""

import contextlib
import ctypes
import fcntl
import os
import signal

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
SETTABLE = set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}  # the C library keeps 32 and 33 to itself
PROGRAM, FOLDER, STDIN = range(3)


def prctl(option: int, name: str, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        why = ctypes.get_errno()
        raise OSError(why, os.strerror(why), f"prctl({name})")


def become_subreaper() -> None:
    prctl(PR_SET_CHILD_SUBREAPER, "PR_SET_CHILD_SUBREAPER", 1)


def die_with_parent(expected_parent: int) -> None:
    prctl(PR_SET_PDEATHSIG, "PR_SET_PDEATHSIG", signal.SIGKILL)
    if os.getppid() != expected_parent:
        os.kill(os.getpid(), signal.SIGKILL)


def check_text(text: object, what: str) -> None:
    if not isinstance(text, bytes):
        raise TypeError(f"{what} is bytes, not {type(text).__name__}")
    if b"\0" in text:
        raise ValueError(f"{what} {text!r} has a NUL")


def become(program, argv, env, cwd, descriptors, parent, report) -> None:
    """Become the program; writes to report which place failed with which errno."""
    place = PROGRAM
    try:
        report = fcntl.fcntl(report, fcntl.F_DUPFD_CLOEXEC, 3)
        for number in SETTABLE:
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        die_with_parent(parent)
        if cwd is not None:
            place = FOLDER
            os.chdir(cwd)
        for number in range(3):
            place = STDIN + number
            if descriptors[number] < 3 and descriptors[number] != number:
                descriptors[number] = fcntl.fcntl(descriptors[number], fcntl.F_DUPFD_CLOEXEC, 3)
        for number in range(3):
            place = STDIN + number
            if descriptors[number] == number:
                os.set_inheritable(number, True)
            else:
                os.dup2(descriptors[number], number)
        place = PROGRAM
        for descriptor in map(int, os.listdir("/proc/self/fd")):
            if descriptor > 2:
                with contextlib.suppress(OSError):  # the listing's own is closed already
                    os.set_inheritable(descriptor, False)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execve(program, argv, dict(variable.split(b"=", 1) for variable in env))
    except OSError as error:
        os.write(report, b"%d %d" % (place, error.errno))
    finally:
        os._exit(127)


def spawn(argv, env, cwd, stdin, stdout, stderr, *, program=None) -> int:
    if not argv:
        raise ValueError("argv is empty: it needs the program at least")
    for text in argv:
        check_text(text, "an argument")
    for text in env:
        check_text(text, "a variable")
        if text.find(b"=") < 1:
            raise ValueError(f"a variable is NAME=value, not {text!r}")
    program = argv[0] if program is None else program
    check_text(program, "the program")
    if isinstance(cwd, int):
        if cwd < 0:
            raise ValueError(f"cwd={cwd}: expected a descriptor")
    elif cwd is not None:
        check_text(cwd, "cwd")
    parent = os.getpid()
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with open(reader, "rb") as said:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                become(program, argv, env, cwd, [stdin, stdout, stderr], parent, writer)
        finally:
            os.close(writer)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        failure = said.read()
    if not failure:
        return pid
    os.waitpid(pid, 0)
    place, why = map(int, failure.split())
    raise OSError(why, os.strerror(why), (program, cwd, stdin, stdout, stderr)[place])
