"""The bridge: takes tasks from the queue, makes jobs of them, and brings back what became of these.

It may be killed at any moment. What it holds lies in claimed/NODE.N.slurm/, what it asked for in slurm/: the next one, here
or on another host, moves the claims into its own folder and goes on with the same jobs. Ending it ends no job.
"""

from __future__ import annotations

import contextlib
import random
import select
import time
from typing import Any

from dspy_fastpath.counters import Global, Page

from ...errors import SupervisorError
from ...layout import Layout
from ...log import log
from ...parts import ServicePost
from ...task import Cause
from .adopt import Adopter, Attic
from .commands import CONFIG, Answer, parse_config
from .fleet import Fleet
from .hold import Hold
from .inbound import Inbound
from .listing import JobRow
from .outbound import Outbound
from .pace import Pace
from .roster import Rows
from .states import Fate, fate_of
from .watch import Watch

_TURN_S = 0.5  # the longest wait of the loop
_STATE_S = 1.0  # between two accounts of ourselves
_STOP_S = 5.0  # that an sbatch gets to answer at a stop
_CONFIG_S, _CONFIG_SOON_S = 30.0, 5.0  # between two tries to learn what the cluster is
_SHOWN = 5  # jobs that need a human, named in `status`


class Bridge:
    """One bridge of one supervisor."""

    def __init__(self, post: ServicePost, layout: Layout, page: Page) -> None:
        self._link = post.link
        self._hold = hold = Hold(post, layout, page)
        config = hold.config
        self._pace = Pace(config.slurm_poll_s, random.random())
        self._inbound = Inbound(hold)
        self._outbound = Outbound(hold, identified=self._identified, settle=self._inbound.settle)
        self._watch = Watch(
            hold.slurm,
            hold.roster,
            hold.book,
            self._pace,
            end=hold.cancel,
            again=self._outbound.again,
            looked=self._looked,
        )
        hold.hasten = self._watch.hasten
        self._adopter = Adopter(post, layout, hold.queue, hold.folder)
        self._attic = Attic(hold.book, hold.roster, end=hold.cancel)
        self._fleet = Fleet(config, layout, page, hold.slurm, end=hold.cancel)
        self._state_at = 0.0
        self._state: dict[str, Any] = {}
        self._config_at = 0.0
        self._unknown = "the cluster is being asked what it is"  # "": it was
        self._trouble = ""  # what the disk last said
        self._stopping = False

    def run(self) -> int:
        """Carry tasks until told to stop; return the exit code."""
        while not self._stopping:
            self._wait()
            self._link.alive()
            for message in self._link.receive(0.0):
                self._hear(message)
            self._try_to_turn()
        self._end()
        return 0

    def _try_to_turn(self) -> None:
        """Do what is due. Trouble with the queue's folders passes, and nothing is decided by it."""
        try:
            self._hold.slurm.collect(time.monotonic())
            self._turn(time.monotonic())
        except OSError as error:
            if str(error) != self._trouble:
                log.warning("slurm_trouble", error=str(error), next="trying again")
            self._trouble = str(error)
            with contextlib.suppress(OSError):
                if not self._hold.layout.is_current() and self._hold.layout.path.is_dir():
                    raise SupervisorError("the queue's folder was replaced: beginning anew there") from error
        else:
            self._trouble = ""

    def close(self) -> None:
        """Give everything back; jobs go on."""
        self._hold.close()

    def _wait(self) -> None:
        now = time.monotonic()
        poll = select.poll()
        for descriptor in (self._link.fileno(), *self._hold.slurm.descriptors()):
            poll.register(descriptor, select.POLLIN)
        due = min(self._outbound.flush_at, now + _TURN_S, self._watch.next_at if self._is_busy else now + _TURN_S)
        poll.poll(0 if self._outbound.is_due else max(0.0, due - now) * 1000)

    @property
    def _is_busy(self) -> bool:
        """Whether there is something to look for in the cluster."""
        return bool(self._hold.roster.jobs) or self._attic.wants_look or self._fleet.wanted

    def _turn(self, now: float) -> None:
        self._learn(now)
        self._outbound.turn(now, may_flush=not self._unknown and not self._watch.problem)
        if self._fleet.has_news():
            self._watch.hasten()
        self._watch.turn(now, idle=not self._is_busy)
        self._inbound.turn(now)
        for file in self._adopter.turn(now):
            self._take_over(file)
            self._hold.tick()
        self._attic.turn(now)
        if now >= self._state_at:
            self._show(now)

    def _hear(self, message: dict[str, Any]) -> None:
        if message["op"] == "feed":
            for file in message["files"]:
                self._outbound.claim(str(file))
                self._hold.tick()
        elif message["op"] == "cancel":
            if not self._inbound.cancel(str(message["file"])):
                self._outbound.drop(str(message["file"]))
        elif message["op"] == "stop":
            self._stopping = True

    def _end(self) -> None:
        """Leave what is submitted to the next bridge, and give the rest back to the queue."""
        self._outbound.give_back()
        deadline = time.monotonic() + _STOP_S
        while self._outbound.submitting and time.monotonic() < deadline:
            poll = select.poll()
            for descriptor in self._hold.slurm.descriptors():
                poll.register(descriptor, select.POLLIN)
            poll.poll(200)
            self._link.alive()
            self._hold.slurm.collect(time.monotonic())
        jobs = len(self._hold.roster.elements)
        log.info("slurm_left", jobs=jobs, means="they go on; the next start takes them over")

    def _learn(self, now: float) -> None:
        """Read the cluster's configuration, once it can be read."""
        if not self._unknown or now < self._config_at:
            return
        self._config_at = now + _CONFIG_S

        def answered(answer: Answer) -> None:
            if not answer.ok or "SLURM_VERSION" not in answer.out:
                self._unknown = answer.trouble if not answer.ok else "scontrol: an answer that is cut off"
                self._config_at = min(self._config_at, time.monotonic() + _CONFIG_SOON_S)
                return
            cluster = self._watch.cluster = parse_config(answer.out)
            self._pace.bound(self._hold.config.slurm_poll_s, cluster.min_job_age_s, cluster.accounting)
            self._outbound.max_array_size = cluster.max_array_size
            self._unknown = ""
            log.info("slurm_cluster", name=cluster.name, version=cluster.version, accounting=cluster.accounting)

        self._hold.slurm.start(CONFIG, answered)

    def _identified(self, job: Any, job_id: str, cluster: str) -> None:
        self._watch.identified(job, job_id, cluster)

    def _looked(self, rows: Rows, every: list[JobRow]) -> None:
        self._inbound.look(self._watch.accounting)
        self._attic.look(rows)
        self._fleet.looked(every)

    def _take_over(self, file: str) -> None:
        """Go on with a task that another bridge had."""
        hold = self._hold
        element = hold.roster.add(file)
        found = self._adopter.find(hold.book, file)
        if found is None:
            held = hold.read(element)
            if held is not None:
                self._outbound.keep(held)
            else:
                hold.roster.remove(element)
            return
        submission, index = found
        hold.roster.attach(submission, {index: element}, calling=False, now=time.monotonic())
        if (facts := hold.book.cancelled(submission.name, index)) is not None:
            with contextlib.suppress(ValueError):
                element.ended = (Cause(str(facts.get("cause"))), str(facts.get("message")))
        self._watch.hasten()

    def _show(self, now: float) -> None:
        """Tell the supervisor how things are, and the disk what was seen."""
        self._state_at = now + _STATE_S
        hold, watch, cluster = self._hold, self._watch, self._watch.cluster
        for name in hold.dirty:
            if (job := hold.roster.jobs.get(name)) is not None:
                hold.book.note_seen(name, job.seen())
                hold.tick()
        hold.dirty.clear()
        hold.page.set_global(Global.SLURM_CALLS, sum(hold.slurm.calls.values()))
        hold.page.set_global(Global.SLURM_CALL_ERRORS, sum(hold.slurm.errors.values()))
        state: dict[str, Any] = {
            "op": "state",
            "inflight": len(hold.roster.elements),
            "cluster": cluster.name,
            "version": cluster.version,
            "problem": watch.problem or self._unknown or hold.problem or self._fleet.problem or None,
            "unreachable_since": watch.unreachable_since,
            "accounting": str(watch.accounting),
            "accounting_problem": watch.accounting_problem or None,
            "jobs": hold.roster.counts(),
            "attention": self._attention(),
            **({"pilots": self._fleet.state} if self._fleet.wanted else {}),
            "calls": dict(hold.slurm.calls),
            "errors": dict(hold.slurm.errors),
        }
        if state != self._state:
            self._state = state
            self._link.send(state)

    def _attention(self) -> list[str]:
        """Return what needs a human, in words."""
        held = [
            f"job {element.job_id} is held: {element.row.reason or element.row.state}"
            for element in self._hold.roster.submitted()
            if element.row is not None and fate_of(element.row.state, element.row.reason) is Fate.HELD
        ]
        return held[:_SHOWN] + ([f"and {len(held) - _SHOWN} more"] if len(held) > _SHOWN else [])


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
