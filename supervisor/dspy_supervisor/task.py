"""The words of the queue: workload class, task name, envelope, cause of failure.

One file is one task. Its name is its identity, and holds one JSON object::

    pending/a1.json            {"id": "a1", "class": "cpu_short", "payload": {...}}

Keys that mean something, all optional: ``id``, ``class``, ``payload`` (also written ``ID``, ``Class``, ``Payload``),
``kind``, ``priority`` (-100 to 100), ``not_before`` (epoch seconds), ``timeout_s``, ``max_attempts``,
``idempotency_key``, ``affinity``, ``resources``, ``traceparent``. Other keys are kept in the record. An object without a
payload key is a payload as a whole. An unknown class, in any case, means ``cpu_short``.

An attempt that was charged is in the name: ``a1~2x1.json`` is the third attempt of a1, and one of the two before ended in
the death of its worker. So no name is used twice, and a rename that charges can never be mistaken for another.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NamedTuple, Self

ID_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
_ID = re.compile(ID_PATTERN)
_FILE = re.compile(rf"({ID_PATTERN})(?:~([0-9]{{1,9}})x([0-9]{{1,9}}))?\.json")

PRIORITY_RANGE = (-100, 100)
MAX_ATTEMPTS_RANGE = (1, 1000)
MAX_TIMEOUT_S = 366 * 86400.0  #: a year and a day: longer is a mistake in units


class WorkloadClass(StrEnum):
    """What a task needs, and so which pool runs it."""

    CPU_SHORT = "cpu_short"  #: about a second on one core, or less
    CPU_LONG = "cpu_long"  #: minutes to hours on one core
    GPU = "gpu"  #: needs a GPU of this host
    GPU_SLURM = "gpu_slurm"  #: leaves this host as a Slurm job

    @classmethod
    def parse(cls, written: str | None) -> WorkloadClass:
        """Return the class a producer meant: any case, and cpu_short for what is absent or unknown."""
        if written is None:
            return cls.CPU_SHORT
        return _CLASSES.get(written) or _CLASSES.get(written.strip().lower(), cls.CPU_SHORT)


_CLASSES = {str(name): name for name in WorkloadClass}  # looked up for each task: an enum's call costs 2 us


class TaskName(NamedTuple):
    """The identity of a task and how often it was tried: what a file name in the queue says."""

    id: str
    attempt: int = 0  #: attempts charged so far
    crashes: int = 0  #: of these, how many ended in the death of the worker

    @classmethod
    def parse(cls, file_name: str) -> Self | None:
        """Return the name a file in pending/ or claimed/ stands for, or None where it is not one of ours."""
        match = _FILE.fullmatch(file_name)
        if match is None:
            return None
        task_id, attempt, crashes = match.groups()
        if attempt is None:
            return cls(task_id)
        name = cls(task_id, int(attempt), int(crashes))
        return name if name.file == file_name else None  # a1~007x0.json and a1~0x0.json are nobody's

    @property
    def file(self) -> str:
        """The file name, in pending/ and in claimed/OWNER/."""
        return f"{self.id}~{self.attempt}x{self.crashes}.json" if self.attempt else f"{self.id}.json"

    @property
    def result_file(self) -> str:
        """The name in results/ of the record this attempt writes before it commits."""
        return f"{self.id}~{self.attempt}.json"

    def charged(self, *, crashed: bool) -> TaskName:
        """Return the name after this attempt is spent."""
        return TaskName(self.id, self.attempt + 1, self.crashes + crashed)


class Cause(StrEnum):
    """Why an attempt did not succeed."""

    RAISED = "raised"  #: the handler raised an exception
    REFUSED = "refused"  #: the handler or the queue's configuration says this task can never run
    INVALID_RESULT = "invalid_result"  #: what the handler returned is not JSON, or too large
    TIMEOUT = "timeout"  #: its time was up
    SIGNAL = "signal"  #: the worker was killed by a signal
    EXIT = "exit"  #: the worker, or the command, ended with an exit code
    OUT_OF_MEMORY = "out_of_memory"  #: a GPU, or its own interpreter, had no more for it
    CANCELLED = "cancelled"
    LOST = "lost"  #: the host that ran it was lost, or its supervisor was killed
    DELIVERIES = "deliveries"  #: given out too often without an end, whoever was at fault
    HOST_OOM = "host_oom"  #: it was ended for the host's memory, above its own bound or by a kernel that had none left
    ENV_LOST = "env_lost"  #: what its key's worker kept, as an environment, was lost with that worker


class State(StrEnum):
    """Where a task is: each is a folder."""

    PENDING = "pending"
    DELAYED = "delayed"
    CLAIMED = "claimed"
    DONE = "done"
    FAILED = "failed"


def is_task_id(text: str) -> bool:
    """Whether text can be a task's id, and so a file name of the queue."""
    return _ID.fullmatch(text) is not None
