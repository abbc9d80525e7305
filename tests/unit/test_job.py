"""The runner in a job, as a process: it takes the attempt once, hears Slurm's signals, and says how the task ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy_fastpath
import dspy_supervisor
import orjson
import pytest
from dspy_fastpath.envelope import scan
from dspy_supervisor.jobbook import JobFacts
from dspy_supervisor.record import Claim
from dspy_supervisor.services.slurm.plan import JobPlan
from dspy_supervisor.services.slurm.templates import fill, find, task_files
from dspy_supervisor.task import TaskName

from tests.conftest import until

HANDLERS = """
import json, os, signal, sys, time
from dspy_supervisor import TaskRefused, checkpoint_requested, checkpoint_saved

def double(task):
    print("doubling", task.id)
    return {"twice": task.payload["n"] * 2, "attempt": task.attempt, "folder": str(task.folder)}

def refuse(task):
    raise TaskRefused("never")

def die(task):
    os.kill(os.getpid(), signal.SIGSEGV)

def train(task):
    saved = task.output_folder() / "checkpoint.json"
    step = json.loads(saved.read_text())["step"] if saved.exists() else 0
    while step < task.payload["steps"]:
        step += 1
        if checkpoint_requested():
            saved.write_text(json.dumps({"step": step}))
            checkpoint_saved(f"at step {step}")
        (task.folder / "running").write_text(str(step))
        time.sleep(0.01)
    return {"steps": step}

def stubborn(task):
    (task.output_folder() / "running").write_text("1")
    while True:
        time.sleep(60)
