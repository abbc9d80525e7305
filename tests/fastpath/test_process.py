"""The start of programs: what one is born with, that it dies with who started it, and that a failure is told.

What changes this process for good, or must have no other children, happens in a fork.
"""

import ctypes
import errno
import os
import platform
import select
import signal
import struct
import sys
import threading
import traceback

import pytest
from dspy_fastpath import process as compiled

from tests.reference import process as reference

ENV = [b"PATH=/usr/bin:/bin"]
DEADLINE_S = 20
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not enter a folder")
needs_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="system calls have other numbers here")
CALLS = {"getppid": 110, "prctl": 157, "close_range": 436}


@pytest.fixture(params=[compiled, reference], ids=["compiled", "reference"])
def process(request):
    return request.param


@pytest.fixture
def null():
    descriptor = os.open(os.devnull, os.O_RDWR)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def output(process, tmp_path, null):
    """Run a program to its end; returns what it printed."""

    def output(*argv, env=ENV, cwd=None, module=process, **rest):
        with open(tmp_path / "output", "w+b") as file:
            pid = module.spawn(list(argv), env, cwd, null, file.fileno(), 2, **rest)
            assert ended(pid) == 0
            file.seek(0)
            return file.read()

    return output


def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_a_fork(body):
    """Run body in a child, which fails where body raises."""
    if (pid := os.fork()) == 0:
        code = 1
        try:
            body()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    assert ended(pid) == 0


def break_call(name, why):
    """Make a system call of this process and its children fail with errno why from now on."""

    def code(operation, yes, no, k):
        return struct.pack("=HBBI", operation, yes, no, k)

    program = code(0x20, 0, 0, 0) + code(0x15, 0, 1, CALLS[name])
    program += code(0x06, 0, 0, 0x00050000 | why) + code(0x06, 0, 0, 0x7FFF0000)
    buffer = ctypes.create_string_buffer(program)
    filters = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, filters, 0, 0) == 0, ctypes.get_errno()  # PR_SET_SECCOMP


def wait_to_be_killed():
    signal.alarm(2 * DEADLINE_S)  # what a failing test leaves ends, too
    signal.pause()


def is_gone(pidfd):
    return bool(select.select([pidfd], [], [], DEADLINE_S)[0])


# what a program is born with


def test_a_program_has_its_arguments_and_variables_and_no_others(output):
    assert output(b"/bin/sh", b"-c", b'printf "%s|" "$0" "$@"', b"", b"a b", b"\xff") == b"|a b|\xff|"
    assert output(b"/usr/bin/env", env=[b"A=1", b"B=", b"C=a=b"]) == b"A=1\nB=\nC=a=b\n"
    assert output(b"/usr/bin/env", env=[]) == b""


def test_the_name_that_a_program_is_called_by_need_not_be_its_file(output):
    assert output(b"elsewhere", b"-c", b"echo $0", program=b"/bin/sh") == b"elsewhere\n"


def test_a_program_starts_in_the_folder_that_it_is_given(output, tmp_path):
    there = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    try:
        assert output(b"/bin/pwd", cwd=there) == b"%s\n" % os.fsencode(tmp_path)
    finally:
        os.close(there)
    assert output(b"/bin/pwd", cwd=os.fsencode(tmp_path)) == b"%s\n" % os.fsencode(tmp_path)
    before = os.getcwd()
    assert output(b"/bin/pwd") == b"%s\n" % os.fsencode(before)
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\necho found\n")
    script.chmod(0o755)
    assert output(b"./script", cwd=os.fsencode(tmp_path)) == b"found\n"
    assert os.getcwd() == before


def test_a_program_has_three_descriptors_and_no_others(process, output):
    inheritable = [os.dup2(0, 77), os.dup2(0, 300)]
    try:
        assert output(b"/bin/ls", b"/proc/self/fd") == b"0\n1\n2\n3\n"  # the last is the listing's
        assert all(map(os.get_inheritable, inheritable))
    finally:
        for descriptor in inheritable:
            os.close(descriptor)


