"""The documents name tests, rigs and benches as proof of what they say: each is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGE = ROOT / "docs" / "what-happens-when.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the documents are not here")


def test_whatever_a_page_names_as_proof_is_there():
    missing = []
    for page in (page for page in PAGES if page.is_file()):
        text = page.read_text()
        for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text):
            if not re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE):
                missing.append(f"{page.name}: {path}::{name}")
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        missing += [f"{page.name}: make {name}" for name in re.findall(r"`make ([\w-]+)`", text) if name not in targets]
        for module in re.findall(r"python -m ((?:bench|tests)\.[\w.]+)", text):
            if (
                not (ROOT / (module.replace(".", "/") + ".py")).is_file()
                and not (ROOT / module.replace(".", "/")).is_dir()
            ):
                missing.append(f"{page.name}: python -m {module}")
    assert not missing


def test_each_row_of_what_happens_names_its_proof():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and "---" not in line]
    rows = [row for row in rows if not row.startswith("| when |")]
    assert len(rows) > 50
    assert [row for row in rows if not re.search(r"`(tests/[\w/]+\.py::\w+|make \w+)`", row.split("|")[3])] == []
