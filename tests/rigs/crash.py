"""Every file operation of every move of a task is hit once: by SIGKILL before it, or by an error in its place.

::

    python -m tests.rigs.crash --all          every operation, every fault, and the planted bugs that must be found
    python -m tests.rigs.crash put finish     these operations only
    python -m tests.rigs.crash --plant NAME   with a planted bug

Each operation is performed once to see its file operations. Then, for each of them, a child process is made ready on a
queue of its own and waits; strace attaches to it with the order to hit that very call; the child is let go. What a worker,
a producer or the next supervisor would do follows: try again, recover, drain. Then the folder is judged by
tests/system/invariants.py. Needs strace 6 or newer, and the right to trace own processes.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dspy_supervisor.producer as producer_module
import dspy_supervisor.taskqueue as queue_module
from dspy_fastpath.claim import write_new
from dspy_supervisor.layout import Layout, list_folder
from dspy_supervisor.nodes import Presence
from dspy_supervisor.producer import Producer, put_again
from dspy_supervisor.record import Claim, Run, done_record, failed_record
from dspy_supervisor.recovery import Recovered, settle_commits, take_from_dead
from dspy_supervisor.retry import Budget
from dspy_supervisor.task import Cause
from dspy_supervisor.taskqueue import TaskQueue, Unusable
from dspy_supervisor.undertaker import Undertaker

from ..system.invariants import violations

_BUDGET = Budget(max_attempts=100, max_crashes=100, max_deliveries=100, base_s=0.0, cap_s=0.0)
_DEATH = "killed by the rig"

#: fault: at which calls, and what strace is told to do there
_WRITES = "write,pwrite64,fsync,fdatasync,syncfs,close"
_NAMES = "rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat,rmdir"
_FILES = f"open,openat,{_WRITES},{_NAMES},fstat,newfstatat,statx,read,getdents64,ftruncate"
FAULTS = {
    "kill": (_FILES, "signal=KILL"),
    "EIO": (f"openat,write,fsync,syncfs,close,{_NAMES},read,newfstatat,fstat,getdents64", "error=EIO"),
    "ENOSPC": (f"openat,write,fsync,syncfs,close,{_NAMES}", "error=ENOSPC"),
    "EDQUOT": (f"openat,write,fsync,syncfs,close,{_NAMES}", "error=EDQUOT"),
    "EROFS": (f"openat,{_NAMES}", "error=EROFS"),
    "EMFILE": ("open,openat", "error=EMFILE"),
    "ENFILE": ("open,openat", "error=ENFILE"),
    "ENOMEM": (_FILES, "error=ENOMEM"),
    "EINTR": ("openat,write,fsync,close,read", "error=EINTR"),
    "ESTALE": (f"openat,{_NAMES},newfstatat", "error=ESTALE"),
}


@dataclass
class Scene:
    """One queue, what was put into it, and what its tasks must end with."""

    path: Path
    layout: Layout
    queue: TaskQueue
    owner: str = "dead.1.0"
    folder: int = -1
    accepted: set[str] = field(default_factory=set)
    results: dict[str, Any] = field(default_factory=dict)
    may_fail: set[str] = field(default_factory=set)

    @classmethod
    def open(cls, path: Path) -> Scene:
        """Open the queue, made where it isn't there, at level task: every sync is one of the places to be hit."""
        layout = Layout.open(path, create=True, durability="task")
        return cls(path, layout, TaskQueue(layout))

    def put(self, task_id: str) -> None:
        """Put a task and count it as accepted."""
        Producer(self.layout).put(task_id, document(task_id))
        self.expect(task_id)

    def expect(self, *ids: str) -> None:
        """Count these tasks as accepted."""
        for task_id in ids:
            self.accepted.add(task_id)
            self.results[task_id] = task_id

    def be_owner(self) -> None:
        """Open the folder of the one who is to die."""
        self.folder = self.queue.open_owner(self.owner)

    def claim(self, file: str) -> Claim:
        """Claim a task."""
        held = self.queue.claim(file, self.folder)
        assert held is not None
        return held


