"""The documents build with warnings as errors, and their reference has everything that the program has."""

from __future__ import annotations

import re
import subprocess
import sys

import dspy_supervisor
from dspy_supervisor.cli.manual import entries
from dspy_supervisor.config_class import CLASS_SETTINGS
from dspy_supervisor.config_table import SETTINGS
from dspy_supervisor.services.gateway.openapi import document

from .blocks import ROOT


def test_they_build_without_a_warning_and_the_reference_is_whole(tmp_path):
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-E",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        "-d",
        str(tmp_path / "trees"),
    ]
    done = subprocess.run([*command, "docs", str(tmp_path / "html")], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")

    def titles(name: str) -> set[str]:
        page = (ROOT / "docs/reference" / f"{name}.md").read_text()
        return set(re.findall(r"^##+ (.*)$", page, re.MULTILINE))

    assert {entry.name for entry in entries()} <= titles("cli")
    assert {f"`{name}`" for name in SETTINGS} | {f"`class.CLASS.{name}`" for name in CLASS_SETTINGS} <= titles(
        "settings"
    )
    names = {f"`{name}`" for name in dspy_supervisor.__all__} - {"`__version__`"}
    assert names | {"`Queue.submit`", "`Task.keep`", "`TaskFailed`"} <= titles("python")
    operations = {f"{method.upper()} {path}" for path, all in document()["paths"].items() for method in all}
    assert operations <= {title.replace("\\", "") for title in titles("http")}
    settings = (tmp_path / "html/reference/settings.html").read_text()
    assert "--set max_pending=VALUE" in settings and "\N{EN DASH}set" not in settings, "an option can be copied"