"""


class Desk:
    """A task's folder as the bridge leaves it, and jobs that run it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path / "queue/slurm/dspy.1.2/0"
        self.folder.mkdir(parents=True)
        self.home = path / "queue/logs/a1"
        self.home.parent.mkdir()
        (path / "tasks_here.py").write_text(HANDLERS)
        self.started: list[subprocess.Popen[bytes]] = []

    def put(self, handler: str | None = None, payload: Any = None, **more: Any) -> None:
        settings = {"handler": handler, "kinds": ["echo", "command"], "kind_handlers": {}, "stop_grace_s": 30.0}
        settings |= more.pop("settings", {})
        envelope = orjson.dumps({"id": "a1", "class": "gpu_slurm", "payload": payload, "kind": more.get("kind")})
        claim = Claim(TaskName("a1"), envelope, scan(envelope), 0.0)
        facts = JobFacts("dspy.1.2", self.folder.parent, 1, False, sys.executable)
        for name, content in task_files(JobPlan("task"), claim, facts, 0).items():
            (self.folder / name).write_bytes(content)
        task = {"name": "dspy.1.2", "index": 0, "file": "a1.json", "id": "a1", "attempt": 0, "crashes": 0}
        task |= {"class": "gpu_slurm", "kind": None, "timeout_s": None, "queue": str(self.path / "queue")}
        (self.folder / "task.json").write_bytes(
            orjson.dumps({**task, "home": str(self.home), "settings": settings, **more})
        )

    def start(self, *program: str, restart: int | None = None, job: str = "132") -> subprocess.Popen[bytes]:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        environ |= {"SLURM_JOB_ID": job, "SLURM_JOB_NODELIST": "n1", "SLURMD_NODENAME": "n1"}
        if restart is not None:
            environ["SLURM_RESTART_COUNT"] = str(restart)
        argv = [sys.executable, "-m", "dspy_supervisor.job", str(self.folder), *(["--", *program] if program else [])]
        with (self.folder / "out").open("ab") as out:
            self.started.append(
                subprocess.Popen(argv, cwd=self.path, env=environ, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
            )
        return self.started[-1]

    def run(self, *program: str, **more: Any) -> int:
        return self.start(*program, **more).wait(60)

    def read(self, name: str) -> Any:
        return json.loads((self.folder / name).read_bytes())

    def running(self) -> None:
        until((self.home / "running").exists, "the task to run")


@pytest.fixture
def desk(tmp_path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    for process in desk.started:
        if process.poll() is None:
            process.kill()
        process.wait()


def test_a_handlers_result_comes_back_with_who_ran_it_where(desk):
    desk.put("tasks_here:double", {"n": 21})
    assert desk.run() == 0
    start, end = desk.read("start.0.json"), desk.read("exit.0.json")
    assert desk.read("result.0.json") == {"twice": 42, "attempt": 0, "folder": str(desk.home)}
    assert (start["job_id"], start["restart"], start["node"], start["nodes"]) == ("132", 0, "n1", "n1")
    assert end["ok"]
    assert (end["exit_code"], end["signal"], end["requeue"], end["stopped"]) == (0, None, False, False)
    assert end["max_rss_bytes"] > 1 << 20
    assert end["duration_s"] > 0
    assert desk.read("beat.0.json")["counter"] >= 1
    assert b"doubling a1" in (desk.folder / "out").read_bytes()


@pytest.mark.parametrize("program", [(), ("sh", "-c", 'echo "$TOKEN $TASK_ID" > said')])
def test_the_variables_of_its_class_are_the_jobs_and_never_hide_what_the_task_is(desk, program):
    own = {"environment": {"TOKEN": "a b", "TASK_ID": "forged"}, "command_env": ["TOKEN", "TASK_ID"]}
    said = ["sh", "-c", f'echo "$TOKEN $TASK_ID" > {desk.path}/said']
    desk.put("command", {"argv": said}, settings=own)
    assert desk.run(*program) == 0
    assert (desk.path / "said").read_text() == "a b a1\n"


def test_a_second_copy_of_the_job_ends_at_once_and_only_says_that_it_was_there(desk):
    desk.put("tasks_here:double", {"n": 1})
    assert desk.run(job="132") == 0
    before = {path.name: path.read_bytes() for path in desk.folder.glob("*.json")}
    assert desk.run(job="133") == 0
    after = {path.name: path.read_bytes() for path in desk.folder.glob("*.json")}
    assert after.pop("twice.0.json")
    assert after == before
    assert b"is taken" in (desk.folder / "out").read_bytes()


def test_of_copies_that_start_together_one_runs(desk):
    desk.put("command", {"argv": ["sh", "-c", f"echo ran >> {desk.path}/ran"]})
    copies = [desk.start(job=str(job)) for job in range(4)]
    assert [copy.wait(60) for copy in copies] == [0, 0, 0, 0]
    assert (desk.path / "ran").read_text() == "ran\n"


def test_a_job_whose_task_is_settled_ends_at_once(desk):
    assert desk.run() == 0
    desk.put("tasks_here:double", {"n": 1})
    (desk.folder / "start.0.json").write_text('{"void": true}')
    assert desk.run(restart=1) == 0
    assert not list(desk.folder.glob("exit.*"))


@pytest.mark.parametrize(
    ("handler", "payload", "code", "facts"),
    [
        ("tasks_here:refuse", None, 1, {"cause": "refused", "message": "never", "retry": False}),
        ("tasks_here:double", {}, 1, {"cause": "raised", "type": "KeyError", "retry": True}),
        ("tasks_here:die", None, 139, {"cause": "signal", "signal": "SIGSEGV"}),
        ("command", {"argv": ["sh", "-c", "echo bad >&2; exit 7"]}, 7, {"cause": "exit", "exit_code": 7}),
        (None, None, 1, {"cause": "refused"}),
        ("tasks_here:missing", None, 1, {"cause": "raised", "retry": True}),
    ],
)
def test_a_failure_says_its_cause_and_is_the_jobs_exit_code(desk, handler, payload, code, facts):
    desk.put(handler, payload)
    assert desk.run() == code
    end = desk.read("exit.0.json")
    assert not end["ok"]
    assert facts.items() <= end.items()
    assert not (desk.folder / "result.0.json").exists()


def test_work_is_saved_when_told_and_goes_on_in_the_next_job_not_from_zero(desk):
    desk.put("tasks_here:train", {"steps": 1_000_000})
    job = desk.start()
    desk.running()
    job.send_signal(signal.SIGUSR1)
    assert job.wait(60) == 85
    end = desk.read("exit.0.json")
    assert (end["ok"], end["requeue"], end["exit_code"], end["stopped"]) == (False, True, 85, False)
    saved = json.loads((desk.home / "checkpoint.json").read_text())["step"]
    assert f"at step {saved}" in end["message"]
    # the same job again, as Slurm restarts it: what it saved is the beginning, and the old wish is gone
    desk.put("tasks_here:train", {"steps": saved + 3})
    assert desk.run(restart=1) == 0
    assert desk.read("result.1.json") == {"steps": saved + 3}
    assert desk.read("exit.1.json")["ok"]


def test_the_end_that_slurm_sends_lets_work_be_saved_too(desk):
    desk.put("tasks_here:train", {"steps": 1_000_000})
    job = desk.start()
    desk.running()
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) == 85
    assert desk.read("exit.0.json")["requeue"]


def test_a_handler_that_hears_nothing_is_killed_before_slurm_does_it_and_so_said(desk):
    desk.put("tasks_here:stubborn", settings={"stop_grace_s": 0.1})
    job = desk.start()
    desk.running()
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) == 128 + signal.SIGKILL
    end = desk.read("exit.0.json")
    assert (end["ok"], end["stopped"], end["requeue"], end["signal"]) == (False, True, False, "SIGKILL")