def document(task_id: str) -> bytes:
    """The task of an id, long enough for a short write to show."""
    return json.dumps({"id": task_id, "payload": {"text": task_id * 50}}).encode()


def done(held: Claim) -> bytes:
    """Its record where it succeeds."""
    return done_record(held, json.dumps(held.name.id).encode(), _run())


def failed(held: Claim) -> bytes:
    """Its record where it is given up."""
    return failed_record(held, {"cause": Cause.REFUSED, "message": "by the rig"}, _run())


def _run() -> Run:
    return Run(time.time(), time.time(), 0.0, os.getpid(), "dead.1.0")


@dataclass(frozen=True)
class Operation:
    """One move: what was there before, the move itself, and what it promises when it returns."""

    prepare: Callable[[Scene], Any]
    act: Callable[[Scene, Any], object]
    promises: tuple[str, ...] = ()  #: ids that are accepted once it returned


def _fails(scene: Scene) -> None:
    scene.may_fail.add("a1")


def _waiting(scene: Scene) -> None:
    scene.put("a1")


def _claimable(scene: Scene) -> None:
    scene.put("a1")
    scene.be_owner()


def _claimed(scene: Scene) -> Claim:
    _claimable(scene)
    return scene.claim("a1.json")


def _condemned(scene: Scene) -> Claim:
    _fails(scene)
    return _claimed(scene)


def _delayed(scene: Scene) -> str:
    scene.put("a1")
    scene.queue.delay("a1.json", time.time() + 600)
    [name] = list_folder(scene.layout.delayed)
    return name


def _mess(scene: Scene) -> None:
    """What a supervisor that was killed at many places leaves: claims, a commit, a record nobody published."""
    for number in range(5):
        scene.put(f"a{number}")
    scene.be_owner()
    held = [scene.claim(f"a{number}.json") for number in range(4)]
    write_new(scene.layout.results, b"a1~0.json", done(held[1])[:40], False)  # half a record, not committed
    for number in (2, 3):
        write_new(scene.layout.results, f"a{number}~0.json".encode(), done(held[number]), False)
    os.rename("a3.json", ".a3.json.won", src_dir_fd=scene.folder, dst_dir_fd=scene.layout.done)
    scene.put("b1")  # a power cut left it beside its own record
    held = scene.claim("b1.json")
    scene.queue.finish(held, scene.folder, done(held))
    write_new(scene.layout.pending, b"b1.json", document("b1"), False)


def _failed(scene: Scene) -> None:
    held = _condemned(scene)
    scene.queue.fail(held, scene.folder, failed(held))


def _cancel(scene: Scene, _: Any) -> None:
    undertaker(scene).bury(scene.layout.pending, "a1.json", _NAME, {"cause": Cause.CANCELLED, "message": "by the rig"})


_NAME = queue_module.TaskName("a1")

OPERATIONS = {
    "put": Operation(lambda s: None, lambda s, _: Producer(s.layout).put("a1", document("a1")), ("a1",)),
    "put_many": Operation(
        lambda s: None,
        lambda s, _: Producer(s.layout).put_many([(f"a{n}", document(f"a{n}")) for n in range(3)]),
        ("a0", "a1", "a2"),
    ),
    "put_delayed": Operation(
        lambda s: None,
        lambda s, _: Producer(s.layout).put("a1", document("a1"), due=time.time() + 600),
        ("a1",),
    ),
    "claim": Operation(_claimable, lambda s, _: s.claim("a1.json")),
    "finish": Operation(_claimed, lambda s, held: s.queue.finish(held, s.folder, done(held))),
    "fail": Operation(_condemned, lambda s, held: s.queue.fail(held, s.folder, failed(held))),
    "retry": Operation(_claimed, lambda s, held: s.queue.retry(held.file, s.folder, 0.0)),
    "retry_later": Operation(_claimed, lambda s, held: s.queue.retry(held.file, s.folder, time.time() + 600)),
    "release": Operation(_claimed, lambda s, held: s.queue.release(held.file, s.folder)),
    "delay": Operation(_waiting, lambda s, _: s.queue.delay("a1.json", time.time() + 600)),
    "promote": Operation(_delayed, lambda s, name: s.queue.promote(name)),
    "cancel": Operation(lambda s: (_fails(s), _waiting(s)), _cancel),
    "put_again": Operation(_failed, lambda s, _: put_again(s.layout, "a1")),
    "recover": Operation(_mess, lambda s, _: recover(s)),
}


