"""What a configuration, a class and a task ask a job for: read, merged, refused, and written as arguments of sbatch."""

from __future__ import annotations

import dataclasses
import itertools
import re
from typing import Any

import orjson
import pytest
from dspy_fastpath.envelope import EnvelopeError, scan
from dspy_supervisor.config import load
from dspy_supervisor.errors import ConfigError, EnvelopeInvalid
from dspy_supervisor.record import Claim
from dspy_supervisor.services.slurm import options as table
from dspy_supervisor.services.slurm.options import merged, of_class, of_config, of_task
from dspy_supervisor.services.slurm.plan import JobPlan, JobRefused, plan_job, runner_settings, variables
from dspy_supervisor.task import TaskName

ARGUMENT = re.compile(r"--[a-z-]+(=[^\x00-\x1f\x7f]*)?")
EVIL = [
    "x\n#SBATCH --partition=gpu",
    "#SBATCH --wrap=id",
    "$(touch /tmp/pwned)",
    "`id`",
    "a;b",
    "a b",
    "'; id; '",
    '"; id; "',
    "a\0b",
    "../../etc/passwd",
    "-oProxyCommand=x",
    "--wrap=id",
    "x\r\ny",
    "\udcff",
    "a|b",
    "",
    " ",
    "é\u2028",
]


@pytest.fixture
def config(tmp_path):
    return settings(tmp_path)


def settings(path: Any, **more: Any) -> Any:
    return load({"queue_dir": str(path / "queue"), "mode": "cluster", **more}, {"HOME": str(path)}, path).config


def claim(payload: Any = None, **more: Any) -> Claim:
    document = orjson.dumps({"id": "a1", "class": "gpu_slurm", "payload": payload, **more})
    return Claim(TaskName("a1"), document, scan(document), 1_700_000_000.0)


def plan(config: Any, payload: Any = None, **more: Any) -> JobPlan:
    return plan_job(config, config.classes["gpu_slurm"], claim(payload, **more))


@pytest.mark.parametrize(
    ("name", "value", "argv"),
    [
        ("partition", "gpu,low", ["--partition=gpu,low"]),
        ("account", "lab-7", ["--account=lab-7"]),
        ("qos", "high", ["--qos=high"]),
        ("reservation", "maint_1", ["--reservation=maint_1"]),
        ("constraint", "[a100|h100]&nvme*2", ["--constraint=[a100|h100]&nvme*2"]),
        ("time", 90, ["--time=0-01:30:00"]),
        ("time", "90:30", ["--time=0-01:30:30"]),
        ("time", "2:00:00", ["--time=0-02:00:00"]),
        ("time", "1-12", ["--time=1-12:00:00"]),
        ("time", "1-12:30:05", ["--time=1-12:30:05"]),
        ("memory", "8G", ["--mem=8192M"]),
        ("memory", (1 << 20) + 1, ["--mem=2M"]),
        ("memory_per_cpu", "512M", ["--mem-per-cpu=512M"]),
        ("memory_per_gpu", "16GiB", ["--mem-per-gpu=16384M"]),
        ("cpus", 8, ["--cpus-per-task=8"]),
        ("gpus", 2, ["--gres=gpu:2"]),
        ("gpus", "a100:4", ["--gres=gpu:a100:4"]),
        ("gpus", 0, ["--gres=none"]),
        ("nodes", 2, ["--nodes=2"]),
        ("nodes", "2-4", ["--nodes=2-4"]),
        ("tasks", 4, ["--ntasks=4"]),
        ("tasks_per_node", 2, ["--ntasks-per-node=2"]),
        ("exclusive", True, ["--exclusive"]),
        ("exclusive", "user", ["--exclusive=user"]),
        ("exclusive", False, []),
        ("mail_user", "ann@example.org", ["--mail-user=ann@example.org"]),
        ("mail_type", ["END", "fail"], ["--mail-type=END,FAIL"]),
        ("comment", "sweep 7: lr=0.1", ["--comment=sweep 7: lr=0.1"]),
        ("signal", 120, ["--signal=B:USR1@120"]),
        ("signal", "SIGUSR2@60", ["--signal=USR2@60"]),
        ("nice", 100, ["--nice=100"]),
        ("requeue", True, ["--requeue"]),
        ("extra", ["--exclude=n[1-2]", "--contiguous"], ["--exclude=n[1-2]", "--contiguous"]),
        ("extra", {"hint": "nomultithread"}, ["--hint=nomultithread"]),
    ],
)
def test_a_task_asks_by_name_and_sbatch_gets_arguments(name, value, argv):
    assert list(merged(of_task(None, {name: value})).argv) == argv


