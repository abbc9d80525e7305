import sys

import pytest
from dspy_supervisor.environment import slurm_environment
from dspy_supervisor.services.slurm.commands import (
    Accepted,
    Answer,
    Refused,
    Slurm,
    Unknown,
    parse_config,
    read_submission,
)
from dspy_supervisor.services.slurm.pace import Pace

CONNECT = "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)\n"
TIMED = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n"
PARTITION = (
    "sbatch: error: invalid partition specified: x\n"
    "sbatch: error: Batch job submission failed: Invalid partition name specified\n"
)
POLICY = (
    "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size "
    "and/or time limits)\n"
)


def answer(out: str = "", error: str = "", code: int = 0, **more) -> Answer:
    return Answer("sbatch", code, out, error, 0.1, **more)


@pytest.mark.parametrize(("out", "job_id", "cluster"), [("13\n", "13", ""), ("13;devel\n", "13", "devel")])
def test_an_answer_with_an_id_is_accepted(out, job_id, cluster):
    assert read_submission(answer(out, "sbatch: warning: something\n")) == Accepted(job_id, cluster)


@pytest.mark.parametrize(
    "said",
    [
        answer(""),
        answer("1"),  # of 13: cut off
        answer("13;"),
        answer("hello\n"),
        answer("", CONNECT, 1),
        answer("", TIMED, 1),
        answer("13\n", TIMED, 1),
        answer("", "", -9),
        answer("", PARTITION, 1, timed_out=True),
        answer("", "sbatch: error: something new\n", 1),
        answer("", PARTITION + TIMED, 1),
    ],
)
def test_whatever_is_not_certain_is_unknown(said):
    assert isinstance(read_submission(said), Unknown)


@pytest.mark.parametrize(
    "error",
    [
        PARTITION,
        "sbatch: error: Batch job submission failed: Requested node configuration is not available\n",
        "sbatch: error: Batch job submission failed: Invalid job array specification\n",
        "sbatch: error: Batch job submission failed: Invalid generic resource (gres) specification\n",
        "sbatch: error: Batch job submission failed: Invalid feature specification\n",
        "sbatch: error: This does not look like a batch script.  The first\n",
        "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified\n",
    ],
)
def test_what_no_cluster_would_take_is_refused_for_good(error):
    said = read_submission(answer("", error, 1))
    assert isinstance(said, Refused) and not said.later


def test_a_limit_may_have_room_again_and_a_program_that_is_missing_be_installed():
    assert read_submission(answer("", POLICY, 1)) == Refused(POLICY.strip(), later=True)
    said = Slurm({"PATH": "/nonexistent"}).call(["sbatch"])
    assert read_submission(said) == Refused("sbatch: not found on PATH", later=True)


@pytest.fixture
def programs(tmp_path):
    def make(name: str, code: str) -> Slurm:
        path = tmp_path / name
        path.write_text(f"#!{sys.executable} -SE\nimport os, sys, time\n{code}\n")
        path.chmod(0o755)
        return Slurm({"PATH": str(tmp_path), "HOME": "/root"})

    return make


def test_a_command_gets_its_words_its_input_and_its_variables_and_no_shell(programs):
    slurm = programs(
        "sbatch", "print(sys.argv[1:], sys.stdin.read(), os.environ.get('A'), 'SLURM_TIME_FORMAT' in os.environ)"
    )
    said = slurm.call(["sbatch", "--x=$(id); 'y'\n#SBATCH z"], stdin=b"#!/bin/sh\n", environment=[("A", "1")])
    assert said.ok and said.out == "[\"--x=$(id); 'y'\\n#SBATCH z\"] #!/bin/sh\n 1 False\n"


def test_those_that_ask_get_times_as_numbers(programs):
    assert programs("squeue", "print(os.environ['SLURM_TIME_FORMAT'])").call(["squeue"]).out == "%s\n"


def test_a_command_that_hangs_is_ended_and_counted(programs):
    slurm = programs("squeue", "print('half'); sys.stdout.flush(); time.sleep(600)")
    said = slurm.call(["squeue"], timeout_s=0.2)
    assert said.timed_out and not said.ok and "did not answer" in said.trouble
    assert (slurm.calls["squeue"], slurm.errors["squeue"], slurm.running) == (1, 1, 0)


def test_the_last_line_of_an_error_is_the_trouble(programs):
    said = programs("sacct", "sys.exit('sacct: error: first\\nsacct: error: second')").call(["sacct"])
    assert said.trouble == "sacct: error: second"


def test_the_environment_of_jobs_holds_what_programs_need_and_nothing_secret():
    around = {
        "PATH": "/bin",
        "HOME": "/root",
        "API_KEY": "secret",
        "SQUEUE_STATES": "R",
        "SLURM_JOB_ID": "1",
        "SLURM_CONF": "/c",
        "SBATCH_PARTITION": "x",
        "DSPY_TASK_NODE": "n",
        "HF_HOME": "/hf",
        "HF_TOKEN": "t",
    }
    found = slurm_environment((), around)
    assert found == {"PATH": "/bin", "HOME": "/root", "SLURM_CONF": "/c", "LC_ALL": "C.UTF-8"}
    assert slurm_environment(("HF_*",), around).keys() - found.keys() == {"HF_HOME", "HF_TOKEN"}


def test_the_clusters_configuration_is_read():
    text = (
        "Configuration data as of 2026\nAccountingStorageType   = accounting_storage/slurmdbd\nClusterName = devel\n"
        "KillWait                = 3 sec\nMaxArraySize            = 10001\nMessageTimeout = 5 sec\nMinJobAge = 10 sec\n"
        "SLURM_VERSION           = 22.05.8\n"
    )
    found = parse_config(text)
    assert (found.name, found.version, found.max_array_size, found.min_job_age_s) == ("devel", "22.05.8", 10001, 10.0)
    assert found.accounting and found.reply_s == 20.0
    for none in ("accounting_storage/none", "(null)"):
        assert not parse_config(f"AccountingStorageType = {none}\n").accounting


def test_the_pace_tightens_when_something_moves_and_slackens_when_nothing_does():
    pace = Pace(15.0)
    waits = [pace.answered(0.01, changed=False, due=False) for _ in range(20)]
    assert waits == sorted(waits) and waits[-1] == 15.0
    assert max(pace.answered(0.01, changed=False, due=True) for _ in range(20)) == 5.0
    assert pace.answered(0.01, changed=True, due=False) == 1.0


def test_the_pace_backs_off_under_errors_and_slowness():
    pace = Pace(15.0)
    waits = [pace.failed() for _ in range(12)]
    assert waits == sorted(waits) and waits[0] == 2.0 and waits[-1] == 300.0
    assert pace.answered(4.0, changed=True, due=False) == 20.0


def test_without_accounting_no_job_is_forgotten_between_two_looks():
    pace = Pace(60.0)
    pace.bound(60.0, 10.0, accounting=False)
    assert max(pace.answered(0.01, changed=False, due=False) for _ in range(20)) == 5.0
