"""What is said of the version, in all places that say it, and the notes of a release."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RELEASE = ROOT / "deploy" / "packages" / "release.py"
pytestmark = pytest.mark.skipif(not (ROOT / "CITATION.cff").exists(), reason="the repository is not here")


def notes(version):
    return subprocess.run([sys.executable, RELEASE, "--notes", version], capture_output=True, text=True, timeout=60)


def test_every_place_says_the_same_version():
    places = {
        "pyproject.toml": r'(?m)^version = "(.+)"',
        "CITATION.cff": r"(?m)^version: (.+)",
        "supervisor/dspy_supervisor/__init__.py": r'(?m)^__version__ = "(.+)"',
        "CHANGELOG.md": r"(?m)^## (\S+)",
    }
    said = {place: re.search(pattern, (ROOT / place).read_text())[1] for place, pattern in places.items()}
    assert len(set(said.values())) == 1, said


def test_the_manifests_and_the_page_on_containers_name_the_image_of_this_version():
    version = re.search(r'(?m)^version = "(.+)"', (ROOT / "pyproject.toml").read_text())[1]
    texts = {path: path.read_text() for path in (*ROOT.glob("deploy/kubernetes/*.yaml"), ROOT / "docs/containers.md")}
    named = {
        (path.name, tag) for path, text in texts.items() for tag in re.findall(r"dspy-supervisor:(\d+\.[\w.]+)", text)
    }
    assert named == {(name, version) for name in ("deployment.yaml", "job.yaml", "containers.md")}


def test_the_notes_of_a_version_are_its_part_of_the_changelog_and_of_none_an_error():
    done = notes("0.1.0")
    assert done.returncode == 0 and done.stdout.startswith("### Added") and "\n## " not in done.stdout
    done = notes("0.1")
    assert done.returncode == 1 and "no notes of 0.1\n" in done.stderr
