"""The power is cut at every block write of a real filesystem, and the queue on it is what its level promises.

::

    python -m tests.rigs.powercut                    300 cuts on ext4 and on each other filesystem whose mkfs is here
    python -m tests.rigs.powercut --every            every prefix of the write stream
    python -m tests.rigs.powercut --planted          only the planted bugs, each of which must be found

A queue lives on a disk that keeps every block write (blocklog.py), and every move of a task is made on it, again and again,
in an order of chance. Each acknowledgement is noted with the number of writes there were by then. Then, for each cut, an
image of what the medium held is mounted by the real filesystem, recovered as the next supervisor does, judged, drained,
and judged again. Half of the cuts lose, besides, any part of what was written after the last flush: a medium may write
that in any order.

What must hold: each task that was acknowledged is there, once and whole; at level full each completion that was reported
is there as well; a second recovery changes nothing; all work drains. Needs root, /dev/fuse and a loop device.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import dspy_supervisor.producer as producer_module
import dspy_supervisor.recovery as recovery_module
import dspy_supervisor.taskqueue as queue_module
from dspy_supervisor.layout import Layout, list_folder
from dspy_supervisor.producer import Producer, put_again
from dspy_supervisor.task import Cause, TaskName
from dspy_supervisor.taskqueue import TaskQueue

from ..system.invariants import places, violations
from .blocklog import FILESYSTEMS, BlockLog, in_own_namespace, mounted
from .crash import Scene, document, done, drain, failed, recover, undertaker


@dataclass
class Promises:
    """What was acknowledged, by task: the number of block writes there were by then."""

    accepted: dict[str, int] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)  #: reported as done or failed
    again: dict[str, int] = field(default_factory=dict)  #: a failed one that was let loose again
    may_fail: set[str] = field(default_factory=set)


class Work:
    """Every move of a task, by chance, on a queue whose disk is recorded."""

    def __init__(self, scene: Scene, position: Callable[[], int], seed: int) -> None:
        self.scene, self.position, self.chance = scene, position, random.Random(seed)
        self.promises, self.number = Promises(), 0
        scene.be_owner()

    def do(self, rounds: int) -> Promises:
        moves = (self.put, self.put_many, self.put_later, self.finish, self.finish, self.fail, self.fail_and_again)
        moves += (self.retry, self.release, self.delay, self.cancel, self.die)
        for left in range(rounds):
            (moves[left % len(moves)] if left < len(moves) else self.chance.choice(moves))()
        return self.promises

    def put(self) -> str:
        self.number += 1
        task_id = f"t{self.number}"
        Producer(self.scene.layout).put(task_id, document(task_id))
        self.promises.accepted[task_id] = self.position()
        return task_id

    def put_many(self) -> None:
        ids = [f"t{self.number + more}" for more in (1, 2, 3)]
        self.number += 3
        Producer(self.scene.layout).put_many([(task_id, document(task_id)) for task_id in ids])
        self.promises.accepted.update(dict.fromkeys(ids, self.position()))

    def put_later(self) -> None:
        self.number += 1
        task_id = f"t{self.number}"
        Producer(self.scene.layout).put(task_id, document(task_id), due=time.time() + 600)
        self.promises.accepted[task_id] = self.position()

    def finish(self) -> None:
        held = self.scene.claim(self._waiting())
        self.scene.queue.finish(held, self.scene.folder, done(held))
        self.promises.ended[held.name.id] = self.position()

    def fail(self) -> str:
        held = self.scene.claim(self._waiting())
        self.promises.may_fail.add(held.name.id)
        self.scene.queue.fail(held, self.scene.folder, failed(held))
        self.promises.ended[held.name.id] = self.position()
        return held.name.id

    def fail_and_again(self) -> None:
        task_id = self.fail()
        del self.promises.ended[task_id]
        put_again(self.scene.layout, task_id)
        self.promises.again[task_id] = self.position()

    def retry(self) -> None:
        held = self.scene.claim(self._waiting())
        self.scene.queue.retry(held.file, self.scene.folder, self.chance.choice((0.0, time.time() + 600)))

    def release(self) -> None:
        self.scene.queue.release(self.scene.claim(self._waiting()).file, self.scene.folder)

    def delay(self) -> None:
        self.scene.queue.delay(self._waiting(), time.time() + 600)
        self.scene.queue.promote(self.chance.choice(list_folder(self.scene.layout.delayed)))

    def cancel(self) -> None:
        held = self.scene.claim(self._waiting())
        self.scene.queue.release(held.file, self.scene.folder)
        self.promises.may_fail.add(held.name.id)
        with contextlib.closing(undertaker(self.scene)) as last:
            error = {"cause": Cause.CANCELLED, "message": "by the rig"}
            last.bury(self.scene.layout.pending, held.file, held.name, error)
        self.promises.ended[held.name.id] = self.position()

    def die(self) -> None:
        """Leave what a killed owner leaves, to the supervisor after it."""
        for _ in range(2):
            self.scene.claim(self._waiting())
        recover(self.scene)
        os.close(self.scene.folder)
        self.scene.be_owner()

    def _waiting(self) -> str:
        files = sorted(name for name in list_folder(self.scene.layout.pending) if TaskName.parse(name))
        return self.chance.choice(files) if files else f"{self.put()}.json"


# -- what is on the medium after a cut -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cut:
    """The power goes after ``position`` records; ``lost``: this seed says which unflushed writes never made it."""

    position: int
    lost: int | None

    def __str__(self) -> str:
        return f"after {self.position} writes" + (f", some unflushed ones lost (seed {self.lost})" if self.lost else "")


def images(log: BlockLog, cuts: list[Cut]) -> Iterator[tuple[Cut, bytearray]]:
    """Yield for each cut, in order, what the medium holds."""
    flushed, unflushed = bytearray(log.base.read_bytes()), list[tuple[int, bytes]]()
    waiting = sorted(cuts, key=lambda cut: cut.position)
    for number, record in enumerate([*log.records(), None]):
        while waiting and waiting[0].position == number:
            cut = waiting.pop(0)
            chance, image = random.Random(cut.lost), bytearray(flushed)
            for offset, content in unflushed:
                if cut.lost is None or chance.random() < 0.5:
                    image[offset : offset + len(content)] = content
            yield cut, image
        if record is None:
            for offset, content in unflushed:
                flushed[offset : offset + len(content)] = content
            unflushed.clear()
        else:
            unflushed.append(record)


def judge(root: Path, level: str, promises: Promises, position: int) -> list[str]:
    """Return what is wrong with a queue whose power was cut after so many writes: recovered, recovered again, drained."""
    accepted = {task_id for task_id, at in promises.accepted.items() if at <= position}
    wrong = []
    try:
        layout = Layout.open(root / "queue", create=True, durability=level)
    except Exception as error:
        return [f"the queue can't be opened: {type(error).__name__}: {error}"]
    scene = Scene(root / "queue", layout, TaskQueue(layout))
    found = _tree(scene.path)
    try:
        recover(scene)
        accepted |= set(places(scene.path))  # one that nobody heard of may be there, but once and whole as well
        wrong += [f"after recovery: {text}" for text in _violations(scene, accepted, promises)]
        if level == "full":
            wrong += _forgotten(scene, promises, position)
        before = sorted(str(path) for path in scene.path.rglob("*"))
        recover(scene)
        if sorted(str(path) for path in scene.path.rglob("*")) != before:
            wrong.append("a second recovery changes something")
        drain(scene)
        wrong += [f"after draining: {text}" for text in _violations(scene, accepted, promises, drained=True)]
    except Exception as error:
        wrong.append(f"recovery or draining: {type(error).__name__}: {error}")
    finally:
        layout.close()
    return [*wrong, f"what lay there: {found}"] if wrong else []


def _tree(path: Path) -> str:
    """Every file, with its inode and its size: two names of one inode are what a torn rename leaves."""
    files = [(file, file.stat()) for file in sorted(path.rglob("*")) if file.is_file() and "logs" not in file.parts]
    return ", ".join(f"{file.relative_to(path)} ({status.st_ino}, {status.st_size} B)" for file, status in files)


def _judged(root: Path, level: str, promises: Promises, position: int) -> list[str]:
    """`judge` in a process of its own: what it leaves open would keep the filesystem busy."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(theirs, json.dumps(judge(root, level, promises, position)[:20]).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as answer:
        content = answer.read()
    os.waitpid(child, 0)
    return list(json.loads(content or b'["the judge died"]'))


