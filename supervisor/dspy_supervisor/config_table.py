"""Every setting, once: its field is its row of the table, and its name is the same in Config, TOML and `config show`.

A setting ``max_pending`` has the variable DSPY_MAX_PENDING and, as each has, the flag --set max_pending=N. Those of GPUs,
of Slurm, of HTTP, of embedding servers and of language models are Config's too, written in config_gpu, config_slurm,
config_http, config_embed and config_llm; those that each class has are in config_class.
"""
# ruff: noqa: RUF009 (setting() returns dataclasses.field(), which that rule can't see)

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .config_class import CLASS_SETTINGS, CLASSES, HANDLER, ClassConfig, class_defaults
from .config_cloud import CloudSettings
from .config_embed import EmbedSettings
from .config_env import EnvironmentSettings
from .config_gpu import GpuSettings
from .config_http import HttpSettings
from .config_llm import LlmSettings
from .config_otel import OtelSettings
from .config_sandbox import SandboxSettings
from .config_slurm import SlurmSettings
from .setting import (
    Setting,
    choice,
    number,
    optional,
    pairs,
    path,
    seconds,
    setting,
    settings,
    size,
    text,
    truth,
    whole,
    words,
)

MODES = ("laptop", "workstation", "cluster", "cloud")
#: production without a word of what kind is taken for a cluster, the mode that assumes most of its surroundings
MODE_ALIASES = {"dev": "laptop", "development": "laptop", "prod": "cluster", "production": "cluster"}
_KIND = r"[A-Za-z0-9][\w.-]{0,99}"
_YEAR = 366 * 86400.0


