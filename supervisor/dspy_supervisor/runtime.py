"""The runtime folder: lock, control socket and shared page of the supervisors of one user on this host.

These belong to the host, and most are gone after a reboot; nothing of them lies in the queue, which other hosts may share. Each
is named QUEUE_ID.INSTANCE and what it is, and goes with a supervisor that ends in order; of one that was killed the next start of
any removes them after a day (nodes.py).
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from .errors import QueueUnsafe


def make_runtime_folder(folder: Path) -> None:
    """Make the folder, private. Raises QueueUnsafe where one of that name is a stranger's, or open to others."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise QueueUnsafe(
            f"{folder} is not a folder of your own that only you may write (owner {status.st_uid}, mode "
            f"{stat.S_IMODE(status.st_mode):04o}): remove it, or name another with --runtime-dir"
        )


def is_first_since_boot(note: Path) -> bool:
    """Whether no supervisor has recovered its queue since this machine was started, by the note that it leaves."""
    try:
        return note.read_text() != boot_id()
    except (OSError, UnicodeDecodeError):
        return True


def note_boot(note: Path) -> None:
    """Leave the note that a queue was recovered since this machine was started. Raises OSError."""
    note.write_text(boot_id())


def boot_id() -> str:
    """Return the random name of this run of the kernel; "" where it isn't to be had."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