def test_time_that_is_up_ends_a_handler(desk):
    desk.put("tasks_here:stubborn", timeout_s=0.1, settings={"kill_grace_s": 0.1})
    assert desk.run() == 128 + signal.SIGKILL
    assert desk.read("exit.0.json")["cause"] == "timeout"


def test_a_command_of_a_task_saves_its_work_and_asks_to_go_on_by_its_exit_code(desk):
    script = f'touch {desk.home}/running; until [ -s "$DSPY_CHECKPOINT" ]; do sleep 0.05; done; exit 85'
    desk.put(None, {"argv": ["sh", "-c", script]}, kind="command")
    job = desk.start()
    desk.running()
    job.send_signal(signal.SIGUSR1)
    assert job.wait(60) == 85
    assert desk.read("exit.0.json")["requeue"]


def test_a_program_gets_the_task_as_variables_exactly_as_they_were_written(desk):
    payload = {"method": "x\n#SBATCH y", "model": "$(id) 'q' \"d\"", "dataset": "é"}
    desk.put(None, payload, settings={"environment": {"LAB": "seven", "TASK_ID": "never"}})
    code = (
        "import json, os; json.dump({n: os.environ[n] for n in ('TASK_ID', 'TRAINING_METHOD', 'MODEL_NAME', "
        "'DATASET_NAME', 'TASK_FOLDER', 'LAB')}, open(os.environ['DSPY_RESULT'], 'w'))"
    )
    assert desk.run(sys.executable, "-c", code) == 0
    assert desk.read("result.0.json") == {
        "TASK_ID": "a1",
        "TRAINING_METHOD": payload["method"],
        "MODEL_NAME": payload["model"],
        "DATASET_NAME": "é",
        "TASK_FOLDER": str(desk.home),
        "LAB": "seven",
    }


