"""The history of a queue: minutes that add up, are kept for a time, and survive whatever lies beside them."""

import json
import re
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from dspy_fastpath.counters import Counter, Gauge, Global, GpuValue, Histogram, Page
from dspy_supervisor import history, recorder
from dspy_supervisor.cli import root
from dspy_supervisor.layout import Layout
from dspy_supervisor.limit_terms import Reason
from dspy_supervisor.recorder import Recorder
from dspy_supervisor.times import EDGES, NONE, Times, bucket_of, latency

NOON = 1_700_000_000.0 // 86400 * 86400 + 43200


@pytest.fixture
def page(tmp_path):
    with Page.create(tmp_path / "page", "q", ("cpu_short", "gpu"), 4) as made:
        yield made


@pytest.fixture
def layout(tmp_path):
    with Layout.open(tmp_path / "queue", create=True) as made:
        yield made


def work(page, klass, done=0, failed=0, run_s=0.1):
    page.add(klass, Counter.DONE, done)
    page.add(klass, Counter.FAILED, failed)
    for _ in range(done + failed):
        page.observe(klass, Histogram.RUN, run_s)


def test_minutes_add_up_and_quantiles_are_of_all_of_them(page, layout):
    scribe = Recorder(page, "main")
    for minute, (done, run_s) in enumerate([(90, 0.1), (5, 1.0), (5, 10.0)]):
        work(page, 1, done=done, failed=minute, run_s=run_s)
        scribe.write(layout, NOON + 60 * minute)
    each = history.rows(layout.path, 0.0)
    assert [row["at"] for row in each] == [NOON, NOON + 60, NOON + 120]
    assert [row["classes"]["gpu"]["done"] for row in each] == [90, 5, 5]
    assert each[2]["classes"]["gpu"]["run_p50_s"] == pytest.approx(10.0, rel=0.3)
    whole = history.summary(layout.path, 0.0)
    assert whole["classes"]["gpu"]["done"] == 100 and whole["classes"]["gpu"]["failed"] == 3
    assert whole["classes"]["gpu"]["run_p50_s"] == pytest.approx(0.1, rel=0.3)
    assert whole["classes"]["gpu"]["run_p99_s"] == pytest.approx(10.0, rel=0.3)
    assert whole["classes"]["gpu"]["run_mean_s"] == pytest.approx((90 * 0.1 + 6 + 70) / 103, rel=1e-3)
    assert whole["classes"]["cpu_short"]["wait_p50_s"] is None
    assert history.summary(layout.path, NOON + 300) is None


def test_steps_take_minutes_together(page, layout):
    scribe = Recorder(page, "main")
    for minute in range(10):
        work(page, 0, done=1)
        page.set(0, Gauge.PENDING, minute)
        scribe.write(layout, NOON + 60 * minute)
    steps = history.rows(layout.path, NOON, step_s=300.0)
    assert sum(row["classes"]["cpu_short"]["done"] for row in steps) == 9  # since is not among them
    assert len(steps) == 2 and 5 <= steps[1]["classes"]["cpu_short"]["pending"] <= 9  # the mean of its own five minutes


def test_supervisors_of_one_queue_are_added_up(page, layout):
    both = [Recorder(page, "one"), Recorder(page, "two")]
    work(page, 0, done=3)
    page.set(0, Gauge.LIMIT, 4)
    page.set(0, Gauge.PENDING, 7)
    for scribe in both:
        scribe.write(layout, NOON)
    [row] = history.rows(layout.path, 0.0)
    assert row["classes"]["cpu_short"]["done"] == 6
    assert (row["classes"]["cpu_short"]["limit"], row["classes"]["cpu_short"]["pending"]) == (8, 7)


def test_a_line_tells_of_limits_reasons_and_gpus(page):
    page.set(1, Gauge.LIMIT_REASON, Reason.VRAM)
    page.gpu_write(0, b"GPU-a", {GpuValue.UTILIZATION: 0.5}, time.monotonic())
    line = Recorder(page, "main").minute(NOON)
    assert line["classes"]["gpu"] == {"reason": "vram"}
    assert line["gpus"] == {"GPU-a": {"utilization": 0.5}}
    assert line["host"]["cpus"] >= 1 and line["host"]["memory_limit"] > 0


def test_what_runs_is_averaged_over_the_minute(page):
    scribe = Recorder(page, "main")
    start = time.monotonic()
    scribe.look(start)
    page.set(0, Gauge.INFLIGHT, 4)
    scribe._began = start - 10.0
    scribe._integrated = start - 5.0  # idle for five seconds, four tasks for five
    inflight = scribe.minute(NOON)["classes"]["cpu_short"]["inflight"]
    assert inflight == pytest.approx(2.0, rel=0.2)


