"""What the system refused, told by the setting, or the folder of the queue, that it is about.

Most of what is done in a queue is done below open folders, and the system's own words then name a file without its place.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from ..config import Loaded
from ..errors import ConfigError, SupervisorError

#: what doesn't pass by itself, so that another try is in vain; a full disk, or a server that is away, is no setting's fault
_LASTING = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_EXPECTED = {
    "log_file": "a file that can be written, or made",
    "runtime_dir": "a folder of yours, or one that can be made",
    "queue_dir": "a folder that can be written, or one that can be made",
}


def told(error: OSError, loaded: Loaded) -> SupervisorError | None:
    """Return the error of ours that a system's error is, or None where it is about no path, or about none of these."""
    if error.filename is None or isinstance(error.filename, int):
        return None
    name, why = Path(os.fsdecode(error.filename)), error.strerror or str(error)
    config = loaded.config
    if name.is_absolute() and error.errno in _LASTING:
        for setting, expected in _EXPECTED.items():
            value: Path | None = getattr(config, setting)
            if value is not None and (name == value or name in value.parents):
                where = "" if name == value else f"{name}: "
                return ConfigError(f"{setting} ({loaded.origins[setting]})", str(value), f"{expected} ({where}{why})")
    if not name.is_absolute() or name.is_relative_to(config.queue_dir):
        closed = _closed(config.queue_dir) if error.errno in _DENIED else None
        return SupervisorError(closed or f"{name}, in the queue {config.queue_dir}: {why}")
    return None


def _closed(queue: Path) -> str | None:
    """Return in words which folder of a queue this user can't use, and what to do, or None where it can use all."""
    from ..layout import FOLDERS

    for folder in (queue, *(queue / name for name in FOLDERS)):
        with suppress(OSError):
            status = os.stat(folder)
            if not os.access(folder, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
                facts = f"it belongs to user {status.st_uid} and has mode {stat.S_IMODE(status.st_mode):04o}"
                return (
                    f"{folder} can't be read and written by user {os.geteuid()}: {facts}; run this as its owner, "
                    "or let this user in by 'chown' or 'chmod'"
                )
    return None
