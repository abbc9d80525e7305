"""A real filesystem gets into trouble under a supervisor at work, and out of it again: nothing is condemned, all drains.

::

    python -m tests.rigs.disks                 every scene
    python -m tests.rigs.disks blocks quota    these scenes only
    python -m tests.rigs.disks --planted       the planted bugs, each of which must be found

In each scene a task is at work, others wait, and more are put while the trouble lasts. The class must say what is wrong, and no
task may be condemned for it. Then it is put right, as a person would, and every task that was acknowledged must have its one
record. Each disk is a file on a loop device, mounted in a namespace of this process. Needs root and mkfs.ext4; `quota` also
mkfs.btrfs.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dspy_supervisor.control_client import ask
from dspy_supervisor.errors import QueueFull
from dspy_supervisor.layout import Layout
from dspy_supervisor.producer import Producer

from ..conftest import Supervised, supervisors, until
from ..system.invariants import runs, violations
from ..system.rig import PATIENCE_S, PLAY, workers
from .blocklog import in_own_namespace, mounted

_RESULT_BYTES = 300_000
_EXT4_SHUTDOWN = 0x8004587D  #: <linux/ext4.h>: as if the medium were gone
_NO_FLUSH = (2).to_bytes(4, "little")
_PLANTED_S = 15.0


class Stage:
    """A disk, the queue on it, its supervisor, and what was acknowledged."""

    def __init__(self, folder: Path, start: Callable[..., Supervised], plant: str) -> None:
        self.folder, self._start, self.plant = folder, start, plant
        self.image, self.disk = folder / "image", folder / "disk"
        self.queue, self.log, self.gate = self.disk / "queue", folder / "runs.log", folder / "gate"
        self.accepted: dict[str, Any] = {}
        self.refused = 0
        self.hosts: list[Supervised] = []
        self.ends_s = _PLANTED_S if plant else PATIENCE_S

    @contextlib.contextmanager
    def ready(self, kind: str, *make: str, size: int = 32 << 20) -> Iterator[Supervised]:
        """Make the disk, and have a supervisor on it with one task at work and three waiting."""
        with self.image.open("wb") as image:
            image.truncate(size)
        subprocess.run([*make, self.image], check=True, stdout=subprocess.DEVNULL)
        with mounted(self.image, kind, self.disk):
            if kind == "btrfs":
                subprocess.run(["btrfs", "quota", "enable", self.disk], check=True)
                subprocess.run(["btrfs", "-q", "subvolume", "create", self.queue], check=True)
                self.queue.chmod(0o700)
            host = self.start()
            try:
                begun = self.folder / "begun"
                self.put("working", "big", begun=str(begun), gate=str(self.gate), bytes=_RESULT_BYTES)
                until(begun.exists, "the task has begun")
                for number in range(3):
                    self.put(f"waits{number}")
                self._socket = host.socket  # its name is in the queue, which may not be readable
                yield host
            finally:
                for host in self.hosts:  # what they have open would keep the filesystem busy
                    host.clear()

    def start(self) -> Supervised:
        """Start a supervisor, which ends with the scene."""
        host = self._start(
            *("--workers", "cpu_short=1"),
            handlers={"cpu_short": PLAY},
            settings={"sweep_s": 0.2, "retry_base_s": 0.01},
            queue=self.queue,
            environ={"PLANT": self.plant},
            **({"program": "tests.rigs.planted_disk"} if self.plant else {}),
        )
        self.hosts.append(host)
        return host

    def put(self, task_id: str, do: str = "echo", **payload: object) -> None:
        """Put a task; what is acknowledged is noted. Raises QueueFull and OSError."""
        content = {"id": task_id, "payload": {"do": do, "log": str(self.log), **payload}}
        with Layout.open(self.queue) as layout:
            Producer(layout).put(task_id, json.dumps(content).encode())
        self.accepted[task_id] = "x" * _RESULT_BYTES if do == "big" else {"n": None, "attempt": 0, "crashes": 0}

    def put_in_trouble(self) -> None:
        """Try to put five tasks: each is acknowledged, or refused with an error that says why."""
        for number in range(5):
            try:
                self.put(f"late{number}", fill="x" * 4000)
            except (QueueFull, OSError):
                self.refused += 1

    def suffer(self, words: str) -> None:
        """Let the task at work end in the midst of it; the supervisor must say why nothing comes of it."""
        self.gate.touch()
        until(lambda: any(words in text for text in self.says()), f"it says {words!r}", self.ends_s)

    def says(self) -> list[str]:
        """What is wrong, by the supervisor's own account."""
        status = ask(self._socket, {"do": "status"})
        return [text for text in (status["problem"], status["classes"]["cpu_short"]["reason"]) if text]

    def judge(self, host: Supervised) -> list[str]:
        """Wait until all has ended, and return what is wrong."""
        until(lambda: self.ended() >= len(self.accepted), f"{len(self.accepted)} records", self.ends_s)
        until(lambda: not self.says(), "it says that all is well", self.ends_s)
        self.put("afterwards")
        until(lambda: self.ended() >= len(self.accepted), "work goes on", self.ends_s)
        code = host.stop()
        wrong = violations(self.queue, self.accepted, results=self.accepted, drained=True)
        wrong += [f"{one} ran {times} times" for one, times in runs(self.log).items() if times != 1]
        return wrong + ([f"the supervisor ended with {code}"] if code else [])

    def ended(self) -> int:
        """How many records there are."""
        return sum(len(list((self.queue / state).glob("[!.]*.json"))) for state in ("done", "failed"))


