"""Vectors on disk, so that no text is asked for twice: an SQLite file in a folder of this host, bounded.

A row is the SHA-256 of what the vector depends on (the model and what was asked of it, and the text), the numbers, and when they
were last used. A cache is never the reason that a text gets no vector: where the disk fails, it is as if there was none.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..log import log
from .dialect import Vectors

_FILE = "vectors.sqlite"
_TABLE = """create table if not exists vectors (key blob unique not null, numbers blob not null, used real not null);
create index if not exists by_use on vectors (used)"""
_PAGE_BYTES = 8192  # five vectors of 384 numbers fit into one; of 4096, two would, and a quarter be empty
_ASKED = 500  # keys of a statement; SQLite takes 999 in its older versions
_TRIM = 0.9  # of the bound that is left after the oldest went
_BUSY_S = 5.0


class Cache:
    """Of one client; several processes may share the folder."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder, self._most_bytes = folder, most_bytes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embed-cache")
        self._database: sqlite3.Connection | None = None
        self._broken = False

    async def get(self, space: str, texts: Sequence[str], dimensions: int) -> list[Vectors | None]:
        """Return the vector of each text that is known, with so many numbers (0: any)."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._get, space, texts, dimensions)

    async def put(self, space: str, vectors: Mapping[str, Vectors]) -> None:
        """Keep these vectors by their texts; the ones that nobody asked for longest make room."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._put, space, vectors)

    def close(self) -> None:
        """Close the file."""
        self._thread.submit(self._close).result()
        self._thread.shutdown()

    def _get(self, space: str, texts: Sequence[str], dimensions: int) -> list[Vectors | None]:
        keys = [_key(space, text) for text in texts]
        found: dict[bytes, bytes] = {}
        now = time.time()
        try:
            database = self._open()
            for start in range(0, len(keys) if database else 0, _ASKED):
                assert database is not None
                some = keys[start : start + _ASKED]
                marks = ",".join("?" * len(some))
                with database:
                    found.update(database.execute(f"select key, numbers from vectors where key in ({marks})", some))
                    database.execute(f"update vectors set used = ? where key in ({marks})", [now, *some])
        except sqlite3.Error as error:
            self._fail(error)
        rows = [np.frombuffer(found.get(key, b""), "<f4") for key in keys]
        return [row if row.size and row.size == (dimensions or row.size) else None for row in rows]

    def _put(self, space: str, vectors: Mapping[str, Vectors]) -> None:
        now = time.time()
        rows = [(_key(space, text), vector.astype("<f4").tobytes(), now) for text, vector in vectors.items()]
        try:
            database = self._open()
            if database is None:
                return
            with database:
                database.executemany("insert or replace into vectors values (?, ?, ?)", rows)
            self._trim(database)
        except sqlite3.Error as error:
            self._fail(error)

    def _trim(self, database: sqlite3.Connection) -> None:
        """Let the oldest go where the file is too large."""
        (pages,), (free,), (size,) = (
            database.execute(f"pragma {name}").fetchone() for name in ("page_count", "freelist_count", "page_size")
        )
        used = (pages - free) * size
        if used <= self._most_bytes:
            return
        (rows,) = database.execute("select count(*) from vectors").fetchone()
        going = max(1, int(rows * (1 - _TRIM * self._most_bytes / used)))
        with database:
            database.execute(
                "delete from vectors where key in (select key from vectors order by used limit ?)", (going,)
            )

    def _open(self) -> sqlite3.Connection | None:
        if self._database is None and not self._broken:
            try:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                os.close(os.open(self._folder / _FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            except OSError as error:
                self._fail(error)
                return None
            self._database = sqlite3.connect(self._folder / _FILE, timeout=_BUSY_S, check_same_thread=False)
            self._database.execute(f"pragma page_size = {_PAGE_BYTES}")  # heeded by a new file alone
            self._database.execute("pragma journal_mode = wal")
            self._database.execute("pragma synchronous = normal")
            self._database.executescript(_TABLE)
        return self._database

    def _fail(self, error: Exception) -> None:
        """Do without from now on: what was cached is asked for again."""
        self._close()
        if not self._broken:
            log.warning("embed_cache_off", folder=str(self._folder), error=str(error))
        self._broken = True

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None


def _key(space: str, text: str) -> bytes:
    return hashlib.sha256(f"{space}\0{text}".encode("utf-8", "surrogatepass")).digest()
