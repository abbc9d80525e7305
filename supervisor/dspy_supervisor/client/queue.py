"""A queue for Python programs: put tasks into it, wait for their results.

::

    with Queue("/data/queue") as queue:
        task = queue.submit({"text": "..."}, "cpu_short", priority=5)
        print(queue.result(task, timeout=60))

The folder is all that is needed: no supervisor has to run when a task is put. A Queue may be shared by threads; one of
those that wait listens for all of them. After a fork each process listens for itself.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeAlias, Unpack

from ..errors import EnvelopeInvalid, SupervisorError, TaskFailed, TaskNotFound, WaitTimeout
from ..lookup import files, find_one, name_of, quarantined, read_record
from ..producer import put_again
from ..task import State
from .access import Access
from .endings import Ending, Endings, Wait
from .envelopes import Options, Prepared, prepare, prepare_item

_BATCH = 10_000  # tasks that share their syncs
_WAITS = ("ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION")

_Record: TypeAlias = dict[str, Any]


class Waited(NamedTuple):
    """What became of a wait for several tasks, by their ids."""

    done: set[str]  #: in done/, in failed/ or refused
    not_done: set[str]


class TaskInfo(NamedTuple):
    """One task in a list."""

    id: str
    state: State
    attempt: int  #: 0 for the first; of an ended task see its record
    due: float | None  #: epoch seconds, where it is delayed
    owner: str | None  #: who runs it, where it is claimed


Ids: TypeAlias = list[str]  # in Queue, list is a verb
Infos: TypeAlias = list[TaskInfo]


class Queue:
    """The queue in a folder."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        create: bool = False,  # make what is missing of it
        insecure: bool = False,  # use it though others may write it
        runtime_dir: str | os.PathLike[str] | None = None,  # of its supervisor; None: as configured. Only for cancel
    ) -> None:
        """Open a queue. Raises QueueMissing where there is none, QueueUnsafe where others could put code into it."""
        self.access = Access(path, create=create, insecure=insecure)
        self._runtime_dir = None if runtime_dir is None else Path(runtime_dir).absolute()
        self._begin()

    @property
    def path(self) -> Path:
        """The folder."""
        return self.access.path

    # -- putting --------------------------------------------------------------------------------------------------------

    def submit(
        self,
        payload: Any,
        task_class: str = "cpu_short",
        *,
        id: str | None = None,  # the word of the envelope
        kind: str | None = None,
        priority: int | None = None,
        delay: float | None = None,
        timeout: float | None = None,
        max_attempts: int | None = None,
        idempotency_key: str | None = None,
        affinity: str | None = None,
        idempotent: bool = False,
        traceparent: str | None = None,
        resources: Mapping[str, Any] | None = None,
    ) -> str:
        """Put a task and return its id; it is in the queue then, as durably as the queue promises.

        ``payload``: JSON. ``kind``: what runs it, where that is not the class's handler. ``priority``: -100 to 100, more
        comes first. ``delay``: seconds before it may start. ``timeout``: seconds for one attempt. Tasks of one
        ``idempotency_key`` are one task, and so are tasks of one ``id``: the same again is answered as accepted.
        ``affinity``: tasks of one run one after another, on one worker. ``idempotent``: it may run twice at once.
        ``traceparent``: a W3C trace context; a task that puts another hands on its own.
        Raises EnvelopeInvalid, DuplicateTask, QueueFull, QueueMissing, OSError; then nothing was accepted.
        """
        task = prepare(
            payload,
            task_class,
            id=id,
            kind=kind,
            priority=priority,
            delay=delay,
            timeout=timeout,
            max_attempts=max_attempts,
            idempotency_key=idempotency_key,
            affinity=affinity,
            idempotent=idempotent,
            traceparent=traceparent,
            resources=resources,
        )
        due = time.time() + task.delay_s if task.delay_s else None
        self.access.put([(task.id, task.document)], due=due, fresh=task.fresh)
        return task.id

    def submit_many(self, payloads: Iterable[Any], **options: Unpack[Options]) -> Ids:
        """Put tasks with a constant number of syncs for each ten thousand, and return their ids.

        An item that is a tuple is a payload with options of its own, ``(payload, {"priority": 5})``, which come before
        those that are given for all. Of each ten thousand all are accepted or none; an error has a note of how many
        were accepted before them.
        """
        accepted: Ids = []
        items = iter(payloads)
        try:
            while batch := [prepare_item(item, options) for item in islice(items, _BATCH)]:
                self.put(batch)
                accepted += [task.id for task in batch]
        except Exception as error:
            if accepted:
                error.add_note(f"{len(accepted)} tasks were accepted before: the last is {accepted[-1]}")
            raise
        return accepted

    def put(self, tasks: Collection[Prepared]) -> None:
        """Put prepared tasks, none where one is invalid; those of one delay share their syncs."""
        now = time.time()
        groups: dict[tuple[float, bool], list[tuple[str, bytes]]] = {}
        for task in tasks:
            groups.setdefault((task.delay_s, task.fresh), []).append((task.id, task.document))
        if len(groups) > 1:
            self.access.check(tasks)
        # Those whose ids may be in use come first: where one of them is refused, no other is in the queue yet.
        for (delay_s, fresh), group in sorted(groups.items(), key=lambda item: item[0][1]):
            self.access.put(group, due=now + delay_s if delay_s else None, fresh=fresh)

    # -- waiting --------------------------------------------------------------------------------------------------------

    def result(self, task_id: str, timeout: float | None = None) -> Any:
        """Wait until a task has ended, at most ``timeout`` seconds, and return its result.

        Raises TaskFailed with the handler's traceback, WaitTimeout (then the task goes on), TaskNotFound, and
        EnvelopeInvalid where the queue refused it.
        """
        wait = Wait([task_id])
        self._wait(wait, timeout)
        ending = wait.ended.get(task_id)
        if ending is None:
            if self.state(task_id) not in (State.DONE, State.FAILED):
                raise WaitTimeout(f"task {task_id} did not end in {timeout:g} s; it goes on in the queue")
            ending = Ending.DONE
        return self.outcome(task_id, ending)

    def wait(self, ids: Iterable[str], timeout: float | None = None, return_when: str = "ALL_COMPLETED") -> Waited:
        """Wait until tasks have ended, at most ``timeout`` seconds, and return which have and which have not.

        ``return_when``: a constant of concurrent.futures.wait; an exception is a task that did not succeed.
        Raises TaskNotFound where one is nowhere.
        """
        wait = Wait(ids, checked_return_when(return_when))
        self._wait(wait, timeout)
        return self.waited(wait)

    def outcome(self, task_id: str, ending: Ending) -> Any:
        """Return the result of a task that has ended so, or raise what `result` raises."""
        if ending is Ending.QUARANTINED:
            raise self._refused(task_id)
        record = read_record(self.access.layout, task_id) if ending is not Ending.MISSING else None
        if record is None:
            raise TaskNotFound(task_id, self.path)
        if record.get("status") != "done":
            raise TaskFailed(task_id, record)
        return record.get("runner_result")

    def waited(self, wait: Wait) -> Waited:
        """Return what `wait` returns."""
        for task_id, ending in wait.ended.items():
            if ending is Ending.MISSING:
                raise TaskNotFound(task_id, self.path)
        return Waited(set(wait.ended), set(wait.open))

    # -- looking and changing -------------------------------------------------------------------------------------------

    def state(self, task_id: str) -> State:
        """Return where a task is. Raises TaskNotFound, and EnvelopeInvalid where the queue refused it."""
        layout = self.access.now()
        found = find_one(layout, task_id)
        if found is not None:
            return found.state
        if quarantined(layout, task_id) is not None:
            raise self._refused(task_id)
        raise TaskNotFound(task_id, self.path)

    def record(self, task_id: str) -> _Record | None:
        """Return all that is known of an ended task, None of one that has not ended. Raises what `state` raises."""
        record = read_record(self.access.now(), task_id)
        if record is None and self.state(task_id) in (State.DONE, State.FAILED):  # just now, or before a retry
            record = read_record(self.access.layout, task_id)
        return record

    def list(self, state: State | str | None = None, limit: int = 1000) -> Infos:
        """Return tasks, of one state or all, by id: the last ``limit``, which for ids made here are the newest."""
        layout = self.access.now()
        states = list(State) if state is None else [State(state)]
        infos = {}
        for one in states:  # in the order they travel, so that the last place counts
            for found in files(layout, one):
                name = name_of(found)
                infos[name.id] = TaskInfo(name.id, one, name.attempt, found.due, found.owner)
        chosen = sorted(infos)[-limit:] if limit > 0 else []
        return [infos[task_id] for task_id in chosen]

    def cancel(self, task_id: str) -> str:
        """Cancel a task and return what it was: ``waiting``, and it never runs, or ``running``, and it is being ended.

        It ends in failed/ with the cause ``cancelled``. Raises TaskNotFound, and SupervisorError where it is over already
        or runs on another host.
        """
        from .cancelling import cancel, configured_runtime_dir

        if self._runtime_dir is None:
            self._runtime_dir = configured_runtime_dir(self.path)
        return cancel(self.access.now(), self._runtime_dir, task_id)

    def retry(self, task_id: str) -> None:
        """Let a failed task be tried again, with all its attempts. Raises TaskNotFound, SupervisorError."""
        put_again(self.access.now(), task_id)

    def close(self) -> None:
        """Give everything back. No thread may be waiting."""
        self._endings.close()
        self.access.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- below ----------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._endings = Endings(self.access)
        self._turn = threading.Condition()
        self._led = False  # by a thread that sleeps on the watcher, for all that wait

    def _wait(self, wait: Wait, timeout_s: float | None) -> None:
        """Return when a wait is over, or after timeout_s."""
        if os.getpid() != self._pid:
            # In a forked child: the watcher is the parent's, whose events would be taken from it. It is dropped and not
            # closed, since for all that it knows a thread, which is not here any more, is using it.
            self._begin()
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        self.access.now()
        with self._turn:
            endings = self._endings
            try:
                endings.expect(wait, tuple(wait.open))
                while not wait.over and (left := deadline - time.monotonic()) > 0:
                    if not self._led:
                        self._lead(left)
                    else:
                        left = min(left, endings.next_take - time.monotonic())
                        if left > 0:
                            self._turn.wait(left)
                        else:
                            endings.take()
            finally:
                endings.forget(wait, wait.open)
                self._turn.notify_all()

    def _lead(self, left_s: float) -> None:
        """Sleep until something happens, without the lock, and tell every wait what it was."""
        self._led = True
        self._turn.release()
        try:
            self._endings.sleep(left_s)
        finally:
            self._turn.acquire()
            self._led = False
            self._turn.notify_all()
        self._endings.take()

    def _refused(self, task_id: str) -> SupervisorError:
        reason = quarantined(self.access.layout, task_id)
        return EnvelopeInvalid(f"task {task_id}", f"it was refused and lies in quarantine/: {reason}")


def checked_return_when(word: str) -> str:
    """Return a constant of concurrent.futures.wait. Raises ValueError for another word."""
    if word not in _WAITS:
        raise ValueError(f"return_when={word!r}: expected {', '.join(_WAITS)}")
    return word
