"""One program takes a supervisor over from another, in the same process: workers and running tasks don't notice.

::

    check    the next program is run with the same arguments and told what it would get; it loads the handlers of each class
             in a process of its own, and says that it can, or why not
    rest     services end, and so do second runs; what is being ended is waited for. Tasks are fed all the while
    exec     execve(2), with `Handover` in a file in memory: lock, control socket and workers stay open
    adopt    the next program feeds on. Workers of the old one end when they have nothing in hand, others take their place

Until the exec has succeeded the old program can go on, and does where anything is amiss.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspy_fastpath.counters import SlotState

from . import __version__
from .cgroup import Group
from .channel import released_key
from .config import Config, Loaded
from .crew import KINDS
from .environment import successor_environment
from .errors import SupervisorError
from .gpu_pool import GpuPool
from .handover import FORMAT, Handover, HandoverUnreadable, KeyState, WorkerState, abandon, kept_open
from .layout import FORMAT as QUEUE_FORMAT
from .layout import Layout
from .log import log
from .pool import Pool
from .pool_worker import Worker
from .rehearsal import LONGEST_S, Rehearsal

if TYPE_CHECKING:
    import subprocess

    from .loop import Supervisor

CHECK, TAKE = "check", "take"  #: what the next program finds in its environment
_CHECK_S = 15.0 + LONGEST_S  # that the next program has to say whether it can take over
_SERVICES_S = 5.0  # that services have to end
_REST_S = 60.0  # that all has to come to rest
_LOOK_S = 0.02
_MOST_SAID = 2000  # bytes of what a program said that could not


class Upgrade:
    """Turns one supervisor to its next program. ``program``: what started this one, () where that can't be started again."""

    def __init__(self, supervisor: Supervisor, program: Sequence[str], before: Handover | None) -> None:
        self._supervisor, self._program = supervisor, list(program)
        self.number = before.number + 1 if before is not None else 0  #: of programs that this process has run before
        self.state = "idle"
        self.refused = ""  #: why the last one did not come to pass
        self._check: subprocess.Popen[bytes] | None = None
        self._next: list[str] = []
        self._since = 0.0  # monotonic seconds, when the rest began

    @property
    def pids(self) -> set[int]:
        """Processes of its own."""
        return {self._check.pid} if self._check is not None else set()

    def facts(self) -> dict[str, Any]:
        """Return what `status` shows."""
        return {"state": self.state, "number": self.number, "refused": self.refused or None}

    def begin(self, python: str | None = None) -> dict[str, Any]:
        """Begin to turn to the next version of this program; ``python``: of another installation.

        Raises SupervisorError where that is impossible now; what happens later is told by the log and by `facts`.
        """
        supervisor = self._supervisor
        if self.state != "idle":
            raise SupervisorError("an upgrade is under way already")
        if supervisor.stopping or supervisor.sweeper.missing:
            raise SupervisorError(f"no upgrade now: {supervisor.sweeper.missing or 'the supervisor is stopping'}")
        if not self._program:
            raise SupervisorError(
                "this supervisor runs inside of another program, not by 'dspy-supervisor start': end it and start it anew"
            )
        if python is not None and not (os.path.isabs(python) and os.access(python, os.X_OK)):
            raise SupervisorError(
                f"{python} is not the absolute path of a program: name the other installation's python"
            )
        self._next = self._command(python)
        self.refused = ""
        try:
            self._start_check()
        except OSError as error:
            raise SupervisorError(f"{self._next[0]} can't be started: {error}") from None
        log.info("upgrade_begins", program=self._next[0])
        return {"pid": os.getpid(), "number": self.number}

    def try_to_begin(self) -> None:
        """Begin, or say why not and go on."""
        try:
            self.begin()
        except SupervisorError as error:
            self._refuse(str(error))

    # -- check -----------------------------------------------------------------------------------------------------------

    def _command(self, python: str | None) -> list[str]:
        if python is None:
            return [sys.executable, *self._program[1:]]
        return [python, "-P", "-m", "dspy_supervisor", *sys.argv[1:]]

    def _start_check(self) -> None:
        import subprocess

        state = self._left().write()
        said = os.memfd_create("said", os.MFD_CLOEXEC)
        try:
            self._check = subprocess.Popen(
                self._next,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env=successor_environment(CHECK, state),
                pass_fds=(state,),
                start_new_session=True,
            )
            pidfd = os.pidfd_open(self._check.pid)
        except BaseException:
            os.close(said)
            raise
        finally:
            os.close(state)
        self.state = "checking"
        reactor = self._supervisor.reactor
        timer = reactor.call_later(_CHECK_S, self._end_check)

        def ended() -> None:
            timer.cancel()
            reactor.remove(pidfd)
            os.close(pidfd)
            text = os.pread(said, 1 << 20, 0).decode(errors="replace").strip()
            os.close(said)
            self._checked(text)

        reactor.add(pidfd, ended)

    def _end_check(self) -> None:
        if self._check is not None:
            self._check.kill()

    def _checked(self, text: str) -> None:
        assert self._check is not None
        code, self._check = self._check.wait(), None
        found: Any = None
        with contextlib.suppress(ValueError):
            found = json.loads(text.rpartition("\n")[2])
        if code or not isinstance(found, dict) or found.get("takes") != FORMAT:
            why = text[-_MOST_SAID:] or "it said nothing"
            end = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            self._refuse(f"the next program can't take over ({end}): {why}")
            return
        pools = self._supervisor.pools
        unfit = {name: why for name, why in found.get("unfit", {}).items() if name in pools and not pools[name].failed}
        if unfit:  # a class that works now, so that this would be the end of it
            self._refuse(" ".join(f"class {name} could not work: {why}" for name, why in unfit.items()))
            return
        log.info("upgrade_rests", version=found.get("version"))
        self.state = "resting"
        self._since = time.monotonic()
        self._supervisor.crew.stop(anew=True)
        self._supervisor.crew.stop(last=True, anew=True)
        self._rest()

    # -- rest ------------------------------------------------------------------------------------------------------------

    def _rest(self) -> None:
        """Go over at the first moment at which nothing is half done."""
        supervisor, waited_s = self._supervisor, time.monotonic() - self._since
        if supervisor.stopping or supervisor.sweeper.missing:
            self._go_on("the supervisor was told to stop" if supervisor.stopping else supervisor.sweeper.missing)
            return
        if supervisor.crew.pids and waited_s > _SERVICES_S:
            supervisor.crew.end_now()
        busy = [pool.end_seconds() or bool(pool.hedges.won) for pool in supervisor.pools.values()]
        dying = [worker.pid for pool in supervisor.pools.values() for worker in pool.workers if worker.doom]
        if not (any(busy) or dying or supervisor.crew.pids or supervisor.unsettled or supervisor.control.is_busy):
            self._go_over()
        elif waited_s > _REST_S:
            waits = (
                "for the disk" if supervisor.unsettled else f"for the end of {dying or sorted(supervisor.crew.pids)}"
            )
            self._go_on(f"it was waited {waits} for {_REST_S:.0f} s")
        else:
            supervisor.reactor.call_later(_LOOK_S, self._rest)

    def _go_on(self, why: str) -> None:
        """Go on with this program."""
        if not self._supervisor.stopping:
            self._supervisor.crew.restart()
        self._refuse(why)

    def _refuse(self, why: str) -> None:
        self.state, self.refused = "idle", why
        log.error("upgrade_refused", error=why, next=f"going on with version {__version__}")

    # -- exec ------------------------------------------------------------------------------------------------------------

    def _go_over(self) -> None:
        supervisor = self._supervisor
        with contextlib.suppress(OSError):
            supervisor.undertaker.close()  # its folder has a name that is not used again
        supervisor.orders.close()
        supervisor.show()
        state = self._left()
        running = sum(bool(worker.task) for worker in state.workers)
        log.info("upgrading", program=self._next[0], workers=len(state.workers), running=running)
        supervisor.notifier.send(WATCHDOG=1, STATUS="turning to another program")  # the next one needs its time
        sys.stdout.flush()
        sys.stderr.flush()
        error: OSError | None = None
        with kept_open(state.descriptors()):
            document = state.write()
            try:
                os.execve(self._next[0], self._next, successor_environment(TAKE, document, supervisor.notify))
            except OSError as failed:
                error = failed
                os.close(document)
        self._go_on(f"{self._next[0]} can't be run: {error}")

    def _left(self) -> Handover:
        """Return what the next program gets."""
        supervisor = self._supervisor
        held, config, traces = supervisor.presence.held, supervisor.config, supervisor.traces
        return Handover(
            format=FORMAT,
            version=__version__,
            number=self.number,
            queue_id=supervisor.layout.queue_id,
            queue_format=QUEUE_FORMAT,
            queue_dir=str(config.queue_dir),
            runtime_dir=str(config.runtime_dir),
            instance=config.instance,
            classes=tuple(config.classes),
            started_at=supervisor.started_at,
            stopped_at=time.monotonic(),
            node=held.node,
            beats=held.beats,
            owners=held.owners,
            lock=held.lock,
            control=supervisor.control.fileno(),
            guard=supervisor.guard_process.pid,
            guard_pipe=supervisor.guard_process.pipe,
            traces=(traces.reader, traces.writer) if traces is not None else (),
            mean_run_s={name: pool.mean_run_s for name, pool in supervisor.pools.items()},
            counted=tuple(supervisor.intake.counted),
            workers=tuple(
                _left(supervisor, pool, worker) for pool in supervisor.pools.values() for worker in pool.workers
            ),
        )


