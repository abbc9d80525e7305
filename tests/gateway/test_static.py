"""The files of the dashboard: what a browser is sent, and where what others wrote comes from."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from pathlib import Path

import pytest
from dspy_supervisor.services import gateway as package

from .conftest import Gateway

STATIC = Path(package.__file__).parent / "static"
AXE = Path(__file__).with_name("axe")


@pytest.mark.parametrize("folder", [STATIC / "uplot", AXE], ids=["uplot", "axe"])
def test_vendored_files_are_those_that_were_published(folder: Path):
    origin = json.loads((folder / "origin.json").read_text())
    assert {path.name for path in folder.iterdir()} == {"origin.json", *origin["sha256"]}
    for name, expected in origin["sha256"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == expected, name
    assert "LICENSE" in origin["sha256"]
    script = next(folder.glob("*.min.js")).read_text()
    assert f"v{origin['version']}" in script[:200]


def test_each_script_and_style_of_the_page_is_there_and_none_is_elsewhere():
    page = (STATIC / "index.html").read_text()
    named = re.findall(r'(?:src|href)="([^"#]+)"', page)
    assert {name for name in named if not name.startswith("v1/")} and not re.search("https?:", page)
    for name in named:
        assert name.startswith("v1/") or (STATIC.parent / name).is_file(), name
    for script in STATIC.glob("js/*.js"):
        for name in re.findall(r'from "\./([^"]+)"', script.read_text()):
            assert (script.parent / name).is_file(), (script.name, name)
    assert not re.search(r"<style|<script>|\sstyle=|\son[a-z]+=", page), (
        "the policy refuses what is written into the page"
    )


def test_a_page_may_load_nothing_from_elsewhere_and_run_nothing_that_is_written_into_it(shared: Gateway):
    policy = shared.get("/").headers["content-security-policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules.pop("default-src") == "'none'"
    assert rules.pop("require-trusted-types-for") == "'script'"
    assert {rules.pop(f"{kind}-src") for kind in ("script", "style", "connect", "img")} == {"'self'"}
    assert set(rules.values()) == {"'none'"}


def test_a_browser_that_has_a_file_is_told_so(shared: Gateway):
    first = shared.get("/static/js/main.js")
    assert first.headers["content-type"].startswith("text/javascript")
    assert first.headers["cache-control"] == "no-cache"
    again = shared.get("/static/js/main.js", If_None_Match=first.headers["etag"])
    assert (again.status, again.body) == (304, b"")
    packed = shared.get("/static/js/main.js", Accept_Encoding="gzip, br")
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == first.body == (STATIC / "js" / "main.js").read_bytes()


@pytest.mark.parametrize(
    "path",
    [
        *("../service.py", "%2e%2e/service.py", "..%2f..%2fservice.py", "js/../../service.py", "/etc/passwd"),
        *("js", "uplot/origin.json", "js/main.js/", "", "%00"),
    ],
)
def test_nothing_else_comes_from_the_disk(shared: Gateway, path: str):
    assert shared.get(f"/static/{path}").status == 404


def test_the_page_itself_needs_no_token(locked: Gateway):
    assert locked.get("/").status == locked.get("/static/js/main.js").status == 200
