"""A cluster of deploy/slurm/dev-cluster in a short folder, and what tests ask of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from ..conftest import ROOT, until

SCRIPT = ROOT / "deploy" / "slurm" / "dev-cluster"
PROGRAMS = ("munged", "slurmctld", "slurmd", "slurmdbd", "mariadbd", "sbatch", "sacct")
_PREFIX = "dspy-slurm-"
OURS = ("SLURM_", "SBATCH_", "SRUN_", "SQUEUE_", "SACCT_", "SCANCEL_", "SALLOC_", "SINFO_")


def missing() -> list[str]:
    """Return which programs of Slurm are not on this machine."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return [name for name in PROGRAMS if not shutil.which(name, path=path)]


class DevCluster:
    """A running cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "etc" / "slurm.conf"

    @property
    def environ(self) -> dict[str, str]:
        """This process's environment, towards this cluster and no other."""
        found = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        return found | {"SLURM_CONF": str(self.conf), "LC_ALL": "C.UTF-8"}

    @property
    def nodes(self) -> list[str]:
        """The names of its nodes, those with GPUs last."""
        return (self.folder / "etc" / "nodes").read_text().split()

    @property
    def has_memory_limits(self) -> bool:
        """Whether a job can be OUT_OF_MEMORY here."""
        return "task/cgroup" in self.conf.read_text()

    def do(self, *command: str) -> str:
        """Carry out a command of dev-cluster, as kill n2, and return what it printed."""
        words = [sys.executable, str(SCRIPT), "--folder", str(self.folder), *command]
        ran = subprocess.run(words, env=self.environ, capture_output=True, text=True, timeout=110)
        assert ran.returncode in (0, 3), f"dev-cluster {' '.join(command)}: {ran.stderr}{ran.stdout}"
        return ran.stdout

    def run(self, *command: str, stdin: str = "", check: bool = True) -> str:
        """Run a client program of Slurm and return what it printed."""
        ran = subprocess.run(command, env=self.environ, input=stdin, capture_output=True, text=True, timeout=60)
        assert not check or ran.returncode == 0, f"{' '.join(command)}: {ran.returncode}: {ran.stderr}"
        return ran.stdout

    def submit(self, script: str, *options: str) -> str:
        """Submit a batch script by hand and return the job's id."""
        command = ["sbatch", "--parsable", f"--output={self.folder}/log/%A_%a.job", *options]
        return self.run(*command, stdin=f"#!/bin/sh\n{script}\n").strip()

    def jobs(self, *options: str, ended: bool = False) -> dict[str, str]:
        """Return the state of each job that slurmctld knows, the ended ones only if asked for."""
        states = ["-t", "all"] if ended else []
        rows = self.run("squeue", "-h", "-r", "-o", "%i %T", *states, *options).splitlines()
        return {row.split()[0]: row.split()[1] for row in rows}

    def wait(self, job: str, *states: str, within_s: float = 60.0) -> str:
        """Wait until slurmctld says one of these states of a job, and return it."""

        def look() -> str | None:
            state = self.jobs(ended=True).get(job)
            return state if state in states else None

        return until(look, f"job {job} is {' or '.join(states)}", within_s) or ""

    def accounted(self, *ids: str, fields: str = "jobid,state,exitcode") -> list[list[str]]:
        """Return sacct's rows of these jobs, or of all where none is named; steps aside, every incarnation."""
        chosen = ["-j", ",".join(ids)] if ids else ["-S", "now-1days"]
        rows = self.run("sacct", "-X", "-D", "-n", "-P", *chosen, "-o", fields).splitlines()
        return [row.split("|") for row in rows]


@contextlib.contextmanager
def dev_cluster(*options: str) -> Iterator[DevCluster]:
    """Bring a cluster up in a folder of its own, and take it down with all it left."""
    for left in Path("/tmp").glob(f"{_PREFIX}*"):
        if _is_orphan(left):
            DevCluster(left).do("down", "--purge")
    # Short, since sockets lie in it; and it names who ends it, so that the next one can where that was killed.
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir="/tmp"))
    cluster = DevCluster(folder)
    try:
        cluster.do("up", *options)
        yield cluster
    finally:
        cluster.do("down", "--purge")
        shutil.rmtree(folder, ignore_errors=True)


def _is_orphan(folder: Path) -> bool:
    """Whether a cluster of such a test run is left over: by us, and its process is gone."""
    try:
        return folder.stat().st_uid == os.geteuid() and not psutil.pid_exists(int(folder.name.split("-")[2]))
    except (OSError, ValueError):
        return False