@pytest.mark.parametrize("name", table.OPTIONS)
def test_whatever_a_task_writes_into_an_option_is_refused_or_one_argument(name):
    shapes = [(text, [text], {text: text}, {"hint": text}, f"gpu{text}", f"--hint={text}") for text in EVIL]
    for value in itertools.chain.from_iterable(shapes):
        try:
            argv = merged(of_task({}, {name: value})).argv
        except EnvelopeInvalid as error:
            assert "\n" not in str(error)
            assert "\0" not in str(error)
            continue
        for word in argv:
            assert ARGUMENT.fullmatch(word), word
            assert not word.startswith(("--wrap", "--output", "--export", "--array"))


KEYS = ["template", "method", "module", "model", "dataset", "script", "nodes", "gpus", "id", "kind", *table.OPTIONS]


@pytest.mark.parametrize("key", KEYS)
def test_whatever_a_task_writes_anywhere_its_plan_is_safe_or_it_is_refused(config, key):
    texts = [text for text in EVIL if "\udcff" not in text]  # which no JSON can hold
    for text, where in itertools.product(texts, ("payload", "resources", "envelope")):
        payload = {key: text} if where == "payload" else {}
        more = {key: text} if where == "envelope" else {"resources": {key: text}} if where == "resources" else {}
        document = orjson.dumps({"id": "a1", "class": "gpu_slurm", "payload": payload, **more})
        try:
            held = Claim(TaskName("a1"), document, scan(document), 0.0)
            found = plan_job(config, config.classes["gpu_slurm"], held)
        except (JobRefused, EnvelopeError):
            continue
        assert all(ARGUMENT.fullmatch(word) for word in found.options)
        assert re.fullmatch(r"[A-Za-z0-9_-]+", found.template)
        assert not any(text in value for _, value in found.environment if text.strip())
        environment = variables(payload)
        assert not any("\0" in value for value in environment.values())
        script = environment.get("TRAINING_SCRIPT", "")
        assert not script.startswith(("/", "-"))
        assert ".." not in script.split("/")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("time", value) for value in (0, "0:00", "UNLIMITED", "1-", "367-0", True, 1.5, "١٢")),
        *(("gpus", value) for value in (-1, "a100", "a100:", ":2", "a100:2,h100:1", 1000, True)),
        *(("nodes", value) for value in (0, "4-2", "0-3", "1-2-3", True)),
        *(("cpus", value) for value in (0, -1, "many")),
        *(("memory", value) for value in ("1K", -5, "8X", "lots")),
        *(("signal", value) for value in ("USR1@99999", "B:", "B:USR1 @60", True)),
        *(("mail_type", value) for value in ("SOMETIMES", [], "END;ls")),
        *(("comment", value) for value in ("a|b", "x" * 1025, 7)),
        *(("exclusive", value) for value in ("maybe", 3)),
        *(
            ("extra", value)
            for value in ("--wrap=id", "--wra=id", "--output=x", "--chdir=/", "-o x", "--uid=0", ["--hint=a b"])
        ),
        ("colour", "red"),
    ],
)
def test_what_sbatch_would_not_take_is_refused_with_the_place(name, value):
    with pytest.raises(EnvelopeInvalid, match=rf"^resources\.'?{name}'?: "):
        of_task({}, {name: value})


def test_resources_that_are_no_object_are_refused():
    with pytest.raises(EnvelopeInvalid, match="resources: expected an object, not list"):
        of_task({}, ["gpus"])


def test_what_a_gpu_of_this_host_is_shared_by_means_nothing_to_a_job():
    assert of_task({}, {"gpu_share": 0.5, "gpu_memory": "8G"}) == {}


def test_an_administrator_may_name_more_options_but_none_that_the_bridge_sets(tmp_path):
    assert of_config(settings(tmp_path, slurm_extra="--bell,--clusters-are-fun=1"))["extra"]
    for word in ("--array=0-9", "--job-name=x", "--wrap=id", "--wra=id", "--exp=ALL", "--w=x"):
        with pytest.raises(ConfigError):
            of_config(settings(tmp_path, slurm_extra=word))


def test_the_last_who_asks_wins_and_displaces_its_rivals(tmp_path):
    config = settings(tmp_path, slurm_memory="8G", slurm_partition="gpu", slurm_extra="--contiguous")
    config = dataclasses.replace(
        config,
        classes={
            "gpu_slurm": dataclasses.replace(
                config.classes["gpu_slurm"], slurm_options={"partition": "low", "cpus": 4, "time": "10"}
            )
        },
    )
    found = merged(
        of_config(config),
        of_class(config.classes["gpu_slurm"]),
        of_task({"nodes": 2, "gpus": 1}, {"gpus": "h100:2", "memory_per_cpu": "1G", "extra": ["--hint=compute_bound"]}),
    )
    assert found.argv == (
        "--partition=low",
        "--time=0-00:10:00",
        "--mem-per-cpu=1024M",
        "--cpus-per-task=4",
        "--gres=gpu:h100:2",
        "--nodes=2",
        "--contiguous",
        "--hint=compute_bound",
    )


