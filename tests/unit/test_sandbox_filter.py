"""The filter of system calls: each call that could make a set-user-ID program is refused, and the trial finds each gap."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import signal
import stat
import struct
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from dspy_supervisor.sandbox import escapes, kernel
from dspy_supervisor.sandbox import filter as calls

pytestmark = pytest.mark.skipif(not calls.supported(), reason="there is no filter for this machine")
X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="a call of x86-64")
EITHER = pytest.mark.parametrize("shared", [False, True], ids=["namespaces", "landlock"])


def behind(filtered: bytes, one: Callable[[], object]) -> bool | signal.Signals:
    """Call this in a fork behind a filter; return whether it is true, or what killed it."""
    if not (child := os.fork()):
        try:
            kernel.drop_privileges()
            kernel.install_filter(filtered)
            os._exit(bool(one()))
        except BaseException:
            traceback.print_exc()
            os._exit(2)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 1) or status < 0
    return bool(status) if status >= 0 else signal.Signals(-status)


@EITHER
def test_no_call_makes_a_set_user_id_program(tmp_path: Path, shared: bool) -> None:
    assert escapes._set_user_id(str(tmp_path))  # without a filter
    assert behind(calls.program(network=True, shared=shared), lambda: escapes._set_user_id(str(tmp_path))) is False
    assert list(tmp_path.iterdir()) == []


@EITHER
@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=X86) for name in ("chmod", "creat", "mknod", "open")),
        *("fchmod", "fchmodat", "fchmodat2", "mknodat", "openat", "openat2"),
    ],
)
def test_the_trial_finds_each_call_that_the_filter_forgot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, shared: bool
) -> None:
    if name == "fchmodat2" and tuple(map(int, os.uname().release.split("-")[0].split(".")[:2])) < (6, 6):
        pytest.skip("this kernel has no such call")
    for table in (calls._MODES, calls._OPENS, calls.SHARED):
        if name in table:
            monkeypatch.delitem(table, name)
    if name == "openat2":
        monkeypatch.setattr(calls, "_OPENAT2", (None, None))
    assert behind(calls.program(network=True, shared=shared), lambda: escapes._set_user_id(str(tmp_path))) is True


@EITHER
@pytest.mark.parametrize("bit", [stat.S_ISUID, stat.S_ISGID])
def test_the_trial_finds_either_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bit: int, shared: bool) -> None:
    monkeypatch.setattr(calls, "_SET_ID", bit)
    assert behind(calls.program(network=True, shared=shared), lambda: escapes._set_user_id(str(tmp_path))) is True


@EITHER
def test_files_are_made_and_opened_with_any_other_mode(tmp_path: Path, shared: bool) -> None:
    def makes() -> bool:
        os.umask(0)
        path = tmp_path / "made"
        for mode in (0o600, 0o1777, 0o777):
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, mode))
            assert stat.S_IMODE(path.stat().st_mode) == mode
            path.unlink()
        path.touch()
        # An opening that makes no file has no mode: what lies in its place means nothing.
        assert (
            ctypes.CDLL(None).syscall(257 if platform.machine() == "x86_64" else 56, -100, bytes(path), 0, 0o6755) >= 0
        )
        (tmp_path / "below").mkdir(0o2755)  # the bits are not taken from a caller, mkdir(2)
        return not (tmp_path / "below").stat().st_mode & 0o6000

    assert behind(calls.program(network=True, shared=shared), makes) is True


def test_ordinary_modes_are_changed_where_others_files_are_out_of_sight(tmp_path: Path) -> None:
    def changes() -> bool:
        path = tmp_path / "file"
        path.touch()
        for mode in (0o755, 0o400, 0o1777):
            os.chmod(path, mode)
            assert stat.S_IMODE(path.stat().st_mode) == mode
        with path.open() as file:
            os.fchmod(file.fileno(), 0o640)
        return stat.S_IMODE(path.stat().st_mode) == 0o640

    assert behind(calls.program(network=True, shared=False), changes) is True


def test_a_folder_goes_on_handing_down_its_group(tmp_path: Path) -> None:
    tmp_path.chmod(0o2755)
    assert behind(calls.program(network=True, shared=False), lambda: (tmp_path / "below").mkdir() is None) is True
    assert (tmp_path / "below").stat().st_mode & stat.S_ISGID


ARM = {"openat": 56, "mknodat": 33, "fchmod": 52, "fchmodat": 53, "fchmodat2": 452, "openat2": 437, "read": 63}


@pytest.mark.parametrize(
    ("call", "arguments", "refused"),
    [
        ("openat", (0, 0, 0o101, 0o4755), errno.EPERM),
        ("openat", (0, 0, 0o20040001, 0o2755), errno.EPERM),  # O_TMPFILE
        ("openat", (0, 0, 0o101, 0o1755), 0),
        ("openat", (0, 0, 1, 0o6755), 0),
        ("mknodat", (0, 0, 0o104755, 0), errno.EPERM),
        ("mknodat", (0, 0, 0o100755, 0), 0),
        *((call, (0, *before, 0o2755), errno.EPERM) for call, before in (("fchmod", ()), ("fchmodat", (0,)))),
        *((call, (0, *before, 0o755), 0) for call, before in (("fchmod", ()), ("fchmodat", (0,)), ("fchmodat2", (0,)))),
        ("fchmodat2", (0, 0, 0o4755, 0), errno.EPERM),
        ("openat2", (0, 0, 0, 24), errno.ENOSYS),
        ("read", (0, 0o6755, 0o6755, 0o6755), 0),
    ],
)
def test_on_arm_the_same_is_refused(call: str, arguments: tuple[int, ...], refused: int) -> None:
    filtered = calls.program(network=True, shared=False, machine="aarch64")
    verdict = 0x50000 | refused if refused else 0x7FFF0000
    assert (
        judged(filtered, struct.pack("=IIQ6Q", ARM[call], 0xC00000B7, 0, *arguments, *[0] * (6 - len(arguments))))
        == verdict
    )


def judged(filtered: bytes, call: bytes) -> int:
    """Return the verdict on a call, as the kernel would come to it."""
    code, place, held = list(struct.iter_unpack("=HBBI", filtered)), 0, 0
    while True:
        what, true, false, number = code[place]
        place += 1
        if what == 0x06:
            return int(number)
        if what == 0x20:
            held = struct.unpack_from("=I", call, number)[0]
        else:
            holds = {0x15: held == number, 0x45: bool(held & number), 0x35: held >= number}[what]
            place += true if holds else false


@X86
@EITHER
def test_a_call_by_another_set_of_numbers_ends_its_process(tmp_path: Path, shared: bool) -> None:
    path = tmp_path / "file"
    path.touch(0o755)
    filtered = calls.program(network=True, shared=shared)
    x32 = 0x40000000 + 90
    assert behind(filtered, lambda: ctypes.CDLL(None).syscall(x32, bytes(path), 0o4755)) is signal.SIGSYS
    # 32 bits: mov eax, 15 (chmod); mov ebx, path; mov ecx, 04755; int 0x80; where the kernel has none, it is a fault.
    assert behind(filtered, lambda: _interrupt(bytes(path) + b"\0", 15, 0o4755)) in (signal.SIGSYS, signal.SIGSEGV)
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


def _interrupt(text: bytes, number: int, mode: int) -> int:
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    rights = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    place = libc.mmap(None, 4096, rights, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40, -1, 0)  # MAP_32BIT
    code = b"\x53\xb8" + struct.pack("=I", number) + b"\xbb" + struct.pack("=I", place + 2048)
    code += b"\xb9" + struct.pack("=I", mode) + b"\xcd\x80\x5b\xc3"
    ctypes.memmove(place, code, len(code))
    ctypes.memmove(place + 2048, text, len(text))
    return int(ctypes.CFUNCTYPE(ctypes.c_int)(place)())


@X86
def test_calls_by_32_bits_are_tried_in_earnest(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch(0o755)
    if (child := os.fork()) == 0:
        os._exit(_interrupt(bytes(path) + b"\0", 15, 0o4755) & 1)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
        pytest.skip("this kernel has no calls by 32 bits")
    assert stat.S_IMODE(path.stat().st_mode) == 0o4755