def _default_classes() -> Mapping[str, ClassConfig]:
    return MappingProxyType({name: ClassConfig(name=name, **more) for name, more in class_defaults().items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(
    GpuSettings,
    SlurmSettings,
    CloudSettings,
    HttpSettings,
    EmbedSettings,
    LlmSettings,
    OtelSettings,
    EnvironmentSettings,
    SandboxSettings,
):
    """All settings of one supervisor or client, checked; paths are absolute. Only the two folders have no default."""

    mode: str = setting(
        choice(*MODES, aliases=MODE_ALIASES),
        "where this runs; it chooses the defaults (dev and development: laptop; prod and production: cluster)",
        "laptop",
        flag="--mode",
    )
    queue_dir: Path = setting(
        path(),
        "the queue's folder. In mode laptop a private one of the user, below $XDG_STATE_HOME or ~/.local/state: /tmp "
        "is emptied at a reboot, and in a folder that all may write, anyone can put a queue of his own under a known "
        "name, and who may write a queue may run programs as its owner",
        variable="ENV_QUEUE_DIR",
        flag="--queue-dir",
        modes={"workstation": "logs/env_queue", "cluster": "/shared/dspy_queue", "cloud": "/shared/dspy_queue"},
    )
    instance: str = setting(
        text(r"[A-Za-z0-9_-]{1,32}", "1 to 32 letters, digits, _ or -"),
        "name of this supervisor among those of this host that serve the same queue",
        "main",
        flag="--instance",
    )
    max_concurrency: int = setting(
        whole(1, 1024),
        "workers of a class that has no number of its own",
        1,
        modes={"laptop": 1, "workstation": 4, "cluster": 16, "cloud": 16},
        live=True,
    )
    policy: str = setting(
        choice("fixed", "plan", "watermark", "gradient", "adaptive"),
        "how many tasks of a class run at once: fixed, as many as it has workers; the others follow GPUs, host and run "
        "times between limit_min and limit_max",
        "adaptive",
        modes={"laptop": "fixed"},
        flag="--policy",
        live=True,
    )
    controller_interval_s: float = setting(seconds(0.1, 60), "time between two steps of the policy", 2.0, live=True)
    record_windows: Path | None = setting(
        optional(path()), "keep what the policy saw in this file, for `simulate --replay`; bounded", None, live=True
    )
    total_limit: int = setting(whole(0, 65536, "none"), "tasks at once over all classes", 0, live=True)
    durability: str | None = setting(
        choice("none", "task", "full"),
        "what survives a power cut: none, task (what was accepted), full (what was completed too); default: what the "
        "queue has, and for a new one task, or none where the filesystem itself is lost at a reboot",
        None,
        flag="--durability",
    )
    insecure: bool = setting(
        truth(), "serve a queue that others may write, and so run what they put there", False, flag="--insecure"
    )
    kinds: tuple[str, ...] = setting(
        words(_KIND, "names of task kinds"),
        "built-in kinds that a task may name; add command to let tasks run programs",
        ("echo", "call"),
        flag="--kinds",
        live=True,
    )
    kind_handlers: Mapping[str, str] = setting(
        pairs(_KIND, HANDLER, "KIND=module:function"),
        "kinds of your own that a task may name, and what runs each",
        MappingProxyType({}),
        live=True,
    )
    call_allow: tuple[str, ...] = setting(
        words(r"[\w.:*]+", "names as module:function or module:*"), "what a task of kind call may call", (), live=True
    )
    command_env: tuple[str, ...] = setting(
        words(r"[A-Za-z_]\w*\*?", "names of variables"),
        "variables of the supervisor that a command sees",
        (),
        live=True,
    )
    command_cwd: tuple[str, ...] = setting(
        words(r"/[^\0]*", "absolute paths"), "folders below which a command may start; none: any", (), live=True
    )
    max_task_bytes: int = setting(size(64, 1 << 32), "longest task", 64 << 20)
    max_depth: int = setting(whole(1, 250), "deepest nesting of a task's JSON", 128)  # orjson writes up to 254
    max_result_bytes: int = setting(size(64, 1 << 32), "longest result", 64 << 20)
    max_pending: int = setting(whole(0, 10**9, "none"), "tasks that may wait before submit says: queue full", 1_000_000)
    max_pending_bytes: int = setting(size(1, 1 << 60, "none"), "the same in bytes", 0)
    retry_base_s: float = setting(
        seconds(0, 86400), "longest wait before the second attempt; it doubles then", 1.0, live=True
    )
    retry_cap_s: float = setting(seconds(0, 86400), "longest wait before any attempt", 300.0, live=True)
    max_deliveries: int = setting(
        whole(1, 10**6), "attempts of any kind, also those that were nobody's fault", 20, live=True
    )
    ageing_s: float = setting(seconds(0, _YEAR), "waiting that is worth one step of priority", 30.0)
    drain_s: float = setting(seconds(0, _YEAR), "time that running tasks have to end at a stop", 30.0, live=True)
    kill_grace_s: float = setting(seconds(0, 3600), "time between TERM and KILL", 3.0, live=True)
    ends_at: float = setting(
        number(0, 1e11),
        "epoch seconds at which this supervisor's host is taken away: it starts nothing that can't end before, and ends "
        "itself in time for its drain (0: never)",
        0.0,
    )
    idle_exit_s: float = setting(seconds(0, _YEAR, "never"), "end after so long without any task to run", 0.0)
    sweep_s: float = setting(seconds(0.05, 3600), "time between two looks at a folder that has events", 5.0, live=True)
    sweep_network_s: float = setting(seconds(0.05, 3600), "the same where the filesystem has none", 1.0, live=True)
    partial_grace_s: float = setting(
        seconds(0, 86400), "age below which a file that does not parse may still be written", 10.0, live=True
    )
    heartbeat_s: float = setting(seconds(0.1, 3600), "time between two heartbeats of this supervisor", 2.0)
    take_after_s: float = setting(
        seconds(1, _YEAR), "silence of another host after which its tasks are taken; 10 heartbeats at least", 180.0
    )
    breaker_starts: int = setting(
        whole(1, 1000), "deaths in a row at start after which a class is failed", 5, live=True
    )
    backoff_cap_s: float = setting(seconds(0, 3600), "longest wait before a worker is started again", 30.0, live=True)
    log_level: str = setting(
        choice("debug", "info", "warning", "error", aliases={"warn": "warning"}),
        "least important line of the log that is written",
        "info",
        modes={"laptop": "debug"},
        flag="--log-level",
        live=True,
    )
    log_file: Path | None = setting(optional(path()), "log to this file; none: standard error", None, flag="--log-file")
    compat_files: bool = setting(
        truth(), "keep runner_metrics.json in the queue's folder, for older dashboards", True, live=True
    )
    action_log: bool = setting(truth(), "keep agent_action.jsonl beside the queue's folder", False, live=True)
    runtime_dir: Path = setting(
        path(),
        "folder of the lock, the control socket and the shared page: $XDG_RUNTIME_DIR/dspy-supervisor, without it "
        "/run/dspy-supervisor for root and /tmp/dspy-supervisor-UID for others",
        flag="--runtime-dir",
    )
    burst: bool = setting(truth(), "end with 0 as soon as all tasks are done", False, flag="--burst")
    classes: Mapping[str, ClassConfig] = field(default_factory=_default_classes)


SETTINGS = settings(Config)
NAMES = (*SETTINGS, *(f"class.{workload}.{name}" for workload in CLASSES for name in CLASS_SETTINGS))  #: full names


def default_queue_dir(environ: Mapping[str, str]) -> Path:
    """Return the private queue of this user, by the XDG base directory specification."""
    state = environ.get("XDG_STATE_HOME", "")
    base = Path(state) if state.startswith("/") else _home(environ) / ".local" / "state"
    return base / "dspy-supervisor" / "queue"


def default_runtime_dir(environ: Mapping[str, str]) -> Path:
    """Return where the lock, the socket and the page lie: on this host, and gone after a reboot."""
    if environ.get("XDG_RUNTIME_DIR", "").startswith("/"):
        return Path(environ["XDG_RUNTIME_DIR"]) / "dspy-supervisor"
    return Path("/run/dspy-supervisor") if os.geteuid() == 0 else Path(f"/tmp/dspy-supervisor-{os.geteuid()}")


def variable(name: str) -> str:
    """Return the environment variable of a setting, as in ``queue_dir`` or ``class.gpu.workers``."""
    if name.startswith("class."):
        return "DSPY_" + name.removeprefix("class.").replace(".", "_").upper()
    return SETTINGS[name].variable or f"DSPY_{name.upper()}"


def variables_of(name: str) -> tuple[str, ...]:
    """Return the environment variables that give a setting, the one that wins first."""
    return (variable(name), *row(name).also)


def row(name: str) -> Setting:
    """Return what the table says of a setting, as in ``queue_dir`` or ``class.gpu.workers``."""
    return (CLASS_SETTINGS if name.startswith("class.") else SETTINGS)[name.rpartition(".")[2]]


SECRETS = tuple(name for name in NAMES if row(name).secret)


def differences(old: Config, new: Config) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the settings that differ: those a reload applies, and those that need a restart."""
    live: list[str] = []
    restart: list[str] = []
    before, after = flat(old), flat(new)
    for name in before:
        if before[name] != after[name]:
            (live if row(name).live else restart).append(name)
    return tuple(live), tuple(restart)


def flat(config: Config) -> dict[str, Any]:
    """Return every setting's value by its full name, in the order of the table."""
    found = {name: getattr(config, name) for name in SETTINGS}
    for one in config.classes.values():
        found |= {f"class.{one.name}.{name}": getattr(one, name) for name in CLASS_SETTINGS}
    return found


def _home(environ: Mapping[str, str]) -> Path:
    return Path(environ["HOME"]) if environ.get("HOME", "").startswith("/") else Path.home()
