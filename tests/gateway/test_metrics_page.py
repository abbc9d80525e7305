"""The page of metrics over HTTP."""

import gzip
import time

from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import until


def samples(text):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_over_http_add_up_to_the_folders(shared):
    before = samples(shared.get("/metrics").text)
    for number in range(5):
        assert shared.ask("POST", "/queue/submit", {"id": f"scraped{number}", "payload": number}).status == 200
    for number in range(5):
        until((shared.queue / "done" / f"scraped{number}.json").exists, "it is done")
    names = [("queue_tasks_submitted_total",), ("queue_tasks_completed_total",), ("queue_tasks_processed_total",)]

    def grown():
        now = samples(shared.get("/metrics").text)
        return [now[name] - before[name] for name in names] == [5, 5, 5] and now[("env_queue_depth",)] == 0

    until(grown, "all are counted")
    now = samples(shared.get("/metrics").text)
    assert now["dspy_supervisor_tasks_total", ("class", "cpu_short"), ("outcome", "done")] == len(
        list((shared.queue / "done").glob("*.json"))
    )
    assert now["dspy_supervisor_service_up", ("service", "gateway")] == 1
    assert now[("dspy_supervisor_host_cpus",)] >= 1
    assert now[("dspy_supervisor_start_time_seconds",)] <= time.time()
    until(
        lambda: ("dspy_supervisor_http_requests_total", ("status", "200")) in samples(shared.get("/metrics").text),
        "requests are counted",
    )


def test_a_scraper_gets_openmetrics_and_gzip_where_it_asks_for_them(shared):
    accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2"
    answer = shared.get("/metrics", Accept=accept, Accept_Encoding="gzip")
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.headers["content-encoding"] == "gzip"
    assert "dspy_supervisor_task_total_seconds" in {
        one.name for one in openmetrics(gzip.decompress(answer.body).decode())
    }
    plain = shared.ask("POST", "/metrics")
    assert plain.headers["content-type"].startswith("text/plain") and b"# EOF" not in plain.body
