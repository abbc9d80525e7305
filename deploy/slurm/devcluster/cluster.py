"""The cluster as a whole: up, down, heal, and the accidents of single daemons."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

from .process import Daemon, marked, wait_until
from .shape import Shape, user_name

#: whoever isn't root is its own user in a user namespace too, with the rights to name the host and to mount
USER = () if os.geteuid() == 0 else ("--map-current-user", "--keep-caps")
NODE = ("unshare", *USER, "--fork", "--kill-child", "--pid", "--mount", "--uts", "--mount-proc")
START_S, STOP_S = 60.0, 10.0
CGROUPS = Path("/sys/fs/cgroup")


class Cluster:
    """The cluster of one folder."""

    def __init__(self, folder: Path, shape: Shape) -> None:
        self.folder, self.shape = folder, shape
        names = ["munged", *(["mariadbd", "slurmdbd"] if shape.accounting else []), "slurmctld", *shape.names]
        self.daemons = {
            name: Daemon(name, "slurmd" if name in shape.names else name, folder) for name in names
        }  #: in the order of their start

    @property
    def environ(self) -> dict[str, str]:
        """The environment of its daemons: nothing of ours leaks into jobs."""
        system = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return {
            "PATH": system,
            "LC_ALL": "C.UTF-8",
            "SLURM_CONF": f"{self.folder}/etc/slurm.conf",
            "MYSQL_UNIX_PORT": f"{self.folder}/run/mariadb.sock",
        }

    # -- the whole --

    def up(self) -> None:
        """Start what does not run, and wait until all nodes take jobs."""
        self._make_folders()
        for name in self.daemons:
            self.start(name)
        self._wait_for_nodes()

    def down(self) -> None:
        """End all of it, jobs included. What it remembers stays in the folder."""
        for name in self.shape.names:
            self.kill(name)
        for name in reversed(self.daemons):
            self.daemons[name].stop(STOP_S)

    def heal(self, cancel: bool) -> None:
        """Undo every accident: all runs and takes jobs. With ``cancel`` no job is left either."""
        for daemon in self.daemons.values():
            daemon.signal(signal.SIGCONT)
        self._make_folders()
        for name in self.daemons:
            self.start(name)
        if cancel:
            wait_until(self._cancelled, "all jobs have gone", START_S)
        self._wait_for_nodes()

    def states(self) -> dict[str, str]:
        """Return running, paused or dead for each daemon."""
        return {name: daemon.state for name, daemon in self.daemons.items()}

    def nodes(self) -> dict[str, str]:
        """Return the state of each node as slurmctld sees it, empty where it doesn't answer."""
        rows = self._ask("sinfo", "-h", "-N", "-o", "%N %T").splitlines()
        return dict(sorted({(row.split()[0], row.split()[1]) for row in rows}))

    # -- single daemons --

    def kill(self, name: str) -> None:
        """End a daemon at once; with a node goes all that runs on it, as when its power fails."""
        self.daemons[name].kill()
        if name in self.shape.names:
            if not self.shape.namespaces:
                for pid in marked(self._mark(name)):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            self._remove_cgroups(name)

    def pause(self, name: str) -> None:
        """Make a daemon hang. The jobs of a node go on: it is only not heard of."""
        if not self.daemons[name].signal(signal.SIGSTOP):
            raise SystemExit(f"dev-cluster: {name} does not run")

    def resume(self, name: str) -> None:
        """Let a paused daemon go on."""
        if not self.daemons[name].signal(signal.SIGCONT):
            raise SystemExit(f"dev-cluster: {name} does not run")

    def start(self, name: str) -> None:
        """Start a daemon, unless it runs, and wait until it answers."""
        daemon = self.daemons[name]
        if daemon.pid is not None:
            return
        if name in self.shape.names:
            self._start_node(name)
            return
        command, ready = {
            "munged": (self._munged, self._munge_works),
            "mariadbd": (self._mariadbd, self._listens("mariadb.sock")),
            "slurmdbd": (lambda: ["slurmdbd", "-D"], lambda: "devel" in self._register()),
            "slurmctld": (self._slurmctld, lambda: "is UP" in self._ask("scontrol", "ping")),
        }[name]
        daemon.start(command(), self.environ)
        wait_until(lambda: ready() or self._fail_if_dead(daemon), f"{name} answers", START_S)

    # -- how each is started --

    def _munged(self) -> list[str]:
        key = self.folder / "etc" / "munge.key"
        if not key.exists():
            with open(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(os.urandom(1024))
        run = self.folder / "run"
        return [
            "munged",
            "--foreground",
            "--force",  # it doubts folders below /tmp
            f"--key-file={key}",
            f"--socket={run}/munge.sock",
            f"--pid-file={run}/munged.own.pid",
            f"--seed-file={self.folder}/state/munged.seed",
            f"--log-file={self.folder}/log/munged.log",
        ]

    def _mariadbd(self) -> list[str]:
        data = self.folder / "db"
        # As it starts it removes all temporary tables that lie in its tmpdir: in /tmp those of other databases too.
        own = ["--no-defaults", f"--user={user_name()}", f"--datadir={data}", f"--tmpdir={self.folder}/tmp"]
        if not (data / "mysql").exists():
            shutil.rmtree(data, ignore_errors=True)
            made = subprocess.run(
                [
                    "mariadb-install-db",
                    *own,
                    "--skip-test-db",
                    "--auth-root-authentication-method=socket",
                    f"--auth-root-socket-user={user_name()}",
                ],
                capture_output=True,
                text=True,
                check=False,
                cwd="/",
            )
            if made.returncode:
                raise SystemExit(f"dev-cluster: mariadb-install-db failed:\n{made.stdout}{made.stderr}")
        return [
            "mariadbd",
            *own,
            f"--socket={self.folder}/run/mariadb.sock",
            f"--pid-file={self.folder}/run/mariadbd.own.pid",
            "--skip-networking",
            "--innodb-buffer-pool-size=64M",
            "--innodb-flush-log-at-trx-commit=0",  # it may lose its last second with the machine, but not with itself
            "--innodb-lock-wait-timeout=900",  # as Slurm asks for
        ]

    def _slurmctld(self) -> list[str]:
        command = ["slurmctld", "-D"]
        if not self.shape.namespaces:
            return command
        return ["unshare", *USER, "--uts", "--mount", *self._inside(self.shape.controller, command)]

    def _start_node(self, name: str) -> None:
        (self.folder / "spool" / name).mkdir(exist_ok=True)
        command = ["slurmd", "-D", "-N", name]
        environ = self.environ
        if self.shape.namespaces:
            # The shell stays: as the namespace's first process it reaps what the node's daemons leave behind.
            command = [*NODE, *self._inside(name, command, stay=True)]
        else:
            key, _, value = self._mark(name).partition("=")
            environ |= {key: value}
        self.daemons[name].start(command, environ)

    def _inside(self, host: str, command: list[str], stay: bool = False) -> list[str]:
        script = f"hostname {host} && mount --bind {self.folder}/etc/hosts /etc/hosts && "
        script += f"{shlex.join(command)}; exit $?" if stay else f"exec {shlex.join(command)}"
        return ["sh", "-c", script]

    def _mark(self, name: str) -> str:
        return f"DEV_CLUSTER_NODE={self.folder}:{name}"

    # -- what is seen of it --

    def _ask(self, *command: str) -> str:
        """Return what a client program says on standard output, '' where it fails."""
        ran = subprocess.run(
            command, env=self.environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, cwd="/"
        )
        return ran.stdout if ran.returncode == 0 else ""

    def _register(self) -> str:
        """Make slurmdbd know the cluster, and return the clusters that it knows."""
        known = self._ask("sacctmgr", "-n", "-P", "show", "cluster", "format=cluster")
        return known if known else self._ask("sacctmgr", "-i", "-Q", "add", "cluster", "devel")

    def _munge_works(self) -> bool:
        return bool(self._ask("munge", f"--socket={self.folder}/run/munge.sock", "--no-input"))

    def _listens(self, name: str) -> Callable[[], bool]:
        def look() -> bool:
            with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
                client.connect(str(self.folder / "run" / name))
                return True
            return False

        return look

    def _fail_if_dead(self, daemon: Daemon) -> bool:
        if daemon.pid is None:
            raise SystemExit(f"dev-cluster: {daemon.name} ended; see {self.folder}/log\n{daemon.last_words()}")
        return False

    def _cancelled(self) -> bool:
        left = self._ask("squeue", "-h", "-o", "%A %T").split("\n")
        jobs = {row.split()[0] for row in left if row}
        if jobs:
            self._ask("scancel", *jobs)
            self._ask("scancel", "-s", "KILL", "--full", *jobs)
        return not jobs

    def _wait_for_nodes(self) -> None:
        names = ",".join(self.shape.names)

        def ready() -> bool:
            states = self.nodes()
            for name in self.shape.names:
                self._fail_if_dead(self.daemons[name])
            if any(state.startswith(("down", "drain", "fail")) for state in states.values()):
                self._ask("scontrol", "update", f"NodeName={names}", "State=RESUME")
            return len(states) == len(self.shape.names) and set(states.values()) <= {"idle", "mixed", "allocated"}

        wait_until(ready, "all nodes take jobs", START_S)

    def _make_folders(self) -> None:
        for name in ("run", "log", "state", "spool", "db", "dev", "tmp"):
            (self.folder / name).mkdir(exist_ok=True)

    def _remove_cgroups(self, name: str) -> None:
        """Remove what slurmd could not: job ids come again in another cluster, and would find old limits."""
        if not self.shape.cgroups:
            return
        for top in CGROUPS.glob(f"*/slurm_{name}"):
            for path, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(path)
