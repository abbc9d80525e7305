"""What changes a running supervisor from outside: a new configuration, limits, a pause, a log that was rotated.

Signals and the control socket both come here. What can't be done is refused before anything has changed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from dspy_fastpath.counters import Gauge

from . import budget
from .config import differences
from .control import Later
from .environment import journal_stream
from .errors import ConfigError, SupervisorError
from .log import configure, log, reopen
from .rehearsal import Rehearsal
from .task import WorkloadClass

if TYPE_CHECKING:
    from .config import Loaded
    from .loop import Supervisor

_STEERED_S = 30.0  # a controller says something about each class far more often
MAX_LIMIT = 256  #: tasks of one class at once that signals can reach


class HandlersUnfit(SupervisorError):
    """Handlers can't be loaded."""

    exit_code = ConfigError.exit_code


class Overtaken(SupervisorError):
    """A reload came to nothing, since something else happened meanwhile."""


def _overtake(why: str) -> NoReturn:
    raise Overtaken(f"nothing was changed: {why}")


class Orders:
    """Carries them out on one supervisor."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self.pinned: set[str] = set()  #: classes whose limit was set by hand, until a reload
        self.reasons: dict[str, tuple[str, str]] = {}  #: class to the word and the text of why its limit is what it is
        self.changes: dict[str, Counter[str]] = {}  #: class to how often its limit changed, by the word of the reason
        self._steered_at = 0.0  # monotonic seconds; 0: never
        self._rehearsal: Rehearsal | None = None
        self._answer = Later()  # to whoever asked for it

    @property
    def pids(self) -> set[int]:
        """Processes of its own."""
        return self._rehearsal.pids if self._rehearsal is not None else set()

    def reload(self) -> dict[str, Any] | Later:
        """Read the configuration anew; apply what can be applied, and say what was and what needs a restart.

        Where workers are to be replaced for it, it is seen first whether they could load their handlers, and the answer comes
        later. Raises SupervisorError or OSError where the configuration can't work, and then it is as it was.
        """
        supervisor = self._supervisor
        self.close("another reload took its place")
        loaded = supervisor.loaded.reload()
        if not differences(supervisor.config, loaded.config)[0]:
            return self._apply(loaded)
        rehearsal = Rehearsal(loaded.config, supervisor.layout.path, supervisor.presence.node)
        self._rehearsal, self._answer = rehearsal, Later()
        rehearsal.listen(supervisor.reactor, partial(self._answer.end, lambda: self._decide(loaded)))
        return self._answer

    def close(self, why: str = "the supervisor ends") -> None:
        """Apply no settings that wait for their handlers."""
        if self._rehearsal is not None:
            self._rehearsal.close()
            self._rehearsal = None
            self._answer.end(partial(_overtake, why))

    def _decide(self, loaded: Loaded) -> dict[str, Any]:
        """Apply settings whose handlers were loaded, or raise HandlersUnfit where a class that works would not any more."""
        assert self._rehearsal is not None
        found, self._rehearsal = self._rehearsal.end(), None
        unfit = {
            name: why
            for name, why in found.items()
            if not self._supervisor.pools[name].failed or self._handlers(loaded, name) != self._handlers(None, name)
        }
        if unfit:
            reasons = ", and ".join(f"class {name} could not work: {why}" for name, why in unfit.items())
            raise HandlersUnfit(f"nothing was changed, since {reasons}")
        return self._apply(loaded.fitted(self._supervisor.loaded.gpu_memory))

    def _handlers(self, loaded: Loaded | None, name: str) -> tuple[object, ...]:
        config = loaded.config if loaded is not None else self._supervisor.config
        return config.classes[name].handler, config.kinds, config.kind_handlers

    def _apply(self, loaded: Loaded) -> dict[str, Any]:
        supervisor = self._supervisor
        live, restart = differences(supervisor.config, loaded.config)
        budget.configure(supervisor.page, loaded.config.llm_budgets)  # first: the page may have no room for another
        configure(loaded.config.log_level, loaded.config.log_file, journal=journal_stream())
        supervisor.loaded, supervisor.config = loaded, loaded.config
        by_hand, self.pinned = self.pinned, set()
        supervisor.crew.apply(changed=bool(live))
        is_steered = supervisor.crew.get("controller") is not None
        if not is_steered:
            self._steered_at = 0.0  # nobody is silent
        for name, pool in supervisor.pools.items():
            before, pool.settings = pool.settings, loaded.config.classes[name]
            most = pool.settings.most
            if before.most != most or name in by_hand or (pool.limit != most and not is_steered):
                self.set_limit(name, most, "reload")
            pool.renew = pool.renew or bool(live)
            pool.mend()
        supervisor.configure_feeder()
        supervisor.compat.choose(
            metrics=loaded.config.compat_files,
            actions=loaded.config.action_log,
            results=loaded.config.env_result_files,
        )
        supervisor.intake.partial_grace_s = loaded.config.partial_grace_s
        supervisor.intake.reconsider()
        log.info("reloaded", applied=list(live), needs_restart=list(restart))
        return {"applied": list(live), "needs_restart": list(restart)}

    def fit(self, gpu_memory: tuple[int, ...]) -> None:
        """Take the limits that follow from the memory of this host's GPUs (bytes of each), where they are left open."""
        supervisor = self._supervisor
        before, loaded = supervisor.config, supervisor.loaded.fitted(gpu_memory)
        supervisor.loaded, supervisor.config = loaded, loaded.config
        if loaded.config.max_concurrency == before.max_concurrency:
            return
        for name, pool in supervisor.pools.items():
            pool.settings = loaded.config.classes[name]
            if pool.settings.most != before.classes[name].most and name not in self.pinned:
                self.set_limit(name, pool.settings.most, loaded.origins["max_concurrency"])
        if controller := supervisor.crew.get("controller"):
            controller.renew()

    def try_to_reload(self) -> None:
        """Reload, now or when the handlers are loaded, or say why not and go on."""

        def reload() -> None:
            answer = self.reload()
            if isinstance(answer, Later):
                answer.hears = self._try

        self._try(reload)

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Overtaken:
            pass  # the one that took its place says how it ended
        except (SupervisorError, OSError) as error:
            log.error("reload_refused", error=str(error), next="going on with the configuration as it was")

    def reopen_logs(self) -> dict[str, Any]:
        """Open log files anew, after a rotation. Raises OSError."""
        reopen()
        log.info("logs_reopened")
        return {}

    def try_to_reopen_logs(self) -> None:
        """Open log files anew, or say why not and go on."""
        try:
            self.reopen_logs()
        except OSError as error:
            log.error("reopen_refused", error=str(error), next="going on in the file that is open")

    def set_limit(self, name: str, limit: int, why: str) -> None:
        """Let so many tasks of a class run at once, in as many workers."""
        supervisor = self._supervisor
        pool = supervisor.pools[name]
        log.info("limit", klass=name, before=pool.limit, now=limit, reason=why)
        supervisor.page.set(pool.klass, Gauge.LIMIT, limit)
        self.reasons[name] = (why, why)
        self._count(name, why)
        pool.size = limit
        pool.adjust()
        supervisor.intake.reconsider()

    def steer(self, name: str, limit: int, reason: str, why: str) -> None:
        """Take the controller's limit of a class, within the class's bounds; one that was set by hand stays.

        ``reason`` is one of the controller's words, ``why`` says it with figures.
        """
        self._steered_at = time.monotonic()
        if name not in self.pinned:
            self._turn_to(name, limit, reason, why)

    def decay(self, now: float) -> None:
        """Go slowly to a limit that is safe without a controller, where that fell silent; called every few seconds."""
        if not self._steered_at or now - self._steered_at < _STEERED_S:
            return
        for name, pool in self._supervisor.pools.items():
            if name not in self.pinned and pool.limit > max(1, pool.settings.most // 2):
                self._turn_to(name, pool.limit - 1, "silent", "the controller is silent")

    def _turn_to(self, name: str, limit: int, reason: str, why: str) -> None:
        supervisor = self._supervisor
        pool = supervisor.pools[name]
        settings, before = pool.settings, pool.limit
        limit = max(min(settings.limit_min, settings.most), min(limit, settings.most))
        self.reasons[name] = (reason, why)
        if limit == before:
            return
        log.info("limit", klass=name, before=before, now=limit, reason=reason, why=why)
        self._count(name, reason)
        supervisor.page.set(pool.klass, Gauge.LIMIT, limit)
        if name == WorkloadClass.GPU:  # a worker that waits holds memory of the GPU
            pool.size = limit
            pool.adjust()

    def _count(self, name: str, reason: str) -> None:
        self.changes.setdefault(name, Counter())[reason] += 1

    def shift_limits(self, step: int) -> None:
        """Raise or lower the limit of every class that has one, to 1 at least."""
        for name, pool in self._supervisor.pools.items():
            if pool.limit:
                self.pinned.add(name)
                self.set_limit(name, max(1, min(MAX_LIMIT, pool.limit + step)), "signal")

    def apply_pause(self) -> None:
        """Do as paused.json says."""
        supervisor = self._supervisor
        paused = supervisor.pause.read()
        for name, pool in supervisor.pools.items():
            now = paused is not None and paused.includes(name)
            if now != pool.paused:
                log.info("paused" if now else "resumed", klass=name, reason=paused.reason if paused else "")
                pool.paused = now
                if not pool.failed:
                    supervisor.page.set(pool.klass, Gauge.STATE, int(now))
