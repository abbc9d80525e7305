"""Pilots: allocations that run many tasks each. A job starts a supervisor on the shared queue, which takes what waits there.

The bridge asks `Pilots.step` after each successful listing, and does what it says; the decision itself is in allocations.py.
What a pilot's supervisor needs of our configuration lies in ``slurm/pilot.toml`` and ``slurm/pilot.keep.toml`` of the queue,
what it writes in ``slurm/pilots/NAME.out``.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dspy_fastpath.ids import uuid7

from ...config import ClassConfig, Config
from ...config_class import CLASS_SETTINGS
from ...jobbook import FOLDER, name_prefix
from ...layout import Layout
from .allocations import KEEP, Bounds, Decision, Ledger, decide, note_refused, note_submitted
from .listing import JobRow
from .options import Options, merged, of_class, of_config
from .states import Fate, fate_of
from .templates import fill, find

CLASS = "gpu_slurm"
DEFAULT_TIME_S = 3600  #: of an allocation where slurm_time is not set: without an end nothing can be planned
_TERM_S = 120  # before its end, beside what the supervisor in it knows: for clusters that end jobs early
DRAIN_S = 20.0  #: of a pilot at most: Slurm kills what still runs KillWait (30 s) after its SIGTERM
_KEPT_OUTPUTS = 20
_SETTINGS = (
    *("kinds", "kind_handlers", "call_allow", "command_env", "command_cwd", "max_task_bytes", "max_depth"),
    *(
        "max_result_bytes",
        "retry_base_s",
        "retry_cap_s",
        "max_deliveries",
        "ageing_s",
        "kill_grace_s",
        "partial_grace_s",
    ),
    *("heartbeat_s", "take_after_s", "breaker_starts", "backoff_cap_s", "log_level", "insecure"),
)
#: what a class has that is not a pilot's business
_NOT_CLASS = frozenset({"workers", "limit_min", "limit_max", "slurm_options", "gpu_share"})


@dataclass(frozen=True, slots=True)
class PilotJob:
    """An allocation to submit."""

    name: str
    options: tuple[str, ...]
    script: bytes


@dataclass(frozen=True, slots=True)
class PilotStep:
    """What the bridge is to do now."""

    submit: list[PilotJob] = field(default_factory=list)
    cancel: list[str] = field(default_factory=list)  #: job ids
    state: dict[str, Any] = field(default_factory=dict)  #: for `status`


class Pilots:
    """The allocations of one queue."""

    def __init__(self, config: Config, layout: Layout) -> None:
        self._config = config
        self._prefix = "dspy-pilot." + name_prefix(layout.queue_id).removeprefix("dspy.")
        self._folder = Path(layout.path) / FOLDER
        self._ledger = Ledger()
        self._now = 0.0

    @property
    def prefix(self) -> str:
        """What the names of all allocations of the queue begin with."""
        return self._prefix

    def step(self, now: float, jobs: Sequence[JobRow], pending: int) -> PilotStep:
        """Return what to do; ``now``: monotonic seconds, ``jobs``: what a successful listing shows of our allocations.

        Raises ConfigError, JobRefused or OSError where no allocation can be described.
        """
        self._now = now
        decision = decide(now, self.bounds(), jobs, pending, self._ledger)
        submit = [self._job(keep=True) for _ in range(decision.keep)]
        submit += [self._job(keep=False) for _ in range(decision.float)]
        for job in submit:
            note_submitted(now, job.name, self._ledger)
        return PilotStep(submit, list(decision.cancel), self._state(jobs, decision))

    def submitted(self, name: str, job_id: str | None, error: str) -> None:
        """Sbatch answered: an id, or an error, or neither, and then the next listings tell."""
        if job_id is None and error:
            self._ledger.submitted.pop(name, None)
            note_refused(self._now, error, self._ledger)

    def bounds(self) -> Bounds:
        """Return what the configuration allows."""
        config = self._config
        return Bounds(
            config.slurm_pilots_min, config.slurm_pilots_max, config.slurm_pilot_workers, config.slurm_pilot_idle_s
        )

    def options(self) -> Options:
        """Return the options of an allocation. Raises ConfigError."""
        wanted = merged({"time": DEFAULT_TIME_S}, of_config(self._config), of_class(self._config.classes[CLASS]))
        one = {"requeue": False, "signal": f"B:TERM@{_TERM_S}", "nodes": "1"}  # a supervisor serves its own host
        return merged(dict(wanted.values), one)

    def script(self, *, keep: bool) -> bytes:
        """Return the script of an allocation. Raises JobRefused."""
        config = self._config
        settings = self._folder / ("pilot.keep.toml" if keep else "pilot.toml")
        values = {"python": str(config.slurm_python or sys.executable), "settings": str(settings)}
        values |= {"folder": str(self._folder), "name": self._prefix, "size": "1"}
        return fill(find(config.slurm_templates, "pilot"), values)

    def _job(self, *, keep: bool) -> PilotJob:
        name = self._prefix + uuid7().replace("-", "") + (KEEP if keep else "")
        outputs = self._folder / "pilots"
        outputs.mkdir(mode=0o700, parents=True, exist_ok=True)
        _clear_old(outputs)
        self._write_settings()
        place = (f"--output={outputs}/{name}.out", "--open-mode=append", f"--chdir={os.getcwd()}")
        return PilotJob(name, (*self.options().argv, *place), self.script(keep=keep))

    def _write_settings(self) -> None:
        for file, idle_s in (("pilot.toml", self._config.slurm_pilot_idle_s), ("pilot.keep.toml", 0.0)):
            temporary = self._folder / f".{file}.tmp"
            temporary.write_text(pilot_settings(self._config, idle_s), encoding="utf-8")
            temporary.chmod(0o600)
            temporary.replace(self._folder / file)

    def _state(self, jobs: Sequence[JobRow], decision: Decision) -> dict[str, Any]:
        fates = [fate_of(job.state) for job in jobs]
        return {
            "running": fates.count(Fate.RUNNING),
            "queued": fates.count(Fate.QUEUED) + len(self._ledger.submitted),
            "reason": decision.why,
            "stopped": bool(self._ledger.stopped),
        }


def pilot_settings(config: Config, idle_s: float) -> str:
    """Return the configuration of a pilot's supervisor, as TOML: ours, as far as it is about running tasks."""
    top: dict[str, Any] = {
        "mode": "cluster",
        "queue_dir": str(config.queue_dir),
        "enable_slurm": False,
        "enable_gpu": False,
        "policy": "fixed",
        "compat_files": False,
        "idle_exit_s": idle_s,
        "drain_s": min(config.drain_s, DRAIN_S),
        **{name: getattr(config, name) for name in _SETTINGS},
    }
    lines = [line for name, value in top.items() for line in _line(name, value)]
    for workload, settings in config.classes.items():
        lines += ["", f"[class.{workload}]"]
        if workload == CLASS:
            lines.append(f"workers = {config.slurm_pilot_workers}")
            lines += _class_lines(settings)
        else:
            lines.append("workers = 0")
    return "\n".join(lines) + "\n"


def _class_lines(settings: ClassConfig) -> list[str]:
    named = {name: getattr(settings, name) for name in CLASS_SETTINGS if name not in _NOT_CLASS}
    return [
        line for name, value in named.items() if value != CLASS_SETTINGS[name].default for line in _line(name, value)
    ]


def _line(name: str, value: Any) -> list[str]:
    """Return a setting as a line of TOML, whose strings are JSON's; a setting that is None is left out."""
    if value is None:
        return []
    if isinstance(value, Mapping):
        return [f"{name} = {{{', '.join(f'{json.dumps(key)} = {_text(inner)}' for key, inner in value.items())}}}"]
    return [f"{name} = {_text(value)}"]


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        value = list(value)
    return json.dumps(str(value) if isinstance(value, Path) else value)


def _clear_old(outputs: Path) -> None:
    """Leave the newest outputs of ended pilots; their names sort by time."""
    for path in sorted(outputs.glob("*.out"))[:-_KEPT_OUTPUTS]:
        with contextlib.suppress(OSError):
            path.unlink()
