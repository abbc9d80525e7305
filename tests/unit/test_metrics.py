"""Metrics: names and labels as Prometheus has them, values from the page, and nothing of what is not known."""

import math

import pytest
from dspy_fastpath.counters import Counter, Gauge, Global, GpuValue, Histogram, HostValue, Page
from dspy_supervisor.limit_terms import Reason
from dspy_supervisor.metrics import exposition, families
from dspy_supervisor.task import Cause
from prometheus_client.parser import text_string_to_metric_families


@pytest.fixture
def page(tmp_path):
    with Page.create(tmp_path / "page", "q", ("cpu_short", "gpu"), 4) as made:
        yield made


def scraped(page, services=None):
    text = exposition(families(page, services or {})).decode()
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_tasks_are_counted_by_class_outcome_and_cause(page):
    page.add(0, Counter.DONE, 3)
    page.add(1, Counter.FAILED)
    page.fail(1, list(Cause).index(Cause.TIMEOUT))
    page.set(0, Gauge.PENDING, 7)
    page.set(1, Gauge.STATE, 2)
    found = scraped(page)
    assert found["dspy_supervisor_tasks_total", ("class", "cpu_short"), ("outcome", "done")] == 3
    assert found["dspy_supervisor_tasks_total", ("class", "gpu"), ("outcome", "failed")] == 1
    assert found["dspy_supervisor_task_failures_total", ("cause", "timeout"), ("class", "gpu")] == 1
    assert found["dspy_supervisor_tasks_pending", ("class", "cpu_short")] == 7
    assert found["dspy_supervisor_class_state", ("class", "gpu"), ("state", "failed")] == 1
    assert found["dspy_supervisor_class_state", ("class", "gpu"), ("state", "running")] == 0


def test_a_histogram_is_cumulative_and_ends_with_all(page):
    for seconds in (0.0001, 0.01, 0.01, 5.0):
        page.observe(0, Histogram.WAIT, seconds)
    found = scraped(page)
    name = "dspy_supervisor_task_wait_seconds"
    buckets = {
        float(dict(labels)["le"]): value
        for (sample, *labels), value in found.items()
        if sample == f"{name}_bucket" and ("class", "cpu_short") in labels
    }
    assert [buckets[edge] for edge in sorted(buckets)] == sorted(buckets.values())
    assert buckets[math.inf] == found[f"{name}_count", ("class", "cpu_short")] == 4
    assert next(value for edge, value in sorted(buckets.items()) if edge >= 0.1) == 3
    assert found[f"{name}_sum", ("class", "cpu_short")] == pytest.approx(5.0201, rel=1e-6)


def test_what_a_gpu_does_not_tell_has_no_sample(page):
    page.gpu_write(0, b"GPU-a", {GpuValue.MEMORY_FREE: 5.0, GpuValue.POWER_W: math.nan}, 1.0)
    page.host_write({HostValue.CPUS: 2.0, HostValue.PSI_IO: 0.25}, 1.0)
    found = scraped(page)
    assert found["dspy_supervisor_gpu_memory_free_bytes", ("gpu", "GPU-a")] == 5
    assert ("dspy_supervisor_gpu_power_watts", ("gpu", "GPU-a")) not in found
    assert found[("dspy_supervisor_host_cpus",)] == 2
    assert found["dspy_supervisor_host_stalled_ratio", ("resource", "io")] == 0.25
    assert ("dspy_supervisor_host_stalled_ratio", ("resource", "cpu")) not in found


def test_slurm_services_and_reasons_have_their_names(page):
    page.add_global(Global.SLURM_SUBMITTED, 5)
    page.set_global(Global.SLURM_RUNNING, 2)
    page.count_reason(1, Reason.VRAM)
    services = {"slurm": {"pid": 7, "restarts": 1, "calls": {"sbatch": 4}, "errors": {"sacct": 2}}}
    found = scraped(page, services)
    assert found[("slurm_jobs_submitted_total",)] == 5
    assert found["dspy_supervisor_slurm_jobs", ("state", "running")] == 2
    assert found["dspy_supervisor_slurm_calls_total", ("command", "sbatch")] == 4
    assert found["dspy_supervisor_slurm_call_errors_total", ("command", "sacct")] == 2
    assert found["dspy_supervisor_service_up", ("service", "slurm")] == 1
    assert found["dspy_supervisor_limit_changes_total", ("class", "gpu"), ("reason", "vram")] == 1


def test_every_metric_says_what_it_is_in_base_units(page):
    for family in families(page, {}):
        assert family.help.endswith(".") and family.kind in ("gauge", "counter", "histogram")
        assert family.name.endswith("_total") == (family.kind == "counter"), family.name
        assert not family.name.endswith(("_ms", "_mb", "_percent")), family.name
