"""The one select loop: descriptors, timers, signals. Everything else is called by it, one at a time."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Self

Callback = Callable[[], object]


@dataclass(slots=True, order=True)
class Timer:
    """A call at a time (monotonic seconds)."""

    when: float
    number: int
    callback: Callback | None = field(compare=False)

    def cancel(self) -> None:
        """Don't call."""
        self.callback = None


class Reactor:
    """Waits for what comes next, and calls whoever asked for it."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._readers: dict[int, Callback] = {}
        self._timers: list[Timer] = []
        self._numbers = itertools.count()
        self._signals: dict[int, Callback] = {}
        self._kept: dict[int, object] = {}
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.add(self._read, self._signalled)

    def add(self, descriptor: int, callback: Callback, *, writable: bool = False) -> None:
        """Call whenever the descriptor is readable (or, with ``writable``, takes more, too)."""
        mask = select.EPOLLIN | (select.EPOLLOUT if writable else 0)
        if descriptor in self._readers:
            self._epoll.modify(descriptor, mask)
        else:
            self._epoll.register(descriptor, mask)
        self._readers[descriptor] = callback

    def remove(self, descriptor: int) -> None:
        """Call no more for this descriptor; before it is closed."""
        if self._readers.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def call_later(self, delay_s: float, callback: Callback) -> Timer:
        """Call once, in ``delay_s`` seconds."""
        timer = Timer(time.monotonic() + max(0.0, delay_s), next(self._numbers), callback)
        heapq.heappush(self._timers, timer)
        return timer

    def on_signal(self, numbers: Iterable[signal.Signals], callback: Callable[[signal.Signals], object]) -> None:
        """Call from the loop, never from the handler, after any of these signals."""
        for number in numbers:
            self._signals[number] = lambda number=number: callback(number)  # type: ignore[misc]
            self._kept.setdefault(number, signal.getsignal(number))
            signal.signal(number, _nothing)  # the number still travels through the wakeup descriptor
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    def run_once(self, longest_s: float) -> None:
        """Wait for events, at most so long, and call what they are for."""
        timeout = longest_s
        if self._timers:
            timeout = min(timeout, max(0.0, self._timers[0].when - time.monotonic()))
        for descriptor, callback in [(number, self._readers.get(number)) for number, _ in self._epoll.poll(timeout)]:
            # An earlier callback may have closed it, and what was opened since may have its number and hear nothing of this.
            if callback is not None and self._readers.get(descriptor) is callback:
                callback()
        now = time.monotonic()
        while self._timers and self._timers[0].when <= now:
            callback = heapq.heappop(self._timers).callback
            if callback is not None:
                callback()

    def close(self) -> None:
        """Give back the signals and the descriptors."""
        signal.set_wakeup_fd(-1)
        for number, handler in self._kept.items():
            if handler is not None:
                signal.signal(number, handler)  # type: ignore[arg-type]
        self._epoll.close()
        os.close(self._read)
        os.close(self._write)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _signalled(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for number in dict.fromkeys(os.read(self._read, 4096)):
                if (callback := self._signals.get(number)) is not None:
                    callback()


def _nothing(_number: int, _frame: object) -> None:
    """A handler must be there for the wakeup descriptor to be written."""
