"""The life of a worker: receive a name, claim it, call its handler, record how that ended; one task at a time.

A worker is forked by its pool and never returns from `live`. It trusts nothing that a task may have changed, keeps the
result of a finished task until it is written, whatever the disk says meanwhile, and dies with its supervisor.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import os
import random
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from dspy_fastpath.claim import syncs
from dspy_fastpath.counters import Counter, Global, Histogram, Page

from . import bounds, budget, current, proctree
from .attempt import Outcome, Surroundings, run
from .birth import enter
from .channel import LONG_S, MAX_PACKET, MAX_REPORTS, RELEASE, Kind, Report, pack, released_key, unpack_names
from .config import ClassConfig, Config
from .embedding.options import shared_socket
from .environment import set_variable
from .environments import Marks
from .errors import ConfigError
from .handlers import chosen_by, make
from .hedges import SECOND, second_of
from .kept import Kept
from .log import log
from .nodes import node_of
from .parts import Handler, Task
from .record import Claim, Run, done_record, failed_record
from .retry import budget_of, decide
from .task import Cause
from .taskqueue import TaskQueue, Unusable, past_causes
from .traceparent import of_task, run_span
from .traces import Attempt, Tracer
from .walltime import RunTimes, Walltime

if TYPE_CHECKING:
    from .warden import Warden

RETRY_WRITE_S = 5.0  #: between two tries to write a result that the disk didn't take
_FLUSH_S = 0.002  # reports of tasks shorter than this travel together
#: attempts that are counted by their cause as they end: what decides about limits can't wait for the last of a task
COUNTED = {
    Cause.TIMEOUT: Counter.TIMEOUTS,
    Cause.OUT_OF_MEMORY: Counter.OOMS,
    Cause.HOST_OOM: Counter.OOMS,
}
#: handlers that end their task in time by themselves, and need a moment more than it to do so
_SELF_TIMED = frozenset({"command"})
_SLACK_S = 2.0


class _Void(Exception):
    """Others took this worker's claims: it was away for too long, or the queue was removed."""


class Stopped(BaseException):
    """SIGTERM: the task's time is up. A BaseException, so that a handler's `except Exception` lets it through."""


@dataclass(frozen=True, slots=True)
class Post:
    """What a worker is told at its birth."""

    slot: int
    owner: str  #: its folder in claimed/, never used before
    klass: int  #: index of its class in the shared page
    settings: ClassConfig
    config: Config
    stacks: int  #: descriptor that stacks are written to on SIGUSR2
    traces: int  #: descriptor that attempts are told to, or -1
    actor: type[Worker]  #: what it is
    variables: Mapping[str, str] = field(default_factory=dict)  #: of its environment
    defaults: Mapping[str, str] = field(default_factory=dict)  #: the same, where nobody set them before


def live(post: Post, queue: TaskQueue, channel: socket.socket, page: Page, parent: int) -> NoReturn:
    """Be a worker until told to end. Called in the forked child; ends the process."""
    code = 70  # EX_SOFTWARE: this program's fault
    try:
        _enter(post, channel, queue, parent)
        budget.use(page, post.config.llm_budgets)
        worker = post.actor(post, queue, channel, page)
        try:
            bounds.enter(post.settings)
            worker.load()
        except ConfigError as error:
            channel.send(pack(Report(Kind.BROKEN, text=str(error))))
            os._exit(78)
        channel.send(pack(Report(Kind.READY)))
        try:
            worker.work()
            worker.close()
        except _Void as void:
            channel.send(pack(Report(Kind.VOID, text=str(void))))
        code = 0
    except Stopped:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)  # so that the wait status says what ended it
    except (BrokenPipeError, ConnectionError):
        code = 0  # the supervisor is gone
    except BaseException:  # the last chance to say anything
        import traceback

        with contextlib.suppress(BaseException):
            traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _enter(post: Post, channel: socket.socket, queue: TaskQueue, parent: int) -> None:
    """Leave everything of the supervisor's that a worker must not share."""
    keep = {channel.fileno(), post.stacks, post.traces, *queue.layout.descriptors(), *log.descriptors()}
    enter(parent, f"{post.settings.name} worker {post.slot}", keep, {signal.SIGTERM: _Stop.receive})
    faulthandler.register(signal.SIGUSR2, file=post.stacks, all_threads=True, chain=False)
    for name, value in post.settings.environment.items():
        set_variable(name, value)
    set_variable(proctree.MARK, node_of(post.owner))
    log.bind(worker=os.getpid(), klass=post.settings.name)
    for name, value in post.defaults.items():
        set_variable(name, value, keep=True)
    for name, value in post.variables.items():
        set_variable(name, value)


