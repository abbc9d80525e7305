"""The settings of Slurm: whether this host submits, what its jobs ask for, and how often the cluster is asked.

What a job asks for has one vocabulary: the setting ``slurm_partition`` is the default of every job, ``partition`` in a
class's ``slurm_options`` or in a task's ``resources`` says otherwise for those.
"""
# ruff: noqa: RUF009 (setting() returns dataclasses.field(), which that rule can't see)

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .setting import optional, path, seconds, setting, settings, size, text, truth, whole, words

_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,99}"
_NAMES = rf"{_NAME}(,{_NAME})*"
_TIME = r"\d{1,6}|\d{1,6}:[0-5]?\d|\d{1,4}:[0-5]?\d:[0-5]?\d|\d{1,3}-\d{1,2}(:[0-5]?\d){0,2}"


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)  # Config has these
class SlurmSettings:
    """The part of Config that is Slurm's. None: sbatch is not told, and the cluster's own default holds."""

    enable_slurm: bool = setting(
        truth(), "tasks of class gpu_slurm become jobs of Slurm", False, modes={"cluster": True}, live=True
    )
    slurm_partition: str | None = setting(
        optional(text(_NAMES, "a partition, or several with commas between them")),
        "where jobs run",
        None,
        modes={"cluster": "gpu"},
        live=True,
    )
    slurm_account: str | None = setting(optional(text(_NAME, "an account")), "who is charged", None, live=True)
    slurm_qos: str | None = setting(optional(text(_NAME, "a quality of service")), "jobs' QOS", None, live=True)
    slurm_reservation: str | None = setting(
        optional(text(_NAMES, "a reservation")), "reservation that jobs use", None, live=True
    )
    slurm_constraint: str | None = setting(
        optional(text(r"[\w.&|()\[\]*:,!=-]{1,200}", "features of nodes, as a100&nvlink")),
        "features that nodes must have",
        None,
        live=True,
    )
    slurm_time: str | None = setting(
        optional(text(_TIME, "minutes, or [days-]hours:minutes:seconds", digits=True)),
        "time limit of a job",
        None,
        live=True,
    )
    slurm_memory: int = setting(
        size(1 << 20, 1 << 50, "the cluster's default"), "memory of a job on each node", 0, live=True
    )
    slurm_cpus: int = setting(
        whole(0, 65536, "the cluster's default"), "CPUs of each of a job's processes", 0, live=True
    )
    slurm_gpus: str | None = setting(
        optional(text(r"([A-Za-z][\w.-]{0,63}:)?\d{1,4}", "a number, or type:number, as a100:2", digits=True)),
        "GPUs of a job on each node",
        None,
        live=True,
    )
    slurm_nodes: int = setting(whole(1, 65536), "nodes of a job", 1, live=True)
    slurm_exclusive: bool = setting(truth(), "jobs share their nodes with no other", False, live=True)
    slurm_mail_user: str | None = setting(
        optional(text(r"[\w.+-]{1,64}(@[\w.-]{1,200})?", "an address")), "who gets mail about jobs", None, live=True
    )
    slurm_mail_type: tuple[str, ...] = setting(
        words(r"[A-Z_0-9]{1,20}", "events as Slurm names them, as END and FAIL"), "what of", (), live=True
    )
    slurm_comment: str | None = setting(
        optional(text(r"[ -{}~]{1,200}", "up to 200 printable characters but |")), "comment of jobs", None, live=True
    )
    slurm_signal: str | None = setting(
        optional(text(r"([RB]{1,2}:)?(SIG)?[A-Z0-9]{1,10}(@\d{1,5})?", "a signal as sbatch has it, as B:USR1@120")),
        "signal that tells a job of the end of its time, and how many seconds before",
        None,
        live=True,
    )
    slurm_extra: tuple[str, ...] = setting(
        words(r"--[a-z][a-z0-9-]{1,40}(=[^\x00-\x1f\x7f]{1,500})?", "options as --NAME or --NAME=VALUE"),
        "more options of sbatch, as they are",
        (),
        live=True,
    )
    slurm_templates: Path | None = setting(
        optional(path()), "folder of job scripts of your own, found by their names before the ones that come along", None,
        live=True,
    )  # fmt: skip
    slurm_template: str | None = setting(
        optional(text(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}(\.sbatch)?", "the name of a job script")),
        "job script of every task that names none; none: task for tasks with a handler, else by the payload's method",
        None,
        live=True,
    )
    slurm_python: Path | None = setting(
        optional(path()), "interpreter that runs tasks in their jobs; none: this one, by the same path", None, live=True
    )
    slurm_array_limit: int = setting(
        whole(0, 1_000_000, "no bound"), "elements of one array that may run at once", 0, live=True
    )
    slurm_max_jobs: int = setting(
        whole(1, 1_000_000), "jobs, elements of arrays counted each, that may wait or run at once", 1000, live=True
    )
    slurm_poll_s: float = setting(
        seconds(0.2, 3600), "time between two looks at the cluster while jobs run and nothing is due", 15.0, live=True
    )
    slurm_pilots_min: int = setting(whole(0, 10_000), "allocations that are kept although nothing waits", 0, live=True)
    slurm_pilots_max: int = setting(
        whole(0, 10_000, "every task is a job of its own"),
        "allocations that run many tasks each, and follow the backlog up to this number",
        0,
        live=True,
    )
    slurm_pilot_workers: int = setting(whole(1, 4096), "tasks at once in one allocation that runs many", 1, live=True)
    slurm_pilot_idle_s: float = setting(
        seconds(1, 86400), "an allocation without work for so long is given back", 300.0, live=True
    )


SLURM_SETTINGS = settings(SlurmSettings)
_NO_OPTION = {
    *("templates", "template", "python", "array_limit", "max_jobs", "poll_s"),
    *("pilots_min", "pilots_max", "pilot_workers", "pilot_idle_s"),
}
#: what a job may ask for, by the name that classes and tasks have for it
JOB_OPTIONS = {
    option: row.kind
    for name, row in SLURM_SETTINGS.items()
    if name.startswith("slurm_") and (option := name.removeprefix("slurm_")) not in _NO_OPTION
}
