"""The manual page, and completion in a real shell."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dspy_supervisor.cli import COMMANDS
from dspy_supervisor.cli.manual import entries, page
from dspy_supervisor.layout import Layout
from dspy_supervisor.producer import Producer, envelope


def test_the_manual_page_has_every_command_with_its_options():
    text = page()
    assert {entry.name.split()[0] for entry in entries()} == set(COMMANDS)
    for entry in entries():
        assert f"\n.SS {entry.name.replace('-', chr(92) + '-')}" in text
    assert ".B \\-\\-queue\\-dir DIR\n" in text and "\n.SH SYNOPSIS\n" in text


@pytest.mark.skipif(shutil.which("groff") is None, reason="no groff here")
def test_the_manual_page_is_roff_without_a_warning():
    done = subprocess.run(["groff", "-man", "-Tutf8", "-ww", "-z"], input=page(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def shell(tmp_path):
    """A function that says what a real bash completes for a line, in a folder with a queue."""
    queue = tmp_path / "queue"
    with Layout.open(queue, create=True) as layout:
        for one in ("a1", "a2", "b1"):
            Producer(layout).put(one, envelope({}, task_id=one))
    program = tmp_path / "dspy-supervisor"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m dspy_supervisor "$@"\n')
    program.chmod(0o700)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}

    def completed(*words: str) -> list[str]:
        script = (
            'eval "$(dspy-supervisor completion bash)"\n'
            "complete -p dspy-supervisor >&2\n"
            f"COMP_WORDS=(dspy-supervisor {' '.join(repr(word) for word in words)}); COMP_CWORD={len(words)}\n"
            '_dspy_supervisor_completion dspy-supervisor\nprintf "%s\\n" "${COMPREPLY[@]}"\n'
        )
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        assert "complete -o nosort -F _dspy_supervisor_completion dspy-supervisor" in done.stderr
        return done.stdout.split()

    return completed


def test_bash_completes_commands_options_tasks_classes_and_settings(shell):
    assert shell("ta") == ["task"]
    assert shell("task", "sh") == ["show"]
    assert "--queue-dir" in shell("task", "show", "--qu")
    assert shell("task", "show", "--queue-dir", "queue", "a") == ["a1", "a2"]
    assert shell("task", "cancel", "--queue-dir", "queue", "a1", "b") == ["b1"]
    assert shell("task", "show", "--queue-dir", "nowhere", "a") == []
    assert shell("submit", "--class", "gpu") == ["gpu", "gpu_slurm"]
    assert shell("config", "describe", "max_pending_b") == ["max_pending_bytes"]
    assert shell("status", "--set", "class.gpu.work") == ["class.gpu.workers="]


@pytest.mark.parametrize("name", ["zsh", "fish"])
def test_the_other_shells_get_a_script_that_they_can_read(name, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "dspy_supervisor", "completion", name], capture_output=True, text=True, check=True
    )
    assert "_DSPY_SUPERVISOR_COMPLETE" in done.stdout
    if shutil.which(name):
        script = Path(tmp_path / "script")
        script.write_text(done.stdout)
        assert subprocess.run([name, "-n", str(script)], capture_output=True, text=True).stderr == ""
