"""What a cluster looks like: its shape, and the configuration files that follow from it.

All of it listens on 127.0.0.1 only and lies in one folder::

    etc/      nodes slurm.conf gres.conf cgroup.conf slurmdbd.conf plugstack.conf hosts munge.key shape.json
    run/      sockets, and a pid file for each daemon
    log/      a log of each daemon (.log), and what it wrote to standard error (.out)
    state/    slurmctld's memory       spool/  of the nodes     db/  accounting       dev/  the fake GPUs
"""

from __future__ import annotations

import json
import os
import pwd
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

PATH_BYTES = 64  #: of the folder: paths of sockets below it must stay below 108 bytes


@dataclass(frozen=True)
class Shape:
    """How many nodes of which kind, and where they listen."""

    nodes: int = 4
    gpu_nodes: int = 2  #: the last ones of the nodes
    gpus: int = 4  #: of each GPU node
    cpus: int = 8  #: of each node, pretended
    memory_mb: int = 4096  #: of each node, pretended
    accounting: bool = True
    namespaces: bool = True  #: each node is a PID, mount and UTS namespace of its own
    cgroups: bool = True  #: memory limits hold, so jobs can be OUT_OF_MEMORY
    prefix: str = "n"  #: nodes are n1, n2, ...
    base_port: int = 17000
    min_job_age_s: int = 10  #: how long slurmctld remembers a job that ended
    version: tuple[int, int] = (22, 5)  #: of Slurm

    @classmethod
    def load(cls, folder: Path) -> Shape | None:
        """Return the shape of the cluster in a folder, or None where there is none."""
        try:
            known = json.loads((folder / "etc" / "shape.json").read_text())
        except FileNotFoundError:
            return None
        return cls(**known | {"version": tuple(known["version"])})

    @property
    def names(self) -> list[str]:
        """The names of the nodes."""
        return [f"{self.prefix}{number}" for number in range(1, self.nodes + 1)]

    @property
    def controller(self) -> str:
        """The host name under which slurmctld runs: its own one, so that the folder survives another machine name."""
        return "slurmctl" if self.namespaces else socket.gethostname()

    def write(self, folder: Path) -> None:
        """Write the configuration files and the fake devices."""
        etc = folder / "etc"
        files = {
            "slurm.conf": slurm_conf(self, folder),
            "gres.conf": gres_conf(self, folder),
            "cgroup.conf": cgroup_conf(self),
            "slurmdbd.conf": slurmdbd_conf(self, folder),
            "plugstack.conf": "",
            "hosts": hosts(self),
            "shape.json": json.dumps(asdict(self)),
            "nodes": "".join(f"{name}\n" for name in self.names),
        }
        for name, text in files.items():
            (etc / name).write_text(text)
            (etc / name).chmod(0o600 if name == "slurmdbd.conf" else 0o644)
        for number in range(self.gpus):  # slurmd wants devices with names of their own; it never opens them
            link = folder / "dev" / f"gpu{number}"
            if not link.is_symlink():
                link.symlink_to("/dev/null")


def user_name() -> str:
    """Return who runs it all."""
    return pwd.getpwuid(os.geteuid()).pw_name


