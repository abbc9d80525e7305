"""The hardened unit beside a real Slurm, whose daemons are Debian's own services. In order, in one guest: `make guest`."""

from __future__ import annotations

import json
import shlex

import pytest

from ..conftest import until
from .machine import Machine
from .service import ETC, PLACE, Service

pytestmark = pytest.mark.timeout(1800)  # an emulated processor

CLUSTER = """\
ClusterName=guest
SlurmctldHost=guest
SlurmUser=slurm
AuthType=auth/munge
CredType=cred/munge
StateSaveLocation=/var/lib/slurm/slurmctld
SlurmdSpoolDir=/var/lib/slurm/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd.log
ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SchedulerParameters=batch_sched_delay=0
DefMemPerCPU=128
NodeName=guest CPUs=2 RealMemory=1024 State=UNKNOWN
PartitionName=cpu Default=YES Nodes=guest DefaultTime=60 MaxTime=INFINITE State=UP
"""
LIMITS = "CgroupPlugin=cgroup/v2\nConstrainRAMSpace=yes\nConstrainSwapSpace=yes\nAllowedSwapSpace=0\n"
IDLE = '[ "$(sinfo -h -o %t)" = idle ]'
SETTINGS = f'''
mode = "cluster"
queue_dir = "{PLACE}/jobs"
runtime_dir = "/run/dspy-supervisor/jobs"
enable_gpu = false
policy = "fixed"
http = false
slurm_poll_s = 1
slurm_partition = "cpu"
slurm_memory = "128M"
[class.gpu_slurm]
handler = "handlers:work"
max_ooms = 1
[class.cpu_short]
workers = 0
[class.cpu_long]
workers = 0
'''


@pytest.fixture(scope="module", autouse=True)
def cluster(guest: Machine) -> None:
    """A cluster of one node: the guest."""
    # Slurm takes no name of the loopback alone: getaddrinfo's AI_ADDRCONFIG.
    guest.ok("ip address add 10.1.1.1/32 dev lo && echo 10.1.1.1 guest >> /etc/hosts")
    guest.write("/etc/slurm/slurm.conf", CLUSTER)
    guest.write("/etc/slurm/cgroup.conf", LIMITS)
    guest.write(f"{ETC}/jobs.toml", SETTINGS)
    guest.ok("systemctl restart munge slurmctld slurmd", 300)
    guest.ok(f"for i in $(seq 60); do {IDLE} && exit; sleep 1; done; sinfo -R; tail /var/log/slurm/*; exit 1", 300)


@pytest.fixture
def jobs(guest: Machine) -> Service:
    """The instance whose tasks become jobs."""
    return Service(guest, "dspy-supervisor@jobs", f"{ETC}/jobs.toml", f"{PLACE}/jobs")


def submit(jobs: Service, task_id: str, **payload: object) -> None:
    """Put a task that becomes a job."""
    command = f"dspy-supervisor submit --config {jobs.settings} --class gpu_slurm --id {task_id}"
    jobs.ok(f"{command} {shlex.quote(json.dumps(payload))}")


def test_a_task_becomes_a_job_outside_of_the_unit(guest: Machine, jobs: Service) -> None:
    guest.ok("dspy-supervisor service install jobs --run-as alice", 600)
    assert jobs.show("StatusText") == f"serving {jobs.queue}"
    submit(jobs, "first")
    found = jobs.record("first")["runner_result"]
    assert "dspy-supervisor" not in found["group"] and "/job_" in found["group"]


def test_a_job_goes_on_while_the_service_is_started_anew(guest: Machine, jobs: Service) -> None:
    gate = f"{PLACE}/anew"
    submit(jobs, "held", until=gate)
    process, job = jobs.begun(gate), running(guest)
    before = jobs.pid
    jobs.systemctl(f"restart {jobs.unit}")
    jobs.wait_for("ActiveState", "active")
    assert jobs.pid not in (0, before)
    assert running(guest) == job
    guest.ok(f"touch {gate}")
    record = jobs.record("held")
    assert (record["attempt"], record["runner_result"]["pid"]) == (0, process)


def test_it_becomes_another_version_while_a_job_runs(guest: Machine, jobs: Service) -> None:
    gate = f"{PLACE}/next"
    submit(jobs, "through", until=gate)
    process, before = jobs.begun(gate), jobs.pid
    jobs.ok(f"dspy-supervisor upgrade --config {jobs.settings}", 300)
    assert jobs.pid == before
    guest.ok(f"touch {gate}")
    record = jobs.record("through")
    assert (record["attempt"], record["runner_result"]["pid"]) == (0, process)


def test_a_job_over_its_memory_is_ended_by_slurms_own_group(guest: Machine, jobs: Service) -> None:
    submit(jobs, "hog", hog=400)
    error = jobs.record("hog", "failed")["error"]
    assert error["cause"] == "out_of_memory", error


def test_a_cancelled_task_ends_its_job(guest: Machine, jobs: Service) -> None:
    gate = f"{PLACE}/never"
    submit(jobs, "unwanted", until=gate)
    jobs.begun(gate)
    jobs.ok(f"dspy-supervisor task cancel --config {jobs.settings} unwanted")
    assert jobs.record("unwanted", "failed")["error"]["cause"] == "cancelled"
    until(lambda: not guest.ok("squeue -h -t running"), "its job ends", 120)


def test_it_is_removed_and_leaves_the_cluster_as_it_was(guest: Machine, jobs: Service) -> None:
    guest.ok("dspy-supervisor service uninstall jobs", 300)
    guest.ok(IDLE)
    assert not guest.ok("squeue -h")


def running(guest: Machine) -> str:
    """Return the one job that runs."""
    (job,) = guest.ok("squeue -h -t running -o %A").split()
    return job