def _fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 1024)


EXT4 = ("ext4", "mkfs.ext4", "-q", "-F", "-b", "1024")


# -- the scenes: each returns what is wrong ---------------------------------------------------------------------------


def blocks(stage: Stage) -> list[str]:
    """ENOSPC: no block is left."""
    with stage.ready(*EXT4) as host:
        _fill(stage.disk / "filler")
        stage.put_in_trouble()
        stage.suffer("No space left")
        wrong = [] if stage.refused == 5 else [f"{5 - stage.refused} tasks were acknowledged on a full disk"]
        (stage.disk / "filler").unlink()
        return wrong + stage.judge(host)


def inodes(stage: Stage) -> list[str]:
    """ENOSPC: no inode is left."""
    with stage.ready(*EXT4, "-N", "128") as host:
        with contextlib.suppress(OSError):
            for number in range(1000):
                (stage.disk / f"filler.{number}").touch(exist_ok=False)
        stage.put_in_trouble()
        stage.suffer("No space left")
        wrong = [] if stage.refused == 5 else [f"{5 - stage.refused} tasks were acknowledged without an inode"]
        for filler in stage.disk.glob("filler.*"):
            filler.unlink()
        return wrong + stage.judge(host)


def reserve(stage: Stage) -> list[str]:
    """Puts are refused while there is room for what is at work, and its result is kept."""
    with stage.ready(*EXT4) as host:
        filler = stage.disk / "filler"
        filler.write_bytes(b"x" * (20 << 20))
        with contextlib.suppress(QueueFull, OSError):
            for number in range(1000):
                stage.put(f"more{number}", fill="x" * 60_000)
        stage.gate.touch()
        done = stage.queue / "done" / "working.json"
        until(done.exists, "the result of the task at work has its room", stage.ends_s)
        filler.unlink()
        return stage.judge(host)


def quota(stage: Stage) -> list[str]:
    """EDQUOT: the queue's share of a btrfs is used up, so that not even a name can be changed."""
    limit = ["btrfs", "qgroup", "limit"]
    with stage.ready("btrfs", "mkfs.btrfs", "-q", "-f", size=256 << 20) as host:
        subprocess.run([*limit, "2M", stage.queue], check=True)
        _fill(stage.queue / "filler")
        os.sync()
        stage.put_in_trouble()
        stage.suffer("quota")
        subprocess.run([*limit, "none", stage.queue], check=True)
        (stage.queue / "filler").unlink()
        return stage.judge(host)


