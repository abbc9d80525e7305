"""The examples of the documentation, run as it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import ROOT, Start, Supervised, clean_environ

EXAMPLES = ROOT / "docs" / "examples"


def run(one: Supervised, name: str, *arguments: str) -> list[str]:
    """Run an example in its folder, and return the lines it prints."""
    done = subprocess.run(
        [sys.executable, "run.py", *arguments, "--queue-dir", str(one.queue)],
        capture_output=True,
        text=True,
        cwd=EXAMPLES / name,
        env=clean_environ(one.queue.parent),
        timeout=100,
    )
    assert done.returncode == 0, done.stderr + one.log
    return done.stdout.splitlines()


def code_of(folder: Path, name: str) -> None:
    """Let the workers find the modules of an example."""
    (folder / "code").symlink_to(EXAMPLES / name)


@pytest.mark.xdist_group("dspy")
def test_a_dspy_program_is_evaluated_and_given_demonstrations(supervisor: Start, tmp_path: Path):
    code_of(tmp_path, "dspy_evaluation")
    one = supervisor("--workers", "cpu_long=2", "--kinds", "dspy", settings={"call_allow": "triage:*"})
    lines = run(one, "dspy_evaluation")
    assert "wrong  delivery  Where do I find the battery?" in lines
    assert sum(line.startswith("right") for line in lines) == 7
    assert [line for line in lines if line.startswith("score")] == [
        "score 87.5",
        "score 87.5 with 3 demonstrations",
    ]


def test_a_repository_is_analysed_and_only_what_changed_again(supervisor: Start, tmp_path: Path):
    code_of(tmp_path, "static_analysis")
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "good.py").write_text("import os\n\n\ndef here():\n    return os.getcwd()\n")
    (repository / "bad.py").write_text(
        "import os\nimport re as re\n\n\ndef f(found=[]):\n    try:\n        g()\n    except:\n        pass\n"
    )
    (repository / "worse.py").write_text("def f(:\n")
    git = ["git", "-C", str(repository), "-c", "init.defaultBranch=main"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    one = supervisor("--workers", "cpu_short=2", handlers={"cpu_short": "analysis:analyse"})
    lines = run(one, "static_analysis", str(repository))
    assert lines == [
        "bad.py:1: os is imported and not used",
        "bad.py:5: f has a default that its calls share",
        "bad.py:8: any error is swallowed here, also Ctrl-C",
        "worse.py:1: no Python: invalid syntax (<unknown>, line 1)",
        "3 files, 15 lines, 2 functions, 4 findings",
    ]
    (repository / "worse.py").write_text("def f():\n    pass\n")
    assert run(one, "static_analysis", str(repository))[-1] == "3 files, 16 lines, 3 functions, 3 findings"
    assert len(list((one.queue / "done").glob("*.json"))) == 4  # three, and the one that changed