def test_the_error_rate_is_that_of_the_last_minute(page):
    scribe = Recorder(page, "main")
    start = time.monotonic()
    work(page, 0, done=1, failed=3)
    scribe.look(start + 6)
    assert page.get_global(Global.ERROR_PPM) == 750_000
    work(page, 0, done=16)
    scribe.look(start + 30)
    assert page.get_global(Global.ERROR_PPM) == 150_000
    for later in range(40, 200, 6):
        scribe.look(start + later)
    assert page.get_global(Global.ERROR_PPM) == 0


def test_old_days_go_and_so_does_what_is_too_much(page, layout, monkeypatch):
    monkeypatch.setattr(recorder, "MAX_FILE_BYTES", 2000)
    monkeypatch.setattr(recorder, "MAX_BYTES", 10_000)
    folder = layout.path / "history"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    scribe = Recorder(page, "main")
    for minute in range(0, 20 * 1440, 60):
        scribe.write(layout, NOON + 60.0 * minute)
    there = history.files(folder)
    assert sum(size for _, _, size in there) <= 10_000 + 2000
    assert there[0][0] > NOON + 5 * 86400
    assert (folder / "notes.txt").exists()
    rows = history.rows(layout.path, NOON + 19 * 86400)
    assert rows and rows[-1]["at"] == NOON + 60.0 * (20 * 1440 - 60)


def test_what_is_damaged_is_passed_over(page, layout):
    scribe = Recorder(page, "main")
    work(page, 0, done=2)
    scribe.write(layout, NOON)
    [(_, name, _)] = history.files(layout.path / "history")
    with (layout.path / "history" / name).open("ab") as file:
        file.write(b'{"at": 1, "s"\n[]\nnull\n{"at": "x", "s": 1, "classes": {}}\n')
        file.write(json.dumps({"at": NOON + 1, "s": 1, "classes": {"gpu": {"run": [1, 999, 3]}}}).encode() + b"\n")
        file.write(
            json.dumps({"at": NOON + 2, "s": 1, "classes": {"gpu": {"run": "?", "done": [1]}, "x": 3}}).encode()
            + b'\n{"at": 17'
        )
    assert [row["classes"].get("cpu_short", {}).get("done") for row in history.rows(layout.path, 0.0)] == [2, None]


def test_a_disk_that_is_full_is_said_once_and_stops_nothing(page, layout, capsys):
    (layout.path / "history").write_text("a file in its place")
    scribe = Recorder(page, "main")
    scribe.write(layout, NOON)
    scribe.write(layout, NOON + 60)
    assert history.rows(layout.path, 0.0) == []
    (layout.path / "history").unlink()
    scribe.write(layout, NOON + 120)
    assert [row["at"] for row in history.rows(layout.path, 0.0)] == [NOON + 120]


def test_no_history_is_no_rows(tmp_path: Path):
    assert history.rows(tmp_path, 0.0) == [] and history.summary(tmp_path, 0.0) is None


@pytest.fixture
def shown(layout):
    def run(*options):
        arguments = ["status", "--queue-dir", str(layout.path), *options]
        result = CliRunner().invoke(root, arguments, catch_exceptions=False, standalone_mode=False)
        return result.return_value, result.output

    return run


def test_status_since_tells_of_the_last_hours(page, layout, shown):
    scribe, now = Recorder(page, "main"), time.time()
    for minute in range(30):
        work(page, 1, done=2, run_s=0.1)
        scribe.write(layout, now - 60 * (29 - minute) - 1)
    code, text = shown("--since", "1h")
    assert code == 0
    assert re.search(r"^gpu +60 +0 +0 ", text, re.MULTILINE) and "cpu_short" not in text
    _, text = shown("--since", "10m", "--json")
    document = json.loads(text)
    assert document["schema_version"] == 1 and document["step_s"] == 60.0
    assert document["summary"]["classes"]["gpu"]["done"] == 20
    assert [row["classes"]["gpu"]["done"] for row in document["rows"]] == [2] * 10


def test_status_since_says_where_there_is_no_history(shown):
    assert "a supervisor writes it once a minute" in shown("--since", "2d")[1]
    assert json.loads(shown("--since", "2d", "--json")[1])["summary"] is None
    with pytest.raises(click.BadParameter, match="no length of time such as"):
        shown("--since", "a while")


@pytest.mark.parametrize("seconds", [2e-6, 0.0031, 0.5, 42.0, 3600.0])
def test_a_quantile_lies_in_the_bucket_of_what_was_seen(page, seconds):
    for _ in range(100):
        page.observe(0, Histogram.WAIT, seconds)
    seen = Times.of(page, 0, Histogram.WAIT)
    for share in (0.01, 0.5, 0.99):
        assert bucket_of(seen.quantile(share)) == bucket_of(seconds)
    assert seen.mean_s == pytest.approx(seconds)
    assert latency(page)["cpu_short"]["wait_p50_s"] == pytest.approx(seconds, rel=0.45)
    assert latency(page)["gpu"]["wait_p99_s"] is None
    assert seen.since(seen) == NONE and len(EDGES) == 82