def read_only(stage: Stage) -> list[str]:
    """EROFS: the filesystem takes no writes, as after an error of its disk."""
    with stage.ready(*EXT4) as host:
        subprocess.run(["mount", "-o", "remount,ro", stage.disk], check=True)
        stage.put_in_trouble()
        stage.suffer("Read-only")
        wrong = [] if stage.refused == 5 else [f"{5 - stage.refused} tasks were acknowledged on a read-only disk"]
        subprocess.run(["mount", "-o", "remount,rw", stage.disk], check=True)
        return wrong + stage.judge(host)


def gone(stage: Stage) -> list[str]:
    """EIO: every call fails; it is stopped, and started when the disk is mounted anew: all that was acknowledged is there."""
    with stage.ready(*EXT4) as host:
        folder = os.open(stage.disk, os.O_RDONLY)
        fcntl.ioctl(folder, _EXT4_SHUTDOWN, _NO_FLUSH)
        os.close(folder)
        stage.put_in_trouble()
        stage.suffer("Input/output error")
        wrong = [] if stage.refused == 5 else [f"{5 - stage.refused} tasks were acknowledged on a dead disk"]
        host.signal(signal.SIGINT)
        host.stop()  # the second signal: at once
        subprocess.run(["umount", stage.disk], check=True)
        stage.log.unlink(missing_ok=True)
        subprocess.run(["mount", "-o", "loop", stage.image, stage.disk], check=True)
        return wrong + stage.judge(stage.start())


def descriptors(stage: Stage) -> list[str]:
    """EMFILE: the worker has no descriptor left."""
    with stage.ready(*EXT4) as host:
        (worker,) = workers(host)
        soft, hard = resource.prlimit(worker, resource.RLIMIT_NOFILE)
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (3, hard))
        stage.suffer("Too many open files")
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (soft, hard))
        return stage.judge(host)


SCENES: dict[str, Callable[[Stage], list[str]]] = {
    scene.__name__: scene for scene in (blocks, inodes, reserve, quota, read_only, gone, descriptors)
}
#: planted bug: the scene that must find it
PLANTS = {"condemned": "blocks", "dropped": "quota", "no_reserve": "reserve", "believed_short": "blocks"}


def play(scene: str, plant: str = "") -> list[str]:
    """Play a scene; return what is wrong."""
    with (
        tempfile.TemporaryDirectory(prefix="disks.", ignore_cleanup_errors=True) as name,
        supervisors(Path(name)) as start,
        _planted(plant),
    ):
        stage = Stage(Path(name), start, plant)
        try:
            return SCENES[scene](stage)
        except (AssertionError, OSError, QueueFull) as error:
            return [f"{type(error).__name__}: {error}"]


@contextlib.contextmanager
def _planted(plant: str) -> Iterator[None]:
    """Plant what concerns producers, which are in this process."""
    from . import planted_disk

    with planted_disk.in_producer(plant):
        yield


def main() -> int:
    """Play what the command line names; return 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.rigs.disks", description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("scenes", nargs="*", choices=[*SCENES, []], help="which; default: all that can be played here")
    parser.add_argument("--planted", action="store_true", help="the planted bugs instead")
    arguments = parser.parse_args()
    in_own_namespace()
    here = [scene for scene in SCENES if scene != "quota" or shutil.which("mkfs.btrfs")]
    pairs = [(scene, plant) for plant, scene in PLANTS.items() if scene in here] if arguments.planted else []
    bad = 0
    for scene, plant in pairs or [(scene, "") for scene in arguments.scenes or here]:
        begun = time.monotonic()
        wrong = play(scene, plant)
        bad += (not wrong) if plant else len(wrong)
        said = f"planted bug {plant}: {'found' if wrong else 'NOT FOUND'}" if plant else f"{len(wrong)} violations"
        print(f"{scene}: {said} ({time.monotonic() - begun:.0f} s)", *wrong[:10], sep="\n  ", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
