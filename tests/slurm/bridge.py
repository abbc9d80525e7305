"""A queue whose supervisor carries tasks to the cluster, with wrapped programs between them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from dspy_supervisor.jobbook import JobBook, name_prefix
from dspy_supervisor.layout import Layout
from dspy_supervisor.task import TaskName

from ..conftest import Start, Supervised, until
from ..system.rig import Rig
from .dev_cluster import DevCluster
from .faults import Faults

END_S = 90.0  #: what a test waits for takes seconds; more where a busy machine runs cluster, supervisor and jobs


class Bridge(Rig):
    """A queue, its supervisors in cluster mode, and the tasks that were put into it."""

    def __init__(self, folder: Path, start: Start, cluster: DevCluster, faults: Faults) -> None:
        super().__init__(folder, start)
        self.cluster, self.faults = cluster, faults

    def carry(self, *options: str, **settings: object) -> Supervised:
        """Start a supervisor that carries the tasks of class gpu_slurm, which run as programs."""
        chosen = {
            "enable_gpu": "false",
            "slurm_partition": "cpu",
            "slurm_poll_s": 0.5,
            "slurm_memory": "64M",
            "slurm_cpus": 1,
            "retry_base_s": 0.01,
            "policy": "fixed",
            **settings,
        }
        environ = {"SLURM_CONF": str(self.cluster.conf), "PATH": self.faults.path}
        options = ("--mode", "cluster", "--kinds", "echo,call,command", *options)
        return self.start(*options, workers=0, settings=chosen, environ=environ)

    def shell(self, task_id: str, script: str = "true", **envelope: Any) -> str:
        """Put a task that runs a shell script, after it left a line in the log."""
        note = f'echo "$DSPY_TASK_ID $DSPY_TASK_ATTEMPT $(hostname)" >> {shlex.quote(str(self.log))}\n'
        payload = {"argv": ["sh", "-c", note + script]}
        return self.drop(task_id, payload, **{"class": "gpu_slurm", "kind": "command", **envelope})

    def waiting(self, task_id: str, **envelope: Any) -> str:
        """Put a task that runs until `release`."""
        gate = shlex.quote(str(self.folder / f"{task_id}.gate"))
        return self.shell(task_id, f"while [ ! -e {gate} ]; do sleep 0.1; done", **envelope)

    def train(self, template: str, prefix: str, method: str = "ddp") -> Path:
        """Put a task that trains train.py on two nodes of two ranks, and return the folder that its jobs share."""
        task_id = f"{prefix}-{template}"
        shutil.copy(Path(__file__).with_name("train.py"), self.folder)  # where the supervisor was started
        payload = {"method": method, "script": "train.py", "nodes": 2, "gpus": 2}
        self.drop(task_id, payload, **{"class": "gpu_slurm", "resources": {"template": template}, "max_attempts": 3})
        return self.queue / "logs" / task_id

    def release(self, *task_ids: str) -> None:
        """Let waiting tasks end."""
        for task_id in task_ids:
            (self.folder / f"{task_id}.gate").touch()

    def runs(self) -> list[tuple[str, str, str]]:
        """Return what ran: id, attempt and node of each start, in their order."""
        if not self.log.exists():
            return []
        return [(line.split()[0], line.split()[1], line.split()[2]) for line in self.log.read_text().splitlines()]

    def running(self, task_id: str, times: int = 1) -> None:
        """Wait until a task has begun, for the n-th time."""
        until(lambda: sum(run[0] == task_id for run in self.runs()) >= times, f"{task_id} begins", END_S)

    def done(self, task_id: str) -> dict[str, Any]:
        """Wait for the end of a task, and return its record; it must have succeeded."""
        record = self.record(task_id, END_S)
        assert record["status"] == "done", json.dumps(record, indent=1)
        return record

    def failed(self, task_id: str) -> dict[str, Any]:
        """Wait for the end of a task, and return its error; it must have failed."""
        record = self.record(task_id, END_S)
        assert record["status"] == "failed", json.dumps(record, indent=1)
        error: dict[str, Any] = record["error"]
        return error

    def job_of(self, task_id: str) -> str:
        """Wait until a task has a job, and return its id as Slurm's commands take it."""

        def look() -> str | None:
            with Layout.open(self.queue, insecure=True) as layout:
                for one in reversed(list(JobBook(layout).submissions())):
                    for index, file in enumerate(one.tasks):
                        name = TaskName.parse(file)
                        if name is not None and name.id == task_id and one.job_id:
                            return one.job_of(index)
            return None

        return until(look, f"{task_id} has a job", END_S) or ""

    def fill_cluster(self) -> str:
        """Take all nodes with a job of somebody else, so that ours wait; returns its id."""
        job = self.cluster.submit("exec sleep 600", f"--nodes={len(self.cluster.nodes)}", "--exclusive")
        self.cluster.wait(job, "RUNNING")
        return job

    def jobs(self) -> set[str]:
        """Return the ids of all jobs that this queue ever had, as controller and accounting know them; arrays as one."""
        with Layout.open(self.queue, insecure=True) as layout:
            ours = name_prefix(layout.queue_id)
        rows = self.cluster.accounted(fields="jobid,jobname")
        rows += [row.split() for row in self.cluster.run("squeue", "-h", "-t", "all", "-o", "%i %j").splitlines()]
        return {row[0].partition("_")[0] for row in rows if row[1].startswith(ours)}

    def arrays(self) -> Counter[int]:
        """Return how many submissions there were of each size, from what was asked of sbatch."""
        found: Counter[int] = Counter()
        for line in self.faults.calls():
            if line.startswith("sbatch"):
                sizes = [word for word in line.split() if word.startswith("--array=")]
                found[int(re.split("[-%]", sizes[0])[3]) + 1 if sizes else 1] += 1
        return found

    def service(self, supervisor: Supervised) -> int:
        """Return the pid of the process that carries the tasks."""
        return int(supervisor.status()["services"]["slurm"]["pid"])
