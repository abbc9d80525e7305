"""Twin of dspy_fastpath.ids."""

import os
import secrets
import time
import uuid

COUNTER_END = 1 << 42


class Generator:
    """The state of one process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.last_ms = -1
        self.counter = 0

    def next(self, unix_ms: int) -> str:
        pid = os.getpid()
        if self.pid == pid and unix_ms <= self.last_ms and self.counter + 1 < COUNTER_END:
            self.counter += 1
        else:
            self.pid = pid
            self.last_ms = max(unix_ms, self.last_ms + 1)
            self.counter = secrets.randbits(41)
        high, low = self.counter >> 30, self.counter & (1 << 30) - 1
        number = self.last_ms << 80 | 7 << 76 | high << 64 | 2 << 62 | low << 32 | secrets.randbits(32)
        return str(uuid.UUID(int=number))


_generator = Generator()


def uuid7(unix_ms: int | None = None) -> str:
    now = time.time_ns() // 1_000_000 if unix_ms is None else unix_ms
    if not 0 <= now < 1 << 48:
        raise ValueError(f"unix_ms={unix_ms}: expected a number from 0 to {(1 << 48) - 1}")
    return _generator.next(now)
