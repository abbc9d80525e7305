"""Metrics: names and labels as Prometheus has them, values from the page, and nothing of what is not known."""

import gzip
import math
import re
import time

import pytest
from dspy_fastpath.counters import Counter, Gauge, Global, GpuValue, Histogram, HostValue, Page, SlotState
from dspy_supervisor.limit_terms import Reason
from dspy_supervisor.metrics import METRICS, Exposition, View
from dspy_supervisor.task import Cause
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families

#: few values each; never a task, a worker or a process
LABELS = {"class", "outcome", "cause", "reason", "state", "command", "service", "status", "gpu", "resource", "version"}
LABELS |= {"budget", "part", "name"}
OLDER = {
    *("env_queue_depth", "gpu_wait_seconds", "env_error_rate", "queue_depth", "orchestrator_concurrency_limit"),
    *("orchestrator_inflight_tasks", "queue_tasks_submitted_total", "queue_tasks_processed_total"),
    *("queue_tasks_completed_total", "orchestrator_task_errors_total", "slurm_jobs_submitted_total"),
    *("slurm_jobs_completed_total", "slurm_jobs_failed_total", "slurm_reconcile_errors_total"),
    *("slurm_monitor_errors_total", "events_published_total"),
}


@pytest.fixture
def page(tmp_path):
    with Page.create(tmp_path / "page", "q", ("cpu_short", "gpu"), 4) as made:
        yield made


def scraped(page, services=None):
    text = Exposition().text(View(page, {"services": services or {}})).body.decode()
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


def test_every_metric_says_what_it_is_in_base_units():
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.help.endswith(".") and metric.kind in ("gauge", "counter", "histogram")
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert not metric.name.endswith(("_ms", "_mb", "_percent")), metric.name
        assert set(metric.labels) <= LABELS, metric.name


def test_the_older_names_are_there_from_the_first_scrape_on(page):
    found = {name[0] for name in scraped(page)}
    assert found.issuperset(OLDER), OLDER - found


def test_the_depth_is_what_waits_and_the_older_counters_count_each_task_once(page):
    page.set_global(Global.TOTAL_PENDING, 7)
    page.add(0, Counter.SUBMITTED, 12)
    page.add(0, Counter.DONE, 3)
    page.add(1, Counter.FAILED, 2)
    page.fail(1, list(Cause).index(Cause.OUT_OF_MEMORY))
    page.set_global(Global.ERROR_PPM, 400_000)
    found = scraped(page)
    assert found[("env_queue_depth",)] == found[("queue_depth",)] == 7
    assert found[("queue_tasks_submitted_total",)] == 12
    assert found[("queue_tasks_processed_total",)] == 5
    assert found[("queue_tasks_completed_total",)] == 3
    assert found[("env_error_rate",)] == 0.4
    assert found["orchestrator_task_errors_total", ("cause", "out_of_memory")] == 1


def test_the_oldest_task_has_an_age(page):
    page.set(1, Gauge.OLDEST, int((time.time() - 90) * 1e9))
    found = scraped(page)
    assert 90 <= found["dspy_supervisor_oldest_task_age_seconds", ("class", "gpu")] < 120
    assert found["dspy_supervisor_oldest_task_age_seconds", ("class", "cpu_short")] == 0
    assert 90 <= found[("gpu_wait_seconds",)] < 120


def test_a_scrape_comes_as_openmetrics_and_compressed_where_that_is_asked_for(page):
    exposition, view = Exposition(), View(page, {})
    plain = exposition.text(view)
    assert plain.content_type.startswith("text/plain") and plain.encoding is None
    modern = exposition.text(view, "application/openmetrics-text; version=1.0.0", "br, gzip;q=0.5")
    assert modern.content_type.startswith("application/openmetrics-text") and modern.encoding == "gzip"
    text = gzip.decompress(modern.body).decode()
    assert text.endswith("# EOF\n")
    names = {family.name for family in openmetrics(text)}
    assert names == {metric.name.removesuffix("_total") for metric in METRICS}
    for header in ("", "identity", "gzip;q=0", "br"):
        assert exposition.text(view, accept_encoding=header).encoding is None


def test_the_text_is_what_prometheus_client_would_write(page):
    for klass, seconds in [(0, 0.002), (0, 5e6), (1, 1e9)]:
        page.observe(klass, Histogram.RUN, seconds)
    page.add(0, Counter.DONE, 12_345_678)
    page.gpu_write(0, b'GPU-"\\\n', {GpuValue.MEMORY_FREE: 2.5e10, GpuValue.POWER_W: -1e-9}, 1.0)
    exposition = Exposition()
    for accept in ("", "application/openmetrics-text; version=1.0.0"):
        answer = exposition.text(View(page, {"classes": {"gpu": {"held": 3}}}), accept)
        encode, content_type = choose_encoder(accept)
        ages = r"(?m)^(\w+_age_seconds(?:\{[^}]*\})?) .*$"
        assert re.sub(ages, r"\1", answer.body.decode()) == re.sub(ages, r"\1", encode(exposition.registry).decode())
        assert answer.content_type == content_type


def test_nothing_of_a_worker_stays_after_it(page):
    before = set(scraped(page))
    for number in range(10_000):
        slot = number % 4
        page.slot_set(slot, 1000 + number, number, number % 2, SlotState.BUSY)
        page.slot_set(slot, 0, 0, 0, SlotState.EMPTY)
        page.add(number % 2, Counter.RESTARTS)
        page.fail(number % 2, number % len(Cause))
    assert set(scraped(page)) == before


def test_what_is_counted_of_embedding_is_told_where_its_process_runs(page):
    assert not any("embed" in name for name, *_ in scraped(page))
    counts = {"texts": 7, "round_trip_p50_s": None, "endpoints": [{"breaker": "open"}, {"breaker": "closed"}]}
    found = scraped(page, {"embed": {"pid": 1, "counts": counts}})
    assert found["dspy_supervisor_embed_texts_total",] == 7
    assert found["dspy_supervisor_embed_servers", ("state", "open")] == 1
    assert found["dspy_supervisor_embed_servers", ("state", "half_open")] == 0
    assert ("dspy_supervisor_embed_round_trip_p50_seconds",) not in found