@needs_x86
@pytest.mark.parametrize("why", [errno.ENOSYS, errno.EINVAL, errno.EPERM], ids=errno.errorcode.get)
def test_a_kernel_that_knows_no_close_range_leaves_no_descriptor_open_either(output, why):
    def body():
        break_call("close_range", why)
        for number in range(100, 400):  # more than one reading of the list
            os.dup2(0, number)
        assert output(b"/bin/ls", b"/proc/self/fd", module=compiled) == b"0\n1\n2\n3\n"

    in_a_fork(body)


@pytest.mark.parametrize("places", [(0, 1, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0), (1, 1, 1), (9, 0, 0)])
def test_the_three_descriptors_may_come_in_any_order(process, tmp_path, places):
    """Each descriptor is a file that holds its own number; the program reads its input and says so on both outputs."""

    def body():
        held = sorted(set(places))
        for number in range(3):
            os.close(number)
        for number in held:
            (tmp_path / str(number)).write_bytes(b"%d" % number)
            descriptor = os.open(tmp_path / str(number), os.O_RDWR | os.O_APPEND)
            if descriptor != number:
                os.dup2(descriptor, number, inheritable=False)
                os.close(descriptor)
        pid = process.spawn([b"/bin/sh", b"-c", b"x=$(cat); echo out $x; echo err $x >&2"], ENV, None, *places)
        assert ended(pid) == 0
        for number in held:
            said = (tmp_path / str(number)).read_bytes()
            lines = [b"out %d\n" % places[0]] * (places[1] == number) + [b"err %d\n" % places[0]] * (
                places[2] == number
            )
            assert said == b"%d" % number + b"".join(lines), said

    in_a_fork(body)


def test_no_signal_is_blocked_or_ignored_in_a_program_and_ours_stay_as_they_are(process, output):
    def body():
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.signal(signal.SIGRTMIN + 3, signal.SIG_IGN)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGRTMAX})
        handler = signal.getsignal(signal.SIGUSR1)
        text = output(b"/bin/grep", b"^Sig", b"/proc/self/status")
        fields = dict(line.split(b":\t") for line in text.splitlines())
        # Whether the C library's own two, 32 and 33, are ignored depends on who started the tests.
        ours = ~(0b11 << 31)
        assert [int(fields[name], 16) & ours for name in (b"SigBlk", b"SigIgn", b"SigPnd")] == [0, 0, 0]
        after = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        assert after == before | {signal.SIGTERM, signal.SIGRTMAX}
        assert signal.getsignal(signal.SIGUSR1) is handler
        assert signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN

    in_a_fork(body)


def test_a_program_leads_a_session_of_its_own(process, null):
    reader, writer = os.pipe()
    pid = process.spawn([b"/bin/cat"], ENV, None, reader, null, null)
    assert (os.getsid(pid), os.getpgid(pid)) == (pid, pid)
    os.close(reader)
    os.close(writer)
    assert ended(pid) == 0


def test_signals_in_a_hurry_hit_the_parent_alone(process, null):
    """They come while the child runs in the parent's memory, or a moment before or after."""

    def body():
        seen = []
        signal.signal(signal.SIGALRM, lambda *_: seen.append(os.getpid()))
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        codes = [ended(process.spawn([b"/bin/true"], ENV, None, null, null, null)) for _ in range(50)]
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert codes == [0] * 50
        assert set(seen) == {os.getpid()}

    in_a_fork(body)


# death


def test_a_program_dies_with_who_started_it(process, null):
    end, start = os.pipe()
    if (parent := os.fork()) == 0:
        try:
            pid = process.spawn([b"/bin/sleep", b"60"], ENV, None, null, null, null)
            os.write(start, b"%d" % pid)
            wait_to_be_killed()
        finally:
            os._exit(1)
    os.close(start)
    assert select.select([end], [], [], DEADLINE_S)[0]
    program = os.pidfd_open(int(os.read(end, 20)))
    try:
        assert not select.select([program], [], [], 0)[0]
        os.kill(parent, signal.SIGKILL)
        assert ended(parent) == -signal.SIGKILL
        assert is_gone(program)
    finally:
        os.close(program)
        os.close(end)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_the_thread_that_started_a_program_counts_as_its_parent(process, null):
    pids = []
    thread = threading.Thread(
        target=lambda: pids.append(process.spawn([b"/bin/sleep", b"60"], ENV, None, null, null, null))
    )
    thread.start()
    thread.join()
    assert ended(pids[0]) == -signal.SIGKILL