def _violations(scene: Scene, accepted: set[str], promises: Promises, drained: bool = False) -> list[str]:
    results = {task_id: task_id for task_id in accepted}
    found = violations(scene.path, accepted, results=results, may_fail=promises.may_fail, drained=drained)
    return [text for text in found if "results/" not in text]  # a record without its commit goes after a day


def _forgotten(scene: Scene, promises: Promises, position: int) -> list[str]:
    ids = [task_id for task_id, at in promises.ended.items() if at <= position and task_id not in promises.again]
    ended = [path.stem for state in (scene.path / "done", scene.path / "failed") for path in state.glob("*.json")]
    return [f"the end of {task_id} was reported, and is lost" for task_id in ids if task_id not in ended]


# -- one disk --------------------------------------------------------------------------------------------------------------


@dataclass
class Result:
    """What came out for one filesystem and one level."""

    writes: int = 0
    tasks: int = 0
    cuts: int = 0
    wrong: list[str] = field(default_factory=list)


def run(kind: str, level: str, count: int, seed: int, rounds: int = 60, first: bool = False) -> Result:
    """Record one disk, and cut it ``count`` times (0: at every record); ``first``: stop at the first violation."""
    with tempfile.TemporaryDirectory(prefix="powercut.", dir="/dev/shm") as name:
        folder = Path(name)
        log = BlockLog(folder, kind)
        with log.recording() as root:
            layout = Layout.open(root / "queue", create=True, durability=level)
            made = log.position
            scene = Scene(root / "queue", layout, TaskQueue(layout))
            try:
                promises = Work(scene, lambda: log.position, seed).do(rounds)
            finally:  # what is open would keep the filesystem busy
                os.close(scene.folder)
                layout.close()
            end = log.position
        result = Result(end, len(promises.accepted))
        for cut, content in images(log, _cuts(made, end, count, seed)):
            # A name of its own, so that no cached block of another serves it.
            image = folder / f"{cut.position}-{cut.lost}"
            image.write_bytes(content)
            with mounted(image, kind, folder / "after") as root:
                wrong = _judged(root, level, promises, cut.position)
            image.unlink()
            result.cuts += 1
            result.wrong += [f"{kind}, level {level}, cut {cut}: {text}" for text in wrong]
            if first and wrong:
                break
        return result