def _left(supervisor: Supervisor, pool: Pool, worker: Worker) -> WorkerState:
    slot = supervisor.page.slot(worker.slot)
    return WorkerState(
        task_class=pool.name,
        pid=worker.pid,
        slot=worker.slot,
        incarnation=worker.incarnation,
        owner=worker.owner,
        channel=worker.channel.fileno(),
        stacks=worker.stacks,
        started=worker.started,
        oom_kills=worker.oom_kills,
        tasks=worker.tasks,
        ready=worker.ready,
        deaf=worker.deaf,
        is_blind=worker.is_blind,
        fed=dict(worker.fed),
        task=slot.name.decode() if slot.start_ns else "",
        start_ns=slot.start_ns,
        deadline_ns=slot.deadline_ns,
        group=str(worker.group.folder) if worker.group is not None else "",
        keys=tuple(
            KeyState(lane.key.encode(errors="surrogatepass").hex(), lane.is_kept, lane.busy)
            for lane in pool.hosts.lanes.bound(worker)
        ),
        seat=pool.seat_of(worker) if isinstance(pool, GpuPool) else None,
    )


# -- the next program ---------------------------------------------------------------------------------------------------


def examine(loaded: Loaded, document: int) -> int:
    """Say whether this program could take over what another one has; return the exit code. Raises SupervisorError."""
    before = Handover.read(document)
    _fit(before, loaded.config)
    rehearsal = Rehearsal(loaded.config, loaded.config.queue_dir, before.node)  # first: what follows may start threads
    rehearsal.wait()
    unfit = rehearsal.end()
    modules = [kind.entry.partition(":")[0] for kind in KINDS if kind.wanted(loaded.config)]
    for module in (f"{__package__}.loop", *modules):
        import_module(module)
    print(json.dumps({"takes": FORMAT, "version": __version__, "unfit": unfit}))
    return 0


