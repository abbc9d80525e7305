"""The bridge: takes tasks from the queue, makes jobs of them, and brings back what became of these.

It may be killed at any moment. What it holds lies in claimed/NODE.N.slurm/, what it asked for in slurm/: the next one, here
or on another host, moves the claims into its own folder and goes on with the same jobs. Ending it ends no job.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import sys
import time
from collections.abc import Iterable
from typing import Any

from dspy_fastpath.counters import Global, Page

from ...channel import Kind
from ...config import slurm_environment
from ...errors import ConfigError
from ...jobbook import JobBook, Sentinel
from ...layout import Layout
from ...log import log
from ...parts import ServicePost
from ...record import Claim
from ...task import Cause, TaskName
from ...taskqueue import TaskQueue, Unusable
from .adopt import Adopter, Attic
from .commands import (
    CONFIG,
    SUBMIT_S,
    Accepted,
    Answer,
    Refused,
    Slurm,
    Unknown,
    parse_config,
    read_submission,
)
from .fleet import Fleet
from .listing import JobRow, chunks
from .pace import Pace
from .plan import JobRefused, plan_job, runner_settings
from .roster import Element, Job, Roster, Rows
from .settle import Ended, Settler, Told
from .states import LIVE, Fate, fate_of, look_up
from .submit import Planned, Prepared, grouped, prepare
from .templates import render, task_files
from .verdict import Do, Verdict, judge
from .watch import Watch

_TURN_S = 0.5  # the longest wait of the loop
_GATHER_S, _GATHER_MOST_S = 0.15, 1.0  # tasks that arrive so close together are submitted together
_SUBMITS = 4  # sbatch at work at once: more of them don't get more done
_LATER_S = 60.0  # before a cluster that takes nothing more is asked again
_TROUBLE_S = 5.0  # after an error of the disk
_TOLD_S = 15.0  # before a job that did not end is told so again
_STATE_S = 1.0  # between two accounts of ourselves
_STOP_S = 5.0  # that an sbatch gets to answer at a stop
_CONFIG_S = 30.0  # between two tries to learn what the cluster is
_BEATS = 200  # heartbeats that are looked at in one turn
_NETWORK_WITNESS_S, _LOCAL_WITNESS_S = 60.0, 5.0  # a network filesystem shows a new file that late
_SHOWN = 5  # jobs that need a human, named in `status`


class Bridge:
    """One bridge of one supervisor."""

    def __init__(self, post: ServicePost, layout: Layout, page: Page) -> None:
        self._post, self._layout, self._page = post, layout, page
        self._config = post.config
        self._queue = TaskQueue(layout, max_bytes=self._config.max_task_bytes, max_depth=self._config.max_depth)
        self._book = JobBook(layout)
        self._book.prepare()
        self._folder = self._queue.open_owner(post.owner)
        self._settler = Settler(self._queue, self._book, post.owner, self._folder, self._config, page)
        self._slurm = Slurm(slurm_environment(self._config.command_env))
        self._roster = Roster()
        self._pace = Pace(self._config.slurm_poll_s, random.random())
        self._watch = Watch(
            self._slurm, self._roster, self._book, self._pace, end=self._cancel, again=self._again, looked=self._looked
        )
        self._adopter = Adopter(post, layout, self._queue, self._folder)
        self._attic = Attic(self._book, self._roster, end=self._cancel)
        self._fleet = Fleet(self._config, layout, page, self._slurm, end=self._cancel)
        self._fresh: dict[str, Claim] = {}  # claimed, and not submitted
        self._flush_at = float("inf")
        self._gathering_since = 0.0
        self._prepared: list[tuple[Prepared, Job]] = []
        self._submitting = 0
        self._again_at = 0.0  # when to try again what the disk did not take
        self._unsettled: dict[str, tuple[Element, Ended]] = {}
        self._state_at = 0.0
        self._state: dict[str, Any] = {}
        self._config_at = 0.0
        self._known = False  # whether the cluster's configuration was read
        self._problem = ""
        self._dirty: set[str] = set()  # submissions of which more is known than on disk
        self._beat_at = 0
        self._stopping = False

    # -- the loop ----------------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Carry tasks until told to stop; return the exit code."""
        while not self._stopping:
            self._wait()
            self._post.link.alive()
            for message in self._post.link.receive(0.0):
                self._hear(message)
            self._slurm.collect(time.monotonic())
            self._turn(time.monotonic())
        self._end()
        return 0

    def close(self) -> None:
        """Give everything back; jobs go on."""
        self._slurm.kill_all()
        os.close(self._folder)
        self._queue.close_owner(self._post.owner)

    def _wait(self) -> None:
        now = time.monotonic()
        poll = select.poll()
        for descriptor in (self._post.link.fileno(), *self._slurm.descriptors()):
            poll.register(descriptor, select.POLLIN)
        due = min(self._flush_at, now + _TURN_S, self._watch.next_at if self._roster.jobs else now + _TURN_S)
        poll.poll(max(0.0, due - now) * 1000)

    def _turn(self, now: float) -> None:
        self._learn(now)
        if now >= self._flush_at and (not self._watch.problem or not self._known):
            self._flush()
        while self._prepared and self._submitting < _SUBMITS:
            self._submit(*self._prepared.pop(0))
        if self._fleet.has_news():
            self._watch.hasten()
        idle = not (self._roster.jobs or self._attic.wants_look or self._fleet.wanted)
        self._watch.turn(now, idle=idle)
        if now >= self._again_at:
            self._settle_again()
        for file in self._adopter.turn(now):
            self._take_over(file)
        self._attic.turn(now)
        if now >= self._state_at:
            self._show(now)

    def _hear(self, message: dict[str, Any]) -> None:
        if message["op"] == "feed":
            for file in message["files"]:
                self._claim(str(file))
        elif message["op"] == "cancel":
            self._cancel_task(str(message["file"]))
        elif message["op"] == "stop":
            self._stopping = True

    def _end(self) -> None:
        """Leave what is submitted to the next bridge, and give the rest back to the queue."""
        for prepared, job in self._prepared:
            self._unprepare(prepared, job)
        for file in list(self._fresh):
            self._give_back(file)
        deadline = time.monotonic() + _STOP_S
        while self._submitting and time.monotonic() < deadline:
            poll = select.poll()
            for descriptor in self._slurm.descriptors():
                poll.register(descriptor, select.POLLIN)
            poll.poll(200)
            self._post.link.alive()
            self._slurm.collect(time.monotonic())
        log.info("slurm_left", jobs=len(self._roster.elements), means="they go on; the next start takes them over")

    def _learn(self, now: float) -> None:
        """Read the cluster's configuration, once it can be read."""
        if self._known or now < self._config_at:
            return
        self._config_at = now + _CONFIG_S

        def answered(answer: Answer) -> None:
            if not answer.ok or "SLURM_VERSION" not in answer.out:
                self._problem = answer.trouble if not answer.ok else "scontrol: an answer that is cut off"
                self._config_at = min(self._config_at, time.monotonic() + _TROUBLE_S)
                return
            if not self._known:
                cluster = self._watch.cluster = parse_config(answer.out)
                self._pace.bound(self._config.slurm_poll_s, cluster.min_job_age_s, cluster.accounting)
                log.info("slurm_cluster", name=cluster.name, version=cluster.version, accounting=cluster.accounting)
            self._known, self._problem = True, ""

        self._slurm.start(CONFIG, answered)

    # -- from the queue to the cluster -------------------------------------------------------------------------------------

    def _claim(self, file: str) -> None:
        try:
            held = self._queue.claim(file, self._folder)
        except Unusable as unusable:
            if unusable.may_change:
                self._release(file)
                self._report(file, Told(Kind.GONE))
            else:
                self._queue.quarantine(self._folder, file, unusable.reason)
                self._report(file, Told(Kind.QUARANTINED, unusable.reason))
            return
        except OSError as error:
            self._release(file)
            self._report(file, Told(Kind.TROUBLE, f"{file} can't be claimed: {error}"))
            return
        if held is None:
            self._report(file, Told(Kind.GONE))
            return
        self._roster.add(file)
        self._keep_fresh(held)

    def _keep_fresh(self, held: Claim, delay_s: float = _GATHER_S) -> None:
        now = time.monotonic()
        if not self._fresh:
            self._gathering_since = now
        self._fresh[held.file] = held
        if delay_s == _GATHER_S:
            self._flush_at = min(now + delay_s, self._gathering_since + _GATHER_MOST_S)
        elif self._flush_at == float("inf"):
            self._flush_at = now + delay_s

    def _flush(self) -> None:
        """Make submissions of the tasks that came together."""
        self._flush_at = float("inf")
        fresh, self._fresh = self._fresh, {}
        planned = []
        for held in fresh.values():
            try:
                settings = self._config.classes[str(held.workload)]
                planned.append(Planned(held, plan_job(self._config, settings, held)))
            except JobRefused as error:
                self._refuse(held, str(error))
            except ConfigError as error:
                self._problem = str(error)
                self._give_back(held.file)
        for group in grouped(planned, self._watch.cluster.max_array_size):
            self._prepare(group)

    def _prepare(self, group: list[Planned]) -> None:
        settings = self._config.classes[str(group[0].held.workload)]
        try:
            prepared = prepare(
                self._book,
                group,
                owner=self._post.owner,
                python=str(self._config.slurm_python or sys.executable),
                cwd=os.getcwd(),
                settings=runner_settings(self._config, settings),
                render=lambda plan, facts: render(self._config, plan, facts),
                task_files=task_files,
            )
        except JobRefused as error:
            for one in group:
                self._refuse(one.held, str(error))
            return
        except OSError as error:
            log.warning("slurm_trouble", error=str(error), next=f"trying again in {_TROUBLE_S:.0f} s")
            for one in group:
                self._keep_fresh(one.held, _TROUBLE_S)
            return
        elements = {index: self._roster.elements[one.held.file] for index, one in enumerate(group)}
        job = self._roster.attach(prepared.submission, elements, calling=True, now=time.monotonic())
        self._prepared.append((prepared, job))

    def _submit(self, prepared: Prepared, job: Job) -> None:
        self._submitting += 1

        def answered(answer: Answer) -> None:
            self._submitting -= 1
            job.calling, job.quiet_at = False, time.monotonic()
            said = read_submission(answer)
            if isinstance(said, Accepted):
                self._accepted(job, said)
            elif isinstance(said, Refused):
                self._refused(job, said)
            else:
                self._unknown(job, said)
            self._watch.hasten()

        self._slurm.start(
            prepared.argv, answered, stdin=prepared.script, timeout_s=SUBMIT_S, environment=prepared.environment
        )

    def _accepted(self, job: Job, said: Accepted) -> None:
        self._watch.identified(job, said.job_id, said.cluster)
        self._page.add_global(Global.SLURM_SUBMITTED, len(job.elements))
        log.info("slurm_submitted", job=said.job_id, tasks=len(job.elements), name=job.submission.name)
        self._dirty.add(job.submission.name)

    def _refused(self, job: Job, said: Refused) -> None:
        """The cluster does not have it, so its name is free to be forgotten."""
        log.warning("slurm_refused", tasks=len(job.elements), reason=said.reason, later=said.later)
        for element in list(job.elements.values()):
            held = self._read(element)
            self._forget(element)
            if held is None:
                continue
            if element.ended is not None:
                self._settle(element, Ended(Verdict(Do.FAIL, "", *element.ended)))
            elif said.later:
                self._problem = said.reason
                self._keep_fresh(held, _LATER_S)
            else:
                self._refuse(held, said.reason)

    def _unknown(self, job: Job, said: Unknown) -> None:
        log.warning(
            "slurm_unknown", name=job.submission.name, reason=said.reason, next="the job is looked for by its name"
        )

    def _again(self, job: Job) -> None:
        """A submission never reached the cluster: its tasks go into another, and no late copy of it will run."""
        for element in list(job.elements.values()):
            try:
                voided = self._book.void(job.submission.name, element.index, "it was not found in the cluster")
            except OSError:
                continue  # the next look tries again
            if not voided:
                continue  # it has started in this very moment, and says so: the next look finds it
            held = self._read(element)
            if held is None:
                self._gone(element)
                continue
            self._roster.detach(element)
            if element.ended is not None:
                self._settle(self._roster.elements[element.file], Ended(Verdict(Do.FAIL, "", *element.ended)))
            else:
                self._keep_fresh(held)

    def _unprepare(self, prepared: Prepared, job: Job) -> None:
        """Take back a submission that sbatch was never asked for."""
        for element in list(job.elements.values()):
            self._forget(element)
            self._give_back(element.file)

    # -- what comes back -------------------------------------------------------------------------------------------------------

    def _looked(self, rows: Rows, every: list[JobRow]) -> None:
        """A look at the cluster is through: judge what there is to be judged."""
        self._fleet.looked(every)
        now = time.monotonic()
        beats = 0
        accounting, witness_s = self._watch.accounting, self._witness_s
        end: list[Element] = []
        for element in self._roster.submitted():
            job, row = element.job, element.row
            if job is None or element.file in self._unsettled:
                continue
            quiet = row is not None and fate_of(row.state) in LIVE and element.ended is None
            beat = element.needs_beat(now) and (element.is_over or beats < _BEATS)
            queued = row is not None and fate_of(row.state) is Fate.QUEUED
            if quiet and not beat and not queued:
                self._note(element, look_up(row.state).word if row is not None else "")
                continue
            try:
                needed = beat or not quiet or element.ran
                sentinel = self._book.sentinel(job.submission.name, element.index) if needed else _NOTHING
                if beat:
                    beats += 1
                    element.look_at_beat(self._book, sentinel, now)
                verdict = judge(element.evidence(sentinel, accounting, now, witness_s))
                self._note(element, verdict.state)
                if verdict.do is Do.KILL:
                    self._tell_to_end(element, verdict, now)
                    end.append(element)
                elif verdict.do is not Do.WAIT:
                    self._conclude(element, verdict, sentinel.started)
            except OSError as error:
                log.warning("slurm_trouble", task=element.file, error=str(error), next="looking again")
        self._cancel(element.job_id for element in end if now - element.told_to_end < 1.0)
        self._attic.look(rows)
        counts = self._roster.counts()
        self._page.set_global(Global.SLURM_RUNNING, counts["running"] + counts["ending"])
        self._page.set_global(Global.SLURM_PENDING, counts["pending"] + counts["held"])

    def _conclude(self, element: Element, verdict: Verdict, restart: int) -> None:
        job, account = element.job, element.account
        if job is None:
            return
        name = job.submission.name
        sentinel = self._book.sentinel(name, element.index)
        if verdict.do is Do.AGAIN or (element.row is not None and fate_of(element.row.state) in LIVE):
            # No copy that is left somewhere, or comes late, may work beside the next attempt.
            if not sentinel.void and not self._book.void(name, element.index, verdict.message or "it is over"):
                return  # it has just started anew: look again
            if element.row is not None and fate_of(element.row.state) in LIVE:
                self._cancel([element.job_id])
        told = sentinel.exit or {}
        began, ended, took = sentinel.start.get("at"), told.get("at"), told.get("duration_s")
        if began is None and account is not None:
            began = account.started
        if ended is None and account is not None:
            ended = account.ended
        self._settle(
            element,
            Ended(
                verdict,
                element.job_id,
                job.submission.cluster,
                float(began) if isinstance(began, int | float) else None,
                float(ended) if isinstance(ended, int | float) else None,
                float(took) if isinstance(took, int | float) else account.elapsed_s if account is not None else None,
                account.gpus if account is not None else 0,
                self._book.result(name, element.index, restart) if verdict.do is Do.SUCCEED else None,
            ),
        )

    def _settle(self, element: Element, end: Ended) -> None:
        """Record how a task ended, now or when the disk takes it."""
        try:
            told = self._settler.settle(element.file, end)
        except OSError as error:
            log.warning("slurm_trouble", task=element.file, error=str(error), next=f"again in {_TROUBLE_S:.0f} s")
            self._unsettled[element.file] = element, end
            self._again_at = time.monotonic() + _TROUBLE_S
            return
        self._unsettled.pop(element.file, None)
        if end.job:
            log.info("slurm_ended", job=end.job, task=element.file, state=end.verdict.state, told=told.kind.name)
        name = TaskName.parse(element.file)
        if element.job is not None and name is not None:
            self._book.keep_output(element.job.submission.name, element.index, name)
        self._forget(element)
        self._roster.remove(self._roster.elements.get(element.file, element))
        self._report(element.file, told)

    def _settle_again(self) -> None:
        self._again_at = float("inf")
        for element, end in list(self._unsettled.values()):
            self._settle(element, end)

    def _gone(self, element: Element) -> None:
        """Somebody else has this task now, with its job."""
        self._roster.remove(element)
        self._report(element.file, Told(Kind.GONE))

    def _forget(self, element: Element) -> None:
        if element.job is not None:
            self._book.forget(element.job.submission.name, element.index)
            self._roster.detach(element)

    def _note(self, element: Element, state: str) -> None:
        if element.job is not None and (state != element.state or element.job.submission.name in self._dirty):
            element.state = state
            self._dirty.add(element.job.submission.name)

    # -- ending jobs -----------------------------------------------------------------------------------------------------------

    def _cancel_task(self, file: str) -> None:
        element = self._roster.elements.get(file)
        if element is None or element.ended is not None:
            return
        ended = (Cause.CANCELLED, "cancelled while it was with the cluster")
        if element.job is None:
            self._fresh.pop(file, None)
            self._settle(element, Ended(Verdict(Do.FAIL, "", *ended)))
            return
        try:
            self._book.note_cancel(element.job.submission.name, element.index, *ended)
        except OSError as error:
            log.warning("slurm_trouble", task=file, error=str(error), means="a cancel may be forgotten at a restart")
        element.ended = ended
        if element.job_id:
            element.told_to_end = time.monotonic()
            self._cancel([element.job_id])
        log.info("slurm_cancel", task=file, job=element.job_id)

    def _tell_to_end(self, element: Element, verdict: Verdict, now: float) -> None:
        if element.job is None or now - element.told_to_end < _TOLD_S:
            return
        if element.ended is None and verdict.cause is not None:
            element.ended = (verdict.cause, verdict.message)
            self._book.note_cancel(element.job.submission.name, element.index, *element.ended)
            log.warning("slurm_ends_job", job=element.job_id, task=element.file, reason=verdict.message)
        element.told_to_end = now

    def _cancel(self, ids: Iterable[str]) -> None:
        """Ask for the end of jobs. Success means nothing (an id that is unknown is no error): the next looks tell."""
        for some in chunks(sorted({job_id for job_id in ids if job_id})):
            self._slurm.start(("scancel", *some), lambda answer: None)
            self._watch.hasten()

    # -- claims of those before us ---------------------------------------------------------------------------------------------

    def _take_over(self, file: str) -> None:
        """Go on with a task that another bridge had."""
        element = self._roster.add(file)
        found = self._adopter.find(self._book, file)
        if found is None:
            held = self._read(element)
            if held is not None:
                self._keep_fresh(held)
            else:
                self._roster.remove(element)
            return
        submission, index = found
        self._roster.attach(submission, {index: element}, calling=False, now=time.monotonic())
        if (facts := self._book.cancelled(submission.name, index)) is not None:
            with contextlib.suppress(ValueError):
                element.ended = (Cause(str(facts.get("cause"))), str(facts.get("message")))
        self._watch.hasten()

    # -- below -----------------------------------------------------------------------------------------------------------------

    @property
    def _witness_s(self) -> float:
        return _NETWORK_WITNESS_S if self._layout.filesystem.network else _LOCAL_WITNESS_S

    def _read(self, element: Element) -> Claim | None:
        try:
            return self._queue.read_claim(element.file, self._folder)
        except (Unusable, OSError):
            return None

    def _refuse(self, held: Claim, reason: str) -> None:
        element = self._roster.elements.get(held.file) or self._roster.add(held.file)
        self._settle(element, Ended(Verdict(Do.FAIL, "", Cause.REFUSED, reason, retry=False)))

    def _give_back(self, file: str) -> None:
        """Return a task that was not submitted; nothing is charged."""
        self._fresh.pop(file, None)
        self._release(file)
        if (element := self._roster.elements.get(file)) is not None:
            self._roster.remove(element)
        self._report(file, Told(Kind.RETURNED))

    def _release(self, file: str) -> None:
        with contextlib.suppress(OSError):
            self._queue.release(file, self._folder)

    def _report(self, file: str, told: Told) -> None:
        message = {"op": "report", "kind": int(told.kind), "file": file, "text": told.text[:1000], "run_s": told.run_s}
        self._post.link.send(message)

    def _show(self, now: float) -> None:
        """Tell the supervisor how things are, and the disk what was seen."""
        self._state_at = now + _STATE_S
        for name in list(self._dirty):
            if (job := self._roster.jobs.get(name)) is not None:
                self._book.note_seen(name, job.seen())
        self._dirty.clear()
        watch, cluster = self._watch, self._watch.cluster
        calls, errors = sum(self._slurm.calls.values()), sum(self._slurm.errors.values())
        self._page.set_global(Global.SLURM_CALLS, calls)
        self._page.set_global(Global.SLURM_CALL_ERRORS, errors)
        held = [
            f"job {element.job_id} is held: {element.row.reason or element.row.state}"
            for element in self._roster.submitted()
            if element.row is not None and fate_of(element.row.state, element.row.reason) is Fate.HELD
        ]
        state: dict[str, Any] = {
            "op": "state",
            "inflight": len(self._roster.elements),
            "cluster": cluster.name,
            "version": cluster.version,
            "problem": watch.problem or self._problem or self._fleet.problem or None,
            **({"pilots": self._fleet.state} if self._fleet.wanted else {}),
            "unreachable_since": watch.unreachable_since,
            "accounting": str(watch.accounting),
            "accounting_problem": watch.accounting_problem or None,
            "jobs": self._roster.counts(),
            "attention": held[:_SHOWN] + ([f"and {len(held) - _SHOWN} more"] if len(held) > _SHOWN else []),
            "calls": dict(self._slurm.calls),
            "errors": dict(self._slurm.errors),
        }
        if state != self._state:
            self._state = state
            self._post.link.send(state)


_NOTHING = Sentinel()


def run(post: ServicePost) -> int:
    """Be the bridge of a supervisor; return the exit code."""
    with (
        Layout.open(post.queue_dir, insecure=post.config.insecure) as layout,
        Page.attach(post.page, writable=True) as page,
    ):
        bridge = Bridge(post, layout, page)
        try:
            return bridge.run()
        finally:
            bridge.close()
