"""The kind of filesystem a folder lies on, and what that kind means for a queue.

The answer is the type that the mount table gives for the mount the folder was reached through: the kernel names that
mount in /proc/self/fdinfo, and so btrfs subvolumes, bind mounts and stacked mounts need no guess (st_dev would).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

#: Types that other hosts may write at the same time: their events do not arrive here, and their locks may not hold.
# fmt: off
NETWORK = frozenset({
    "9p", "afs", "beegfs", "beegfs_nodev", "ceph", "cifs", "coda", "gfs", "gfs2", "glusterfs", "gpfs", "lustre",
    "mmfs", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "panfs", "pvfs2", "smb3", "smbfs", "vboxsf", "virtiofs",
    "wekafs",
})
# fmt: on
#: Types whose content ends with the host, or with the container that they were made for.
VOLATILE = frozenset({"aufs", "overlay", "ramfs", "rootfs", "tmpfs"})
#: Local types on which a change made below or beside the mount raises no event above it.
SILENT = frozenset({"aufs", "ecryptfs", "overlay"})
#: FUSE types known to serve a disk of this host; every other fuse.NAME is taken for a network filesystem.
LOCAL_FUSE = frozenset(
    {"fuseblk", "fuse.bindfs", "fuse.encfs", "fuse.fuse-overlayfs", "fuse.gocryptfs", "fuse.lxcfs", "fuse.ntfs-3g"}
)
#: Types on which a rename between two folders reaches the disk whole, as one step of a journal, or not at all; btrfs tears it.
WHOLE_RENAMES = frozenset({"ext3", "ext4", "tmpfs", "xfs"})

UNKNOWN = "unknown"


class Filesystem(NamedTuple):
    """What a queue must know of the filesystem below it."""

    name: str  #: the type as the mount table writes it: ext4, nfs4, fuse.sshfs; "unknown" without /proc
    network: bool  #: other hosts may use it too
    volatile: bool  #: nothing on it survives a reboot
    events: bool  #: inotify tells of every change; where False only looking does
    mount_point: str = ""
    read_only: bool = False

    @property
    def tears_renames(self) -> bool:
        """Whether a power cut may leave a file under the old and the new name of a rename between two folders."""
        return self.name not in WHOLE_RENAMES


def filesystem(path: str | os.PathLike[str] | int) -> Filesystem:
    """Return the filesystem of an existing file, folder or open descriptor. OSError where it cannot be reached."""
    if isinstance(path, int):
        return _described(_mount_of(path))
    # Opened for reading first, since O_PATH would stop in front of an automount; O_PATH needs no right to read.
    flags = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        fd = os.open(path, os.O_RDONLY | flags)
    except PermissionError:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return _described(_mount_of(fd))
    finally:
        os.close(fd)


def classify(name: str, mount_point: str = "", *, read_only: bool = False) -> Filesystem:
    """Return what is known of a type by its name alone; an unknown type is taken for a local disk."""
    network = name in NETWORK or ((name == "fuse" or name.startswith("fuse.")) and name not in LOCAL_FUSE)
    volatile = name in VOLATILE or name == "fuse.fuse-overlayfs"
    events = not network and name not in SILENT and not name.startswith("fuse.") and name != UNKNOWN
    return Filesystem(name, network, volatile, events, mount_point, read_only)


def existing(path: Path) -> Path:
    """Return path, or the nearest folder above it that is there."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _described(line: list[str] | None) -> Filesystem:
    if line is None:
        return classify(UNKNOWN)
    dash = line.index("-", 6)  # the optional fields before the dash are of any number
    options = {*line[5].split(","), *line[dash + 3].split(",")}  # of the mount, and of the filesystem itself
    return classify(line[dash + 1], _unescaped(line[4]), read_only="ro" in options)


def _mount_of(fd: int) -> list[str] | None:
    """Return the fields of the mount's line in /proc/self/mountinfo, proc(5), or None without /proc."""
    try:
        number = ""
        for fact in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
            if fact.startswith("mnt_id:"):
                number = fact.split()[1]
        for line in Path("/proc/self/mountinfo").read_bytes().decode("utf-8", "surrogateescape").splitlines():
            fields = line.split(" ")
            if fields[0] == number and "-" in fields[6:]:
                return fields
    except OSError:
        pass
    return None


def _unescaped(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text