def take(loaded: Loaded, document: int) -> Handover:
    """Return what the program before this one left.

    Raises SupervisorError where that can't be gone on with: then nothing of it is left, and this is as a fresh start.
    """
    try:
        before = Handover.read(document)
        os.close(document)
        _fit(before, loaded.config)
    except (SupervisorError, OSError) as error:
        abandon()
        raise HandoverUnreadable(str(error)) from None
    return before


def _fit(before: Handover, config: Config) -> None:
    """Raise SupervisorError where the workers of the program before could not go on under this one."""
    same = {
        "queue_dir": (before.queue_dir, str(config.queue_dir)),
        "runtime_dir": (before.runtime_dir, str(config.runtime_dir)),
        "instance": (before.instance, config.instance),
        "the classes": (", ".join(before.classes), ", ".join(config.classes)),
        "the format of the queue": (before.queue_format, QUEUE_FORMAT),
    }
    for name, (was, now) in same.items():
        if was != now:
            raise SupervisorError(
                f"{name} was {was} and is {now} now: running tasks can't follow; restart the supervisor"
            )
    with Layout.open(config.queue_dir, insecure=config.insecure) as layout:
        if layout.queue_id != before.queue_id:
            raise HandoverUnreadable(f"{config.queue_dir} is another queue than the one that was served")


def adopt(supervisor: Supervisor, before: Handover, *, same_page: bool) -> None:
    """Go on with the workers of the program before; ``same_page``: theirs is ours."""
    for state in before.workers:
        pool = supervisor.pools[state.task_class]
        worker = _worker(supervisor, pool, state)
        if not same_page:
            worker.is_blind = True
            supervisor.page.slot_set(state.slot, state.pid, state.incarnation, pool.klass, SlotState.BUSY)
            if state.task:
                supervisor.page.slot_begin(state.slot, state.start_ns, state.deadline_ns, state.task.encode())
        for one in state.keys:
            pool.hosts.lanes.adopt(released_key(one.key), worker, time.monotonic(), is_kept=one.is_kept, busy=one.busy)
        if state.seat is not None and isinstance(pool, GpuPool):
            pool.take_seat(worker, state.seat)
        pool.adopt(worker)
    for name, mean_run_s in before.mean_run_s.items():
        supervisor.pools[name].mean_run_s = mean_run_s
    if same_page:
        supervisor.intake.counted.update(before.counted)
    supervisor.feeder.begin_ticking()
    supervisor.alive = supervisor.observer.others()
    log.info(
        "taken_over",
        version=__version__,
        before=before.version,
        workers=len(before.workers),
        running=sum(bool(state.task) for state in before.workers),
        gap_s=round(time.monotonic() - before.stopped_at, 3),
    )


def _worker(supervisor: Supervisor, pool: Pool, state: WorkerState) -> Worker:
    channel = socket.socket(fileno=state.channel)
    channel.setblocking(False)
    group = Group(supervisor.cgroups, Path(state.group)) if state.group and supervisor.cgroups is not None else None
    return Worker(
        state.pid, os.pidfd_open(state.pid), state.slot, state.incarnation, state.owner, channel, state.stacks,
        state.started, pool.settings, retire_after=0, fed=dict(state.fed), ready=state.ready, deaf=state.deaf,
        is_blind=state.is_blind, tasks=state.tasks, oom_kills=state.oom_kills, group=group,
    )  # fmt: skip
