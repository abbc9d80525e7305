"""The folder of a queue as a client holds it: open, and opened anew when another one is at its path."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..layout import Layout
from ..producer import Producer
from .envelopes import Prepared


class Access:
    """A queue at a path."""

    def __init__(self, path: str | os.PathLike[str], *, create: bool = False, insecure: bool = False) -> None:
        """Open the queue. Raises QueueMissing where there is none and ``create`` is not said, QueueUnsafe."""
        self.path = Path(path).absolute()
        self._create, self._insecure = create, insecure
        self._paths = str(self.path), str(self.path / "pending")
        self._left: list[Layout] = []
        self._opening = threading.Lock()
        self._closed = False
        self._open()

    def _open(self) -> None:
        layout = Layout.open(self.path, create=self._create, insecure=self._insecure)
        self.layout, self._producer = layout, Producer(layout)
        status, below = os.fstat(layout.root), os.fstat(layout.pending)
        self._identity = (status.st_dev, status.st_ino, below.st_dev, below.st_ino)

    def now(self) -> Layout:
        """Return the queue that is at the path now. Raises QueueMissing where none is, RuntimeError after `close`."""
        if self._closed:
            raise RuntimeError(f"this Queue of {self.path} is closed: make another one")
        try:
            status, below = map(os.stat, self._paths)
            if (status.st_dev, status.st_ino, below.st_dev, below.st_ino) == self._identity:
                return self.layout
        except (FileNotFoundError, NotADirectoryError):
            pass
        self.reopen()
        return self.layout

    def reopen(self) -> None:
        """Open what is at the path now; what was open stays so until the end, since another thread may use it."""
        with self._opening:
            if not self.layout.is_current():  # another thread may have been faster
                before = self.layout
                self._open()
                self._left.append(before)

    def check(self, tasks: Iterable[Prepared]) -> None:
        """Raise EnvelopeInvalid where one of these tasks can't be accepted."""
        for task in tasks:
            self._producer.check(task.id, task.document)

    def put(self, tasks: Sequence[tuple[str, bytes]], *, due: float | None, fresh: bool) -> None:
        """Accept one task or many, as `Producer` does, in the queue that is at the path now."""
        self.now()
        producer = self._producer
        try:
            self._put(producer, tasks, due, fresh)
        except FileNotFoundError:  # the folder went in between
            self.now()
            if self._producer is producer:
                raise
            self._put(self._producer, tasks, due, fresh)

    @staticmethod
    def _put(producer: Producer, tasks: Sequence[tuple[str, bytes]], due: float | None, fresh: bool) -> None:
        if len(tasks) == 1:
            producer.put(*tasks[0], due=due, fresh=fresh)
        else:
            producer.put_many(tasks, due=due, fresh=fresh)

    def close(self) -> None:
        """Close every descriptor."""
        self._closed = True
        for layout in (self.layout, *self._left):
            with contextlib.suppress(OSError):
                layout.close()
        self._left.clear()
