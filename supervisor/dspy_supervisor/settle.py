"""What a supervisor does about the dead: its own workers, its predecessors, and other nodes of the queue."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson
from dspy_fastpath.counters import Counter, Histogram

from . import proctree
from .channel import RELEASE
from .environments import Mark, Marks, key_of
from .layout import list_folder
from .log import log
from .lookup import read_record
from .nodes import node_of
from .record import Claim, Run
from .recovery import Recovered, settle_commit, settle_commits, take_from_dead
from .retry import FINAL, Verdict, budget_of, decide
from .runtime import is_first_since_boot, note_boot
from .task import Cause, TaskName, WorkloadClass
from .taskqueue import Unusable, past_causes
from .tears import is_further
from .traces import Attempt, Traces
from .walltime import RunTimes
from .worker import COUNTED

if TYPE_CHECKING:
    from .loop import Supervisor
    from .pool import Pool
    from .pool_worker import Death, Worker

_CAUSES = tuple(Cause)


def recover(supervisor: Supervisor, *, anew: bool = False) -> None:
    """Bring to an end what dead owners left, before anything is started; ``anew``: our own workers are among them."""
    observer = supervisor.observer
    others = observer.others()
    dead = observer.dead(time.monotonic(), beating=True)
    if dead:
        proctree.kill_marked(dead)  # what their tasks started must not run on beside the next attempt
    result = Recovered()
    # After a power cut, or where the folder is another one, what is left may be torn.
    torn = anew or is_first_since_boot(supervisor.boot_note)
    torn = torn and supervisor.layout.filesystem.tears_renames
    settle_commits(supervisor.queue, result, alone=others == dead, torn=torn)
    _take(supervisor, dead | {observer.me} if anew else dead, result)
    supervisor.alive = others - dead
    if supervisor.layout.filesystem.tears_renames:
        note_boot(supervisor.boot_note)
    if result:
        log.info(
            "recovered",
            nodes=len(dead),
            published=result.published,
            rerun=result.rerun,
            taken=result.taken,
            failed=result.failed,
            dropped=result.dropped,
            quarantined=result.quarantined,
        )


def take_dead_nodes(supervisor: Supervisor, *, beating: bool) -> None:
    """Take the claims of nodes that died while we run; ``beating``: our own last heartbeat was written."""
    observer = supervisor.observer
    supervisor.alive = observer.others()
    if not supervisor.alive:
        return
    dead = observer.dead(time.monotonic(), beating=beating)
    if dead:
        proctree.kill_marked(dead)
        result = Recovered()
        supervisor.alive -= dead
        settle_commits(supervisor.queue, result, alone=not supervisor.alive)
        _take(supervisor, dead, result)
        log.warning("took_from_dead", nodes=sorted(dead), tasks=result.taken + result.failed)


def settle_death(supervisor: Supervisor, pool: Pool, worker: Worker, death: Death) -> None:
    """Settle what a dead worker had: the task in hand is charged, the names it was only fed are fed again."""
    queue = supervisor.queue
    _tell_losses(supervisor, pool, worker, death)
    for file in worker.fed:
        pool.hosts.lanes.ended(
            file, time.monotonic(), returns=True
        )  # a key waits for it until it is seen again, or ended
    folder = queue.open_owner(worker.owner)
    try:
        in_hand = list_folder(folder)
        for file in in_hand:
            name = TaskName.parse(file)
            if name is None:
                queue.quarantine(folder, file, "a name in a claim folder that is no task's")
            elif is_further(queue, name, folder):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(file, dir_fd=folder)
            else:
                _settle(supervisor, pool, worker, death, folder, name)
    finally:
        os.close(folder)
    queue.close_owner(worker.owner)
    for file in worker.fed.keys() - set(in_hand):
        if file.startswith(RELEASE):
            continue
        name = TaskName.parse(file)
        if name is None:
            continue
        settle_commit(queue, name)
        record = read_record(queue.layout, name.id)
        if record is not None and record.get("owner") == worker.owner:
            count_end(supervisor, name, record)  # it died before it could say so
        else:
            supervisor.intake.see(file)
        if file not in supervisor.backlogs[pool.name]:
            pool.hosts.lanes.dismiss(name.id)  # it ended, or somebody else has it
    if not death.wanted:
        log.warning(
            "worker_died",
            worker=worker.pid,
            klass=pool.name,
            cause=death.cause,
            message=death.message,
            tasks=in_hand,
        )


def count_end(supervisor: Supervisor, name: TaskName, record: Mapping[str, Any]) -> None:
    """Count a task that ended without a worker that says so, by its record."""
    page, written = supervisor.page, record.get("class")
    klass = page.classes.index(WorkloadClass.parse(written if isinstance(written, str) else None))
    page.add(klass, Counter.DONE if record.get("status") == "done" else Counter.FAILED)
    if record.get("status") != "done":
        cause = (record.get("error") or {}).get("cause")
        page.fail(klass, _CAUSES.index(Cause(cause)) if cause in set(Cause) else _CAUSES.index(Cause.LOST))
    supervisor.compat.ended(name.file)


def _settle(supervisor: Supervisor, pool: Pool, worker: Worker, death: Death, folder: int, name: TaskName) -> None:
    queue, page = supervisor.queue, supervisor.page
    try:
        held = queue.read_claim(name.file, folder)
    except Unusable as unusable:
        queue.quarantine(folder, name.file, unusable.reason)
        return
    if held is None:
        return
    if name.file in pool.hedges.won and (record := queue.left_record(name)) is not None:
        # Its first run is dead and reaped, so the claim is ours alone to complete.
        if queue.finish(held, folder, record):
            log.info("second_run_won", task=name.id, klass=pool.name)
            count_end(supervisor, name, orjson.loads(record))
            supervisor.trace_end(name.id)
        pool.hedges.won.discard(name.file)
        queue.forget_record(name)
        return
    history = queue.history(name)
    budget = budget_of(supervisor.config, pool.settings, held.fields.max_attempts)
    died = worker.doom is None
    blameless = death.wanted or death.file not in ("", name.file)
    if supervisor.config.ends_at:
        # Slurm ends a job by SIGTERM to all of its processes at once: that is no fault of the task in hand.
        blameless = blameless or (os.WIFSIGNALED(death.status) and os.WTERMSIG(death.status) == signal.SIGTERM)
        if (blameless or death.cause is Cause.LOST) and death.start_ns:
            times = RunTimes(queue.layout)
            times.learn(pool.name, held.fields.kind, time.monotonic() - death.start_ns / 1e9)  # so long at least
            times.save()
    cause = Cause.LOST if blameless else death.cause
    verdict = decide(cause, name, past_causes(history), budget, random.random(), died=died)
    mark = _lost_with(supervisor, pool, worker, held)
    if mark is not None and cause not in FINAL:
        verdict = Verdict(Cause.ENV_LOST)  # a second attempt would find nothing of what the first one worked on
    if (counter := COUNTED.get(cause)) is not None:
        page.add(pool.klass, counter)
    error = _error(death, cause, verdict.final)
    if mark is not None and verdict.final is Cause.ENV_LOST:
        error["message"] = f"what was kept under {mark.key!r} is lost: {death.message}"
    if verdict.final is None:
        crashed = died and cause is not Cause.LOST
        queue.note_attempt(name, error)
        queue.take(name, folder, time.time() + verdict.delay_s if verdict.delay_s else 0.0, crashed=crashed)
        page.add(pool.klass, Counter.RETRIED)
        supervisor.intake.see(name.charged(crashed=crashed).file)
        if supervisor.traces is not None and death.start_ns:
            _trace(supervisor.traces, pool, worker, death, held, cause)
        return
    now = time.monotonic()
    duration = now - death.start_ns / 1e9 if death.start_ns else 0.0
    started_at = time.time() - duration if death.start_ns else None
    run = Run(started_at, time.time(), duration, worker.pid, worker.owner)
    marks = Marks(queue.layout)
    if mark is not None and verdict.final is Cause.ENV_LOST:
        marks.write(replace(mark, told=name.id))
    pool.hosts.lanes.dismiss(name.id)
    if supervisor.undertaker.bury(folder, name.file, name, error, run):
        page.add(pool.klass, Counter.FAILED)
        page.observe(pool.klass, Histogram.TOTAL, time.time() - held.submitted_at)
        page.fail(pool.klass, _CAUSES.index(verdict.final))
        supervisor.compat.ended(name.file)
        supervisor.trace_end(name.id)
        log.info("failed", task=name.file, klass=pool.name, cause=verdict.final, message=death.message)
    if mark is not None and marks.is_over(replace(mark, told=name.id)) and verdict.final is Cause.ENV_LOST:
        marks.remove(mark.task_class, mark.key)


def _tell_losses(supervisor: Supervisor, pool: Pool, worker: Worker, death: Death) -> None:
    """Say what was lost with a worker, and write it down for the next task that asks for it."""
    marks = Marks(supervisor.layout)
    for key in death.lost:
        log.warning("env_lost", key=key, klass=pool.name, worker=worker.pid, message=death.message)
        mark = marks.read(pool.name, key)
        if mark is not None and mark.owner == worker.owner and not mark.why:
            marks.write(replace(mark, why=death.message))


def _lost_with(supervisor: Supervisor, pool: Pool, worker: Worker, held: Claim) -> Mark | None:
    """Return the mark of what a dead worker kept under the key of a task that it had in hand, unless that task made it."""
    keys = supervisor.keys_of(held)
    key = key_of(held, by_env_id=keys.by_env_id) if keys else None
    if key is None:
        return None
    mark = Marks(supervisor.layout).read(pool.name, key)
    return mark if mark is not None and mark.owner == worker.owner and mark.task != held.name.id else None


def _trace(traces: Traces, pool: Pool, worker: Worker, death: Death, held: Claim, cause: Cause) -> None:
    """Tell of an attempt whose worker can't: it is dead."""
    now = time.time()
    traces.tell(
        Attempt(
            id=held.name.id,
            attempt=held.name.attempt,
            task_class=pool.name,
            kind=held.fields.kind,
            traceparent=held.fields.traceparent,
            submitted_at=held.submitted_at,
            claimed_at=None,
            started_at=now - (time.monotonic() - death.start_ns / 1e9),
            ended_at=now,
            recorded_at=None,
            final=False,
            cause=cause,
            message=death.message,
            worker=worker.pid,
        )
    )


def _error(death: Death, cause: Cause, final: Cause | None) -> dict[str, Any]:
    error: dict[str, Any] = {"cause": final or cause, "message": death.message}
    if final is not None and final is not cause:
        error["last_cause"] = cause
    code = os.waitstatus_to_exitcode(death.status)
    if code < 0:
        error["signal"] = signal.Signals(-code).name
    else:
        error["exit_code"] = code
    if death.stacks:
        error["stacks"] = death.stacks
    return error


def _take(supervisor: Supervisor, dead: set[str], result: Recovered) -> None:
    owners = [owner for owner in list_folder(supervisor.layout.claimed) if node_of(owner) in dead]
    # A claim's class is in its file; the bounds on deliveries are the same for all.
    budget = budget_of(supervisor.config, next(iter(supervisor.config.classes.values())))
    take_from_dead(supervisor.undertaker, owners, budget, result, "its supervisor died")
    for node in dead - {supervisor.observer.me}:
        supervisor.observer.forget(node)