@pytest.mark.parametrize(
    ("script", "code", "facts"),
    [
        ("exit 0", 0, {"ok": True}),
        ("echo oh no; exit 9", 9, {"cause": "exit", "exit_code": 9, "message": "sh ended with exit code 9: oh no"}),
        ("echo CUDA out of memory. Tried to allocate 2 GiB; exit 1", 1, {"cause": "out_of_memory"}),
        ("kill -KILL $$", 137, {"cause": "signal", "signal": "SIGKILL", "exit_code": 0}),
        ("echo '{' > $DSPY_RESULT", 1, {"cause": "invalid_result", "retry": False}),
        ("exit 85", 85, {"requeue": True}),
        # what torchrun makes of ranks that saved and ended with 85
        (f"{sys.executable} -c 'import dspy_supervisor as d; d.checkpoint_saved()'; exit 1", 85, {"requeue": True}),
        ("no-such-program", 127, {"cause": "exit"}),
    ],
)
def test_a_programs_end_is_the_jobs(desk, script, code, facts):
    desk.put()
    assert desk.run("sh", "-c", script) == code
    assert facts.items() <= desk.read("exit.0.json").items()


def test_nothing_of_a_program_is_left_when_its_end_is_written(desk):
    desk.put()
    assert desk.run("sh", "-c", f"setsid sleep 600 & echo $! > {desk.path}/pid; exit 3") == 3
    left = int((desk.path / "pid").read_text())
    assert (
        not Path(f"/proc/{left}").exists()
        or Path(f"/proc/{left}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    )


@pytest.mark.parametrize("name", ["task", "train_agent_methodologies", "train_ddp", "train_ddp_srun"])
def test_each_script_runs_its_task_by_the_runner(desk, name, tmp_path):
    """With stand-ins for what a cluster has: the real one is in tests/slurm."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "scontrol").write_text("#!/bin/sh\necho n1\necho n2\n")
    (programs / "srun").write_text('#!/bin/sh\nwhile [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"\n')
    (programs / "torchrun").write_text('#!/bin/sh\necho "$@ $TASK_ID $TRAINING_METHOD" > "$TASK_FOLDER/ran"\n')
    (programs / "python3").symlink_to(sys.executable)
    for program in programs.iterdir():
        if not program.is_symlink():
            program.chmod(0o755)
    desk.put("tasks_here:double" if name == "task" else None, {"n": 1, "method": "sft", "script": "train.py"})
    (tmp_path / "train.py").write_text(
        "import os\nopen(os.environ['TASK_FOLDER'] + '/ran', 'w').write(' '.join(os.environ[n] for n in "
        "('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT', 'TASK_ID', 'TRAINING_METHOD')))\n"
    )
    values = {"folder": str(desk.folder.parent), "python": sys.executable, "name": "n", "size": "1"}
    script = tmp_path / "script"
    script.write_bytes(fill(find(None, name), values))
    environ = {
        **{key: value for key, value in os.environ.items() if not key.startswith("SLURM_")},
        "PATH": f"{programs}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "12345",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_PROCID": "1",
        "SLURM_LOCALID": "1",
        "SLURM_NTASKS": "2",
    }
    if name in ("train_agent_methodologies", "train_ddp"):
        # the interpreter's own folder comes first on PATH, so that a virtual environment's torchrun is found
        values["python"] = str(programs / "python3")
        script.write_bytes(fill(find(None, name), values))
        packages = [str(Path(str(package.__file__)).parents[1]) for package in (dspy_supervisor, dspy_fastpath)]
        environ["PYTHONPATH"] = ":".join([*packages, *sys.path])  # this interpreter is no virtual environment's
    done = subprocess.run(["bash", str(script)], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert desk.read("exit.0.json")["ok"]
    if name == "task":
        assert desk.read("result.0.json")["twice"] == 2
        return
    ran = (desk.home / "ran").read_text()
    assert ran.split()[-2:] == ["a1", "sft"]
    if name == "train_ddp_srun":
        assert ran.split()[:4] == ["1", "2", "n1", "22345"]
    else:
        assert (
            "--nnodes=2 --nproc-per-node=1 --rdzv-backend=c10d --rdzv-endpoint=n1:22345 --rdzv-id=12345.0 train.py"
            in ran
        )


def test_a_job_whose_task_is_settled_while_it_runs_ends_in_peace(desk):
    desk.put()
    assert desk.run("sh", "-c", f"mv {desk.folder} {desk.folder}.gone") == 0
