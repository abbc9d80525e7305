"""Two hosts and a client on one network filesystem: sshfs over real sshds on loopback, three mounts of one folder.

::

    python -m tests.rigs.hosts                  every scene
    python -m tests.rigs.hosts frozen cut       these scenes only
    python -m tests.rigs.hosts --planted        the planted bugs, each of which must be found
    python -m tests.rigs.hosts --report DIR     the lines printed, and the logs of the hosts, are kept there

A host is a supervisor in a pid, uts and mount namespace of its own, so that its peer sees no process and no lock of it and
judges it by its heartbeat alone, as it must judge another machine. The scene is judged in the folder that is served, by
tests/system/invariants.py. Needs root, /dev/fuse, sshfs, sshd and gcc.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
from dspy_supervisor.layout import Layout
from dspy_supervisor.producer import Producer

from ..cloud.machine import Machine, make_key
from ..conftest import Supervised, supervisors, until
from ..system.invariants import record, runs, violations

_HOST = ("unshare", "--pid", "--uts", "--mount", "--fork", "--mount-proc", "--kill-child")
_DRAIN_S = 90.0
_PLANTED_S = 30.0
_SETTINGS = {"heartbeat_s": 0.5, "take_after_s": 6, "sweep_network_s": 1, "retry_base_s": 0.05}
_OPTIONS = (
    "reconnect,ServerAliveInterval=5,StrictHostKeyChecking=no,UserKnownHostsFile=/dev/null,dir_cache=no,"
    "attr_timeout=0,entry_timeout=0,negative_timeout=0,sftp_server=/usr/lib/openssh/sftp-server"
)


class Mount:
    """The served folder as one host sees it, through an sshd of its own."""

    def __init__(self, folder: Path, served: Path, key: Path) -> None:
        self.path = folder / "mount"
        self.path.mkdir(parents=True)
        self.machine = Machine(folder / "machine", key)
        options = f"{_OPTIONS},IdentityFile={key},port={self.machine.port}"
        command = ["sshfs", "-f", f"root@127.0.0.1:{served}", str(self.path), "-o", options]
        with (folder / "sshfs.log").open("wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until(lambda: os.path.ismount(self.path), f"{self.path} is mounted")

    def cut(self) -> None:
        """Break the connection: what is under way is done or not, and its reply never comes."""
        for process in self.machine.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()

    def close(self) -> None:
        """Unmount it."""
        self.process.kill()
        self.process.wait()
        subprocess.run(["fusermount3", "-uzq", str(self.path)], check=False)
        self.machine.die()


class Stage:
    """The folder, its mounts, the hosts, and what was put."""

    def __init__(self, folder: Path, start: Callable[..., Supervised], plant: str | None) -> None:
        self.folder, self._start, self.plant = folder, start, plant
        self.served = folder / "served"
        self.served.mkdir()
        self.log = folder / "runs.log"
        self.gate = folder / "gate"
        self.accepted: dict[str, Any] = {}
        self.mounts: dict[str, Mount] = {}
        self.hosts: dict[str, Supervised] = {}
        self._key = folder / "key"
        make_key(self._key)

    @property
    def queue(self) -> Path:
        """The queue where it is served."""
        return self.served / "queue"

    def mount(self, name: str) -> Path:
        """Return the mount of a host."""
        if name not in self.mounts:
            self.mounts[name] = Mount(self.folder / name, self.served, self._key)
        return self.mounts[name].path

    def host(self, name: str, *, environ: Mapping[str, str] | None = None, **settings: object) -> Supervised:
        """Start a host; when this returns it is ready."""
        planted = self.plant in ("believed_enoent", "no_fence")
        more: dict[str, Any] = {"program": "tests.rigs.planted_host"} if planted else {}
        if self.plant == "trusted_events":
            settings["sweep_network_s"] = 3600
        if self.plant == "no_takeover":
            settings["take_after_s"] = 3600
        self.hosts[name] = self._start(
            "--workers",
            "cpu_short=2",
            handlers={"cpu_short": "tests.system.handlers:play"},
            settings={**_SETTINGS, **settings},
            queue=self.mount(name) / "queue",
            runtime=self.folder / f"run.{name}",
            environ={"PLANT": self.plant or "", **(environ or {})},
            prefix=_HOST,
            **more,
        )
        return self.hosts[name]

    def put(self, count: int, prefix: str = "t", *, gated: bool = False) -> None:
        """Put tasks from a third host."""
        with Layout.open(self.mount("client") / "queue") as layout:
            producer = Producer(layout)
            for number in range(count):
                task_id = f"{prefix}{number}"
                payload: dict[str, Any] = {"do": "echo", "n": number, "log": str(self.log)}
                if gated:
                    payload |= {"do": "gate", "begun": f"{self.folder}/{task_id}.begun", "gate": str(self.gate)}
                producer.put(task_id, json.dumps({"id": task_id, "payload": payload}).encode())
                self.accepted[task_id] = number

    def ended(self) -> int:
        """How many records are there."""
        return sum(len(list((self.queue / state).glob("[!.]*.json"))) for state in ("done", "failed"))

    def drain(self) -> None:
        """Wait until every task has a record."""
        limit_s = _PLANTED_S if self.plant else _DRAIN_S
        until(lambda: self.ended() >= len(self.accepted), f"{len(self.accepted)} records", limit_s)

    def judge(self) -> list[str]:
        """Stop the hosts and return what is wrong."""
        for name, host in self.hosts.items():
            if host.process.poll() is None and self.mounts[name].process.poll() is None:
                for process in psutil.Process(host.pid).children():
                    process.send_signal(signal.SIGTERM)
                host.wait(60)
        wrong = [text for text in violations(self.queue, self.accepted, drained=True) if "results/" not in text]
        ran = runs(self.log)
        wrong += [f"{task_id} never ran" for task_id in self.accepted if not ran[task_id]]
        for task_id, number in self.accepted.items():
            with contextlib.suppress(FileNotFoundError):
                if record(self.queue, task_id)["runner_result"]["n"] != number:
                    wrong.append(f"I2: {task_id} has another's result")
        return wrong

    def close(self) -> None:
        """Unmount all."""
        for mount in self.mounts.values():
            mount.close()


def _everyone(host: Supervised) -> list[psutil.Process]:
    return psutil.Process(host.pid).children(recursive=True)


def _library(stage: Stage, source: Path) -> str:
    path = stage.folder / f"{source.stem}.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(path), str(source), "-ldl"], check=True)
    return str(path)


# -- the scenes: each returns what is wrong --------------------------------------------------------------------------


def drain(stage: Stage) -> list[str]:
    """200 tasks of a third host are each run once; no event tells of them."""
    stage.host("a")
    stage.host("b")
    before = time.monotonic()
    stage.put(1, "first")
    stage.drain()
    print(f"  a task of another host had its record {time.monotonic() - before:.2f} s after its put began")
    stage.put(200)
    stage.drain()
    wrong = stage.judge()
    wrong += [f"{task_id} ran {times} times" for task_id, times in runs(stage.log).items() if times != 1]
    owners = {record(stage.queue, task_id)["owner"].partition(".")[0] for task_id in stage.accepted}
    return wrong + ([] if len(owners) == 2 else [f"only {len(owners)} of two hosts took part"])


def frozen(stage: Stage) -> list[str]:
    """A host that stands still loses its tasks to the other; what it ends afterwards is refused."""
    host = stage.host("a")
    stage.put(2, gated=True)
    until(lambda: len(list(stage.folder.glob("*.begun"))) == 2, "both tasks have begun")
    everyone = _everyone(host)
    for process in everyone:
        process.suspend()
    try:
        stage.host("b")
        stage.gate.touch()
        stage.drain()
    finally:
        for process in everyone:
            process.resume()
    stage.put(20, "late")
    stage.drain()
    wrong = stage.judge()
    for number in range(2):
        kept = record(stage.queue, f"t{number}")["runner_result"]
        if kept["attempt"] != 1:
            wrong.append(f"fence: t{number} has the record of attempt {kept['attempt']}, that was taken")
        if not any(f'"task":"t{number}"' in line for line in host.log.splitlines() if '"event":"result_void"' in line):
            wrong.append(f"fence: nothing tells that the late result of t{number} was refused")
    return wrong


def lost(stage: Stage) -> list[str]:
    """A host that is gone, its mount with it, loses its tasks to the other."""
    host = stage.host("a")
    stage.put(2, gated=True)
    until(lambda: len(list(stage.folder.glob("*.begun"))) == 2, "both tasks have begun")
    stage.host("b")
    stage.mounts["a"].process.kill()
    for process in [psutil.Process(host.pid), *_everyone(host)]:
        with contextlib.suppress(psutil.Error):
            process.kill()
    host.process.wait()
    stage.gate.touch()
    stage.drain()
    return stage.judge()


def cut(stage: Stage) -> list[str]:
    """The connections of both hosts break again and again, in the midst of renames."""
    stage.host("a")
    stage.host("b")
    stage.put(100)
    cuts = 0
    for goal in range(10, 91, 10):
        until(lambda goal=goal: stage.ended() >= goal, f"{goal} records", _DRAIN_S)  # type: ignore[misc]
        stage.mounts["a" if cuts % 2 else "b"].cut()
        cuts += 1
    stage.drain()
    print(f"  {cuts} connections cut")
    return stage.judge()


def skewed(stage: Stage) -> list[str]:
    """The clocks of the hosts are ten hours apart: nobody is taken for dead, nothing is late."""
    library = _library(stage, Path(__file__).parents[1] / "system" / "shift_clock.c")
    for name, shift in (("a", 8 * 3600), ("b", -2 * 3600)):
        path = stage.folder / f"shift.{name}"
        path.write_text(str(shift))
        stage.host(name, environ={"LD_PRELOAD": library, "CLOCK_SHIFT": str(path)})
    stage.put(60)
    stage.drain()
    wrong = stage.judge()
    wrong += [f"{task_id} ran {times} times" for task_id, times in runs(stage.log).items() if times != 1]
    return wrong + [f"{name} took from the living" for name in "ab" if "took_from_dead" in stage.hosts[name].log]


def lost_replies(stage: Stage) -> list[str]:
    """Every fifth rename, link and unlink of both hosts is done, and answered as if it had not been."""
    library = _library(stage, Path(__file__).with_name("lost_replies.c"))
    for name in "ab":
        stage.host(name, environ={"LD_PRELOAD": library})
    stage.put(60)
    stage.drain()
    wrong = stage.judge()
    return wrong + [
        f"{name} believed that its heartbeat was lost" for name in "ab" if "heartbeat_lost" in stage.hosts[name].log
    ]


SCENES: dict[str, Callable[[Stage], list[str]]] = {
    scene.__name__: scene for scene in (drain, frozen, lost, cut, skewed, lost_replies)
}
#: planted bug: the scene that must find it
PLANTS = {"trusted_events": "drain", "no_takeover": "lost", "no_fence": "frozen", "believed_enoent": "lost_replies"}


@contextlib.contextmanager
def staged(plant: str | None, report: Path | None, scene: str) -> Iterator[Stage]:
    """Yield a stage whose hosts and mounts end with the block."""
    with tempfile.TemporaryDirectory(prefix="hosts.", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with supervisors(folder) as start:
            stage = Stage(folder, start, plant)
            try:
                yield stage
            finally:
                for host in stage.hosts.values():
                    host.clear()
                stage.close()
                if report is not None:
                    for log in folder.glob("supervisor.*.log"):
                        shutil.copy(log, report / f"{plant or scene}.{log.name}")


def play(scene: str, plant: str | None, report: Path | None) -> list[str]:
    """Play a scene; return what is wrong."""
    with staged(plant, report, scene) as stage:
        try:
            return SCENES[scene](stage)
        except (AssertionError, OSError) as error:
            return [f"{type(error).__name__}: {error}", *violations(stage.queue, stage.accepted)]


def main() -> int:
    """Play what the command line names; return 1 where something is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.rigs.hosts", description=str(__doc__).split("\n", maxsplit=1)[0]
    )
    parser.add_argument("scenes", nargs="*", choices=[*SCENES, []], help="which; default: all")
    parser.add_argument("--planted", action="store_true", help="the planted bugs instead")
    parser.add_argument("--report", type=Path, metavar="DIR", help="keep what is printed and the hosts' logs there")
    arguments = parser.parse_args()
    if arguments.report is not None:
        arguments.report.mkdir(parents=True, exist_ok=True)
    lines, bad = [], 0
    pairs = [(scene, plant) for plant, scene in PLANTS.items()] if arguments.planted else []
    for scene, plant in pairs or [(scene, None) for scene in arguments.scenes or SCENES]:
        begun = time.monotonic()
        wrong = play(scene, plant, arguments.report)
        bad += (not wrong) if plant else len(wrong)
        said = f"planted bug {plant}: {'found' if wrong else 'NOT FOUND'}" if plant else f"{len(wrong)} violations"
        lines += [f"{scene}: {said} ({time.monotonic() - begun:.0f} s)", *(f"  {text}" for text in wrong[:10])]
        print("\n".join(lines[-1 - len(wrong[:10]) :]), flush=True)
    if arguments.report is not None:
        (arguments.report / "hosts.txt").write_text("\n".join(lines) + "\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
