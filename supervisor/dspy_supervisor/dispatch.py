"""What services tell the supervisor, carried out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .channel import Kind, Report
from .log import log
from .task import TaskName

if TYPE_CHECKING:
    from .loop import Supervisor
    from .sidecar import Sidecar


class Dispatch:
    """Carries the messages of services out on one supervisor."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._orders = {
            "state": self._state,
            "limit": self._limit,
            "gpu_lost": self._gpu_lost,
            "report": self._report,
        }

    def heard(self, sidecar: Sidecar, message: Mapping[str, Any]) -> None:
        """A service said something. Raises ValueError, KeyError or TypeError for what no service says."""
        self._orders[message["op"]](sidecar, message)

    def ended(self, sidecar: Sidecar) -> None:
        """A service is gone: what it was handed and did not claim waits as before."""
        for carrier in self._supervisor.carriers.values():
            if carrier.service == sidecar.name:
                for file in carrier.forget():
                    self._supervisor.intake.see(file)

    def _state(self, sidecar: Sidecar, message: Mapping[str, Any]) -> None:
        if sidecar.name == "telemetry":
            self._supervisor.orders.fit(tuple(map(int, message.get("gpu_memory", ()))))

    def _limit(self, _: Sidecar, message: Mapping[str, Any]) -> None:
        self._supervisor.orders.steer(
            str(message["class"]), int(message["limit"]), str(message["reason"]), str(message["why"])
        )

    def _gpu_lost(self, _: Sidecar, message: Mapping[str, Any]) -> None:
        log.error("gpu_lost", uuid=message["uuid"])
        self._supervisor.gpus.lose(str(message["uuid"]))

    def _report(self, sidecar: Sidecar, message: Mapping[str, Any]) -> None:
        supervisor = self._supervisor
        report = Report(
            Kind(message["kind"]), str(message["file"]), float(message.get("run_s", 0.0)), str(message.get("text", ""))
        )
        for name, carrier in supervisor.carriers.items():
            if carrier.service == sidecar.name:
                carrier.reported(report.file)
                supervisor.reported(supervisor.pools[name], report)
                if report.kind in (Kind.DONE, Kind.FAILED) and (task := TaskName.parse(report.file)):
                    supervisor.trace_end(task.id)
