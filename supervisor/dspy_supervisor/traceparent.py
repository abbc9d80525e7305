"""The W3C trace context, as it travels in an envelope: ``00-TRACE-SPAN-FLAGS`` (https://www.w3.org/TR/trace-context/).

Ids that nobody gave us follow from the task: who traces an attempt, and what is called while it runs, name the same span
without asking each other. They stay the same when a supervisor is restarted.
"""

from __future__ import annotations

import re
from typing import NamedTuple, Self

_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class Traceparent(NamedTuple):
    """One span of one trace."""

    trace_id: str  #: 32 hexadecimal digits
    span_id: str  #: 16
    sampled: bool  #: whether who began the trace records it

    @classmethod
    def parse(cls, written: str | None) -> Self | None:
        """Return what a header says, or None for one that says nothing: such a one is to be ignored."""
        match = _FORM.fullmatch(written.strip()) if written else None
        if match is None:
            return None
        version, trace_id, span_id, flags, more = match.groups()
        if version == "ff" or (version == "00" and more) or not (trace_id.strip("0") and span_id.strip("0")):
            return None
        return cls(trace_id, span_id, bool(int(flags, 16) & 1))

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{int(self.sampled):02x}"

    def child(self, *path: object) -> Self:
        """Return the span of this trace that ``path`` names, as of a task, an attempt and a step."""
        return self._replace(span_id=_digest(self.trace_id, *path, digits=16))


def of_task(
    written: str | None, queue_id: str, task_id: str, submitted_at: float, share: float = 1.0
) -> tuple[Traceparent, bool]:
    """Return the span that a task hangs on, and whether its producer named that: else it begins a trace of its own.

    ``share``: of the traces that begin here, how many are recorded.
    """
    if (given := Traceparent.parse(written)) is not None:
        return given, True
    trace_id = _digest(queue_id, task_id, repr(submitted_at), digits=32)
    return Traceparent(trace_id, "0" * 16, int(trace_id[-8:], 16) < share * 2**32), False


def run_span(root: Traceparent, task_id: str, attempt: int) -> Traceparent:
    """Return the span of an attempt while its handler runs: what the handler calls hangs on it."""
    return root.child(task_id, attempt, "run")


def _digest(*words: object, digits: int) -> str:
    from hashlib import blake2b  # only where something is traced: it loads OpenSSL

    return blake2b("\0".join(map(str, words)).encode(), digest_size=digits // 2).hexdigest()
