"""The settings of a class of tasks: ``[class.gpu]`` in TOML, and variables as DSPY_GPU_WORKERS."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from .config_sandbox import SandboxSettings
from .config_slurm import JOB_OPTIONS
from .setting import (
    cpus,
    number,
    optional,
    optional_seconds,
    seconds,
    setting,
    settings,
    size,
    table,
    text,
    truth,
    variables,
    whole,
)
from .task import MAX_ATTEMPTS_RANGE, MAX_TIMEOUT_S, WorkloadClass

CLASSES = tuple(str(name) for name in WorkloadClass)

BUILT_IN = ("echo", "call", "command", "dspy", "embed", "environment")  #: the handlers that have a short name
HANDLER = rf"{'|'.join(BUILT_IN)}|[A-Za-z_][\w.]*:[A-Za-z_][\w.]*"  #: what a handler's name looks like
_YEAR = 366 * 86400.0
_TIB = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassConfig(SandboxSettings):
    """What one class of tasks may use. ``name`` is the class; None as handler: its tasks without a kind wait."""

    name: str
    handler: str | None = setting(
        text(HANDLER, "module:function, or the name of a built-in handler"),
        "what runs a task of this class that names no kind: module:function, or echo, call, command, dspy, embed, environment",
        None,
        flag="--handler",
        live=True,  # only workers load it, and a reload replaces them
    )
    workers: int = setting(
        whole(0, 4096),
        "worker processes of this class, and so tasks at once; default: max_concurrency for cpu_short and cpu_long, "
        "the same for gpu with enable_gpu and else 1, none for gpu_slurm",
        1,
        flag="--workers",
        live=True,
    )
    limit_min: int = setting(
        whole(0, 4096), "least tasks at once that the policy goes down to, where there are workers", 1, live=True
    )
    limit_max: int = setting(
        whole(0, 4096, "as many as workers"), "most tasks at once, whatever the policy", 0, live=True
    )
    weight: float = setting(number(0.001, 1000), "share of the feeding when total_limit binds", 1.0, live=True)
    timeout_s: float | None = setting(
        optional_seconds(MAX_TIMEOUT_S), "time limit of an attempt where the task names none", None, live=True
    )
    max_attempts: int = setting(
        whole(*MAX_ATTEMPTS_RANGE), "attempts of a task that fails, where it names no bound itself", 3, live=True
    )
    retry_base_s: float = setting(seconds(0, 86400), "retry_base_s of this class; default: that of all", 1.0, live=True)
    retry_cap_s: float = setting(seconds(0, 86400), "retry_cap_s of this class; default: that of all", 300.0, live=True)
    max_crashes: int = setting(whole(1, 1000), "workers a task may kill before it is failed", 3, live=True)
    max_ooms: int = setting(
        whole(1, 1000),
        "attempts of a task that may end out of memory, counted apart from the others; its own max_attempts bounds them",
        5,
        live=True,
    )
    max_tasks: int = setting(whole(0, 10**9, "never"), "a worker is replaced after this many tasks", 0, live=True)
    max_age_s: float = setting(seconds(1, _YEAR, "never"), "a worker is replaced at this age", 0.0, live=True)
    max_rss_bytes: int = setting(size(1 << 20, _TIB, "never"), "a worker is replaced above this memory", 0, live=True)
    gpu_share: float = setting(
        number(0, 64),
        "GPUs of a task that names none: 1 is a whole one, 0.25 a quarter of one's memory, 0 an even share of what there "
        "is among the class's workers",
        0.0,
        live=True,
    )
    slurm_options: Mapping[str, object] = setting(
        table(JOB_OPTIONS),
        "what jobs of this class ask for, in place of the slurm_ settings of the same names",
        MappingProxyType({}),
        live=True,
    )
    memory_bytes: int = setting(
        size(1 << 20, _TIB, "none"),
        "memory of a task and all that it starts; above it, the task is ended",
        0,
        live=True,
    )
    max_processes: int = setting(
        whole(0, 1 << 22, "none"),
        "processes of a task at once, its worker included; the kernel refuses more (threads count, too), and where no "
        "control groups are delegated, a task with more is ended",
        0,
        live=True,
    )
    cpu_weight: int = setting(
        whole(0, 10000, "the kernel's, 100"),
        "share of the CPUs of each worker beside others, where control groups are delegated",
        0,
        live=True,
    )
    cpu_time_s: float = setting(
        seconds(1, _YEAR, "none"),
        "CPU time of a task and all that it starts; after it, the task is ended",
        0.0,
        live=True,
    )
    cpus: str | None = setting(optional(cpus()), "CPUs that workers run on, as 0-3,8", None, live=True)
    nice: int = setting(whole(0, 19), "how much more politely than the supervisor workers run", 0, live=True)
    environment: Mapping[str, str] = setting(
        variables(),
        "variables of the workers, and of the commands they run",
        MappingProxyType({}),
        secret=True,
        live=True,
    )
    hedge: bool = setting(
        truth(),
        "run a task a second time, where its envelope says idempotent, when it takes longer than 95 of 100 of its class did and "
        "a worker is idle; the first to succeed counts",
        False,
        live=True,
    )
    keep_children: bool = setting(truth(), "leave a task's own processes alive after its end", False, live=True)

    @property
    def most(self) -> int:
        """Tasks of this class that may run at once, whatever a policy says."""
        return min(self.workers, self.limit_max or self.workers)


def class_defaults(max_concurrency: int = 1, enable_gpu: bool = False) -> dict[str, dict[str, Any]]:
    """Return what a class has by its nature: its workers, and for short tasks a time limit that frees a stuck slot."""
    return {
        "cpu_short": {"workers": max_concurrency, "timeout_s": 300.0},
        "cpu_long": {"workers": max_concurrency},
        "gpu": {"workers": max_concurrency if enable_gpu else 1},
        "gpu_slurm": {"workers": 0},
    }


CLASS_SETTINGS = settings(ClassConfig)
