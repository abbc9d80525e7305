"""The plain twin of dspy_fastpath.inotify, on inotify_simple: for tests and for comparison."""

import contextlib
import math
import os
import select

from inotify_simple import INotify, flags, parse_events

IN_CLOSE_WRITE, IN_MOVED_TO, IN_CREATE, IN_ISDIR = flags.CLOSE_WRITE, flags.MOVED_TO, flags.CREATE, flags.ISDIR
MASK = flags.MOVED_TO | flags.CREATE | flags.CLOSE_WRITE | flags.MOVE_SELF | flags.DELETE_SELF
GONE = flags.IGNORED | flags.MOVE_SELF | flags.DELETE_SELF | flags.UNMOUNT


class Watcher:
    def __init__(self) -> None:
        self._inotify = INotify(nonblocking=True)
        self._watches: set[int] = set()

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._inotify.close()

    def fileno(self) -> int:
        return self._inotify.fileno()

    def add(self, path: str | bytes) -> int:
        if b"\0" in os.fsencode(path):
            raise ValueError("a path has no NUL byte")
        watch = self._inotify.add_watch(path, MASK | flags.ONLYDIR | flags.DONT_FOLLOW)
        self._watches.add(watch)
        return watch

    def remove(self, watch: int) -> None:
        self.fileno()
        if watch in self._watches:
            self._watches.remove(watch)
            with contextlib.suppress(OSError):
                self._inotify.rm_watch(watch)

    def take(self) -> tuple[list[tuple[int, bytes, int]], list[int], bool]:
        events: list[tuple[int, bytes, int]] = []
        lost: list[int] = []
        overflowed = False
        for _ in range(16):
            try:
                data = os.read(self.fileno(), 65536)
            except BlockingIOError:
                break
            for watch, mask, _, text in parse_events(data):
                name = os.fsencode(text)
                if mask & flags.Q_OVERFLOW:
                    overflowed = True
                elif watch not in self._watches:
                    pass
                elif not name:
                    if mask & GONE:
                        if mask & flags.MOVE_SELF:
                            self._inotify.rm_watch(watch)
                        self._watches.remove(watch)
                        lost.append(watch)
                elif name.startswith(b".") or name.endswith((b".tmp", b".lock")):
                    pass
                elif events and events[-1][:2] == (watch, name):
                    events[-1] = (watch, name, events[-1][2] | mask)
                else:
                    events.append((watch, name, mask))
        return events, lost, overflowed

    def wait(self, timeout_s: float) -> bool:
        if math.isnan(timeout_s):
            raise ValueError("a wait of nan seconds")
        return bool(select.select([self.fileno()], [], [], max(0.0, timeout_s))[0])