def recover(scene: Scene) -> None:
    """Do as the next supervisor does at its start."""
    result = Recovered()
    settle_commits(scene.queue, result, alone=True, torn=True)
    taker = undertaker(scene)
    owners = [owner for owner in list_folder(scene.layout.claimed) if owner != taker.owner]
    take_from_dead(taker, owners, _BUDGET, result, _DEATH)
    taker.close()


class _Nobody(Presence):
    """A node without a lock and a heartbeat."""

    def __init__(self) -> None:
        self.node, self._owners = f"rig{os.getpid()}x{random.getrandbits(32)}", 0


def undertaker(scene: Scene) -> Undertaker:
    """One who ends tasks, in a folder that nobody else has."""
    return Undertaker(scene.queue, _Nobody())


def drain(scene: Scene) -> None:
    """Run all that waits, as a worker does."""
    for name in list_folder(scene.layout.delayed):
        scene.queue.promote(name)
    folder = scene.queue.open_owner("live.1.0")
    for name in sorted(list_folder(scene.layout.pending)):
        if not name.startswith("."):
            held = scene.queue.claim(name, folder)
            if held is not None:
                scene.queue.finish(held, folder, done(held))
    os.close(folder)
    scene.queue.close_owner("live.1.0")


# -- one hit -----------------------------------------------------------------------------------------------------------


def calls_of(folder: Path, operation: Operation, plant: Callable[[], None] | None) -> list[str]:
    """Return the file operations an operation makes, in order."""
    trace = folder.with_name("trace")
    wrong = _perform_traced(folder, operation, ["-o", str(trace), "-e", f"trace={_FILES}"], plant)
    assert plant or not wrong, wrong
    lines = trace.read_text().splitlines()
    return [line.partition("(")[0] for line in lines if "(" in line and not line.startswith("+++")]


def hit(
    folder: Path, operation: Operation, fault: str, call: str, which: int, plant: Callable[[], None] | None = None
) -> list[str]:
    """Hit one call (the which-th of its name, from 1) of an operation; return what is wrong then."""
    order = f"inject={call}:{FAULTS[fault][1]}:when={which}"
    return _perform_traced(folder, operation, ["-o", "/dev/null", "-e", f"trace={call}", "-e", order], plant)


def _perform_traced(
    folder: Path, operation: Operation, options: list[str], plant: Callable[[], None] | None
) -> list[str]:
    """Perform an operation under strace, then recover, drain and judge."""
    scene = Scene.open(folder)
    state = operation.prepare(scene)
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        _perform(scene, operation, state, theirs, plant)
    theirs.close()
    strace = subprocess.Popen(["strace", "-p", str(child), *options], stderr=subprocess.PIPE)
    assert strace.stderr is not None
    with strace.stderr:
        said = strace.stderr.readline()
        if b"attached" not in said:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise RuntimeError(f"strace: {said.decode()}{strace.stderr.read().decode()}")
        ours.send(b"go")
        reports = _read_reports(ours)
        ours.close()
        _, status = os.waitpid(child, 0)
        strace.stderr.read()
    strace.wait()
    wrong = [report["wrong"] for report in reports if "wrong" in report]
    if os.waitstatus_to_exitcode(status) not in (0, -signal.SIGKILL):
        wrong.append(f"the program ended with status {status}")
    if {"returned": True} in reports:
        scene.expect(*operation.promises)
    wrong += _judge(scene, operation)
    if scene.folder >= 0:
        os.close(scene.folder)
    scene.layout.close()
    return wrong