@needs_x86
def test_a_program_whose_parent_is_gone_already_does_not_start(process, null, tmp_path):
    def body():
        break_call("getppid", errno.EPERM)  # which no C library expects: it hands on -1, nobody's pid
        argv = [b"/bin/touch", os.fsencode(tmp_path / "started")]
        assert ended(process.spawn(argv, ENV, None, null, null, null)) == -signal.SIGKILL

    in_a_fork(body)
    assert not (tmp_path / "started").exists()


def test_a_child_may_ask_to_die_with_its_parent(process):
    end, start = os.pipe()
    if (parent := os.fork()) == 0:
        if os.fork() == 0:
            process.die_with_parent(os.getppid())
            os.write(start, b"%d" % os.getpid())
        wait_to_be_killed()
        os._exit(1)
    os.close(start)
    assert select.select([end], [], [], DEADLINE_S)[0]
    child = os.pidfd_open(int(os.read(end, 20)))
    try:
        os.kill(parent, signal.SIGKILL)
        assert ended(parent) == -signal.SIGKILL
        assert is_gone(child)
    finally:
        os.close(child)
        os.close(end)


def test_a_child_whose_parent_is_gone_already_dies_at_once(process):
    if (pid := os.fork()) == 0:
        try:
            process.die_with_parent(os.getppid() + 1)
        finally:
            os._exit(0)
    assert ended(pid) == -signal.SIGKILL


def test_a_subreaper_gets_the_children_of_its_dead_children(process):
    def body():
        process.become_subreaper()
        end, start = os.pipe()
        if (pid := os.fork()) == 0:
            if (grandchild := os.fork()) == 0:
                os.read(end, 1)
                os._exit(7)
            os._exit(0 if grandchild else 1)
        assert ended(pid) == 0
        os.write(start, b"x")
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 7

    in_a_fork(body)


@needs_x86
def test_a_kernel_that_refuses_is_an_error_in_words(process, null):
    def body():
        break_call("prctl", errno.EPERM)
        for call, name in [
            (process.become_subreaper, "prctl(PR_SET_CHILD_SUBREAPER)"),
            (lambda: process.die_with_parent(os.getppid()), "prctl(PR_SET_PDEATHSIG)"),
        ]:
            with pytest.raises(PermissionError) as caught:
                call()
            assert caught.value.filename == name
        with pytest.raises(PermissionError):
            process.spawn([b"/bin/true"], ENV, None, null, null, null)

    in_a_fork(body)


# what can't be started


@pytest.fixture
def program(tmp_path):
    """The path of a file of words, whose mode says that it can be run."""
    path = tmp_path / "program"
    path.write_text("just words\n")
    path.chmod(0o755)
    return path


def test_what_can_t_be_run_is_an_error_that_names_it_and_leaves_no_child(process, null, program, tmp_path):
    def why(path, argv=(b"x",)):
        with pytest.raises(OSError) as caught:
            process.spawn(list(argv), ENV, None, null, null, null, program=os.fsencode(path))
        assert caught.value.filename == os.fsencode(path)
        assert caught.value.strerror == os.strerror(caught.value.errno)
        return caught.value.errno

    def body():
        assert why(program) == errno.ENOEXEC
        program.write_text("#!/no/such/interpreter\n")
        assert why(program) == errno.ENOENT
        program.chmod(0o644)
        assert why(program) == errno.EACCES
        assert why(tmp_path) == errno.EACCES
        assert why(tmp_path / "missing") == errno.ENOENT
        assert why(program / "below") == errno.ENOTDIR
        assert why("/bin/true", [b"x" * 1_000_000] * 10) == errno.E2BIG
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)

    in_a_fork(body)


def test_the_program_that_an_error_names_is_the_first_argument_where_no_other_is_given(process, null):
    with pytest.raises(FileNotFoundError) as caught:
        process.spawn([b"/no/such"], ENV, None, null, null, null)
    assert caught.value.filename == b"/no/such"


