"""The filter of system calls for tasks in a sandbox, as a BPF program (seccomp(2)).

What it refuses has no place in a task: other processes' memory, mounts and namespaces, the kernel's own settings, keys, the
queues and memory that System V and POSIX share by name, and io_uring, which makes calls that no filter sees. No file gets the
bit that makes others run it as its owner or group: outside, that would be a way to the owner's rights for every user of the
host. The rest is let through. A call of another architecture than the process's own ends it: its numbers mean other calls.
"""

from __future__ import annotations

import errno
import platform
import struct

#: name: its number on x86_64 and on aarch64, None where it has none
CALLS: dict[str, tuple[int | None, int | None]] = {
    "acct": (163, 89), "add_key": (248, 217), "adjtimex": (159, 171), "bpf": (321, 280), "chroot": (161, 51),
    "clock_adjtime": (305, 266), "clock_settime": (227, 112), "delete_module": (176, 106), "fanotify_init": (300, 262),
    "finit_module": (313, 273), "fsconfig": (431, 431), "fsmount": (432, 432), "fsopen": (430, 430), "fspick": (433, 433),
    "init_module": (175, 105), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "io_uring_setup": (425, 425),
    "ioperm": (173, None), "iopl": (172, None), "kcmp": (312, 272), "kexec_file_load": (320, 294), "kexec_load": (246, 104),
    "keyctl": (250, 219), "mount": (165, 40), "mount_setattr": (442, 442), "move_mount": (429, 429),
    "mq_open": (240, 180), "msgget": (68, 186), "semget": (64, 190), "shmat": (30, 196), "shmget": (29, 194),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "perf_event_open": (298, 241), "pidfd_getfd": (438, 438), "pivot_root": (155, 41), "process_madvise": (440, 440),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "ptrace": (101, 117), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "reboot": (169, 142), "request_key": (249, 218), "setdomainname": (171, 162),
    "sethostname": (170, 161), "setns": (308, 268), "settimeofday": (164, 170), "swapoff": (168, 225), "swapon": (167, 224),
    "syslog": (103, 116), "umount2": (166, 39), "unshare": (272, 97), "uselib": (134, None), "userfaultfd": (323, 282),
    "vhangup": (153, 58),
}  # fmt: skip
#: refused where processes of the same user are in sight: what Landlock does not judge, as modes, owners, attributes and times
#: of files outside, and the scheduling of others
SHARED: dict[str, tuple[int | None, int | None]] = {
    "chmod": (90, None), "chown": (92, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "fchown": (93, 55), "fchownat": (260, 54), "file_setattr": (469, 469), "fremovexattr": (199, 16),
    "fsetxattr": (190, 7), "futimesat": (261, None),
    "ioprio_set": (251, 30), "lchown": (94, None), "lremovexattr": (198, 15), "lsetxattr": (189, 6),
    "migrate_pages": (256, 238), "move_pages": (279, 239),
    "process_mrelease": (448, 448), "removexattr": (197, 14), "removexattrat": (466, 466),
    "setpriority": (141, 140), "setxattr": (188, 5), "setxattrat": (463, 463),
    "utime": (132, None), "utimes": (235, None),
}  # fmt: skip
#: of these the first argument is a process, and 0 means the caller
_OF_SELF = {"prlimit64": (302, 261), "sched_setaffinity": (203, 122), "sched_setattr": (314, 274),
            "sched_setparam": (142, 118), "sched_setscheduler": (144, 119)}  # fmt: skip
#: what gives a file its mode: the call, and which argument that is (inode(7)); mkdir(2) takes no such bits from its caller
_MODES: dict[str, tuple[tuple[int | None, int | None], int]] = {
    "chmod": ((90, None), 1), "creat": ((85, None), 1), "fchmod": ((91, 52), 1), "fchmodat": ((268, 53), 2),
    "fchmodat2": ((452, 452), 2), "mknod": ((133, None), 1), "mknodat": ((259, 33), 2),
}  # fmt: skip
#: of these the argument after the flags, where the flags say that a file is made; else it means nothing, and may be anything
_OPENS: dict[str, tuple[tuple[int | None, int | None], int]] = {"open": ((2, None), 1), "openat": ((257, 56), 2)}
_SET_ID = 0o6000  # S_ISUID and S_ISGID
_MAKES = 0o100 | 0o20000000  # O_CREAT and O_TMPFILE's own bit
_OPENAT2 = (437, 437)
_UTIMENSAT = (280, 88)
_CLONE, _CLONE3, _SOCKET, _IOCTL = (56, 220), (435, 435), (41, 198), (16, 29)
_FAMILIES = (2, 10)  # AF_INET, AF_INET6
_NEW_NAMESPACES = 0x7E020000  # all CLONE_NEW* that clone(2) takes
_TERMINAL = (0x5412, 0x541C)  # TIOCSTI and TIOCLINUX: typing into the terminal

_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000
_LOAD, _EQUAL, _SET, _ATLEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NR, _ARCH, _ARGUMENTS = 0, 4, 16


def supported(machine: str = platform.machine()) -> bool:
    """Whether there is a filter for this architecture."""
    return machine in _AUDIT


def program(*, network: bool, shared: bool, machine: str = platform.machine()) -> bytes:
    """Return the filter: with TCP and UDP or without any new socket; ``shared``: others of this user are in sight."""
    column = 0 if machine == "x86_64" else 1
    code: list[tuple[int, int, int, int]] = []

    def refuse(number: int | None, why: int = errno.EPERM) -> None:
        if number is not None:
            code.extend([(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | why)])

    def judge(number: int | None, *tests: tuple[int, int, int, int]) -> None:
        if number is not None:
            code.append((_EQUAL, 0, len(tests), number))
            code.extend(tests)

    def argument(number: int) -> tuple[int, int, int, int]:
        return (_LOAD, 0, 0, _ARGUMENTS + 8 * number)  # its lower half

    refused, allowed = (_RETURN, 0, 0, _ERRNO | errno.EPERM), (_RETURN, 0, 0, _ALLOW)
    code += [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, _AUDIT[machine]), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NR)]
    if machine == "x86_64":
        code += [(_ATLEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]
    # What judges an argument ends with a verdict: the number of the call is no longer at hand after an argument was read.
    for numbers, place in _OPENS.values():  # the most frequent first
        makes = (argument(place), (_SET, 1, 0, _MAKES), allowed)
        judge(numbers[column], *makes, argument(place + 1), (_SET, 0, 1, _SET_ID), refused, allowed)
    for numbers in (CALLS | SHARED if shared else CALLS).values():
        refuse(numbers[column])
    # What these are asked for is out of a filter's sight: programs take clone and openat instead.
    refuse(_CLONE3[column], errno.ENOSYS)
    refuse(_OPENAT2[column], errno.ENOSYS)
    for numbers, place in _MODES.values():
        judge(numbers[column], argument(place), (_SET, 0, 1, _SET_ID), refused, allowed)
    judge(_CLONE[column], argument(0), (_SET, 0, 1, _NEW_NAMESPACES), refused, allowed)
    first, second = _TERMINAL
    judge(_IOCTL[column], argument(1), (_EQUAL, 1, 0, first), (_EQUAL, 0, 1, second), refused, allowed)
    if network:
        inet, inet6 = _FAMILIES
        family = (argument(0), (_EQUAL, 1, 0, inet), (_EQUAL, 0, 1, inet6), allowed, refused)
        judge(_SOCKET[column], *family)
    else:
        refuse(_SOCKET[column], errno.EACCES)
    if shared:
        # The times of an open file, without a path: what can be opened here is the task's, or may be read by it.
        halves = (argument(1), (_EQUAL, 0, 2, 0), (_LOAD, 0, 0, _ARGUMENTS + 12), (_EQUAL, 1, 0, 0))
        judge(_UTIMENSAT[column], *halves, refused, allowed)
        for numbers in _OF_SELF.values():
            judge(numbers[column], argument(0), (_EQUAL, 0, 1, 0), allowed, refused)
    code.append(allowed)
    return b"".join(struct.pack("=HBBI", *line) for line in code)