def test_the_settings_of_jobs_become_arguments(tmp_path):
    config = settings(
        tmp_path,
        slurm_partition="gpu",
        slurm_account="lab",
        slurm_qos="high",
        slurm_time="2:00:00",
        slurm_memory="16G",
        slurm_cpus="8",
        slurm_gpus="a100:2",
        slurm_exclusive="true",
        slurm_mail_user="ann",
        slurm_mail_type="END,FAIL",
    )
    assert merged(of_config(config)).argv == (
        "--partition=gpu",
        "--account=lab",
        "--qos=high",
        "--time=0-02:00:00",
        "--mem=16384M",
        "--cpus-per-task=8",
        "--gres=gpu:a100:2",
        "--exclusive",
        "--mail-user=ann",
        "--mail-type=END,FAIL",
    )


def test_a_job_is_told_before_its_end_and_not_requeued_by_slurm_unless_somebody_says_otherwise(config):
    assert {"--signal=B:USR1@120", "--no-requeue"} <= set(plan(config).options)
    assert "--signal=B:USR1@6" in plan(config, {}, resources={"time": 1}).options
    asked = plan(config, {}, resources={"requeue": True, "signal": "B:USR1@30"}).options
    assert {"--signal=B:USR1@30", "--requeue"} <= set(asked)
    assert "--no-requeue" not in asked


def test_payloads_of_older_producers_choose_their_script_by_method(config):
    payload = {
        "method": "grpo",
        "module": "codegen",
        "model": "gpt2",
        "dataset": "d1",
        "script": "rl/train.py",
        "nodes": 2,
        "gpus": 4,
    }
    found = plan(config, payload)
    assert found.template == "train_agent_methodologies"
    assert {"--nodes=2", "--gres=gpu:4"} <= set(found.options)
    assert dict(found.environment) == {"NODES": "2", "GPUS": "4"}
    assert plan(config, {**payload, "method": "DDP"}).template == "train_ddp"
    assert variables(payload) == {
        "TRAINING_METHOD": "grpo",
        "MODULE_NAME": "codegen",
        "MODEL_NAME": "gpt2",
        "DATASET_NAME": "d1",
        "TRAINING_SCRIPT": "rl/train.py",
    }


def test_a_kind_or_a_handler_runs_by_the_runner_and_a_name_chooses_any_other_script(config):
    assert plan(config, {}, kind="echo").template == "task"
    assert plan(config, {"template": "mine"}).template == "mine"
    assert plan(config, {"template": "mine"}, resources={"template": "train_ddp.sbatch"}).template == "train_ddp"
    assert plan(config, {"template": "a payload of its own"}, kind="echo").template == "task"


def test_a_script_whose_ranks_are_slurms_tasks_gets_one_for_each_gpu_unless_told_otherwise(config):
    ranked = plan(config, {"nodes": 2, "gpus": "a100:4"}, resources={"template": "train_ddp_srun"}).options
    assert {"--nodes=2", "--gres=gpu:a100:4", "--ntasks-per-node=4"} <= set(ranked)
    told = plan(config, {"gpus": 4}, resources={"template": "train_ddp_srun", "tasks_per_node": 2}).options
    assert "--ntasks-per-node=2" in told
    launched = plan(config, {"gpus": 4}, resources={"template": "train_ddp"}).options
    assert not any("ntasks" in word for word in launched)


def test_a_kind_that_nothing_runs_is_refused(config):
    with pytest.raises(JobRefused, match="kind 'command'"):
        plan(config, {}, kind="command")


def test_equal_tasks_have_equal_plans_whatever_their_data(config):
    assert plan(config, {"method": "grpo", "model": "a"}) == plan(config, {"method": "sft", "model": "b"})
    assert hash(plan(config, {"nodes": 2})) != hash(plan(config, {"nodes": 3}))


def test_a_script_outside_the_jobs_folder_is_refused(config):
    for script in ("/etc/passwd", "../x.py", "a/../../x.py", "-c", "a b.py", "x.py\n"):
        with pytest.raises(JobRefused, match=r"payload\.script"):
            plan(config, {"script": script})


def test_what_the_runner_is_told_is_small_json(config):
    klass = dataclasses.replace(config.classes["gpu_slurm"], environment={"TOKEN": "x"})
    told = orjson.loads(orjson.dumps(runner_settings(config, klass)))
    assert told["environment"] == {"TOKEN": "x"}
    assert told["kinds"] == ["echo", "call"]
    assert told["stop_grace_s"] < 30
