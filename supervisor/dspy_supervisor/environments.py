"""What workers keep between tasks, as the queue's folder knows it: one small file for each key that something is kept under.

::

    environments/HASH.json    {"key", "class", "owner": NODE.N.SLOT of the worker, "task": id of the one that made it,
                               "since": epoch seconds, "why"?: how it was lost, "told"?: id of the task that is told so}

The file is there from before its maker is done until the thing is given up. One whose owner is gone says that what was kept
is lost, whoever dies: worker, supervisor or host. The next task that asks for it fails with the cause ``env_lost``, and the
file goes. ``told`` is written before that task's record is, so the loss is told once, also where the file could not go.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from .layout import Layout, list_folder, read_json, replace_json
from .nodes import node_of
from .record import Claim
from .task import is_task_id
from .taskqueue import exists

FOLDER = "environments"
MAX_KEY_BYTES = 1024  #: as of an envelope's affinity


@dataclass(frozen=True, slots=True)
class Mark:
    """One file of the folder."""

    key: str
    task_class: str
    owner: str
    task: str  #: id
    since: float  #: epoch seconds
    why: str = ""  #: how it was lost, where somebody saw it
    told: str = ""  #: id of the task that is told so

    @property
    def node(self) -> str:
        """The node of its owner."""
        return node_of(self.owner)


class Marks:
    """The folder, as one process sees it."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def read(self, task_class: str, key: str) -> Mark | None:
        """Return what is said of a key, or None: nothing is kept under it, nor was and is lost. Raises OSError."""
        return self._read(file_of(task_class, key))

    def all(self) -> Iterator[Mark]:
        """Yield every mark; files that are none of ours are passed over."""
        for file in self.files():
            if (mark := self._read(file)) is not None and file_of(mark.task_class, mark.key) == file:
                yield mark

    def files(self) -> list[str]:
        """Return the names in the folder, temporary ones left out."""
        with self._open() as folder:
            return [] if folder is None else [name for name in list_folder(folder) if not name.startswith(".")]

    def write(self, mark: Mark) -> None:
        """Put a mark in the place of what was said of its key. Raises OSError."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(FOLDER, 0o700, dir_fd=self._layout.root)
        facts: dict[str, Any] = {"key": mark.key, "class": mark.task_class, "owner": mark.owner, "task": mark.task}
        facts["since"] = round(mark.since, 3)
        facts |= {name: value for name, value in (("why", mark.why), ("told", mark.told)) if value}
        with self._open() as folder:
            if folder is None:
                raise FileNotFoundError(2, "the queue's folder was removed", FOLDER)
            replace_json(folder, file_of(mark.task_class, mark.key), facts, durable=self._layout.syncs)

    def remove(self, task_class: str, key: str) -> None:
        """Forget a key; nothing where it is forgotten already. Raises OSError."""
        self.remove_file(file_of(task_class, key))

    def remove_file(self, file: str) -> None:
        """Remove one file of the folder."""
        with self._open() as folder:
            if folder is not None:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(file, dir_fd=folder)

    def old(self, clock: Callable[[int], float], age_s: float) -> list[str]:
        """Return the files of losses that nobody asked about for so long, and temporary ones of that age."""
        with self._open() as folder:
            names = [] if folder is None else list_folder(folder)
            if folder is None or not names:
                return []
            found, now = [], clock(folder)
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    age = now - os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime
                    mark = self._read(name)
                    if age > age_s and (mark is None or self._is_lost(mark)):
                        found.append(name)
            return found

    def _is_lost(self, mark: Mark) -> bool:
        return bool(mark.why) or not exists(self._layout.nodes, f"{mark.node}.hb")

    def is_over(self, mark: Mark) -> bool:
        """Whether the loss was told: the task that was to be told has its record."""
        return bool(mark.told) and exists(self._layout.failed, f"{mark.told}.json")

    def _read(self, file: str) -> Mark | None:
        with self._open() as folder:
            facts = None if folder is None else read_json(folder, file)
        if facts is None:
            return None
        texts = [facts.get(name, "") for name in ("key", "class", "owner", "task", "why", "told")]
        since = facts.get("since")
        if not all(isinstance(text, str) for text in texts) or not isinstance(since, int | float):
            return None
        key, task_class, owner, task, why, told = texts
        return Mark(key, task_class, owner, task, float(since), why, told)

    @contextlib.contextmanager
    def _open(self) -> Iterator[int | None]:
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            folder = os.open(FOLDER, flags, dir_fd=self._layout.root)
        except FileNotFoundError:
            yield None
            return
        try:
            yield folder
        finally:
            os.close(folder)


def key_of(task: Claim, *, by_env_id: bool) -> str | None:
    """Return the key of a task: its affinity, or with ``by_env_id`` what else names its environment; None: it has none."""
    if (key := task.fields.affinity) is not None or not by_env_id:
        return key
    try:
        payload = orjson.loads(task.payload)
    except ValueError:  # nested deeper than the parser goes
        return None
    key = payload.get("env_id") if isinstance(payload, dict) else None
    return key if isinstance(key, str) and key and len(key.encode()) <= MAX_KEY_BYTES else None


def result_file(payload: Mapping[str, Any]) -> str | None:
    """Return the name in done/ that clients of the earlier RL runner expect a task's result under; None: under none."""
    parts = [payload.get("episode_id")] if "episode_id" in payload else [payload.get("env_id"), payload.get("action")]
    stem = "_".join(map(str, parts)) + "_result"
    return f"{stem}.json" if all(isinstance(part, str) for part in parts) and is_task_id(stem) else None


def is_result(file: str, document: Mapping[str, Any]) -> bool:
    """Whether a document in done/ is such a result, and no record."""
    return "success" in document and "status" not in document and result_file(document) == file


def new_mark(task_class: str, key: str, owner: str, task: str) -> Mark:
    """Return the mark of what an owner begins to keep now."""
    return Mark(key, task_class, owner, task, time.time())


def file_of(task_class: str, key: str) -> str:
    """Return the name of a key's file: a hash, since keys are any text."""
    import hashlib  # not for every program that looks at a queue: it loads OpenSSL

    return hashlib.sha256(f"{task_class}\0{key}".encode(errors="surrogatepass")).hexdigest()[:32] + ".json"
