"""Every error this program raises on purpose, as a tree, with the exit code each one ends a command with.

::

    SupervisorError            1   the operation failed
    ├── ConfigError           78   a setting has a value that cannot work
    ├── EnvelopeInvalid        2   a task that cannot be accepted as it is
    ├── DuplicateTask          1   the id is taken by a different task
    ├── QueueFull             75   a bound or the disk says: try again later
    ├── QueueUnsafe           78   others could put code into this queue
    ├── QueueMissing           4   there is no queue here
    ├── QueueFormat           78   the queue is of another version than this program works with
    ├── TaskNotFound           4
    ├── TaskFailed             1   the task ended in failed/
    ├── NotRunning             3   no supervisor serves this queue on this host
    ├── AlreadyRunning        75   another supervisor of this host serves this queue
    ├── ServiceUnavailable    69   a class or a service cannot work
    ├── EmbeddingError         1   an embedding server gave no vectors
    │   ├── EmbeddingRefused       it will never give them for this text, or this request
    │   ├── EmbeddingInvalid       what it gave is not what was asked for
    │   └── EmbeddingUnavailable  69   it can't be reached, or has too much to do
    └── WaitTimeout            5   the deadline of a wait passed (also a TimeoutError)

A message names the thing, the value, and what to do or what happens next.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class SupervisorError(Exception):
    """Something this program was asked to do did not happen."""

    exit_code = EXIT_FAILED


class ConfigError(SupervisorError):
    """A setting has a value that cannot work."""

    exit_code = 78

    def __init__(self, name: str, value: object, expected: str) -> None:
        super().__init__(f"{name}={value!r}: expected {expected}")
        self.name, self.value, self.expected = name, value, expected


class EnvelopeInvalid(SupervisorError):
    """A task cannot be accepted as it is: ``where`` is the place, ``reason`` what is wrong there."""

    exit_code = EXIT_USAGE

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where, self.reason = where, reason


class DuplicateTask(SupervisorError):
    """The id belongs to another task already, which lies in ``state``."""

    def __init__(self, task_id: str, state: str) -> None:
        super().__init__(
            f"task {task_id!r} is {state} already, with different content; choose another id, "
            f"or remove the record of the old one with 'dspy-supervisor queue gc'"
        )
        self.task_id, self.state = task_id, state


class QueueFull(SupervisorError):
    """The queue takes nothing more for now; what it accepted before is safe."""

    exit_code = 75

    def __init__(self, what: str, value: int, bound: int) -> None:
        super().__init__(f"queue full: {what} is {value}, the bound is {bound}; try again later")
        self.what, self.value, self.bound = what, value, bound


class QueueUnsafe(SupervisorError):
    """Someone else could put code into this queue: who may write the folder may run programs."""

    exit_code = 78


class QueueMissing(SupervisorError):
    """The folder is not there, or is no queue."""

    exit_code = 4


class QueueFormat(SupervisorError):
    """The queue has another format than this program works with; ``found`` and ``known`` say which."""

    exit_code = 78

    def __init__(self, path: object, found: object, known: int) -> None:
        where = getattr(path, "parent", path)
        if isinstance(found, str) and found.partition(">")[0].isdecimal():
            what = f"being brought from format {found.replace('>', ' to format ')}"
            remedy = f"'dspy-supervisor start --queue-dir {where}' of the newer version brings that to its end"
        elif isinstance(found, int) and not isinstance(found, bool) and 0 < found < known:
            what = f"of format {found}"
            remedy = f"'dspy-supervisor start --queue-dir {where}' brings it up to date"
        else:
            what = f"of format {found!r}"
            remedy = "use the version of dspy-supervisor that made it, or a newer one; nothing was changed"
        super().__init__(f"{path} says the queue is {what}, and this program knows format {known}: {remedy}")
        self.path, self.found, self.known = path, found, known

    def __reduce__(self) -> tuple[Any, ...]:
        return (QueueFormat, (self.path, self.found, self.known))


class TaskNotFound(SupervisorError):
    """No task of this id is in the queue."""

    exit_code = 4

    def __init__(self, task_id: str, where: object) -> None:
        super().__init__(f"no task {task_id!r} in {where}")
        self.task_id = task_id


class TaskFailed(SupervisorError):
    """The task ended in failed/; ``record`` is all that is known, ``remote_traceback`` the handler's, if it had one."""

    def __init__(self, task_id: str, record: Mapping[str, Any]) -> None:
        error = record.get("error")
        facts: Mapping[str, Any] = error if isinstance(error, Mapping) else {}
        self.task_id, self.record = task_id, record
        self.cause = str(facts.get("cause", "unknown"))
        self.remote_traceback = str(facts.get("traceback") or "")
        text = f"task {task_id} failed ({self.cause}): {message_of(facts)}"
        if self.remote_traceback:
            text += f"\n\nin the worker:\n{self.remote_traceback}"
        super().__init__(text)

    def __reduce__(self) -> tuple[Any, ...]:
        return (TaskFailed, (self.task_id, self.record))


def message_of(error: Mapping[str, Any]) -> str:
    """Return the message of a record's error, after the exception's type where it has one, as Python prints it."""
    kind, message = error.get("type"), error.get("message")
    if not kind:
        return "no message" if message is None else str(message)
    return f"{kind}: {message}" if message else str(kind)


class NotRunning(SupervisorError):
    """No supervisor serves this queue on this host."""

    exit_code = 3


class AlreadyRunning(SupervisorError):
    """Another supervisor of this host serves this queue."""

    exit_code = 75


class ServiceUnavailable(SupervisorError):
    """A class or a service cannot work; the message says which and why."""

    exit_code = 69


class NotInstalled(SupervisorError):
    """The service manager knows no such service."""

    exit_code = 4

    def __init__(self, unit: str, why: str) -> None:
        super().__init__(f"{unit} is not installed: {why}")
        self.unit = unit


class EmbeddingError(SupervisorError):
    """An embedding server gave no vectors: which server, what it answered (an HTTP status, 0: nothing), for which texts."""

    def __init__(self, message: str, *, endpoint: str = "", status: int = 0, index: int | None = None) -> None:
        super().__init__(message)
        self.endpoint, self.status = endpoint, status
        self.index = index  #: of the text that is at fault, among those that were given; None: all of them
        self.sent_bytes = 0  #: of the request that the server answered with this

    def __reduce__(self) -> tuple[Any, ...]:
        return (_embedding_error, (type(self), str(self), {**self.__dict__}))


class EmbeddingRefused(EmbeddingError):
    """The server will never give vectors for this text, or this request."""


class EmbeddingInvalid(EmbeddingError):
    """The server gave something else than one vector of numbers for each text, all of one length."""


class EmbeddingUnavailable(EmbeddingError):
    """The server can't be reached, or has too much to do; ``retry_after_s``: when it may be worth to ask again."""

    exit_code = 69
    retry_after_s: float | None = None


def _embedding_error(kind: type[EmbeddingError], message: str, facts: dict[str, Any]) -> EmbeddingError:
    error = kind(message)
    error.__dict__.update(facts)
    return error


class WaitTimeout(SupervisorError, TimeoutError):
    """The deadline of a wait passed; the task itself goes on."""

    exit_code = 5
