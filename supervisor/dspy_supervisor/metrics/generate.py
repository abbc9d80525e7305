"""Writes what is made from the table: ``python -m dspy_supervisor.metrics.generate [FOLDER]``.

FOLDER is the repository, or any other; below it: ``deploy/grafana/dashboard.json`` to import into Grafana,
``deploy/prometheus/``: rules.yml, their unit tests, and an example of prometheus.yml; ``docs/metrics.md``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .alerts import ALERTS, Alert
from .dashboard import dashboard
from .table import GROUPS, RUNNER

_WARNING = "made by 'python -m dspy_supervisor.metrics.generate' from the table of metrics: change it there"
_EVALUATED = "32m"  # a moment at which every alert of the tests has lasted long enough


def documents() -> dict[str, str]:
    """Return every file, by its place below the folder."""
    return {
        "deploy/grafana/dashboard.json": json.dumps(dashboard(), indent=1) + "\n",
        "deploy/prometheus/rules.yml": rules(),
        "deploy/prometheus/rules_test.yml": rules_test(),
        "deploy/prometheus/prometheus.yml": scrape_example(),
        "docs/metrics.md": markdown(),
    }


def rules() -> str:
    """Return the alert rules."""
    lines = [f"# {_WARNING}", "groups:", "  - name: dspy-supervisor", "    rules:"]
    for alert in ALERTS:
        lines += [
            f"      - alert: {alert.name}",
            f"        expr: {json.dumps(alert.expr)}",
            f"        for: {alert.lasts}",
            f"        labels: {{severity: {alert.severity}}}",
            "        annotations:",
            f"          summary: {json.dumps(_template(alert.summary))}",
            f"          description: {json.dumps(alert.remedy)}",
        ]
    return "\n".join(lines) + "\n"


def rules_test() -> str:
    """Return the unit tests of the rules: of two instances the one that is sick raises its alert, and no other does."""
    tests = [_rule_test(alert) for alert in ALERTS]
    document = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": tests}
    return f"# {_WARNING}\n" + json.dumps(document, indent=1) + "\n"  # JSON is YAML


def scrape_example() -> str:
    """Return a configuration of Prometheus that scrapes a supervisor of this host."""
    return (
        f"# {_WARNING}\n"
        "global:\n  scrape_interval: 15s\n"
        "rule_files: [rules.yml]\n"
        "scrape_configs:\n"
        "  - job_name: dspy-supervisor\n"
        "    static_configs:\n"
        '      - targets: ["127.0.0.1:9097"]\n'
        "    # where reading needs the token:\n"
        "    # authorization: {credentials_file: /etc/dspy-supervisor/http_token}\n"
    )


def markdown() -> str:
    """Return docs/metrics.md."""
    return "\n".join(_markdown()) + "\n"


def _markdown() -> Iterator[str]:
    yield from (
        f"<!-- {_WARNING} -->",
        "# Metrics",
        "",
        "`GET /metrics` of the gateway, or `dspy-supervisor metrics` without one. Base units; counters count since the",
        "supervisor's start; what is not known has no sample. Labels have few values, and none is a task or a worker.",
        "`deploy/prometheus/` has alert rules with their tests and an example of a scrape, `deploy/grafana/` a dashboard.",
    )
    for group, metrics in GROUPS.items():
        yield from ("", f"## {group}", "", "| name | kind | labels | |", "|---|---|---|---|")
        for metric in metrics:
            yield f"| `{metric.name}` | {metric.kind} | {', '.join(metric.labels)} | {metric.help} |"
    yield from ("", "## At the port of the older environment runner", "", "| name | kind | |", "|---|---|---|")
    for name, kind, text, _, _ in RUNNER:
        yield f"| `{name}` | {kind} | {text} |"
    yield from ("", "## Alerts", "", "| alert | severity | after | when | what to do |", "|---|---|---|---|---|")
    for alert in ALERTS:
        when = f"`{alert.expr}`".replace("|", "\\|")
        yield f"| {alert.name} | {alert.severity} | {alert.lasts} | {when} | {alert.remedy} |"


def _template(summary: str) -> str:
    """Return a summary as Prometheus' template: labels are {{ $labels.NAME }}."""
    return summary.replace("{", "{{ $labels.").replace("}", " }}")


def _rule_test(alert: Alert) -> dict[str, Any]:
    labels = {**alert.labels, "instance": "sick"}
    expected = {
        "exp_labels": {**labels, "severity": alert.severity},
        "exp_annotations": {"summary": alert.summary.format(**labels), "description": alert.remedy},
    }
    series = [*_series(alert.sick, "sick"), *_series(alert.well, "well")]
    return {
        "name": alert.name,
        "interval": "1m",
        "input_series": series,
        "alert_rule_test": [
            {
                "eval_time": _EVALUATED if alert.lasts != "0m" else "15m",
                "alertname": alert.name,
                "exp_alerts": [expected],
            }
        ],
    }


def _series(values: Mapping[str, str], instance: str) -> Iterator[dict[str, str]]:
    for name, sequence in values.items():
        metric, _, labels = name.partition("{")
        inside = f'instance="{instance}"' + (f",{labels.removesuffix('}')}" if labels else "")
        yield {"series": f"{metric}{{{inside}}}", "values": sequence}


def main(arguments: list[str]) -> int:
    """Write everything; print what changed."""
    folder = Path(arguments[0] if arguments else ".")
    for place, text in documents().items():
        path = folder / place
        if path.exists() and path.read_text() == text:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
