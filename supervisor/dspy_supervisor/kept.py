"""What a worker keeps between tasks, under the keys of their tasks: environments, sessions, anything with a state."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from . import proctree
from .environments import MAX_KEY_BYTES, Marks, new_mark
from .log import log
from .parts import HandlerFailure
from .task import Cause


@dataclass(slots=True)
class _Kept:
    thing: Any
    close: Callable[[], object] | None
    maker: str  # id of the task that made it


class Kept:
    """The things of one worker."""

    def __init__(self, marks: Marks, task_class: str, owner: str, tell: Callable[[str, bool], object]) -> None:
        self._marks, self._class, self._owner = marks, task_class, owner
        self._tell = tell  # hears of a key, and whether something is kept under it, before the task ends
        self._things: dict[str, _Kept] = {}
        self.touched = False  #: whether the task in hand asked for anything here
        self.children: set[int] = set()  #: processes that belong to what is kept, and so stay when a task has ended
        self._lost = ""  # the key whose loss is being told

    def __len__(self) -> int:
        return len(self._things)

    def get(self, key: str, task_id: str) -> Any:
        """Return what is kept under a key, or None.

        Raises HandlerFailure (``env_lost``) where it was lost with its worker and nobody was told yet; not to the task
        that had made it and now makes it again.
        """
        self.touched = True
        if (kept := self._things.get(key)) is not None:
            return kept.thing
        mark = self._marks.read(self._class, key)
        if mark is None or mark.owner == self._owner or mark.task == task_id:
            return None
        if self._marks.is_over(mark):
            self._marks.remove(self._class, key)
            return None
        self._marks.write(replace(mark, told=task_id))
        self._lost = key
        why = mark.why or "its worker ended with its supervisor"
        raise HandlerFailure(Cause.ENV_LOST, f"what was kept under {key!r} is lost: {why}", {"key": key})

    def keep(self, key: str, thing: Any, close: Callable[[], object] | None, task_id: str) -> None:
        """Keep a thing under a key, in place of what was there, which is closed. Raises OSError where nothing can be written."""
        self.touched = True
        if len(key.encode(errors="surrogatepass")) > MAX_KEY_BYTES:
            raise ValueError(f"a key has at most {MAX_KEY_BYTES} bytes")
        if key in self._things:
            self._close(key)
        self._marks.write(new_mark(self._class, key, self._owner, task_id))
        self._things[key] = _Kept(thing, close, task_id)
        self._lost = ""
        self._tell(key, True)

    def release(self, key: str) -> bool:
        """Close what is kept under a key, and forget it; False where there is nothing."""
        self.touched = True
        if key not in self._things:
            return False
        try:
            self._close(key)
        finally:
            try:
                if (mark := self._marks.read(self._class, key)) is not None and mark.owner == self._owner:
                    self._marks.remove(self._class, key)
            finally:
                self._tell(key, False)
        return True

    def settle(self, task_id: str, *, ok: bool) -> None:
        """A task is over: forget the loss it was told of, where that is on record, and what it made where it failed."""
        self.touched = False
        key, self._lost = self._lost, ""
        if key and (mark := self._marks.read(self._class, key)) is not None and self._marks.is_over(mark):
            self._marks.remove(self._class, key)
        if not ok:
            for made in [key for key, kept in self._things.items() if kept.maker == task_id]:
                self.release_quietly(made)

    def release_quietly(self, key: str) -> None:
        """Release, where nobody is there to hear of what goes wrong but the log."""
        try:
            self.release(key)
        except Exception as error:  # the handler's code, or the disk
            log.warning("close_failed", key=key, error=f"{type(error).__name__}: {error}")

    def adopt_children(self) -> None:
        """Take the processes that run now for part of what is kept."""
        self.children = proctree.children() if self._things else set()

    def close_all(self, why: str) -> None:
        """Close everything, since the worker ends; whoever asks for it next is told that it is lost, and why."""
        for key, kept in list(self._things.items()):
            with contextlib.suppress(OSError):
                self._marks.write(replace(new_mark(self._class, key, self._owner, kept.maker), why=why))
            try:
                self._close(key)
            except Exception as error:  # the handler's code
                log.warning("close_failed", key=key, error=f"{type(error).__name__}: {error}")

    def _close(self, key: str) -> None:
        kept = self._things.pop(key)
        if kept.close is not None:
            kept.close()
