"""`slurm`: a queue's jobs, and what would be submitted; the cluster is programs on PATH that say what a test wants."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from dspy_supervisor.cli import main
from dspy_supervisor.jobbook import JobBook, Order, new_name
from dspy_supervisor.layout import Layout

SQUEUE = """#!/bin/sh
echo 'JOBID|JOBID|STATE|SUBMIT_TIME|START_TIME|TIME|NODELIST|NAME|REASON|.'
"""
CONFIG = """#!/bin/sh
echo 'ClusterName = devel
MaxArraySize = 1001
MinJobAge = 300 sec
SLURM_VERSION = 22.05.8
AccountingStorageType = accounting_storage/none'
"""


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """An empty queue that the environment names, in mode cluster, and no cluster."""
    for name in [name for name in os.environ if name.startswith(("DSPY_", "ENV_", "XDG_", "SLURM_"))]:
        monkeypatch.delenv(name)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DSPY_MODE", "cluster")
    monkeypatch.setenv("DSPY_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("ENV_QUEUE_DIR", str(tmp_path / "queue"))
    monkeypatch.chdir(tmp_path)
    with Layout.open(tmp_path / "queue", create=True, durability="none") as layout:
        yield layout


@pytest.fixture
def run(queue, capfd):
    """Run a command line; returns (exit code, standard output, standard error)."""

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def program(tmp_path):
    """Put a program on PATH."""

    def program(name: str, text: str) -> Path:
        path = tmp_path / "bin" / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    return program


def submitted(queue, *ids: str, job_id: str = "132") -> str:
    """Put a submission into the book, as the bridge does."""
    book = JobBook(queue)
    book.prepare()
    name = new_name(queue.queue_id)
    orders = [Order(f"{one}.json", {"task.json": b"{}"}) for one in ids]
    intent = {"owner": "n.1.slurm", "array": len(ids) > 1, "template": "task", "options": ["--time=0-00:05:00"]}
    submission = book.write(name, orders, intent, b"#!/bin/sh\n")
    if job_id:
        book.accepted(submission, job_id, "devel")
    return name


def test_a_task_is_put_with_what_its_job_asks_for(run, queue):
    code, said, _ = run("slurm", "submit", '{"n": 1}', "--id", "a1", "--option", "gpus=a100:2", "--option", "time=1-12",
                        "--option", "extra=--hint=compute_bound", "--template", "train_ddp")  # fmt: skip
    assert (code, said) == (0, "a1\n")
    put = json.loads((queue.path / "pending/a1.json").read_bytes())
    assert put["class"] == "gpu_slurm"
    assert put["resources"] == {
        "gpus": "a100:2", "time": "1-12", "extra": ["--hint=compute_bound"], "template": "train_ddp"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--option", "colour=red"], "no option of a job"),
        (["--option", "time=soon"], "resources.time"),
        (["--option", "extra=--wrap=id"], "resources.extra"),
        (["--option", "gpus"], "is not NAME=VALUE"),
        (["--template", "../x"], "is no template's name"),
        (["--kind", "nobody"], "nothing runs tasks of kind"),
    ],
)
def test_what_can_not_be_a_job_is_refused_before_it_is_put(run, queue, options, said):
    code, _, error = run("slurm", "submit", "{}", *options)
    assert code == 2
    assert said in error
    assert not os.listdir(queue.path / "pending")


def test_jobs_are_shown_as_they_were_last_seen_and_live_by_one_squeue(run, queue, program, tmp_path):
    name = submitted(queue, "a1", "a2")
    JobBook(queue).note_seen(name, {"0": {"state": "PENDING", "reason": "Resources", "nodes": ""}})
    code, said, _ = run("slurm", "status", "--json")
    first, second = json.loads(said)["jobs"]
    assert (code, first["task_id"], first["id"], first["status"]) == (0, "a1", "132_0", "PENDING")
    assert (second["task_id"], second["id"], second["status"]) == ("a2", "132_1", "SUBMITTED")
    program("squeue", SQUEUE + f"echo x >> {tmp_path}/calls\necho '132_1|133|RUNNING|1|2|0:01|n3|{name}|None|.'\n")
    code, said, _ = run("slurm", "status", "a2", "--live")
    assert code == 0
    assert "RUNNING" in said
    assert "n3" in said
    assert (tmp_path / "calls").read_text() == "x\n"
    assert run("slurm", "status", "a3")[0] == 4


def test_a_cluster_that_does_not_answer_is_said_to_be_so(run, queue, program):
    submitted(queue, "a1")
    program("squeue", "#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1\n")
    code, _, error = run("slurm", "status", "--live")
    assert code == 69
    assert "Unable to contact" in error


def test_a_waiting_task_is_cancelled_without_a_cluster(run, queue):
    run("slurm", "submit", "{}", "--id", "a1")
    run("slurm", "submit", "{}", "--id", "a2")
    assert run("slurm", "cancel", "--all")[0] == 0
    assert {path.name for path in (queue.path / "failed").glob("*.json")} == {"a1.json", "a2.json"}
    assert run("slurm", "cancel")[0] == 2


def test_a_job_is_cancelled_without_a_supervisor_and_the_next_one_finds_why(run, queue, program, tmp_path):
    owner = queue.path / "claimed/n1.1.slurm"
    owner.mkdir(mode=0o700)
    (owner / "a1.json").write_text('{"id": "a1", "class": "gpu_slurm", "payload": {}}')
    name = submitted(queue, "a1")
    program("scancel", f'#!/bin/sh\necho "$@" > {tmp_path}/scancelled\n')
    code, said, error = run("slurm", "cancel", "a1")
    assert (code, error) == (0, "")
    assert "running" in said
    assert (tmp_path / "scancelled").read_text() == "132\n"
    assert JobBook(queue).cancelled(name, 0)["cause"] == "cancelled"


def test_the_plan_is_what_would_be_submitted_and_submits_nothing(run, queue, program):
    for number in range(3):
        run("slurm", "submit", "{}", "--id", f"a{number}", "--option", "gpus=1")
    run("submit", '{"script": "/etc/passwd"}', "--class", "gpu_slurm", "--id", "bad")
    code, said, _ = run("slurm", "plan", "--json", "--scripts")
    found = json.loads(said)
    assert code == 1
    (one,) = found["submissions"]
    assert one["tasks"] == ["a0", "a1", "a2"]
    assert {"--array=0-2", "--gres=gpu:1", "--partition=gpu"} <= set(one["argv"])
    assert one["script"].startswith("#!/bin/bash")
    assert found["refused"][0]["tasks"] == ["bad"]
    assert not (queue.path / "slurm").exists()
    program("squeue", SQUEUE)
    code, said, _ = run("slurm", "plan", "--set", "slurm_pilots_max=2", "--set", "slurm_time=30", "--json")
    found = json.loads(said)
    assert (code, found["submit"], found["waiting"]) == (0, 2, 4)
    assert "--time=0-00:30:00" in found["command"]


def test_a_script_is_printed_as_it_would_be_submitted(run):
    code, said, error = run("slurm", "render", "task")
    assert code == 0
    assert said.startswith("#!/bin/bash")
    assert f"exec {sys.executable} -m dspy_supervisor.job" in said
    assert error.startswith("sbatch --parsable --partition=gpu")
    code, said, error = run(
        "slurm", "render", "--task", '{"class": "gpu_slurm", "payload": {"method": "ddp", "nodes": 3}}'
    )
    assert "torchrun" in said
    assert "--nodes=3" in error
    assert "train_ddp_srun" in run("slurm", "render", "--list")[1]
    for wrong in (["../task"], ["nothing"], ["--task", "{"], []):
        assert run("slurm", "render", *wrong)[0] == 2


def test_the_doctor_says_what_is_missing_and_what_to_do(run, program):
    code, said, _ = run("slurm", "doctor", "--json")
    found = {one["check"]: one for one in json.loads(said)["findings"]}
    assert code == 1
    assert found["sbatch"]["level"] == "fail"
    assert "install" in found["sbatch"]["remedy"]
    assert found["sacct"]["level"] == "warn"
    program("squeue", SQUEUE)
    program("scontrol", CONFIG)
    program("scancel", "#!/bin/sh\n")
    sbatch = program(
        "sbatch", "#!/bin/sh\ncat > /dev/null\necho 'sbatch: error: invalid partition specified: gpu' >&2\nexit 1\n"
    )
    code, said, _ = run("slurm", "doctor")
    assert code == 1
    assert "invalid partition" in said
    sbatch.write_text("#!/bin/sh\necho 'sbatch: Job 7 to start at 2026-11-23T17:45:56' >&2\n")
    code, said, _ = run("slurm", "doctor", "--json")
    assert code == 0, said
    assert {one["check"]: one["message"] for one in json.loads(said)["findings"]}[
        "controller"
    ] == "cluster devel, Slurm 22.05.8"