def _perform(
    scene: Scene, operation: Operation, state: Any, channel: socket.socket, plant: Callable[[], None] | None
) -> None:
    """In the child: wait for the start, do it, and try again where it met an error."""
    code = 1
    try:
        if plant is not None:
            plant()
        channel.recv(8)
        for _ in range(3):
            try:
                operation.act(scene, state)
                channel.send(b'{"returned": true}\n')
                break
            except OSError as error:
                channel.send(json.dumps({"error": errno.errorcode.get(error.errno or 0, "?")}).encode() + b"\n")
                if _is_begun_again(scene, operation):
                    break
            except Unusable as error:
                channel.send(
                    json.dumps({"wrong": f"I3: an error of ours is taken for the task's: {error}"}).encode() + b"\n"
                )
                break
        code = 0
    except BaseException as error:
        channel.send(json.dumps({"wrong": f"{type(error).__name__}: {error}"}).encode() + b"\n")
    finally:
        os._exit(code)


def _is_begun_again(scene: Scene, operation: Operation) -> bool:
    """Whether another try would be another operation: after an error of a claim the task is given back."""
    if operation is OPERATIONS["claim"]:
        scene.queue.release("a1.json", scene.folder)
        return True
    return operation is OPERATIONS["put_again"]


def _judge(scene: Scene, operation: Operation) -> list[str]:
    """Return what is wrong right after the hit, after a recovery, after a second one, and after all work is done."""
    wrong = []
    try:
        recover(scene)
        wrong += [f"after recovery: {text}" for text in _violations(scene)]
        before = sorted(str(path) for path in scene.path.rglob("*"))
        recover(scene)
        if sorted(str(path) for path in scene.path.rglob("*")) != before:
            wrong.append("a second recovery changes something")
        if operation.promises:  # a producer that heard nothing puts it again
            for task_id in operation.promises:
                Producer(scene.layout).put(task_id, document(task_id))
            scene.expect(*operation.promises)
        drain(scene)
        wrong += [f"after draining: {text}" for text in _violations(scene, drained=True)]
    except Exception as error:  # a planted bug may break anything
        wrong.append(f"recovery or draining: {type(error).__name__}: {error}")
    return wrong


def _violations(scene: Scene, drained: bool = False) -> list[str]:
    found = violations(scene.path, scene.accepted, results=scene.results, may_fail=scene.may_fail, drained=drained)
    # a temporary file is a producer's; a record in results/ that no commit vouches for goes after a day
    return [text for text in found if "results/" not in text]


def _read_reports(channel: socket.socket) -> list[dict[str, Any]]:
    content = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := channel.recv(65536):
            content += chunk
    return [json.loads(line) for line in content.splitlines()]


# -- all hits ------------------------------------------------------------------------------------------------------------


def hits(
    root: Path, names: Iterable[str], faults: Iterable[str], plant: Callable[[], None] | None = None
) -> Iterator[tuple[str, str, str, list[str]]]:
    """Yield operation, fault, the call that was hit and the violations of every hit there is."""
    for name in names:
        operation = OPERATIONS[name]
        folder = root / name
        calls = calls_of(folder, operation, plant)
        shutil.rmtree(folder)
        for fault in faults:
            for place, call in enumerate(calls):
                if call in FAULTS[fault][0].split(","):
                    wrong = hit(folder, operation, fault, call, calls[: place + 1].count(call), plant)
                    shutil.rmtree(folder)
                    yield name, fault, f"{call}, the {place + 1}. of {len(calls)}", wrong


# -- planted bugs --------------------------------------------------------------------------------------------------------


def _plant_put_in_place() -> None:
    def publish(self: Producer, task_id: str, document: bytes, *_: Any, **__: Any) -> None:
        descriptor = os.open(f"{task_id}.json", os.O_WRONLY | os.O_CREAT, dir_fd=self.layout.pending)
        os.write(descriptor, document[:100])
        os.write(descriptor, document[100:])
        os.close(descriptor)

    producer_module.Producer.put = publish  # type: ignore[method-assign]


