"""The metrics of a supervisor in Prometheus' terms: names, help and labels, and their values from the shared page.

Names begin with ``dspy_supervisor_``, units are base units, counters end in ``_total``. Labels have few values: class,
outcome, cause, reason, state, command, and a GPU's UUID; never a task. Counters count since the supervisor's start. What a GPU
does not tell has no sample.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dspy_fastpath.counters import Counter, Gauge, Global, GpuValue, Histogram, HostValue, Page, bounds

from .gpu import read
from .limit_terms import Reason
from .task import Cause

PREFIX = "dspy_supervisor_"
_EVERY = 4  # of the page's bounds, half octaves, one in so many becomes a bucket: a factor of four

#: a metric of each class: its kind, and where it is on the page
_CLASS_GAUGES = {
    "tasks_pending": (Gauge.PENDING, "Tasks that wait, as far as they were read."),
    "tasks_inflight": (Gauge.INFLIGHT, "Tasks that run, here or at a cluster."),
    "limit": (Gauge.LIMIT, "Tasks that may run at once."),
    "workers": (Gauge.WORKERS, "Worker processes."),
}
_OUTCOMES = {"done": Counter.DONE, "failed": Counter.FAILED, "retried": Counter.RETRIED, "refused": Counter.REFUSED}
_STATES = ("running", "paused", "failed")
_HISTOGRAMS = {
    "task_wait_seconds": (Histogram.WAIT, "From the arrival of a task to its start."),
    "task_run_seconds": (Histogram.RUN, "From the start of a task to its end."),
}
_TOTALS = {
    "sweeps_total": (Global.SWEEPS, "Passes over the folder of waiting tasks."),
    "inotify_overflows_total": (Global.OVERFLOWS, "Times the kernel dropped events."),
    "lost_watches_total": (Global.LOST_WATCHES, "Watched folders that were removed or moved."),
    "drift_tasks_total": (Global.DRIFT, "Tasks by which a recount corrected what was known."),
    "quarantined_files_total": (Global.QUARANTINED, "Files that were no tasks."),
    "controller_steps_total": (Global.CONTROLLER_STEPS, "Steps of the policy."),
    "gpu_samples_total": (Global.GPU_SAMPLES, "Looks at the GPUs."),
    "gpu_errors_total": (Global.GPU_ERRORS, "Questions that the GPUs' libraries failed at."),
    "gpu_losses_total": (Global.GPU_LOSSES, "GPUs that were fenced."),
    "slurm_gpu_seconds_total": (Global.SLURM_GPU_SECONDS, "GPU time of ended Slurm jobs."),
}
#: under the names that older dashboards know
_SLURM_TOTALS = {
    "slurm_jobs_submitted_total": (
        Global.SLURM_SUBMITTED,
        "Slurm jobs, elements of arrays included, that were accepted.",
    ),
    "slurm_jobs_completed_total": (Global.SLURM_COMPLETED, "Tasks that a Slurm job brought to success."),
    "slurm_jobs_failed_total": (Global.SLURM_FAILED, "Tasks that failed for good at a Slurm cluster."),
}
_SLURM_JOBS = {"running": Global.SLURM_RUNNING, "pending": Global.SLURM_PENDING}
_GPU = {
    "gpu_utilization_ratio": (GpuValue.UTILIZATION, "Share of time in which some kernel ran."),
    "gpu_memory_total_bytes": (GpuValue.MEMORY_TOTAL, "Memory."),
    "gpu_memory_free_bytes": (GpuValue.MEMORY_FREE, "Free memory."),
    "gpu_power_watts": (GpuValue.POWER_W, "Power."),
    "gpu_power_cap_watts": (GpuValue.POWER_CAP_W, "Power cap in force."),
    "gpu_temperature_celsius": (GpuValue.TEMPERATURE_C, "Temperature."),
}
_HOST = {
    "host_cpus": (HostValue.CPUS, "CPUs that this supervisor may use."),
    "host_cpu_busy_ratio": (HostValue.CPU_BUSY, "Share of them that is busy."),
    "host_memory_limit_bytes": (HostValue.HOST_MEMORY_LIMIT, "Memory, or the tightest bound on it."),
    "host_memory_free_bytes": (HostValue.HOST_MEMORY_FREE, "What is free of it."),
}
_STALLS = {"cpu": HostValue.PSI_CPU, "memory": HostValue.PSI_MEMORY, "io": HostValue.PSI_IO}


class Family(NamedTuple):
    """One metric with its samples."""

    name: str
    kind: str  #: gauge, counter or histogram
    help: str
    labels: tuple[str, ...]
    samples: Sequence[tuple[tuple[str, ...], Any]]  #: label values and a number, or for a histogram (buckets, sum)


def families(page: Page, services: Mapping[str, Mapping[str, Any]]) -> Iterator[Family]:
    """Yield all metrics of a supervisor; ``services``: what `status` says of them."""
    yield Family(PREFIX + "start_time_seconds", "gauge", "When the supervisor started.", (), [((), page.started_at)])
    yield from _of_classes(page)
    for name, (place, text) in _TOTALS.items():
        yield Family(PREFIX + name, "counter", text, (), [((), page.get_global(place))])
    for name, (place, text) in _SLURM_TOTALS.items():
        yield Family(name, "counter", text, (), [((), page.get_global(place))])
    jobs = [((state,), page.get_global(place)) for state, place in _SLURM_JOBS.items()]
    yield Family(PREFIX + "slurm_jobs", "gauge", "Slurm jobs by state.", ("state",), jobs)
    slurm = services.get("slurm", {})
    for name, key, text in (
        ("slurm_calls_total", "calls", "Calls of Slurm's commands."),
        ("slurm_call_errors_total", "errors", "Calls of them that failed."),
    ):
        calls = [((command,), number) for command, number in sorted(slurm.get(key, {}).items())]
        yield Family(PREFIX + name, "counter", text, ("command",), calls)
    restarts = [((name,), service.get("restarts", 0)) for name, service in services.items()]
    yield Family(PREFIX + "service_restarts_total", "counter", "Services that were replaced.", ("service",), restarts)
    up = [((name,), int(service.get("pid") is not None)) for name, service in services.items()]
    yield Family(PREFIX + "service_up", "gauge", "1 for a service that runs.", ("service",), up)
    yield from _of_devices(page)


def _of_classes(page: Page) -> Iterator[Family]:
    classes = list(enumerate(page.classes))
    for name, (gauge, text) in _CLASS_GAUGES.items():
        yield Family(
            PREFIX + name,
            "gauge",
            text,
            ("class",),
            [((klass,), page.gauge(number, gauge)) for number, klass in classes],
        )
    states = [
        ((klass, state), int(page.gauge(number, Gauge.STATE) == place))
        for number, klass in classes
        for place, state in enumerate(_STATES)
    ]
    yield Family(PREFIX + "class_state", "gauge", "1 for the state a class is in.", ("class", "state"), states)
    outcomes = [
        ((klass, outcome), page.counter(number, counter))
        for number, klass in classes
        for outcome, counter in _OUTCOMES.items()
    ]
    yield Family(PREFIX + "tasks_total", "counter", "Tasks by what became of them.", ("class", "outcome"), outcomes)
    causes = [
        ((klass, str(cause)), count)
        for number, klass in classes
        for cause, count in zip(Cause, page.failures(number), strict=False)
    ]
    yield Family(PREFIX + "task_failures_total", "counter", "Failed tasks by cause.", ("class", "cause"), causes)
    reasons = [
        ((klass, reason.name.lower()), count)
        for number, klass in classes
        for reason, count in zip(Reason, page.reasons(number), strict=False)
        if count
    ]
    yield Family(
        PREFIX + "limit_changes_total", "counter", "Changes of a limit by the policy.", ("class", "reason"), reasons
    )
    restarts = [((klass,), page.counter(number, Counter.RESTARTS)) for number, klass in classes]
    yield Family(PREFIX + "worker_restarts_total", "counter", "Workers that died.", ("class",), restarts)
    edges = bounds()
    for name, (which, text) in _HISTOGRAMS.items():
        samples = []
        for number, klass in classes:
            counts, total_s = page.histogram(number, which)
            samples.append(((klass,), (_buckets(counts, edges), total_s)))
        yield Family(PREFIX + name, "histogram", text, ("class",), samples)


def _of_devices(page: Page) -> Iterator[Family]:
    sight, now = read(page), time.monotonic()
    for name, (value, text) in _GPU.items():
        samples = [((gpu.uuid,), gpu[value]) for gpu in sight.gpus if not math.isnan(gpu[value])]
        yield Family(PREFIX + name, "gauge", text, ("gpu",), samples)
    healthy = [((gpu.uuid,), int(gpu.usable)) for gpu in sight.gpus]
    yield Family(PREFIX + "gpu_usable", "gauge", "1 for a GPU that tasks can be given.", ("gpu",), healthy)
    if sight.at:
        age = [((), sight.age_s(now))]
        yield Family(PREFIX + "telemetry_age_seconds", "gauge", "Since GPUs and host were looked at.", (), age)
    if sight.host is None:
        return
    for name, (place, text) in _HOST.items():
        if not math.isnan(sight.host[place]):
            yield Family(PREFIX + name, "gauge", text, (), [((), sight.host[place])])
    stalls = [((kind,), sight.host[place]) for kind, place in _STALLS.items() if not math.isnan(sight.host[place])]
    help_text = "Share of the last 10 s in which some task of the host stalled."
    yield Family(PREFIX + "host_stalled_ratio", "gauge", help_text, ("resource",), stalls)


def _buckets(counts: list[int], edges: list[float]) -> list[tuple[str, float]]:
    """Return cumulative counts by upper bound, seconds, the last of which is infinite."""
    found, total = [], 0
    for place, count in enumerate(counts):
        total += count
        if place < len(edges) and place % _EVERY == _EVERY - 1:
            found.append((f"{edges[place]:.6g}", float(total)))
    return [*found, ("+Inf", float(total))]


def exposition(found: Iterable[Family]) -> bytes:
    """Return metrics in Prometheus' text format."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
    from prometheus_client.registry import Collector

    class One(Collector):
        def collect(self) -> Iterator[Metric]:
            for family in found:
                made: Any
                if family.kind == "histogram":
                    made = HistogramMetricFamily(family.name, family.help, labels=family.labels)
                    for labels, (buckets, total) in family.samples:
                        made.add_metric(labels, buckets, total)
                else:
                    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
                    made = kind(family.name, family.help, labels=family.labels)
                    for labels, number in family.samples:
                        made.add_metric(labels, number)
                yield made

    registry = CollectorRegistry()
    registry.register(One())
    text: bytes = generate_latest(registry)
    return text
