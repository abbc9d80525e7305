"""The two ways to put a process behind walls, for good, with all that it will start.

``namespaces``: a tree of mounts, processes and a network of its own (mount_namespaces(7) and its kin). What the task may not
see is not there. ``landlock``: the kernel refuses what it may not open (landlock(7)); processes and names of files of others stay
in sight. On both lies a filter of system calls, no capability is left, and set-user-ID programs give none.
"""

from __future__ import annotations

import errno
import os

from . import kernel
from .view import View, without

_READ = kernel.FS_EXECUTE | kernel.FS_READ_FILE | kernel.FS_READ_DIR
_DEVICE = kernel.FS_READ_FILE | kernel.FS_WRITE_FILE | kernel.FS_IOCTL_DEV
LEAST_ABI = 6  #: of Landlock: the one that keeps signals and abstract sockets from others, Linux 6.12
_QUIET = kernel.MS_NOSUID | kernel.MS_NODEV
_ASIDE = kernel.ATTR_NOSUID | kernel.ATTR_NODEV


def leave_host(*, network: bool) -> None:
    """Get the rights to make namespaces, and where there is to be no network, an empty one. Only while there is one thread."""
    user, group = os.geteuid(), os.getegid()
    flags = 0 if network else kernel.CLONE_NEWNET
    if user == 0:
        if flags:
            kernel.unshare(flags)
        return
    kernel.unshare(flags | kernel.CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def leave_others() -> None:
    """Get mounts of its own; what is forked from now on sees no other process."""
    kernel.unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWPID)


def build_tree(view: View, home: str, tmp_bytes: int) -> None:
    """Change to a tree of files that holds the view, and this process's folder as the only thing to write.

    To be called by process 1 of a new pid namespace. A place for the new tree is needed only to stand on: /tmp.
    """
    kernel.mount("", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("tmpfs", "/tmp", "tmpfs", _QUIET, "mode=0755,size=1m")
    os.mkdir("/tmp/old")
    kernel.pivot_root("/tmp", "/tmp/old")
    os.chdir("/")
    os.mkdir("/new")
    kernel.mount("tmpfs", "/new", "tmpfs", _QUIET, "mode=0755,size=4m")
    for place in ("/tmp", "/dev/shm"):
        os.makedirs("/new" + place)
        kernel.mount("tmpfs", "/new" + place, "tmpfs", _QUIET, f"mode=1777,size={tmp_bytes}")
    os.makedirs("/new/var")
    os.symlink("/tmp", "/new/var/tmp")
    for path in sorted(view.read, key=lambda one: one.count("/")):
        _show(path, _ASIDE | kernel.ATTR_RDONLY)
    os.close(os.open("/nothing", os.O_CREAT | os.O_WRONLY, 0o600))
    masks = []
    for path in view.hidden:
        if os.path.isdir("/new" + path):
            kernel.mount("tmpfs", "/new" + path, "tmpfs", _QUIET, "mode=0755,size=64k")
            masks.append("/new" + path)
        elif os.path.exists("/new" + path):
            kernel.mount("/nothing", "/new" + path, flags=kernel.MS_BIND)
            kernel.restrict_mount("/new" + path, kernel.ATTR_RDONLY)
    for path in (*view.write, os.path.realpath("/old" + home)[len("/old") :]):
        _show(path, _ASIDE)
    for path in view.devices:
        _show(path, kernel.ATTR_NOSUID)
    for path, target in view.links:
        if not os.path.lexists("/new" + path):
            os.makedirs(os.path.dirname("/new" + path), exist_ok=True)
            os.symlink(target, "/new" + path)
    for place in masks:
        kernel.restrict_mount(place, kernel.ATTR_RDONLY, below=False)
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1"),
                         ("stderr", "/proc/self/fd/2")):  # fmt: skip
        os.symlink(target, f"/new/dev/{name}")
    os.mkdir("/new/proc")
    kernel.mount("proc", "/new/proc", "proc", _QUIET | kernel.MS_NOEXEC)
    kernel.restrict_mount("/new/proc", kernel.ATTR_RDONLY)
    _show("/sys", _ASIDE | kernel.ATTR_RDONLY | kernel.ATTR_NOEXEC)
    kernel.restrict_mount("/new", kernel.ATTR_RDONLY, below=False)
    os.chdir("/new")
    kernel.pivot_root(".", ".")  # the old root lies over the new one now, pivot_root(2)
    kernel.unmount(".")
    os.chdir("/")


def _show(path: str, attributes: int) -> None:
    """Have a file or a folder of the old tree in the new one, under the same path."""
    old, new = "/old" + path, "/new" + path
    if os.path.isdir(old):
        os.makedirs(new, exist_ok=True)
    elif os.path.exists(old):
        os.makedirs(os.path.dirname(new), exist_ok=True)
        if not os.path.exists(new):
            os.close(os.open(new, os.O_CREAT | os.O_WRONLY, 0o600))
    else:
        return
    kernel.mount(old, new, flags=kernel.MS_BIND | kernel.MS_REC)
    kernel.restrict_mount(new, attributes)


def rules(view: View) -> tuple[tuple[str, int], ...]:
    """Return what Landlock is told of the view: paths, and the rights on them and on all below. Raises OSError."""
    if (abi := kernel.landlock_abi()) < LEAST_ABI:
        raise OSError(errno.ENOSYS, f"Landlock of this kernel has ABI {abi}, {LEAST_ABI} is needed (Linux 6.12)")
    # Names are no secret there. Programs list the folders of /etc, and Python those that it imports from.
    names = [(path, kernel.FS_READ_DIR) for path in ("/etc", *view.listed)]
    read = [(part, _READ) for path in (*view.read, "/proc", "/sys") for part in without(path, view.hidden)]
    return (*names, *read, *((path, _write()) for path in view.write), *((path, _DEVICE) for path in view.devices))


def close_files(known: tuple[tuple[str, int], ...], home: str, tmp: str, *, network: bool) -> None:
    """Have the kernel refuse every file but those of the rules, this task's folder and its private tmp."""
    kernel.drop_privileges()  # which it asks for
    kernel.landlock(kernel.landlock_abi(), (*known, (home, _write()), (tmp, _write())), network=network)


def _write() -> int:
    special = kernel.FS_MAKE_CHAR | kernel.FS_MAKE_BLOCK | kernel.FS_IOCTL_DEV
    return kernel.files_rights(kernel.landlock_abi()) & ~special


def seal(calls: bytes) -> None:
    """Give up what could open the walls again, and let this filter judge each system call. The last step."""
    kernel.drop_privileges()
    kernel.install_filter(calls)
