"""Prometheus itself: its tools find no fault, and a real one scrapes a supervisor and raises an alert."""

import json
import os
import re
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from tests.conftest import until

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus/rules.yml"
pytestmark = pytest.mark.xdist_group("prometheus")


@pytest.fixture(autouse=True)
def installed():
    if not (shutil.which("promtool") and shutil.which("prometheus")):
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("prometheus is not installed")


def promtool(*arguments, text=None):
    ran = subprocess.run(["promtool", *arguments], input=text, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


def test_the_rules_hold_their_own_tests():
    promtool("check", "rules", str(RULES))
    promtool("check", "config", str(RULES.with_name("prometheus.yml")))
    assert "SUCCESS" in promtool("test", "rules", str(RULES.with_name("rules_test.yml")))


def test_a_rule_that_is_wrong_fails_its_test(tmp_path):
    (tmp_path / "rules.yml").write_text(RULES.read_text().replace("error_ratio > 0.2", "error_ratio > 0.6"))
    shutil.copy(RULES.with_name("rules_test.yml"), tmp_path)
    ran = subprocess.run(
        ["promtool", "test", "rules", str(tmp_path / "rules_test.yml")], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode and "DspyTasksFail" in ran.stdout + ran.stderr


def test_promtool_finds_no_fault_with_the_page(shared):
    assert promtool("check", "metrics", text=shared.get("/metrics").text) == ""


class Prometheus:
    """A server of our own."""

    def __init__(self, folder, target):
        folder.mkdir()
        # When an alert's condition must have lasted is for promtool to test.
        (folder / "rules.yml").write_text(re.sub(r"for: \w+", "for: 0s", RULES.read_text()))
        (folder / "prometheus.yml").write_text(
            "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
            "rule_files: [rules.yml]\n"
            "scrape_configs:\n"
            f"  - job_name: dspy-supervisor\n    static_configs: [{{targets: ['{target}']}}]\n"
        )
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.log = (folder / "log").open("wb")
        self.process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address={self.address}",
            ],
            stdout=self.log,
            stderr=self.log,
        )

    def get(self, path):
        try:
            with urllib.request.urlopen(f"http://{self.address}/api/v1/{path}", timeout=30) as answer:
                return json.load(answer)["data"]
        except OSError:
            return None  # it is about to listen

    def query(self, expression):
        found = self.get(f"query?query={urllib.parse.quote(expression)}")
        return {json.dumps(one["metric"]): float(one["value"][1]) for one in found["result"]} if found else {}

    def close(self):
        self.process.kill()
        self.process.wait(30)
        self.log.close()


def test_a_real_prometheus_scrapes_a_supervisor_and_raises_an_alert(gateway, tmp_path):
    one = gateway(handlers={"cpu_short": "echo"})
    server = Prometheus(tmp_path / "prometheus", f"{one.host}:{one.port}")
    try:
        up = until(lambda: server.query('up{job="dspy-supervisor"} == 1'), "it scrapes", 60)
        assert len(up) == 1
        for number in range(10):
            one.ask("POST", "/queue/submit", {"id": f"t{number}", "payload": number})
        done = 'sum(dspy_supervisor_tasks_total{outcome="done"})'
        until(lambda: list(server.query(done).values()) == [10.0], "all are counted", 60)
        assert len(list((one.queue / "done").glob("*.json"))) == 10
        one.ask("POST", "/queue/submit", {"id": "held", "class": "gpu"})  # nothing here runs that

        def firing():
            alerts = (server.get("alerts") or {"alerts": []})["alerts"]
            return {alert["labels"]["alertname"]: alert for alert in alerts if alert["state"] == "firing"}

        alert = until(lambda: firing().get("DspyTasksHeld"), "the alert is raised", 60)
        assert alert["labels"]["class"] == "gpu" and alert["labels"]["severity"] == "warning"
        assert alert["annotations"]["summary"].startswith("Tasks of class gpu wait at 127.0.0.1:")
        assert not {"DspySupervisorDown", "DspyTasksFail", "DspyGivenUp", "DspyServiceDown"} & firing().keys()
        one.ask("POST", "/v1/tasks/held/cancel")
        until(lambda: "DspyTasksHeld" not in firing(), "it is over", 60)
    finally:
        server.close()
