"""The alerts that a supervisor's metrics are good for, each with the series that raise it and others that must not.

Names of metrics in the expressions are those of the table; a test looks for every one there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from .view import PREFIX

_P = PREFIX


class Alert(NamedTuple):
    """One alert, and its test."""

    name: str
    expr: str
    lasts: str  #: how long it must hold, as 5m
    severity: str  #: critical: somebody is needed now; warning: today; info: it is good to know
    summary: str  #: labels as {class}
    remedy: str
    #: series, without the instance, to their values in a minute's steps: of an instance that raises it
    sick: Mapping[str, str]
    well: Mapping[str, str]  #: the same of one that doesn't
    labels: Mapping[str, str] = {}  #: of the alert that comes, beside instance and severity


_CLASS = '{class="gpu"}'
ALERTS = (
    Alert(
        "DspySupervisorDown",
        'up{job="dspy-supervisor"} == 0',
        "1m",
        "critical",
        "The supervisor at {instance} can't be scraped.",
        "systemctl status dspy-supervisor; dspy-supervisor status; tasks stay in the queue's folder meanwhile.",
        {'up{job="dspy-supervisor"}': "1x4 0x30"},
        {'up{job="dspy-supervisor"}': "1x34"},
        {"job": "dspy-supervisor"},
    ),
    Alert(
        "DspySupervisorSilent",
        f"{_P}heartbeat_age_seconds > 120",
        "2m",
        "critical",
        "The loop of the supervisor at {instance} hangs.",
        "A disk or file server that does not answer is the usual cause: look at dmesg; SIGUSR2 to a worker shows its stack.",
        {f"{_P}heartbeat_age_seconds": "4x4 180+60x30"},
        {f"{_P}heartbeat_age_seconds": "4x34"},
    ),
    Alert(
        "DspyTasksStuck",
        f"{_P}tasks_pending > 0 and on (instance, class) {_P}tasks_inflight == 0 and on (instance, class) "
        f'sum by (instance, class) (increase({_P}tasks_total{{outcome=~"done|failed"}}[10m])) == 0',
        "10m",
        "critical",
        "Tasks of class {class} wait at {instance}, and none runs.",
        "dspy-supervisor explain ID says why; a class may be paused, failed, or without workers.",
        {
            f"{_P}tasks_pending{_CLASS}": "3x34",
            f"{_P}tasks_inflight{_CLASS}": "0x34",
            f'{_P}tasks_total{{class="gpu",outcome="done"}}': "7x34",
        },
        {
            f"{_P}tasks_pending{_CLASS}": "3x34",
            f"{_P}tasks_inflight{_CLASS}": "0x34",
            f'{_P}tasks_total{{class="gpu",outcome="done"}}': "7+1x34",
        },
        {"class": "gpu"},
    ),
    Alert(
        "DspyQueueDeep",
        "env_queue_depth >= 200",
        "15m",
        "warning",
        "200 tasks and more wait at {instance} for a quarter of an hour.",
        "See the limits and their reasons; more workers, another host, or fewer tasks.",
        {"env_queue_depth": "250x34"},
        {"env_queue_depth": "250x5 150x28"},
    ),
    Alert(
        "DspyTasksOld",
        f"{_P}oldest_task_age_seconds > 3600",
        "5m",
        "warning",
        "A task of class {class} has waited for more than an hour at {instance}.",
        "dspy-supervisor task list --state pending; explain says what comes before it.",
        {f"{_P}oldest_task_age_seconds{_CLASS}": "3000+60x34"},
        {f"{_P}oldest_task_age_seconds{_CLASS}": "30x34"},
        {"class": "gpu"},
    ),
    Alert(
        "DspyTasksHeld",
        f"{_P}tasks_held > 0",
        "10m",
        "warning",
        "Tasks of class {class} wait at {instance} that nothing there can run.",
        "dspy-supervisor explain ID names the handler, kind or workers that are missing.",
        {f"{_P}tasks_held{_CLASS}": "2x34"},
        {f"{_P}tasks_held{_CLASS}": "0x34"},
        {"class": "gpu"},
    ),
    Alert(
        "DspyTasksFail",
        f"{_P}error_ratio > 0.2",
        "5m",
        "warning",
        "More than a fifth of the attempts fail at {instance}.",
        "dspy-supervisor task list --state failed; the dashboard groups them by cause.",
        {f"{_P}error_ratio": "0.5x34"},
        {f"{_P}error_ratio": "0.1x34"},
    ),
    Alert(
        "DspyGivenUp",
        f"{_P}breaker_open == 1",
        "1m",
        "critical",
        "The {part} {name} at {instance} was given up: it died over and over.",
        "dspy-supervisor status has the reason; after mending it, kill -HUP tries again.",
        {f'{_P}breaker_open{{part="class",name="gpu"}}': "1x34"},
        {f'{_P}breaker_open{{part="class",name="gpu"}}': "0x34"},
        {"part": "class", "name": "gpu"},
    ),
    Alert(
        "DspyWorkersDie",
        f"increase({_P}worker_restarts_total[10m]) > 10",
        "0m",
        "warning",
        "More than ten workers of class {class} died within ten minutes at {instance}.",
        "The log names cause and task of each; memory is the usual one.",
        {f"{_P}worker_restarts_total{_CLASS}": "0+3x34"},
        {f"{_P}worker_restarts_total{_CLASS}": "5x34"},
        {"class": "gpu"},
    ),
    Alert(
        "DspyOutOfMemory",
        f"increase({_P}attempt_ooms_total[10m]) > 3",
        "0m",
        "warning",
        "Tasks of class {class} run out of memory at {instance}.",
        "Name their need in resources, or lower the limit of the class.",
        {f"{_P}attempt_ooms_total{_CLASS}": "0+1x34"},
        {f"{_P}attempt_ooms_total{_CLASS}": "2x34"},
        {"class": "gpu"},
    ),
    Alert(
        "DspyServiceDown",
        f"{_P}service_up == 0",
        "2m",
        "warning",
        "The service {service} at {instance} does not run.",
        "dspy-supervisor status has its problem; tasks go on without it.",
        {f'{_P}service_up{{service="controller"}}': "0x34"},
        {f'{_P}service_up{{service="controller"}}': "1x34"},
        {"service": "controller"},
    ),
    Alert(
        "DspyQuarantine",
        f"increase({_P}quarantined_files_total[15m]) > 0",
        "0m",
        "info",
        "Files that are no tasks were put into the queue at {instance}.",
        "dspy-supervisor queue fsck; each has its reason beside it in quarantine/.",
        {f"{_P}quarantined_files_total": "0x10 4x24"},
        {f"{_P}quarantined_files_total": "4x34"},
    ),
    Alert(
        "DspyEventsLost",
        f"increase({_P}inotify_overflows_total[15m]) > 0",
        "0m",
        "info",
        "The kernel dropped events at {instance}: tasks are found by sweeps, a little later.",
        "Raise fs.inotify.max_queued_events where that comes again.",
        {f"{_P}inotify_overflows_total": "0x10 1x24"},
        {f"{_P}inotify_overflows_total": "1x34"},
    ),
    Alert(
        "DspyGpuUnusable",
        f"{_P}gpu_usable == 0",
        "1m",
        "critical",
        "GPU {gpu} at {instance} can't be used.",
        "dspy-supervisor gpu list says why; a lost GPU needs a reset or a reboot.",
        {f'{_P}gpu_usable{{gpu="GPU-1"}}': "0x34"},
        {f'{_P}gpu_usable{{gpu="GPU-1"}}': "1x34"},
        {"gpu": "GPU-1"},
    ),
    Alert(
        "DspyTelemetryStale",
        f"{_P}telemetry_age_seconds > 60",
        "2m",
        "warning",
        "Telemetry at {instance} looks at nothing any more: limits are held, then lowered.",
        "nvidia-smi may hang too: the driver's log is in dmesg.",
        {f"{_P}telemetry_age_seconds": "90+60x34"},
        {f"{_P}telemetry_age_seconds": "2x34"},
    ),
    Alert(
        "DspyHostMemoryLow",
        f"{_P}host_memory_free_bytes / {_P}host_memory_limit_bytes < 0.05",
        "5m",
        "warning",
        "Less than a twentieth of the memory is free at {instance}.",
        "Lower the limits, or bound tasks by memory_bytes.",
        {f"{_P}host_memory_free_bytes": "1x34", f"{_P}host_memory_limit_bytes": "100x34"},
        {f"{_P}host_memory_free_bytes": "30x34", f"{_P}host_memory_limit_bytes": "100x34"},
    ),
    Alert(
        "DspySlurmCallsFail",
        f"increase({_P}slurm_call_errors_total[15m]) > 5",
        "0m",
        "warning",
        "Calls of {command} fail at {instance}.",
        "dspy-supervisor slurm doctor; jobs that run go on.",
        {f'{_P}slurm_call_errors_total{{command="squeue"}}': "0+1x34"},
        {f'{_P}slurm_call_errors_total{{command="squeue"}}': "9x34"},
        {"command": "squeue"},
    ),
)
