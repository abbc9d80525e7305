"""What is on disk about the machines of a queue: which were ordered, which are there, and what all of them cost.

::

    cloud/lock            held by the one service of this queue that orders and deletes
    cloud/NAME.json       one machine, kept after its end: the sum over all is what the queue spent
    cloud/NAME.hosts      its host key, as ssh wrote it down at the first login
    cloud/wish.json       what a person asked for: machines to keep, or none at all

A machine is written down, and synced, before it is ordered, under a name that no other has: whatever dies between the
order and its answer, the name finds the machine in the provider's list.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dspy_fastpath.ids import uuid7

from ...errors import AlreadyRunning
from ...jobbook import name_prefix
from ...layout import Layout, list_folder, read_json, replace_json

FOLDER = "cloud"
_FORMAT = 1
_NAME = re.compile(r"dspy-[0-9a-f]{8}-[0-9a-f]{12}")
_WISH = "wish.json"


@dataclass(frozen=True, slots=True)
class Entry:
    """One machine, from its order to its end."""

    name: str
    provider: str
    ordered_at: float  #: epoch seconds; it is paid for from here on, as far as we count
    price_hr: float  #: US dollars
    where: str = ""
    gpu: str = ""
    host: str = ""  #: of cloud_hosts
    machine_id: str = ""  #: "" until the provider told it
    ready_at: float | None = None  #: when it took its first tasks
    ended_at: float | None = None  #: when its deletion was confirmed
    why: str = ""  #: why it was deleted

    @property
    def is_open(self) -> bool:
        """Whether it may exist, and cost."""
        return self.ended_at is None

    def cost(self, now: float) -> float:
        """Return what it cost up to ``now`` (epoch seconds), in US dollars."""
        end = now if self.ended_at is None else self.ended_at
        return max(0.0, end - self.ordered_at) / 3600 * self.price_hr


class Book:
    """The folder cloud/ of one queue."""

    def __init__(self, layout: Layout) -> None:
        self.path = Path(layout.path) / FOLDER
        with contextlib.suppress(FileExistsError):
            os.mkdir(FOLDER, 0o700, dir_fd=layout.root)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._folder = os.open(FOLDER, flags, dir_fd=layout.root)
        self.prefix = name_prefix(layout.queue_id).replace(".", "-")  #: of the names of this queue's machines
        self._lock = -1

    def close(self) -> None:
        """Close the folder, and give the lock back."""
        if self._lock >= 0:
            os.close(self._lock)
        os.close(self._folder)

    def take_lock(self) -> None:
        """Be the one who orders and deletes, until `close`. Raises AlreadyRunning."""
        lock = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._folder)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise AlreadyRunning("another supervisor of this queue looks after its rented machines") from None
        except OSError:
            os.close(lock)
            raise
        self._lock = lock

    def new_name(self) -> str:
        """Return a name for a machine that no other has or had."""
        return self.prefix + uuid7().replace("-", "")[-12:]

    def write(self, entry: Entry, **changed: Any) -> Entry:
        """Write a machine down for good, with what changed of it."""
        entry = replace(entry, **changed)
        replace_json(self._folder, f"{entry.name}.json", {"format": _FORMAT, **asdict(entry)}, durable=True)
        return entry

    def entries(self) -> list[Entry]:
        """Return all machines that were ever ordered, oldest first."""
        return sorted(self._read(), key=lambda entry: entry.ordered_at)

    def open(self) -> list[Entry]:
        """Return those that may exist."""
        return [entry for entry in self.entries() if entry.is_open]

    def spent(self, now: float | None = None) -> float:
        """Return what all of them cost up to now, in US dollars."""
        now = time.time() if now is None else now
        return sum(entry.cost(now) for entry in self.entries())

    def wish(self) -> tuple[int, str]:
        """Return how many machines a person wants to be kept, and why none may be, or ""."""
        found = read_json(self._folder, _WISH) or {}
        pods, held = found.get("pods"), found.get("held")
        until = found.get("until")
        if isinstance(until, int | float) and until < time.time():
            pods = 0
        return (pods if isinstance(pods, int) and not isinstance(pods, bool) else 0), held if isinstance(
            held, str
        ) else ""

    def note_wish(self, pods: int, *, until: float | None = None, held: str = "") -> None:
        """Write down what a person wants: so many machines until then (epoch seconds), or none, for this reason."""
        replace_json(self._folder, _WISH, {"pods": pods, "until": until, "held": held}, durable=True)

    def hosts_file(self, name: str) -> Path:
        """Return where ssh keeps the host key of a machine."""
        return self.path / f"{name}.hosts"

    def _read(self) -> Iterator[Entry]:
        for file in list_folder(self._folder):
            stem = file.removesuffix(".json")
            if stem == file or not _NAME.fullmatch(stem):
                continue
            found = read_json(self._folder, file)
            if found is None or found.pop("format", None) != _FORMAT:
                raise OSError(
                    5, f"{self.path / file} can't be read: what was spent is not known, and nothing is rented"
                )
            yield Entry(**found)


def is_ours(name: str, prefix: str) -> bool:
    """Whether a machine of this name was ordered by us for this queue; for any queue with the prefix ``dspy-``."""
    return name.startswith(prefix) and _NAME.fullmatch(name) is not None
