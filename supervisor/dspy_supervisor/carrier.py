"""Tasks of a class that a service runs elsewhere: it is handed their names, claims them itself, and reports how they ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import Config
    from .crew import Crew
    from .pool import Pool

MAX_NAMES = 64  #: in one message: a name has at most 208 bytes


def carried(config: Config) -> dict[str, str]:
    """Return the classes whose tasks leave this host, each with the service that carries them where it is meant to run."""
    return {"gpu_slurm": "slurm", config.cloud_class: "cloud"}


class Carrier:
    """Hands the tasks of one class to its service."""

    def __init__(self, crew: Crew, service: str, pool: Pool, fed: set[str]) -> None:
        self._crew, self.service, self._pool = crew, service, pool
        self._all_fed = fed
        self.fed: set[str] = set()  #: names it has and did not report on
        self.window = 0  #: names it may have at once

    @property
    def is_on(self) -> bool:
        """Whether its tasks are carried at all: the configuration wants the service."""
        return self._crew.get(self.service) is not None

    @property
    def inflight(self) -> int:
        """Tasks that it has, those included that an earlier process of it left."""
        sidecar = self._crew.get(self.service)
        adopted = sidecar.state.get("inflight", 0) if sidecar else 0
        return max(len(self.fed), adopted if isinstance(adopted, int) else 0)

    @property
    def places(self) -> int:
        """How many names it may have at once: as the service says, where it does."""
        sidecar = self._crew.get(self.service)
        told = sidecar.state.get("places") if sidecar else None
        return told if isinstance(told, int) else self.window

    @property
    def trouble(self) -> str:
        """Why nothing can be handed over now, or nothing."""
        sidecar = self._crew.get(self.service)
        if sidecar is None:
            return f"service {self.service} is not configured"
        if sidecar.failed:
            return f"service {self.service} has failed: {sidecar.failed}"
        if not sidecar.pid:
            return f"service {self.service} is being started"
        problem = sidecar.state.get("problem")
        return str(problem) if problem else ""

    @property
    def allocations(self) -> str:
        """What the service says of the allocations that take these tasks, where it hands out none itself."""
        sidecar = self._crew.get(self.service)
        told = sidecar.state.get("pilots") if sidecar else None
        return str(told.get("reason")) if isinstance(told, dict) else "the cluster was not asked yet"

    @property
    def room(self) -> int:
        """How many names it can be handed now."""
        sidecar = self._crew.get(self.service)
        if sidecar is None or not sidecar.pid or self._pool.paused or self._pool.trouble:
            return 0
        return max(0, min(MAX_NAMES, self.places - self.inflight))

    def feed(self, files: Sequence[str]) -> bool:
        """Hand names over; False where the service is gone or busy, and the names are the caller's again."""
        sidecar = self._crew.get(self.service)
        if sidecar is None or not sidecar.send({"op": "feed", "files": list(files)}):
            return False
        self.fed.update(files)
        self._all_fed.update(files)
        return True

    def reported(self, file: str) -> None:
        """It told what became of a task."""
        self.fed.discard(file)
        self._all_fed.discard(file)

    def forget(self) -> list[str]:
        """Return the names that a service which is gone had; those it had not claimed wait as before."""
        names = sorted(self.fed)
        self._all_fed.difference_update(names)
        self.fed.clear()
        return names