def _cuts(made: int, end: int, count: int, seed: int) -> list[Cut]:
    """A few from the making of the queue, all the others from the work in it; every second one loses writes."""
    chance = random.Random(seed)
    if not count:
        return [Cut(position, lost) for position in range(end + 1) for lost in (None, 1 + position)]
    positions = [chance.randrange(made) for _ in range(count // 20)]
    positions += [made + (end - made) * number // count for number in range(count - len(positions))]
    return [Cut(position, None if number % 2 else 1 + number) for number, position in enumerate(positions)]


# -- planted bugs ----------------------------------------------------------------------------------------------------------


def _nothing(*_: Any) -> None:
    return None


_write_new = producer_module.write_new


def _written(folder: int, name: bytes, content: bytes, durable: bool) -> None:
    _write_new(folder, name, content, False)


#: name: (level, what is broken while the work is done, and while it is recovered)
PLANTS: dict[str, tuple[str, list[tuple[Any, str, Any]]]] = {
    "no sync of a task": (
        "task",
        [(producer_module, "write_new", _written), (producer_module, "sync_filesystem", _nothing)],
    ),
    "no sync of the folder of tasks": ("task", [(producer_module, "sync", _nothing)]),
    "no sync of a record": (
        "full",
        [(queue_module, "write_new", _written), (queue_module, "sync", _nothing)],
    ),
    "second names stay": (
        "full",
        [(recovery_module, "drop_second_names", lambda _: 0), (recovery_module, "is_further", lambda *_: False)],
    ),
    "tasks stay beside their records": ("task", [(recovery_module, "set_superseded_aside", lambda _: 0)]),
}
#: only a filesystem that tears a rename in two shows it
_ONLY_BTRFS = ("second names stay", "tasks stay beside their records")


def finds(plant: str, kind: str, count: int, seed: int) -> bool:
    """Whether the rig finds a planted bug."""
    level, patches = PLANTS[plant]
    with contextlib.ExitStack() as stack:
        for owner, name, bug in patches:
            stack.enter_context(mock.patch.object(owner, name, bug))
        return bool(run(kind, level, count, seed, first=True).wrong)


def main() -> int:
    """Run what the command line names; return 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.rigs.powercut", description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--cuts", type=int, default=300, help="on each filesystem and level; default: 300")
    parser.add_argument("--every", action="store_true", help="every prefix of the write stream, twice")
    parser.add_argument("--planted", action="store_true", help="only look for the planted bugs")
    parser.add_argument("--filesystem", action="append", choices=list(FILESYSTEMS), help="default: all that are here")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    in_own_namespace()
    kinds = arguments.filesystem or [kind for kind, (_, make, _) in FILESYSTEMS.items() if shutil.which(make[0])]
    bad = 0
    for kind in [] if arguments.planted else kinds:
        for level in ("task", "full"):
            started = time.monotonic()
            result = run(kind, level, 0 if arguments.every else arguments.cuts, arguments.seed)
            bad += len(result.wrong)
            print(*result.wrong[:20], sep="\n", end="\n" if result.wrong else "")
            print(
                f"{kind}, level {level}: {result.tasks} tasks, {result.writes} block writes and flushes, {result.cuts} cuts, "
                f"{len(result.wrong)} violations, {time.monotonic() - started:.0f} s",
                flush=True,
            )
    for plant in PLANTS:
        kind = "btrfs" if plant in _ONLY_BTRFS else kinds[0]
        if kind in kinds:
            found = finds(plant, kind, arguments.cuts, arguments.seed)
            bad += not found
            print(json.dumps({"planted": plant, "on": kind, "found": found}), flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