def _complete(
    self: TaskQueue, held: Claim, owner_folder: int, record: bytes, target: int, *, claim_first: bool
) -> bool:
    if claim_first:
        os.unlink(held.file, dir_fd=owner_folder)
    write_new(target, f"{held.name.id}.json".encode(), record, True)
    if not claim_first:
        os.unlink(held.file, dir_fd=owner_folder)
    return True


def _plant_claim_goes_first() -> None:
    queue_module.TaskQueue._complete = lambda *args: _complete(*args, claim_first=True)  # type: ignore[method-assign,assignment]


def _plant_record_in_place() -> None:
    queue_module.TaskQueue._complete = lambda *args: _complete(*args, claim_first=False)  # type: ignore[method-assign,assignment]


def _plant_believed_errors() -> None:
    real = queue_module.TaskQueue.claim

    def claim(self: TaskQueue, file: str, owner_folder: int) -> Claim | None:
        try:
            return real(self, file, owner_folder)
        except OSError as error:
            self.quarantine(owner_folder, file, str(error))
            return None

    queue_module.TaskQueue.claim = claim  # type: ignore[method-assign]


def _plant_copied_retry() -> None:
    def retry(self: TaskQueue, file: str, owner_folder: int, due: float, *, crashed: bool = False) -> bool:
        descriptor = os.open(file, os.O_RDONLY, dir_fd=owner_folder)
        content = os.read(descriptor, 1 << 20)
        os.close(descriptor)
        write_new(self.layout.pending, queue_module.TaskName("a1", 1).file.encode(), content, True)
        os.unlink(file, dir_fd=owner_folder)
        return True

    queue_module.TaskQueue.retry = retry  # type: ignore[method-assign]


#: name: (how it is planted, the operation and the fault that must find it)
PLANTS: dict[str, tuple[Callable[[], None], str, str]] = {
    "put_in_place": (_plant_put_in_place, "put", "kill"),
    "claim_goes_first": (_plant_claim_goes_first, "finish", "kill"),
    "record_in_place": (_plant_record_in_place, "finish", "kill"),
    "believed_errors": (_plant_believed_errors, "claim", "EIO"),
    "copied_retry": (_plant_copied_retry, "retry", "kill"),
}


def finds(root: Path, plant: str) -> bool:
    """Whether the rig finds a planted bug."""
    action, name, fault = PLANTS[plant]
    return any(wrong for *_, wrong in hits(root, [name], [fault], action))


def main() -> int:
    """Run what the command line names; return 1 where something is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.rigs.crash", description=str(__doc__).split("\n", maxsplit=1)[0]
    )
    parser.add_argument("operations", nargs="*", choices=[*OPERATIONS, []], help="which; default: all")
    parser.add_argument("--fault", action="append", choices=list(FAULTS), help="which; default: kill")
    parser.add_argument("--all", action="store_true", help="every operation, every fault, every planted bug")
    parser.add_argument("--plant", choices=list(PLANTS), help="look for this planted bug instead")
    arguments = parser.parse_args()
    names = arguments.operations or list(OPERATIONS)
    faults = list(FAULTS) if arguments.all else arguments.fault or ["kill"]
    count = bad = 0
    with tempfile.TemporaryDirectory(prefix="crash.") as folder:
        root = Path(folder)
        if arguments.plant:
            found = finds(root, arguments.plant)
            print(f"planted bug {arguments.plant}: {'found' if found else 'NOT FOUND'}")
            return 0 if found else 1
        for name, fault, place, wrong in hits(root, names, faults):
            count += 1
            for text in wrong:
                bad += 1
                print(f"{name}, {fault} at {place}: {text}")
        if arguments.all:
            for plant in PLANTS:
                if not finds(root, plant):
                    bad += 1
                    print(f"the planted bug {plant} was not found")
    print(f"{count} hits, {bad} violations")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