def slurm_conf(shape: Shape, folder: Path) -> str:
    """Return slurm.conf. Its timers are as short as they go, so that a test waits seconds where a site waits minutes."""
    gpu_nodes = ",".join(shape.names[shape.nodes - shape.gpu_nodes :])
    # Without NoInAddrAny the daemons listen on all interfaces; with it an srun from outside the nodes is reached
    # only where the machine's own name resolves to the loopback.
    addresses = "NoCtldInAddrAny,NoInAddrAny" if _name_is_loopback() else "NoCtldInAddrAny"
    signals = ("SlurmctldParameters=preempt_send_user_signal", "PreemptParameters=send_user_signal")
    accounting = [
        "AccountingStorageType=accounting_storage/slurmdbd",
        "AccountingStorageHost=127.0.0.1",
        f"AccountingStoragePort={shape.base_port + 1}",
        f"AccountingStoragePass={folder}/run/munge.sock",  # towards slurmdbd this names munge's socket
        "AccountingStoreFlags=job_comment",
        "AccountingStorageTRES=gres/gpu",
        "JobAcctGatherType=jobacct_gather/linux",
        "JobAcctGatherFrequency=task=1",
    ]
    lines = [
        "ClusterName=devel",
        f"SlurmctldHost={shape.controller}(127.0.0.1)",
        f"SlurmctldPort={shape.base_port}",
        f"SlurmUser={user_name()}",
        f"SlurmdUser={user_name()}",
        "AuthType=auth/munge",
        "CredType=cred/munge",
        f"AuthInfo=socket={folder}/run/munge.sock,cred_expire=5",  # also how long a requeued job waits
        f"CommunicationParameters={addresses}",
        f"StateSaveLocation={folder}/state",
        f"SlurmdSpoolDir={folder}/spool/%n",
        f"SlurmctldPidFile={folder}/run/slurmctld.own.pid",
        f"SlurmdPidFile={folder}/run/%n.own.pid",
        f"SlurmctldLogFile={folder}/log/slurmctld.log",
        f"SlurmdLogFile={folder}/log/%n.log",
        f"PlugStackConfig={folder}/etc/plugstack.conf",
        f"ProctrackType=proctrack/{'cgroup' if shape.cgroups else 'linuxproc'}",
        f"TaskPlugin=task/{'cgroup' if shape.cgroups else 'none'}",
        "SlurmdParameters=config_overrides",  # believe the numbers below, not the machine
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_CPU_Memory",
        "GresTypes=gpu",
        "MpiDefault=none",
        "PropagateResourceLimits=NONE",
        "ReturnToService=2",
        "JobRequeue=1",
        "PreemptType=preempt/partition_prio",
        "PreemptMode=REQUEUE",
        signals[shape.version >= (23, 11)],
        "SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2",
        f"MinJobAge={shape.min_job_age_s}",
        "MaxArraySize=10001",
        "KillWait=3",
        "SlurmdTimeout=6",
        "SlurmctldTimeout=6",
        "MessageTimeout=5",
        "TCPTimeout=2",
        "InactiveLimit=0",
        "DefMemPerCPU=64",  # without a default a job takes all memory of its node
        *(accounting if shape.accounting else ["JobAcctGatherType=jobacct_gather/none"]),
    ]
    for number, name in enumerate(shape.names):
        gpus = f" Gres=gpu:a100:{shape.gpus}" if name in gpu_nodes.split(",") else ""
        lines.append(
            f"NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={shape.base_port + 10 + number}"
            f" CPUs={shape.cpus} RealMemory={shape.memory_mb}{gpus} State=UNKNOWN"
        )
    everything = f"Nodes={','.join(shape.names)} DefaultTime=60 MaxTime=INFINITE State=UP"
    lines += [
        f"PartitionName=cpu Default=YES PriorityTier=10 PreemptMode=OFF {everything}",
        f"PartitionName=low PriorityTier=1 PreemptMode=REQUEUE {everything}",
        f"PartitionName=lowcancel PriorityTier=1 PreemptMode=CANCEL {everything}",
    ]
    if gpu_nodes:
        gpu = everything.replace(",".join(shape.names), gpu_nodes)
        lines.append(f"PartitionName=gpu PriorityTier=10 PreemptMode=OFF {gpu}")
    return "\n".join(lines) + "\n"


def gres_conf(shape: Shape, folder: Path) -> str:
    """Return gres.conf: the fake GPUs."""
    files = f"File={folder}/dev/gpu[0-{shape.gpus - 1}]" if shape.gpus > 1 else f"File={folder}/dev/gpu0"
    names = shape.names[shape.nodes - shape.gpu_nodes :]
    lines = [f"NodeName={name} Name=gpu Type=a100 {files}" for name in names if shape.gpus]
    return "\n".join(["AutoDetect=off", *lines]) + "\n"


def cgroup_conf(shape: Shape) -> str:
    """Return cgroup.conf."""
    if shape.cgroups:
        return "CgroupPlugin=cgroup/v1\nConstrainRAMSpace=yes\nConstrainSwapSpace=yes\nAllowedSwapSpace=0\n"
    return "CgroupPlugin=disabled\n" if shape.version >= (24, 5) else ""


def slurmdbd_conf(shape: Shape, folder: Path) -> str:
    """Return slurmdbd.conf."""
    lines = [
        "DbdHost=localhost",
        "DbdAddr=127.0.0.1",
        f"DbdPort={shape.base_port + 1}",
        f"SlurmUser={user_name()}",
        "AuthType=auth/munge",
        f"AuthInfo=socket={folder}/run/munge.sock",
        "StorageType=accounting_storage/mysql",
        "StorageHost=localhost",  # the socket: MYSQL_UNIX_PORT says which
        f"StorageUser={user_name()}",
        "StorageLoc=slurm",
        f"LogFile={folder}/log/slurmdbd.log",
        f"PidFile={folder}/run/slurmdbd.own.pid",
        "CommitDelay=1",
    ]
    return "\n".join(lines) + "\n"


def hosts(shape: Shape) -> str:
    """Return /etc/hosts as the nodes see it: all of the cluster is this machine."""
    return f"127.0.0.1 localhost {socket.gethostname()} {shape.controller} {' '.join(shape.names)}\n"


def _name_is_loopback() -> bool:
    try:
        return socket.gethostbyname(socket.gethostname()) == "127.0.0.1"
    except OSError:
        return False
