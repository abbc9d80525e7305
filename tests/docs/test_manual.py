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


def test_the_page_that_is_installed_is_this_one():
    installed = Path(__file__).parents[2] / "deploy" / "man" / "dspy-supervisor.1"
    assert installed.read_text() == page(), "dspy-supervisor man > deploy/man/dspy-supervisor.1"


@pytest.mark.skipif(shutil.which("groff") is None, reason="no groff here")
def test_the_manual_page_is_roff_without_a_warning():
    done = subprocess.run(["groff", "-man", "-Tutf8", "-ww", "-z"], input=page(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def place(tmp_path):
    """The environment of a shell in tmp_path, where the program is on PATH and a queue is in queue/."""
    queue = tmp_path / "queue"
    with Layout.open(queue, create=True) as layout:
        for one in ("a1", "a2", "b1"):
            Producer(layout).put(one, envelope({}, task_id=one))
    program = tmp_path / "dspy-supervisor"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m dspy_supervisor "$@"\n')
    program.chmod(0o700)
    return {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}


@pytest.fixture
def shell(tmp_path, place):
    """A function that says what a real bash completes for a line, in a folder with a queue."""

    def completed(*words: str) -> list[str]:
        script = (
            'eval "$(dspy-supervisor completion bash)"\n'
            "complete -p dspy-supervisor >&2\n"
            f"COMP_WORDS=(dspy-supervisor {' '.join(repr(word) for word in words)}); COMP_CWORD={len(words)}\n"
            '_dspy_supervisor_completion dspy-supervisor\nprintf "%s\\n" "${COMPREPLY[@]}"\n'
        )
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=place, capture_output=True, text=True, check=True
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


_ASKED = {  # what each shell offers, by its own words: fish says so, of zsh the function that lists is replaced
    "fish": 'dspy-supervisor completion fish | source; complete -C "dspy-supervisor {line}"',
    "zsh": """autoload -Uz compinit; compinit -u -D
eval "$(dspy-supervisor completion zsh)"
compadd() {{ print -rl -- $completions }}
_describe() {{ print -rl -- ${{completions_with_descriptions%%:*}} }}
words=(dspy-supervisor {line}) CURRENT=$#words
$_comps[dspy-supervisor]""",
}


@pytest.mark.parametrize("name", sorted(_ASKED))
def test_the_other_shells_complete_commands_and_tasks(name, tmp_path, place):
    if not shutil.which(name) and not os.environ.get("CI"):
        pytest.skip(f"no {name} here")
    for line, expected in (("ta", ["task"]), ("task show --queue-dir queue a", ["a1", "a2"])):
        command = [name, *(["-f"] if name == "zsh" else []), "-c", _ASKED[name].format(line=line)]
        done = subprocess.run(command, cwd=tmp_path, env=place, capture_output=True, text=True, check=True, timeout=60)
        assert [offer.split("\t")[0] for offer in done.stdout.splitlines()] == expected, done.stderr
