"""What a running supervisor answers to on its control socket."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dspy_fastpath.counters import Counter, Gauge, Global

from . import __version__, budget
from .control import Answer
from .errors import ConfigError, SupervisorError, TaskNotFound
from .jobbook import JobBook, is_carried
from .lanes import CLOSING
from .lookup import find_one, quarantined, read_record
from .nodes import node_of
from .pool_worker import Worker
from .schedule import Reading
from .settle import count_end
from .task import Cause, State, TaskName, WorkloadClass
from .taskqueue import parse_delayed, past_causes

if TYPE_CHECKING:
    from .backlog import Backlog
    from .carrier import Carrier
    from .loop import Supervisor
    from .pool import Pool
    from .sidecar import Sidecar

Request = Mapping[str, Any]
_STATES = {0: "running", 1: "paused", 2: "failed"}


def requests(supervisor: Supervisor) -> dict[str, Answer]:
    """Return what can be asked, by name."""
    return {
        "status": lambda _: status(supervisor),
        "stop": lambda request: _stop(supervisor, request),
        "pause": lambda request: _pause(supervisor, request),
        "resume": lambda request: _resume(supervisor, request),
        "cancel": lambda request: cancel(supervisor, _text(request, "id")),
        "limit": lambda request: _limit(supervisor, request),
        "reload": lambda _: supervisor.orders.reload(),
        "reopen": lambda _: supervisor.orders.reopen_logs(),
        "upgrade": lambda request: _upgrade(supervisor, request),
        "explain": lambda request: {"explanation": explain(supervisor, _text(request, "id"))},
    }


def status(supervisor: Supervisor) -> dict[str, Any]:
    """Return how the supervisor and its classes are."""
    page, intake = supervisor.page, supervisor.intake
    return {
        "schema_version": 1,
        "running": True,
        "pid": os.getpid(),
        "version": __version__,
        "upgrade": supervisor.upgrade.facts(),
        "mode": supervisor.config.mode,
        "queue_dir": str(supervisor.layout.path),
        "queue_id": supervisor.layout.queue_id,
        "instance": supervisor.config.instance,
        "durability": str(supervisor.layout.durability),
        "uptime_s": round(time.time() - supervisor.started_at, 3),
        "stopping": supervisor.stopping,
        "problem": supervisor.sweeper.missing or intake.trouble or None,
        "delayed": intake.delayed,
        "unread": intake.unread,
        "sweeps": page.get_global(Global.SWEEPS),
        "cgroups": sorted(supervisor.cgroups.on) if supervisor.cgroups else supervisor.ungrouped,
        "quarantined": page.get_global(Global.QUARANTINED),
        "services": {sidecar.name: _service_status(sidecar) for sidecar in supervisor.crew.all()},
        "llm_budgets": {reading.name: _budget_status(reading) for reading in budget.readings(page)},
        "classes": {name: _class_status(supervisor, pool) for name, pool in supervisor.pools.items()},
    }


def explain(supervisor: Supervisor, task_id: str) -> str:
    """Return in plain words where a task is, and why it does not run."""
    layout, intake = supervisor.layout, supervisor.intake
    found = find_one(layout, task_id)
    if found is None:
        if reason := quarantined(layout, task_id):
            return f"it was refused and lies in quarantine/: {reason}"
        raise TaskNotFound(task_id, layout.path)
    if found.state in (State.DONE, State.FAILED):
        return f"it is {found.state}: see 'dspy-supervisor task show {task_id}'"
    if found.state is State.CLAIMED:
        if found.owner and is_carried(found.owner):
            return _carried(supervisor, found.owner, found.file)
        if running := supervisor.worker_of(found.file):
            seconds = (pool.hedges.second(found.file) for pool in supervisor.pools.values())
            more = [f", and a second time in worker {second.pid}, since it takes long" for second in seconds if second]
            return f"it runs in worker {running.pid}" + "".join(more)
        return f"{found.owner} of another supervisor runs it"
    if found.state is State.DELAYED:
        wait_s = max(0.0, (found.due or 0.0) - time.time())
        return f"it waits for its time, {wait_s:.1f} s from now{_last_attempt(supervisor, found.file)}"
    if held := intake.held.get(found.file):
        return f"it waits, because {held[1]}"
    if intake.is_suspect(found.file):
        return "its file is not valid yet; it goes to quarantine/ if that does not change"
    if why := intake.elsewhere.get(found.file):
        return f"it waits, because {why}"
    for name, backlog in supervisor.backlogs.items():
        if found.file in backlog and (why := _why_after(supervisor, backlog, found.file)):
            return why
        if found.file in backlog:
            why = _why_waiting(supervisor, supervisor.pools[name], found.file)
            return f"{why}; {backlog.position(found.file)} tasks come before it"
    if found.file in supervisor.fed:
        return "a worker is about to claim it"
    return "it was not read yet: the tasks before it come first"


def cancel(supervisor: Supervisor, task_id: str) -> dict[str, Any]:
    """Cancel a task that waits, or end the one that runs; the answer says which."""
    if supervisor.undertaker.cancel(task_id) is State.FAILED:
        if (record := read_record(supervisor.layout, task_id)) is not None:
            count_end(supervisor, TaskName(task_id), record)
        if (found := find_one(supervisor.layout, task_id)) is not None:
            supervisor.intake.discard(found.file)
        supervisor.trace_end(task_id)
        for backlog in supervisor.backlogs.values():
            backlog.lanes.dismiss(task_id)
        return {"id": task_id, "was": "waiting"}
    found = find_one(supervisor.layout, task_id)
    if found and found.file and (carrier := _carrier_of(supervisor, found.owner)):
        sidecar = supervisor.crew.get(carrier.service)
        if sidecar is None or not sidecar.send({"op": "cancel", "file": found.file}):
            raise SupervisorError(f"service {carrier.service} does not answer now: cancel task {task_id} again later")
        return {"id": task_id, "was": "running"}
    running = supervisor.worker_of(found.file) if found else None
    if running is None:
        raise SupervisorError(f"task {task_id} runs under another supervisor: cancel it there")
    pool = next(pool for pool in supervisor.pools.values() if running in pool.workers)
    pool.doom(running, Cause.CANCELLED, "cancelled while it ran", found.file if found else "")
    return {"id": task_id, "was": "running"}


def _carrier_of(supervisor: Supervisor, owner: str | None) -> Carrier | None:
    """Return who carries what lies in this folder of claimed/, where that is a service of ours."""
    if owner is None or node_of(owner) != supervisor.presence.node:
        return None
    for carrier in supervisor.carriers.values():
        if carrier.is_on and owner.rpartition(".")[2] == carrier.service:
            return carrier
    return None


def _carried(supervisor: Supervisor, owner: str, file: str) -> str:
    """Return in words what the job of a task in a cluster does."""
    text = JobBook(supervisor.layout).describe(file, owner)
    carrier = _carrier_of(supervisor, owner)
    if carrier is None:
        return f"{text}; no service here watches it, {owner} did"
    return f"{text}; {carrier.trouble}" if carrier.trouble else text


def _class_status(supervisor: Supervisor, pool: Pool) -> dict[str, Any]:
    page, name = supervisor.page, pool.name
    why, carrier = supervisor.orders.reasons.get(name), supervisor.carriers.get(name)
    return {
        "pending": supervisor.intake.pending_of(name),
        "inflight": supervisor.inflight(pool),
        "limit": carrier.places + pool.limit if carrier and carrier.is_on else pool.limit,
        "limit_max": pool.settings.most,
        "limit_reason": why[0] if why else None,
        "limit_why": why[1] if why else None,
        "limit_changes": dict(supervisor.orders.changes.get(name, {})),
        "workers": len(pool.workers),
        "done": page.counter(pool.klass, Counter.DONE),
        "failed": page.counter(pool.klass, Counter.FAILED),
        "retried": page.counter(pool.klass, Counter.RETRIED),
        "state": _STATES[page.gauge(pool.klass, Gauge.STATE)],
        "reason": pool.failed or pool.trouble or pool.obstacle or None,
        "held": sum(klass == name for klass, _ in supervisor.intake.held.values()),
        "handler": pool.settings.handler,
        "mean_run_s": round(pool.mean_run_s, 6),
        **pool.facts(),
    }


def _budget_status(reading: Reading) -> dict[str, Any]:
    return {
        "requests_per_minute": reading.rates.requests or None,
        "tokens_per_minute": reading.rates.tokens or None,
        "pace": round(reading.pace, 3),
        "sent": reading.sent,
        "refused": reading.refused,
        "wait_s": round(reading.wait_s, 3),
    }


def _service_status(sidecar: Sidecar) -> dict[str, Any]:
    facts = {key: value for key, value in sidecar.state.items() if key != "op"}
    return {"pid": sidecar.pid or None, "restarts": sidecar.restarts, "failed": sidecar.failed or None, **facts}


def _why_waiting(supervisor: Supervisor, pool: Pool, file: str) -> str:
    if supervisor.sweeper.missing:
        return f"nothing runs: {supervisor.sweeper.missing}"
    if supervisor.stopping:
        return "nothing new starts: the supervisor is stopping"
    if pool.failed:
        return f"class {pool.name} has failed: {pool.failed}"
    if pool.paused:
        paused = supervisor.pause.read()
        return f"class {pool.name} is paused" + (f" ({paused.reason})" if paused and paused.reason else "")
    if pool.trouble:
        return f"class {pool.name} has stopped for a moment: {pool.trouble}"
    if (carrier := supervisor.carriers.get(pool.name)) and carrier.is_on:
        if not carrier.places and not carrier.trouble:
            return f"it waits for an allocation: {carrier.allocations}"
        return carrier.trouble or f"service {carrier.service} takes no more than {carrier.places} tasks at once"
    if pool.inflight >= pool.limit:
        return f"all {pool.limit} places of class {pool.name} are taken"
    total = supervisor.config.total_limit
    if total and supervisor.feeder.inflight >= total:
        return f"all {total} places of this supervisor are taken"
    return pool.why_waiting(file) or "it is next, as soon as a worker is ready"


def _why_after(supervisor: Supervisor, backlog: Backlog, file: str) -> str:
    """Return which task of the same key a task waits for, or "" where it does not wait for one."""
    lane = backlog.lanes.find(file)
    if lane is None:
        return ""
    key = f"its key {lane.key!r}"
    if not backlog.lanes.complete:
        return f"it waits until all tasks were read: one of {key} that came before it may be among them"
    if lane.busy == CLOSING:
        return f"what its worker keeps under {key} is being closed, since it was not used for env_idle_s"
    ahead = f"; {lane.position(file)} tasks of that key come before it"
    if lane.busy:
        return f"it waits for {lane.busy.removesuffix('.json')}, which runs and has {key}{ahead}"
    if lane.awaits:
        return f"it waits for the next attempt of {next(iter(lane.awaits))}, which has {key}{ahead}"
    host = lane.host
    if isinstance(host, Worker) and host.fed and not lane.position(file):
        return f"it waits for worker {host.pid}, which runs the tasks of {key}, and is busy"
    return ""


def _last_attempt(supervisor: Supervisor, file: str) -> str:
    parsed = parse_delayed(file)
    history = supervisor.queue.history(parsed[1]) if parsed else []
    causes = past_causes(history)
    return f", after attempt {len(causes)} ended by {causes[-1]}: {history[-1].get('message')}" if causes else ""


def _stop(supervisor: Supervisor, request: Request) -> Mapping[str, Any]:
    supervisor.stop(now=bool(request.get("now")))
    return {"pid": os.getpid()}


def _upgrade(supervisor: Supervisor, request: Request) -> Mapping[str, Any]:
    return supervisor.upgrade.begin(_text(request, "python") if request.get("python") is not None else None)


def _pause(supervisor: Supervisor, request: Request) -> Mapping[str, Any]:
    supervisor.pause.pause(_classes(request), str(request.get("reason") or ""))
    supervisor.orders.apply_pause()
    return {}


def _resume(supervisor: Supervisor, request: Request) -> Mapping[str, Any]:
    supervisor.pause.resume(_classes(request), tuple(supervisor.pools))
    supervisor.orders.apply_pause()
    for pool in supervisor.pools.values():
        if pool.failed:
            pool.mend()
    return {}


def _limit(supervisor: Supervisor, request: Request) -> Mapping[str, Any]:
    name, limit = _text(request, "class"), request.get("limit")
    if name not in supervisor.pools:
        raise ConfigError("class", name, "one of " + ", ".join(WorkloadClass))
    if isinstance(limit, bool) or not isinstance(limit, int) or not 0 <= limit <= 1024:
        raise ConfigError("limit", limit, "a whole number from 0 to 1024")
    supervisor.orders.pinned.add(name)
    supervisor.orders.set_limit(name, limit, "set by hand")
    return {"class": name, "limit": limit}


def _classes(request: Request) -> list[str] | None:
    classes = request.get("classes")
    if classes is None:
        return None
    if not isinstance(classes, list) or not set(classes) <= set(WorkloadClass):
        raise ConfigError("classes", classes, "a list of " + ", ".join(WorkloadClass))
    return classes


def _text(request: Request, key: str) -> str:
    value = request.get(key)
    if not isinstance(value, str):
        raise ConfigError(key, value, "text")
    return value
