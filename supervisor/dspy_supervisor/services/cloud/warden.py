"""Deletes the machines of a supervisor that was killed, where no other takes them over within a moment.

The guard of a supervisor starts it (see guard.py) with the settings on its standard input, so that no key is in any list of
processes. It waits for the lock of the book: whoever has that looks after the machines.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from ...config import Config, load
from ...environment import slurm_environment
from ...errors import AlreadyRunning
from ...layout import Layout
from .book import Book
from .provider import CloudError, Provider, provider_of

GRACE_S = 60.0  #: a supervisor that is started again so soon takes the machines over
_TRY_S = 5.0
_LONGEST_S = 86400.0  # a provider that can't be reached for so long is given up
_HANDED = ("cloud_provider", "cloud_api", "cloud_api_key", "cloud_team", "cloud_max_price", "cloud_spend_cap")


def begin(config: Config, queue_dir: Path, grace_s: float = GRACE_S) -> None:
    """Start the warden of a queue, where machines are rented that it can delete. Called when the supervisor is gone."""
    if config.cloud_provider != "prime" or not _has_open(config, queue_dir):
        return
    settings: dict[str, Any] = {name: getattr(config, name) for name in _HANDED}
    settings |= {"queue_dir": str(queue_dir), "insecure": config.insecure}
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(grace_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=slurm_environment(),
        start_new_session=True,
    )
    assert process.stdin is not None
    process.stdin.write(orjson.dumps(settings))
    process.stdin.close()


def watch(settings: Mapping[str, Any], grace_s: float) -> int:
    """Delete the machines of a queue when nobody looks after them; return how many are left."""
    config = load(settings, environ={}, cwd=Path("/")).config
    with (
        Layout.open(config.queue_dir, insecure=config.insecure) as layout,
        contextlib.closing(Book(layout)) as book,
    ):
        deadline = time.monotonic() + grace_s
        while time.monotonic() < deadline:
            if _is_looked_after(layout):
                return 0
            time.sleep(min(1.0, grace_s / 10))
        try:
            book.take_lock()
        except AlreadyRunning:
            return 0
        give_up = time.monotonic() + _LONGEST_S
        while left := delete_all(config, book, "its supervisor was killed"):
            if time.monotonic() > give_up:
                return left
            time.sleep(_TRY_S)
        return 0


def delete_all(config: Config, book: Book, why: str) -> int:
    """Delete every machine of a book whose lock the caller has; return how many are left for another try."""
    with contextlib.closing(provider_of(config)) as provider:
        return _delete_all(provider, book, why)


def _delete_all(provider: Provider, book: Book, why: str) -> int:
    left = 0
    listed: dict[str, str] | None = None
    with contextlib.suppress(CloudError):
        listed = {machine.name: machine.id for machine in provider.machines()}
    for entry in book.open():
        machine_id = entry.machine_id or (listed or {}).get(entry.name, "")
        # One without an id may be there all the same: its order may be under way, or the list can't be had.
        if not machine_id and (listed is None or time.time() - entry.ordered_at < GRACE_S):
            left += 1
            continue
        try:
            if machine_id:
                provider.delete(machine_id)
        except CloudError:
            left += 1
            continue
        book.write(entry, machine_id=machine_id, ended_at=time.time(), why=why)
    return left


def _has_open(config: Config, queue_dir: Path) -> bool:
    try:
        with Layout.open(queue_dir, insecure=config.insecure) as layout, contextlib.closing(Book(layout)) as book:
            return bool(book.open())
    except Exception:  # whatever it is, it is no reason to leave machines behind
        return True


def _is_looked_after(layout: Layout) -> bool:
    with contextlib.closing(Book(layout)) as other:
        try:
            other.take_lock()
        except AlreadyRunning:
            return True
        return False


if __name__ == "__main__":
    sys.exit(min(1, watch(orjson.loads(sys.stdin.buffer.read()), float(sys.argv[1]))))
