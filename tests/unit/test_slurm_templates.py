"""Scripts of jobs: found by name, filled with quoted words, valid shell before and after."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
from dspy_fastpath.envelope import scan
from dspy_supervisor.config import load
from dspy_supervisor.jobbook import JobFacts
from dspy_supervisor.record import Claim
from dspy_supervisor.services.slurm.plan import JobPlan, JobRefused
from dspy_supervisor.services.slurm.templates import SHIPPED, fill, find, names, render, task_files
from dspy_supervisor.task import TaskName

SCRIPTS = sorted(Path(__file__).parents[2].glob("deploy/slurm/*.sbatch"))
FACTS = JobFacts("dspy.0123.4567", Path("/shared/my queue/slurm/it's $(here)"), 3, True, "/opt/a b/bin/python")
VALUES = {
    "folder": "/q/slurm/n",
    "python": "/usr/bin/python3",
    "name": "n",
    "size": "1",
    "settings": "/q/slurm/pilot.toml",
}


@pytest.fixture
def config(tmp_path):
    return load({"queue_dir": str(tmp_path / "q"), "mode": "cluster"}, {"HOME": str(tmp_path)}, tmp_path).config


def shellcheck(*paths: Path) -> None:
    program = shutil.which("shellcheck")
    if program is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("shellcheck is not installed")
    done = subprocess.run([program, "--shell=bash", *map(str, paths)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_scripts_that_come_along_are_those_of_the_repository():
    assert {path.stem for path in SCRIPTS} == set(names(None))
    assert {"task", "train_agent_methodologies", "train_ddp", "train_ddp_srun", "pilot"} <= set(names(None))
    for path in SCRIPTS:
        assert (SHIPPED / path.name).read_bytes() == path.read_bytes()


def test_the_scripts_pass_shellcheck_as_they_stand_and_filled(tmp_path):
    shellcheck(*SCRIPTS)
    values = {**VALUES, "folder": "/a b/it's", "python": FACTS.python, "settings": "/a b/c.toml"}
    for path in SCRIPTS:
        (tmp_path / path.name).write_bytes(fill(path, values))
    shellcheck(*tmp_path.glob("*.sbatch"))


@pytest.mark.parametrize("name", ["train_agent_methodologies.sbatch", "train_ddp.sbatch"])
def test_the_scripts_of_older_clients_hold_what_these_look_for(name):
    text = (Path(__file__).parents[2] / "deploy/slurm" / name).read_text()
    for wanted in ("#SBATCH", "torchrun", "${TASK_ID}", "${TRAINING_METHOD}"):
        assert wanted in text


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_defaults_for_sbatch_are_values_since_it_expands_no_variable(path):
    lines = [line for line in path.read_text().splitlines() if line.startswith("#SBATCH")]
    assert lines
    for line in lines:
        assert re.fullmatch(r"#SBATCH --[a-z-]+=[A-Za-z0-9_:.-]+", line)
    # sbatch looks no further than the first command
    body = path.read_text().split("set -euo pipefail")[1]
    assert "#SBATCH" not in body


def test_a_script_is_filled_with_words_that_the_shell_reads_back_as_they_were(config, tmp_path):
    script = render(config, JobPlan("task"), FACTS)
    line = next(line for line in script.decode().splitlines() if line.startswith("folder="))
    (tmp_path / "x.sh").write_text(f'{line}\nprintf %s "$folder"\n')
    said = subprocess.run(["bash", str(tmp_path / "x.sh")], capture_output=True, text=True, env={}, check=True)
    assert said.stdout == f"{FACTS.folder}/0"
    assert f"exec {shlex.quote(FACTS.python)} -m" in script.decode()


def test_a_value_that_would_begin_a_line_of_its_own_is_refused():
    for evil in ("a\n#SBATCH --wrap=id", "a\0b", "a\rb", "a\u2028b"):
        with pytest.raises(JobRefused, match="can't be part of a script"):
            fill(SHIPPED / "task.sbatch", {**VALUES, "folder": evil})


@pytest.mark.parametrize(
    "name", ["../task", "/etc/passwd", "task.sh", "a/b", "", ".", "-x", "a b", "task\n", "nothing"]
)
def test_a_template_is_a_name_and_never_a_path(name, tmp_path):
    (tmp_path / "nothing").write_text("#!/bin/bash\n")
    with pytest.raises(JobRefused):
        find(tmp_path, name)


def test_scripts_of_ones_own_come_before_those_that_came_along(tmp_path):
    mine = tmp_path / "task.sbatch"
    mine.write_text("#!/bin/bash\nexec '{{ python }}' -c 'print(1)' '{{ folder }}'\n")
    assert find(tmp_path, "task.sbatch") == mine
    assert find(tmp_path, "train_ddp") == SHIPPED / "train_ddp.sbatch"
    assert fill(mine, VALUES) == b"#!/bin/bash\nexec /usr/bin/python3 -c 'print(1)' /q/slurm/n\n"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("echo '{{ colour }}'\n", "'colour' is undefined"),
        ("echo '{{ folder.x.y }}'\n", "has no attribute 'x'"),
        ("echo {{ folder }}\n", "line 2: a place is written with its quotes"),
        ('echo "{{ folder }}"\n', "line 2: a place is written with its quotes"),
        ("echo '{{ folder\n", "line"),
        ("echo a\r\n", "without CR"),
    ],
)
def test_a_template_that_can_not_be_filled_is_refused_with_its_line(tmp_path, body, said):
    path = tmp_path / "bad.sbatch"
    path.write_bytes(b"#!/bin/bash\n" + body.encode())
    with pytest.raises(JobRefused, match=re.escape(said)):
        fill(path, VALUES)


def test_a_script_without_an_interpreter_or_that_others_may_write_is_refused(tmp_path):
    path = tmp_path / "bad.sbatch"
    path.write_text("echo\n")
    with pytest.raises(JobRefused, match="#! first"):
        fill(path, VALUES)
    path.write_text("#!/bin/bash\n")
    path.chmod(0o666)
    with pytest.raises(JobRefused, match="chmod o-w"):
        fill(path, VALUES)


def test_what_a_task_says_travels_beside_the_script():
    payload = {"method": "x\n#SBATCH --partition=gpu", "module": "$(id)", "model": '";id;"', "dataset": "é'"}
    document = orjson.dumps({"id": "a1", "class": "gpu_slurm", "payload": payload})
    claim = Claim(TaskName("a1", 2, 0), document, scan(document), 0.0)
    files = task_files(JobPlan("train_ddp"), claim, FACTS, 0)
    pairs = dict(pair.split("=", 1) for pair in files["environment"].decode().split("\0") if pair)
    assert pairs == {
        "TASK_ID": "a1",
        "TASK_ATTEMPT": "2",
        "TRAINING_METHOD": payload["method"],
        "MODULE_NAME": payload["module"],
        "MODEL_NAME": payload["model"],
        "DATASET_NAME": payload["dataset"],
    }
    assert files["envelope.json"] == document
    assert orjson.loads(files["payload.json"]) == payload


def test_the_pilots_script_starts_a_supervisor_that_knows_its_end():
    script = fill(SHIPPED / "pilot.sbatch", {**VALUES, "python": sys.executable}).decode()
    assert f"exec {sys.executable} -m dspy_supervisor start --config /q/slurm/pilot.toml" in script
    assert '--set "ends_at=$ends"' in script
