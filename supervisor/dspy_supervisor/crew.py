"""The services of one supervisor: which are wanted, and that they are there."""

from __future__ import annotations

import time
from importlib import import_module
from pathlib import Path

from .config import Config
from .sidecar import LOOK_S, TRACING, Kind, Owner, Sidecar


def wants_shared_batches(config: Config) -> bool:
    """Whether workers of several tasks at once may embed, so that their texts can travel together."""
    if not config.embed_shared or not config.embed_urls:
        return False
    serving = [one for one in config.classes.values() if one.workers]
    everywhere = "embed" in config.kinds or "embed" in config.kind_handlers.values()
    return sum(one.workers for one in serving if everywhere or one.handler == "embed") > 1


KINDS = (
    Kind("telemetry", "dspy_supervisor.services.telemetry:run", lambda config: config.enable_gpu),
    Kind(
        "controller",
        "dspy_supervisor.services.controller:run",
        lambda config: config.policy != "fixed",
    ),
    Kind("embed", "dspy_supervisor.services.embed:run", wants_shared_batches),
    Kind("slurm", "dspy_supervisor.services.slurm:run", lambda config: config.enable_slurm),
    Kind("cloud", "dspy_supervisor.services.cloud:run", lambda config: config.cloud_provider is not None),
    Kind(
        "gateway",
        "dspy_supervisor.services.gateway:run",
        lambda config: config.http or config.metrics_port is not None,
    ),
    Kind(TRACING, "dspy_supervisor.services.tracing:run", lambda config: config.otel_endpoint is not None, last=True),
)


def look_after_rented(config: Config, queue_dir: Path) -> None:
    """Let the machines that were rented not outlive their supervisor; called when it is gone."""
    if config.cloud_provider is not None:
        import_module("dspy_supervisor.services.cloud.warden").begin(config, queue_dir)


class Crew:
    """The services of one supervisor."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._sidecars: dict[str, Sidecar] = {}

    def get(self, name: str) -> Sidecar | None:
        """Return a service that is meant to run here."""
        return self._sidecars.get(name)

    def all(self) -> list[Sidecar]:
        """Return the services that are meant to run here."""
        return list(self._sidecars.values())

    def start(self) -> None:
        """Start what the configuration wants, and look after it from now on."""
        self.apply()
        self._look()

    def apply(self, *, changed: bool = False) -> None:
        """Start and end services as the configuration says; ``changed``: let those that run read it anew."""
        for kind in KINDS:
            sidecar = self._sidecars.get(kind.name)
            if not kind.wanted(self._owner.config):
                if sidecar is not None:
                    sidecar.end_now()
                    del self._sidecars[kind.name]
                continue
            if sidecar is None:
                sidecar = self._sidecars[kind.name] = Sidecar(self._owner, kind)
            elif changed:
                sidecar.renew()
            sidecar.mend()

    def stop(self, *, last: bool = False, anew: bool = False) -> None:
        """Tell all to end; those that end after the workers only at the second call, with ``last``.

        ``anew``: they are started again at once, and leave what they have elsewhere to those.
        """
        for sidecar in self.all():
            if sidecar.kind.last == last:
                sidecar.stop(anew=anew)

    def end_now(self, *, spare_last: bool = False) -> None:
        """Kill all that is left."""
        for sidecar in self.all():
            if not (spare_last and sidecar.kind.last):
                sidecar.end_now()

    def restart(self) -> None:
        """Kill all and start them anew: what they held open is gone."""
        self.end_now()
        self._sidecars.clear()
        self.apply()

    @property
    def pids(self) -> set[int]:
        """Their processes."""
        return {sidecar.pid for sidecar in self.all() if sidecar.pid}

    def _look(self) -> None:
        for sidecar in self.all():
            sidecar.look(time.monotonic())
        self._owner.reactor.call_later(LOOK_S, self._look)