def test_a_folder_that_can_t_be_entered_is_named(process, null, program):
    with pytest.raises(FileNotFoundError) as caught:
        process.spawn([b"/bin/true"], ENV, b"/no/such", null, null, null)
    assert caught.value.filename == b"/no/such"
    with open(program) as file:
        with pytest.raises(NotADirectoryError) as caught:
            process.spawn([b"/bin/true"], ENV, file.fileno(), null, null, null)
        assert caught.value.filename == file.fileno()


@needs_root
def test_a_folder_that_may_not_be_entered_is_named_by_its_descriptor(process, null, tmp_path):
    folder = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    tmp_path.chmod(0o600)

    def body():
        os.setgid(65534)
        os.setuid(65534)
        with pytest.raises(PermissionError) as caught:
            process.spawn([b"/bin/true"], ENV, folder, null, null, null)
        assert caught.value.filename == folder

    try:
        in_a_fork(body)
    finally:
        os.close(folder)


@pytest.mark.parametrize("place", range(3))
def test_a_descriptor_that_is_none_is_named(process, null, place):
    three = [null] * 3
    three[place] = 4000
    with pytest.raises(OSError) as caught:
        process.spawn([b"/bin/true"], ENV, None, *three)
    assert (caught.value.errno, caught.value.filename) == (errno.EBADF, 4000)


@pytest.mark.parametrize(
    ("argv", "env", "cwd", "rest", "says"),
    [
        ([], [], None, {}, "argv is empty"),
        (["/bin/true"], [], None, {}, "an argument is bytes, not str"),
        ([b"/bin/true", b"a\0b"], [], None, {}, r"an argument b'a\\x00b' has a NUL"),
        ([b"/bin/true"], ["A=1"], None, {}, "a variable is bytes, not str"),
        ([b"/bin/true"], [b"A=\0"], None, {}, r"a variable b'A=\\x00' has a NUL"),
        ([b"/bin/true"], [b"A"], None, {}, "a variable is NAME=value, not b'A'"),
        ([b"/bin/true"], [b"=A"], None, {}, "a variable is NAME=value, not b'=A'"),
        ([b"/bin/true"], [], "/", {}, "cwd is bytes, not str"),
        ([b"/bin/true"], [], b"/\0", {}, "cwd b'/.*' has a NUL"),
        ([b"/bin/true"], [], -1, {}, "cwd=-1: expected a descriptor"),
        ([b"true"], [], None, {"program": b"/bin/true\0"}, "the program b'/bin/true.*' has a NUL"),
    ],
)
def test_what_is_no_call_is_refused(process, null, argv, env, cwd, rest, says):
    with pytest.raises((TypeError, ValueError), match=says):
        process.spawn(argv, env, cwd, null, null, null, **rest)


def test_the_compiled_one_takes_lists_and_bytes_only(null):
    for argv, env, rest in [
        ((b"/bin/true",), [], {}),
        ([b"/bin/true"], None, {}),
        ([b"x"], [], {"program": "/bin/true"}),
    ]:
        with pytest.raises(TypeError):
            compiled.spawn(argv, env, None, null, null, null, **rest)
    with pytest.raises(OverflowError):
        compiled.spawn([b"/bin/true"], [], 1 << 40, null, null, null)


# nothing is left


def test_no_descriptor_is_left_open(process, null):
    before = os.listdir("/proc/self/fd")
    for _ in range(20):
        assert ended(process.spawn([b"/bin/true"], ENV, b"/", null, null, null)) == 0
        with pytest.raises(FileNotFoundError):
            process.spawn([b"/no/such"], ENV, None, null, null, null)
    assert os.listdir("/proc/self/fd") == before


def test_no_memory_is_left_behind(null):
    env = [b"V%d=1" % number for number in range(10_000)]  # 80 kB of pointers

    def kilobytes():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * (os.sysconf("SC_PAGE_SIZE") // 1024)

    def fail(times):
        for _ in range(times):
            with pytest.raises(FileNotFoundError):
                compiled.spawn([b"/no/such"], env, None, null, null, null)

    fail(20)
    before = kilobytes()
    fail(100)
    assert kilobytes() - before < 4000


def test_threads_may_start_programs_at_the_same_time(null):
    codes = []

    def start():
        for _ in range(15):
            codes.append(ended(compiled.spawn([b"/bin/true"], ENV, None, null, null, null)))

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0] * 45
