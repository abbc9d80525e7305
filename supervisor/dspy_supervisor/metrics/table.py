"""The table of metrics: every name, what it means, its unit by its name, its labels, and where its numbers come from.

`docs/metrics.md`, the Grafana dashboard and the alert rules are made from it: see `generate`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from dspy_fastpath.counters import Counter, Gauge, Global, GpuValue, Histogram, HostValue

from .. import __version__
from ..budget import readings
from ..limit_terms import Reason
from ..schedule import Reading
from ..task import Cause
from .embedding import EMBEDDING
from .view import PREFIX, Metric, Sample, View, by_class, by_gpu, counter, gauge, histogram, of_host, one, place

_STATES = ("running", "paused", "failed")
_OUTCOMES = {"done": Counter.DONE, "failed": Counter.FAILED, "retried": Counter.RETRIED, "refused": Counter.REFUSED}
_ENDED = (Counter.DONE, Counter.FAILED)
_STALLS = {"cpu": HostValue.PSI_CPU, "memory": HostValue.PSI_MEMORY, "io": HostValue.PSI_IO}


def _oldest(view: View, klass: int) -> float:
    arrived_ns = view.page.gauge(klass, Gauge.OLDEST)
    return max(0.0, time.time() - arrived_ns / 1e9) if arrived_ns else 0.0


def _of_states(view: View) -> Iterator[Sample]:
    for klass, name in view.classes:
        for state, word in enumerate(_STATES):
            yield (name, word), int(view.page.gauge(klass, Gauge.STATE) == state)


def _of_reasons(view: View) -> Iterator[Sample]:
    for klass, name in view.classes:
        reason = view.page.gauge(klass, Gauge.LIMIT_REASON)
        if 0 <= reason < len(Reason):
            yield (name, Reason(reason).name.lower()), 1


def _limit_changes(view: View) -> Iterator[Sample]:
    for klass, name in view.classes:
        for reason, count in zip(Reason, view.page.reasons(klass), strict=False):
            if count:
                yield (name, reason.name.lower()), count


def _budgets(value: Callable[[Reading], float]) -> Callable[[View], Iterable[Sample]]:
    def samples(view: View) -> Iterable[Sample]:
        found = {
            reading.name: reading for reading in readings(view.page)
        }  # long names may begin alike: the last counts
        return [((name,), value(reading)) for name, reading in sorted(found.items())]

    return samples


def _outcomes(view: View) -> Iterator[Sample]:
    for klass, name in view.classes:
        for outcome, which in _OUTCOMES.items():
            yield (name, outcome), view.page.counter(klass, which)


def _causes(view: View) -> Iterator[Sample]:
    for klass, name in view.classes:
        for cause, count in zip(Cause, view.page.failures(klass), strict=False):
            yield (name, str(cause)), count


def _all_causes(view: View) -> Iterator[Sample]:
    counts = [view.page.failures(klass) for klass, _ in view.classes]
    for place_of_cause, cause in enumerate(Cause):
        yield (str(cause),), sum(each[place_of_cause] for each in counts)


def _of_status(key: str) -> Any:
    """Return a reader of a number that `status` has of each class."""

    def samples(view: View) -> Iterable[Sample]:
        classes: Mapping[str, Mapping[str, Any]] = view.status.get("classes", {})
        return [((name,), row[key]) for name, row in classes.items() if isinstance(row.get(key), int | float)]

    return samples


def _breakers(view: View) -> Iterator[Sample]:
    for klass, name in view.classes:
        yield ("class", name), int(view.page.gauge(klass, Gauge.STATE) == _STATES.index("failed"))
    for name, service in view.services.items():
        yield ("service", name), int(bool(service.get("failed")))


def _services(read: Any) -> Any:
    return lambda view: [((name,), read(service)) for name, service in view.services.items()]


def _calls(key: str) -> Any:
    return lambda view: [((name,), number) for name, number in sorted(view.service("slurm").get(key, {}).items())]


def _errors_of(*commands: str) -> Any:
    return one(lambda view: sum(view.service("slurm").get("errors", {}).get(command, 0) for command in commands))


def _requests(view: View) -> Iterator[Sample]:
    for status, number in view.service("gateway").get("requests", {}).items():
        yield (str(status),), number


def _gateway(key: str) -> Any:
    def read(view: View) -> float | None:
        value = view.service("gateway").get(key)
        return float(value) if isinstance(value, int | float) else None

    return one(read)


def _of_status_number(key: str) -> Any:
    def read(view: View) -> float | None:
        value = view.status.get(key)
        return float(value) if isinstance(value, int | float) else None

    return one(read)


def _telemetry_age(view: View) -> float | None:
    return view.sight.age_s(view.now) if view.sight.at else None


def _stalls(view: View) -> Iterator[Sample]:
    for resource, value in _STALLS.items():
        share = view.host(value)
        if not math.isnan(share):
            yield (resource,), share


def _gpu_wait(view: View) -> float:
    return next((_oldest(view, klass) for klass, name in view.classes if name == "gpu"), 0.0)


_P = PREFIX
_TASKS = (
    gauge(_P + "tasks_pending", "Tasks that wait, as far as they were read.", by_class(Gauge.PENDING), "class"),
    gauge(
        _P + "oldest_task_age_seconds",
        "How long the oldest task that waits has done so; 0 where none waits.",
        lambda view: [((name,), _oldest(view, klass)) for klass, name in view.classes],
        "class",
    ),
    gauge(_P + "tasks_held", "Tasks that wait, and that nothing here can run as it is.", _of_status("held"), "class"),
    gauge(_P + "tasks_delayed", "Tasks that wait for their time.", _of_status_number("delayed")),
    gauge(_P + "tasks_inflight", "Tasks that run, here or at a cluster.", by_class(Gauge.INFLIGHT), "class"),
    counter(
        _P + "tasks_submitted_total",
        "Tasks that arrived, those included that waited at the start.",
        by_class(Counter.SUBMITTED),
        "class",
    ),
    counter(_P + "tasks_total", "Tasks by what became of them.", _outcomes, "class", "outcome"),
    counter(_P + "task_failures_total", "Failed tasks by cause.", _causes, "class", "cause"),
    counter(_P + "attempt_timeouts_total", "Attempts whose time was up.", by_class(Counter.TIMEOUTS), "class"),
    counter(_P + "attempt_ooms_total", "Attempts that ran out of memory.", by_class(Counter.OOMS), "class"),
    gauge(
        _P + "error_ratio",
        "Attempts of the last minute that failed, of those that ended.",
        one(lambda view: view.page.get_global(Global.ERROR_PPM) / 1e6),
    ),
    histogram(_P + "task_wait_seconds", "From the arrival of a task to its start.", Histogram.WAIT),
    histogram(_P + "task_run_seconds", "From the start of a task to its end.", Histogram.RUN),
    histogram(_P + "task_total_seconds", "From the arrival of a task to its record.", Histogram.TOTAL),
)
_LIMITS = (
    gauge(_P + "limit", "Tasks that may run at once.", by_class(Gauge.LIMIT), "class"),
    gauge(_P + "limit_reason", "1 for why the limit is what it is.", _of_reasons, "class", "reason"),
    counter(_P + "limit_changes_total", "Changes of a limit by the policy.", _limit_changes, "class", "reason"),
    counter(_P + "controller_steps_total", "Steps of the policy.", place(Global.CONTROLLER_STEPS)),
    gauge(_P + "workers", "Worker processes.", by_class(Gauge.WORKERS), "class"),
    counter(_P + "worker_restarts_total", "Workers that died.", by_class(Counter.RESTARTS), "class"),
    gauge(_P + "class_state", "1 for the state a class is in.", _of_states, "class", "state"),
    gauge(
        _P + "breaker_open",
        "1 for a class or service given up, since it died over and over.",
        _breakers,
        "part",
        "name",
    ),
)
_QUEUE = (
    counter(_P + "sweeps_total", "Passes over the folder of waiting tasks.", place(Global.SWEEPS)),
    counter(_P + "inotify_overflows_total", "Times the kernel dropped events.", place(Global.OVERFLOWS)),
    counter(_P + "lost_watches_total", "Watched folders that were removed or moved.", place(Global.LOST_WATCHES)),
    counter(_P + "drift_tasks_total", "Tasks by which a recount corrected what was known.", place(Global.DRIFT)),
    counter(_P + "quarantined_files_total", "Files that were no tasks.", place(Global.QUARANTINED)),
    counter(
        _P + "fsyncs_total", "Files and folders that supervisor and workers put on the disk.", place(Global.FSYNCS)
    ),
    gauge(_P + "unread", "1 while names in the folder were not looked at yet.", place(Global.UNSCANNED)),
)
_SUPERVISOR = (
    gauge(_P + "build_info", "1, with the version.", lambda _: [((__version__,), 1)], "version"),
    gauge(_P + "start_time_seconds", "When the supervisor started, since the epoch.", one(lambda v: v.page.started_at)),
    gauge(
        _P + "heartbeat_age_seconds",
        "Since the supervisor's last sweep ended.",
        one(lambda v: max(0.0, v.now - v.page.heartbeat_ns / 1e9) if v.page.heartbeat_ns else None),
    ),
    counter(
        _P + "service_restarts_total",
        "Services that were replaced.",
        _services(lambda service: service.get("restarts", 0)),
        "service",
    ),
    gauge(
        _P + "service_up",
        "1 for a service that runs.",
        _services(lambda service: int(service.get("pid") is not None)),
        "service",
    ),
    counter(
        _P + "http_requests_total", "Requests by the status of their answer; 0: the caller left.", _requests, "status"
    ),
    counter(
        _P + "http_request_seconds_total", "Time that requests took together, waiting included.", _gateway("busy_s")
    ),
    gauge(_P + "http_connections", "Open connections of the gateway.", _gateway("connections")),
    counter(
        _P + "http_connections_cut_total", "Connections that the gateway cut: too slow, or too many.", _gateway("cut")
    ),
)
_DEVICES = (
    gauge(
        _P + "gpu_usable",
        "1 for a GPU that tasks can be given.",
        lambda v: [((g.uuid,), int(g.usable)) for g in v.sight.gpus],
        "gpu",
    ),
    gauge(_P + "gpu_utilization_ratio", "Share of time in which some kernel ran.", by_gpu(GpuValue.UTILIZATION), "gpu"),
    gauge(_P + "gpu_memory_total_bytes", "Memory of a GPU.", by_gpu(GpuValue.MEMORY_TOTAL), "gpu"),
    gauge(_P + "gpu_memory_free_bytes", "Free memory of a GPU.", by_gpu(GpuValue.MEMORY_FREE), "gpu"),
    gauge(_P + "gpu_power_watts", "Power that a GPU draws.", by_gpu(GpuValue.POWER_W), "gpu"),
    gauge(_P + "gpu_power_cap_watts", "Power cap in force.", by_gpu(GpuValue.POWER_CAP_W), "gpu"),
    gauge(_P + "gpu_temperature_celsius", "Temperature of a GPU.", by_gpu(GpuValue.TEMPERATURE_C), "gpu"),
    counter(_P + "gpu_samples_total", "Looks at the GPUs.", place(Global.GPU_SAMPLES)),
    counter(_P + "gpu_errors_total", "Questions that the GPUs' libraries failed at.", place(Global.GPU_ERRORS)),
    counter(_P + "gpu_losses_total", "GPUs that were fenced.", place(Global.GPU_LOSSES)),
    gauge(_P + "telemetry_age_seconds", "Since GPUs and host were looked at.", one(_telemetry_age)),
    gauge(_P + "host_cpus", "CPUs that this supervisor may use.", of_host(HostValue.CPUS)),
    gauge(_P + "host_cpu_busy_ratio", "Share of them that is busy.", of_host(HostValue.CPU_BUSY)),
    gauge(_P + "host_memory_limit_bytes", "Memory, or the tightest bound on it.", of_host(HostValue.HOST_MEMORY_LIMIT)),
    gauge(_P + "host_memory_free_bytes", "What is free of it.", of_host(HostValue.HOST_MEMORY_FREE)),
    gauge(
        _P + "host_stalled_ratio", "Share of the last 10 s in which some task of the host stalled.", _stalls, "resource"
    ),
)
_SLURM = (
    gauge(
        _P + "slurm_jobs",
        "Slurm jobs by state.",
        lambda view: [
            (("running",), view.page.get_global(Global.SLURM_RUNNING)),
            (("pending",), view.page.get_global(Global.SLURM_PENDING)),
        ],
        "state",
    ),
    counter(_P + "slurm_calls_total", "Calls of Slurm's commands.", _calls("calls"), "command"),
    counter(_P + "slurm_call_errors_total", "Calls of them that failed.", _calls("errors"), "command"),
    counter(_P + "slurm_gpu_seconds_total", "GPU time of ended Slurm jobs.", place(Global.SLURM_GPU_SECONDS)),
)
_BUDGETS = (
    counter(
        _P + "llm_requests_total",
        "Requests to language models that got their turn, by budget.",
        _budgets(lambda reading: reading.sent),
        "budget",
    ),
    counter(
        _P + "llm_refused_total",
        "Requests to language models that were answered with 429, by budget.",
        _budgets(lambda reading: reading.refused),
        "budget",
    ),
    gauge(
        _P + "llm_wait_seconds",
        "How long a request would wait for its turn now, by budget.",
        _budgets(lambda reading: reading.wait_s),
        "budget",
    ),
)
#: names that older dashboards and scripts know
_OLDER = (
    gauge("env_queue_depth", "Tasks that wait.", place(Global.TOTAL_PENDING)),
    gauge("queue_depth", "Tasks that wait, under another older name.", place(Global.TOTAL_PENDING)),
    gauge("gpu_wait_seconds", "How long the oldest task that waits for a GPU has done so.", one(_gpu_wait)),
    gauge(
        "env_error_rate",
        "Attempts of the last minute that failed, of those that ended, 0 to 1.",
        one(lambda view: view.page.get_global(Global.ERROR_PPM) / 1e6),
    ),
    gauge(
        "orchestrator_concurrency_limit",
        "Tasks that may run at once, over all classes.",
        one(lambda view: view.sum_of(Gauge.LIMIT)),
    ),
    gauge("orchestrator_inflight_tasks", "Tasks that run, over all classes.", one(lambda v: v.sum_of(Gauge.INFLIGHT))),
    counter("queue_tasks_submitted_total", "Tasks that arrived.", one(lambda view: view.total(Counter.SUBMITTED))),
    counter(
        "queue_tasks_processed_total",
        "Tasks that ended, well or not.",
        one(lambda view: sum(view.total(which) for which in _ENDED)),
    ),
    counter("queue_tasks_completed_total", "Tasks that succeeded.", one(lambda view: view.total(Counter.DONE))),
    counter("orchestrator_task_errors_total", "Failed tasks by cause, over all classes.", _all_causes, "cause"),
    counter(
        "slurm_jobs_submitted_total",
        "Slurm jobs, elements of arrays included, that were accepted.",
        place(Global.SLURM_SUBMITTED),
    ),
    counter("slurm_jobs_completed_total", "Tasks that a Slurm job brought to success.", place(Global.SLURM_COMPLETED)),
    counter("slurm_jobs_failed_total", "Tasks that failed for good at a Slurm cluster.", place(Global.SLURM_FAILED)),
    counter(
        "slurm_reconcile_errors_total",
        "Calls of sacct and sbatch that failed.",
        _errors_of("sacct", "sbatch", "scancel"),
    ),
    counter("slurm_monitor_errors_total", "Calls of squeue that failed.", _errors_of("squeue", "scontrol", "sinfo")),
    counter("events_published_total", "Lines of the action log.", place(Global.EVENTS)),
)
#: what the older environment runner told, at its own port; key of its JSON, and its divisor
RUNNER = (
    ("env_runner_tasks_processed_total", "counter", "Tasks that succeeded.", "tasks_processed", 1),
    ("env_runner_queue_depth", "gauge", "Tasks that wait.", "queue_depth", 1),
    ("env_runner_gpu_utilization", "gauge", "Mean utilization of the GPUs, 0 to 1.", "gpu_utilization", 1),
    ("env_runner_latency_p95_seconds", "gauge", "Run time that 95 of 100 tasks stay below.", "latency_p95_ms", 1000),
    ("env_runner_avg_duration_seconds", "gauge", "Mean run time of a task.", "avg_duration_ms", 1000),
    ("env_runner_errors_total", "counter", "Tasks that failed for good.", "total_errors", 1),
    ("env_runner_uptime_seconds", "gauge", "Since the supervisor started.", "uptime_seconds", 1),
)

#: the table, by group
GROUPS: Mapping[str, tuple[Metric, ...]] = {
    "Tasks": _TASKS,
    "Limits and workers": _LIMITS,
    "Queue": _QUEUE,
    "Supervisor and services": _SUPERVISOR,
    "GPUs and host": _DEVICES,
    "Slurm": _SLURM,
    "Embedding": EMBEDDING,
    "LLM budgets": _BUDGETS,
    "Older names": _OLDER,
}
METRICS: tuple[Metric, ...] = tuple(metric for group in GROUPS.values() for metric in group)