class _Stop:
    """What SIGTERM does: it interrupts a handler, and nothing else, since a result must be written to its end."""

    asked = False
    may_interrupt = False

    @classmethod
    def receive(cls, _number: int, _frame: object) -> None:
        cls.asked = True
        if cls.may_interrupt:
            raise Stopped


def _elsewhere(_task: Task) -> NoReturn:
    """Stand for a handler that another process has."""
    raise RuntimeError("a task of a class with a sandbox is run by its warden")


class Worker:
    """One worker process, inside."""

    def __init__(self, post: Post, queue: TaskQueue, channel: socket.socket, page: Page) -> None:
        self._post, self._queue, self._channel, self._page = post, queue, channel, page
        self._folder = queue.open_owner(post.owner)
        self._logs = str(queue.layout.path / "logs")
        self._handlers: dict[str | None, Handler] = {}
        self._names: deque[str] = deque()
        self._kept = Kept(Marks(queue.layout), post.settings.name, post.owner, self._tell_kept)
        config = post.config
        self._walltime = None
        if config.ends_at:
            reserve_s = config.drain_s + config.kill_grace_s
            self._walltime = Walltime(config.ends_at, reserve_s, RunTimes(queue.layout))
        self._warden: Warden | None = None
        self._tracer = Tracer(post.traces) if post.traces >= 0 else None
        self._reports: list[bytes] = []
        self._flushed_at = 0.0
        self._synced = syncs()  # that are on the page; those before the fork are the supervisor's

    def load(self) -> None:
        """Import the handlers. Raises ConfigError naming the one that can't be."""
        config, settings = self._post.config, self._post.settings
        if (here := os.getcwd()) not in sys.path:
            sys.path.append(here)  # a handler's module may lie where the supervisor was started; it hides no other
        chosen, options = chosen_by(settings, config)
        if settings.sandbox != "off":
            self._lock_in(chosen, options)
            return
        for kind, name in chosen:
            self._handlers[kind] = make(name, **options, embed=config, embed_socket=self._embed_socket())

    def _lock_in(self, chosen: list[tuple[str | None, str]], options: Mapping[str, Any]) -> None:
        """Have the handlers run by another process, in a sandbox."""
        from .warden import Warden

        self._warden = warden = Warden(self._post.settings, self._post.config, self._queue.layout.path, chosen, options)
        warden.start()
        self._kept.children.add(warden.pid)
        log.info("sandbox", mechanism=warden.mechanism)
        for kind, _ in chosen:
            self._handlers[kind] = _elsewhere

    def _embed_socket(self) -> Path | None:
        config = self._post.config
        return (
            shared_socket(config.runtime_dir, self._queue.layout.queue_id, config.instance)
            if config.embed_shared
            else None
        )

    def work(self) -> None:
        """Run what arrives until told to end."""
        surroundings = Surroundings()
        while True:
            self._flush()
            packet = self._channel.recv(MAX_PACKET)
            if not packet:
                return  # the supervisor is gone
            self._names.extend(unpack_names(packet))
            if not self._names:
                return
            while self._names:
                file = self._names.popleft()
                if file.startswith(RELEASE):
                    self._kept.release_quietly(released_key(file))
                elif file.startswith(SECOND):
                    self._second(file, surroundings)
                else:
                    self._one(file, surroundings)
                if _Stop.asked:
                    raise Stopped

    def close(self) -> None:
        """Keep what was learned, and close what is kept between tasks."""
        self._kept.close_all("its worker was told to end, with its supervisor or for a fresh one")
        if self._walltime is not None:
            self._walltime.save()

    def _one(self, file: str, surroundings: Surroundings) -> None:
        claimed_at = time.time()
        try:
            held = self._queue.claim(file, self._folder)
        except Unusable as unusable:
            self._refuse(file, unusable)
            return
        except OSError as error:
            if not os.fstat(self._folder).st_nlink:
                raise _Void(f"its folder of claims was removed: {error}") from None
            self._give_back(file)
            self._report(Report(Kind.TROUBLE, file, text=f"{file} can't be claimed: {error}"))
            return
        if held is None:
            self._report(Report(Kind.GONE, file))
            return
        handler = self._handlers.get(held.fields.kind)
        if handler is None:
            # It looked runnable to the supervisor: the configuration changed in between. It waits again.
            self._give_back(file)
            self._report(Report(Kind.GONE, file))
            return
        if self._walltime is not None and (why := self._walltime.refusal(self._post.settings.name, held.fields.kind)):
            self._give_back(file)
            self._report(Report(Kind.RETURNED, file, text=why))
            return
        started_at, started = time.time(), time.monotonic()
        outcome = self._run(held, handler, started)
        duration = time.monotonic() - started
        if self._walltime is not None and outcome.ok:
            self._walltime.ended(self._post.settings.name, held.fields.kind, duration)
        self._page.slot_end(self._post.slot)
        surroundings.restore_urgent()
        stray = None if self._post.settings.keep_children else self._end_strays()
        facts = Run(started_at, started_at + duration, duration, os.getpid(), self._post.owner)
        kind = self._record(held, outcome, facts)
        if self._tracer is not None and kind is not Kind.GONE:
            self._trace(held, outcome, facts, claimed_at, final=kind is not Kind.RETRIED)
        if self._kept.touched:
            self._settle_kept(held, outcome)
        # After the record, which needs none of it: also a task that ruined its worker has done its work.
        surroundings.restore()
        if stray is not None:
            raise stray
        self._page.observe(self._post.klass, Histogram.WAIT, max(0.0, started_at - held.submitted_at))
        self._page.observe(self._post.klass, Histogram.RUN, duration)
        if (synced := syncs()) != self._synced:
            self._page.add_global(Global.FSYNCS, synced - self._synced)
            self._synced = synced
        if duration > LONG_S:
            while self._names:
                self._report(Report(Kind.RETURNED, self._names.popleft()))

    def _second(self, order: str, surroundings: Surroundings) -> None:
        """Run a task that another worker runs, too, and leave its record for the supervisor where it succeeds."""
        owner, file = second_of(order)
        why = ""
        try:
            folder = os.open(owner, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._queue.layout.claimed)
            try:
                held = self._queue.read_claim(file, folder)
            finally:
                os.close(folder)
        except (OSError, Unusable) as error:
            held, why = None, str(error)
        handler = self._handlers.get(held.fields.kind) if held is not None else None
        if held is None or handler is None:
            self._report(Report(Kind.SECOND_FAILED, order, text=why or "it ended"))
            return
        started_at, started = time.time(), time.monotonic()
        outcome = self._run(held, handler, started)
        duration = time.monotonic() - started
        self._page.slot_end(self._post.slot)
        surroundings.restore_urgent()
        stray = self._end_strays()
        why = outcome.message
        if outcome.ok and outcome.result is not None:
            facts = Run(started_at, started_at + duration, duration, os.getpid(), self._post.owner)
            try:
                self._queue.leave_record(held, done_record(held, outcome.result, facts, self._queue.history(held.name)))
            except OSError as error:
                why = str(error)
        surroundings.restore()
        if stray is not None:
            raise stray
        self._report(Report(Kind.SECOND_FAILED if why else Kind.SECOND_DONE, order, duration, why))

    def _trace(self, held: Claim, outcome: Outcome, facts: Run, claimed_at: float, *, final: bool) -> None:
        assert self._tracer is not None
        fields, cause = held.fields, None if outcome.ok else outcome.cause or Cause.RAISED
        self._tracer.tell(
            Attempt(
                held.name.id, held.name.attempt, self._post.settings.name, fields.kind, fields.traceparent,
                held.submitted_at, claimed_at, facts.started_at, facts.ended_at, time.time(), final, cause,
                outcome.message, facts.worker,
            )
        )  # fmt: skip

    def _span(self, held: Claim) -> str:
        """Return the span of an attempt that is traced, for the calls that it makes."""
        root, _ = of_task(
            held.fields.traceparent,
            self._queue.layout.queue_id,
            held.name.id,
            held.submitted_at,
            self._post.config.otel_sample_share,
        )
        return str(run_span(root, held.name.id, held.name.attempt))

    def _end_strays(self) -> OSError | None:
        """End what the task left running, so that nothing of it runs once its record is there; return why that failed."""
        if self._kept.touched:
            self._kept.adopt_children()
        if self._warden is not None and not self._warden.leaves_strays:
            return None  # and no look at all processes
        try:
            proctree.reap_orphans(self._kept.children)
        except OSError as error:
            return error
        return None

    def _run(self, held: Claim, handler: Handler, started: float) -> Outcome:
        post, fields = self._post, held.fields
        timeout_s = fields.timeout_s or post.settings.timeout_s
        deadline = started + timeout_s if timeout_s else None
        slack = post.config.kill_grace_s + _SLACK_S if self._is_self_timed(fields.kind) else 0.0
        self._page.slot_begin(
            post.slot,
            int(started * 1e9),
            int((deadline + slack) * 1e9) if deadline else 0,
            held.file.encode(),
        )
        task = Task(
            id=held.name.id,
            task_class=post.settings.name,
            kind=fields.kind,
            attempt=held.name.attempt,
            crashes=held.name.crashes,
            timeout_s=timeout_s,
            raw=held.payload,
            fields=fields,
            envelope=held.envelope,
            home=f"{self._logs}/{held.name.id}",
            deadline=deadline,
            trace=None if self._tracer is None else lambda: self._span(held),
            worker=self._kept,
        )
        current.begin(task)
        _Stop.may_interrupt = True
        try:
            if self._warden is not None:
                outcome = self._warden.run(task)
            else:
                outcome = run(handler, task, max_result_bytes=post.config.max_result_bytes)
        finally:
            _Stop.may_interrupt = False
            current.end()
        if _Stop.asked and not outcome.ok:
            raise Stopped  # ended from outside: how the attempt ended is the supervisor's to say
        return outcome

    def _tell_kept(self, key: str, is_kept: bool) -> None:
        """Tell the supervisor at once: should this worker die before its task is done, what it kept is known to be lost."""
        self._reports.append(pack(Report(Kind.KEPT if is_kept else Kind.FREED, text=key)))
        self._flush()

    def _settle_kept(self, held: Claim, outcome: Outcome) -> None:
        try:
            self._kept.settle(held.name.id, ok=outcome.ok)
        except OSError as error:  # what was told is told once more at worst
            self._report(Report(Kind.TROUBLE, "", text=f"environments/ can't be written: {error}"))

    def _is_self_timed(self, kind: str | None) -> bool:
        return (kind if kind is not None else self._post.settings.handler) in _SELF_TIMED

    def _record(self, held: Claim, outcome: Outcome, facts: Run) -> Kind:
        """Write how the attempt ended, and return what was reported.

        It goes on trying while the disk doesn't take it: the work is done and must not be lost.
        """
        while True:
            try:
                return self._record_once(held, outcome, facts)
            except OSError as error:
                if error.errno == errno.EBADF:  # the task closed what leads to the queue
                    raise
                if error.errno in (errno.ENOENT, errno.ESTALE) and not os.fstat(self._folder).st_nlink:
                    raise _Void(f"the queue was removed: {error}") from None
                self._report(Report(Kind.TROUBLE, "", text=f"the result of {held.file} can't be written: {error}"))
                self._flush()
                time.sleep(RETRY_WRITE_S)

    def _record_once(self, held: Claim, outcome: Outcome, facts: Run) -> Kind:
        queue, page, klass = self._queue, self._page, self._post.klass
        history = queue.history(held.name)
        if outcome.ok and outcome.result is not None:
            done = queue.finish(held, self._folder, done_record(held, outcome.result, facts, history))
            if done:
                page.observe(klass, Histogram.TOTAL, time.time() - held.submitted_at)
            kind = Kind.DONE if done else Kind.GONE
            self._report(Report(kind, held.file, facts.duration_s))
            return kind
        cause = outcome.cause or Cause.RAISED
        verdict = decide(
            cause,
            held.name,
            past_causes(history),
            budget_of(self._post.config, self._post.settings, held.fields.max_attempts),
            random.random(),
            retry=outcome.retry,
            wanted_delay_s=outcome.retry_delay_s,
        )
        error = {"cause": cause, "message": outcome.message, **outcome.details}
        if outcome.type:
            error["type"] = outcome.type
        if outcome.traceback:
            error["traceback"] = outcome.traceback
        if verdict.final is None:
            due = time.time() + verdict.delay_s
            queue.note_attempt(held.name, error)
            put_back = queue.retry(held.file, self._folder, due)
            if put_back:
                self._count(cause)
            kind = Kind.RETRIED if put_back else Kind.GONE
            self._report(Report(kind, held.file, facts.duration_s, cause))
            return kind
        if verdict.final is not cause:
            error |= {"cause": verdict.final, "last_cause": cause}
        failed = queue.fail(held, self._folder, failed_record(held, error, facts, history))
        if failed:
            page.observe(klass, Histogram.TOTAL, time.time() - held.submitted_at)
            self._count(cause)
        kind = Kind.FAILED if failed else Kind.GONE
        self._report(Report(kind, held.file, facts.duration_s, verdict.final))
        return kind

    def _count(self, cause: Cause) -> None:
        if (counter := COUNTED.get(cause)) is not None:
            self._page.add(self._post.klass, counter)

    def _refuse(self, file: str, unusable: Unusable) -> None:
        """Get rid of what turned out to be no task after it was claimed."""
        if unusable.may_change:
            # It was a task when the supervisor looked, so its producer is at work on it: it gets its time.
            self._give_back(file)
            self._report(Report(Kind.GONE, file))
            return
        self._insist(
            lambda: self._queue.quarantine(self._folder, file, unusable.reason), f"{file} can't be quarantined"
        )
        self._report(Report(Kind.QUARANTINED, file, text=unusable.reason))

    def _give_back(self, file: str) -> None:
        """Put a task back that did not start: nothing that went wrong before that is its fault."""
        self._insist(lambda: self._queue.release(file, self._folder), f"{file} can't be given back")

    def _insist(self, action: Callable[[], object], what: str) -> None:
        """Try for as long as the disk doesn't take it; where the folder is gone there is nothing left to do."""
        while True:
            try:
                action()
                return
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ESTALE):
                    return
                if error.errno == errno.EBADF:
                    raise
                self._report(Report(Kind.TROUBLE, "", text=f"{what}: {error}"))
                self._flush()
                time.sleep(RETRY_WRITE_S)

    def _report(self, report: Report) -> None:
        self._reports.append(pack(report))
        late = time.monotonic() - self._flushed_at > _FLUSH_S
        if late or not self._names or len(self._reports) >= MAX_REPORTS:
            self._flush()

    def _flush(self) -> None:
        if self._reports:
            self._channel.send(b"".join(self._reports))
            self._reports.clear()
        self._flushed_at = time.monotonic()
