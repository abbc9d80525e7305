"""The cluster itself: it is what the other tests believe in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ..conftest import until
from .dev_cluster import SCRIPT, DevCluster
from .faults import Faults


def test_jobs_run_on_nodes_with_names_and_gpus_of_their_own(cluster: DevCluster) -> None:
    job = cluster.submit("hostname; echo $CUDA_VISIBLE_DEVICES; exit 3", "--partition=gpu", "--gres=gpu:2")
    assert cluster.wait(job, "COMPLETED", "FAILED") == "FAILED"
    said = (cluster.folder / "log" / f"{job}_4294967294.job").read_text().splitlines()
    assert said in ([[cluster.nodes[2], "0,1"], [cluster.nodes[3], "0,1"]])
    until(lambda: cluster.accounted(job) == [[job, "FAILED", "3:0"]], "sacct knows its end")


def test_up_is_idempotent_and_status_tells_what_runs(cluster: DevCluster) -> None:
    before = {path.name: path.read_text() for path in (cluster.folder / "run").glob("*.pid")}
    assert cluster.do("up") == f"export SLURM_CONF={cluster.conf}\n"
    assert before == {path.name: path.read_text() for path in (cluster.folder / "run").glob("*.pid")}
    status = json.loads(cluster.do("status", "--json"))
    assert set(status["daemons"].values()) == {"running"} and set(status["nodes"].values()) == {"idle"}


def test_a_killed_node_takes_its_jobs_with_it_and_heals(cluster: DevCluster, tmp_path: Path) -> None:
    node = cluster.nodes[1]
    job = cluster.submit(f"echo begun > {tmp_path}/begun; exec sleep 300", f"--nodelist={node}", "--no-requeue")
    until((tmp_path / "begun").exists, "the job begins")
    cluster.do("kill", node)
    assert json.loads(cluster.do("status", "--json"))["daemons"][node] == "dead"
    cluster.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    assert cluster.wait(job, "NODE_FAIL", "COMPLETED", "FAILED") == "NODE_FAIL"
    cluster.do("heal", "--cancel")
    assert cluster.run("srun", f"--nodelist={node}", "hostname") == f"{node}\n"


def test_what_only_has_the_number_of_a_daemon_is_not_ended(cluster: DevCluster) -> None:
    """A pid file of a daemon that is gone, whose number another process was given."""
    node = cluster.nodes[0]
    record = cluster.folder / "run" / f"{node}.pid"
    cluster.do("kill", node)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        record.write_text(f"{stranger.pid} 4711")
        cluster.do("kill", node)
        assert stranger.poll() is None
        stranger.communicate(b"\n")


def test_its_database_leaves_the_temporary_tables_of_others_alone(cluster: DevCluster) -> None:
    descriptor, name = tempfile.mkstemp(dir="/tmp", prefix="#sql-temptable-")
    os.close(descriptor)
    try:
        cluster.do("kill", "mariadbd")
        cluster.do("start", "mariadbd")
        assert os.path.exists(name)
    finally:
        Path(name).unlink(missing_ok=True)


def test_a_folder_that_others_can_write_to_is_refused() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # short, as dev-cluster wants it
        os.chmod(folder, 0o777)
        ran = subprocess.run([sys.executable, SCRIPT, "--folder", folder, "up"], capture_output=True, text=True)
    assert ran.returncode == 1 and "not a folder that only you can write to" in ran.stderr


def test_wrapping_programs_do_as_they_are_told(cluster: DevCluster, faults: Faults) -> None:
    environ = cluster.environ | {"PATH": faults.path}

    def sbatch() -> tuple[int, str]:
        command = ["sbatch", "--parsable", "--hold", "--wrap=true"]
        ran = subprocess.run(command, env=environ, capture_output=True, text=True, cwd="/")
        return ran.returncode, ran.stdout

    faults.plan("sbatch refuse", "sbatch lost", "sbatch cut 0", "* delay 0.01")
    assert sbatch() == (1, "") and not cluster.jobs()
    assert sbatch() == (1, "") and len(cluster.jobs()) == 1
    assert sbatch() == (0, "") and len(cluster.jobs()) == 2
    code, said = sbatch()
    assert code == 0 and said.strip() in cluster.jobs()
    assert faults.counts() == {"sbatch": 4} and not faults.left()


def test_a_program_that_hangs_ends_with_its_caller(cluster: DevCluster, faults: Faults) -> None:
    faults.plan("squeue hang", "sbatch late")
    environ = cluster.environ | {"PATH": faults.path}
    for command in (["squeue"], ["sbatch", "--hold", "--wrap=true"]):
        program = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, cwd="/")
        until(lambda command=command: faults.counts()[command[0]] == 1, "it was called")  # type: ignore[misc]
        if command[0] == "sbatch":
            until(cluster.jobs, "the job exists though nothing was said")
        assert program.poll() is None
        program.kill()
        assert program.communicate() == (b"", None)
    assert os.listdir(faults.folder)
