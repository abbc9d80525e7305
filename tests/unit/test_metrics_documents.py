"""What is made from the table of metrics: it is up to date, and names nothing that the table has not."""

import json
import re
from pathlib import Path

import pytest
from dspy_supervisor.metrics import METRICS
from dspy_supervisor.metrics.alerts import ALERTS
from dspy_supervisor.metrics.dashboard import dashboard
from dspy_supervisor.metrics.generate import documents, main

ROOT = Path(__file__).parents[2]
NAMES = {metric.name for metric in METRICS} | {"up"}
NAMES |= {f"{metric.name}_bucket" for metric in METRICS if metric.kind == "histogram"}


def named(expression):
    """Return the metrics of an expression: words that are followed by neither a parenthesis nor an operator's labels."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(by|on) \([^)]*\)", "", expression)
    return set(re.findall(r"\b([a-z_][a-z0-9_]*)\b(?! *\()", bare)) - {"and", "by", "on", "sum"}


@pytest.mark.parametrize("place", documents())
def test_files_are_as_the_table_makes_them(place):
    there = (ROOT / place).read_text()
    assert there == documents()[place], "run python -m dspy_supervisor.metrics.generate"


def test_they_are_written_where_they_are_missing_or_old(tmp_path, capsys):
    assert main([str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(documents())
    (tmp_path / "docs/metrics.md").write_text("old")
    main([str(tmp_path)])
    assert capsys.readouterr().out == f"wrote {tmp_path}/docs/metrics.md\n"
    assert json.loads((tmp_path / "deploy/grafana/dashboard.json").read_text())["uid"] == "dspy-supervisor"


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_alerts_name_metrics_of_the_table(alert):
    assert named(alert.expr) and named(alert.expr) <= NAMES
    assert {name.partition("{")[0] for name in [*alert.sick, *alert.well]} <= NAMES
    assert alert.sick.keys() == alert.well.keys()


def test_the_dashboard_shows_every_metric_but_the_older_names_and_overlaps_nowhere():
    panels = [panel for panel in dashboard()["panels"] if panel["type"] != "row"]
    shown = {name for panel in panels for target in panel["targets"] for name in named(target["expr"])}
    shown = {name.removesuffix("_bucket") for name in shown if name.startswith("dspy_supervisor_")}
    assert shown == {metric.name for metric in METRICS if metric.name.startswith("dspy_supervisor_")}
    taken = set()
    for panel in dashboard()["panels"]:
        grid = panel["gridPos"]
        cells = {(grid["x"] + x, grid["y"] + y) for x in range(grid["w"]) for y in range(grid["h"])}
        assert not cells & taken and max(x for x, _ in cells) < 24
        taken |= cells
