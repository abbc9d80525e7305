"""What is on disk about the jobs of a queue at a Slurm cluster: what was asked for, and what the jobs say of themselves.

::

    slurm/NAME/               one submission: one sbatch, one job or one array; NAME is the job's name there, used once
        intent.json           written and synced before sbatch: the tasks' files in the order of the array's indices
        script                what was submitted
        job.json              after sbatch: its id
        seen.json             a hint for people: what was last seen of it
        INDEX/                one task; 0 where it is no array
            task.json         the task, for the program that runs it
            out               what the job's script wrote; logs/ID/job.ATTEMPT.out is the same file
            start.R.json      the attempt is taken: by the job at its R-th restart, or by us ("void"), and then nothing runs
            beat.R.json       {"counter": n}, rewritten while it works
            result.R.json     the result, as JSON
            exit.R.json       how it ended; written last
            cancel.json       why we ended it

A submission appears with all its files, by one rename. Slurm's own id is no key: a controller that is killed forgets a job
and gives its id to the next. The name is the key, and the file start.R.json is what only one of two copies of a job can make.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from dspy_fastpath.claim import move_new, sync, sync_filesystem, write_new
from dspy_fastpath.ids import uuid7

from .jobfolder import Sentinel, opened_folder, read_sentinel, take
from .layout import Layout, read_json, replace_json
from .task import TaskName

FOLDER = "slurm"
SLOT = "slurm"  #: last part of the name of an owner whose claims are jobs: NODE.N.slurm
CLOUD_SLOT = "cloud"  #: the same where rented machines have them
_NAME = re.compile(r"dspy\.[0-9a-f]{8}\.[0-9a-f]{32}")
_FEW = 8  # files that are synced one by one; more of them by one sync of the filesystem
_LARGE = 1 << 30
_TICK_MS = 500
_STALE_S = 3600.0  # a submission that was not finished being written is nobody's after this


def is_carried(owner: str) -> bool:
    """Whether the claims of an owner run elsewhere, as jobs of a cluster or on rented machines, and go on without this host."""
    return is_job(owner) or is_rented(owner)


def is_job(owner: str) -> bool:
    """Whether the claims of an owner are jobs of a cluster."""
    return owner.count(".") == 2 and owner.endswith(f".{SLOT}")


def is_rented(owner: str) -> bool:
    """Whether rented machines have the claims of an owner."""
    return owner.count(".") == 2 and owner.endswith(f".{CLOUD_SLOT}")


def name_prefix(queue_id: str) -> str:
    """Return what the names of all jobs of a queue begin with."""
    tail = queue_id.replace("-", "")[-8:]
    if not re.fullmatch("[0-9a-f]{8}", tail):  # an id that somebody else made
        import hashlib  # not for every program that looks at claims: it loads OpenSSL

        tail = hashlib.sha256(queue_id.encode(errors="replace")).hexdigest()[:8]
    return f"dspy.{tail}."


def new_name(queue_id: str) -> str:
    """Return a name for a submission that no other has or had; they sort by time."""
    return name_prefix(queue_id) + uuid7().replace("-", "")


@dataclass(frozen=True, slots=True)
class JobFacts:
    """What a template needs to know of a submission."""

    name: str
    folder: Path  #: slurm/NAME, absolute; the task's folder is below, by its index
    size: int  #: tasks
    array: bool
    python: str  #: the interpreter that runs tasks


@dataclass(frozen=True, slots=True)
class Submission:
    """One sbatch, as it is on disk."""

    name: str
    at: float  #: epoch seconds of the intent
    tasks: tuple[str, ...]  #: files of the tasks, by index
    array: bool
    template: str = ""
    options: tuple[str, ...] = ()
    cluster: str = ""
    job_id: str = ""  #: "" while sbatch has not answered, or its answer was lost

    def job_of(self, index: int) -> str:
        """Return the id of the job that runs one task, as Slurm's commands take it."""
        return f"{self.job_id}_{index}" if self.array else self.job_id


@dataclass(frozen=True, slots=True)
class Order:
    """One task of a submission to be: its file, and what is put into its folder."""

    file: str
    files: Mapping[str, bytes]


class JobBook:
    """The folder slurm/ of one queue."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.path = Path(layout.path) / FOLDER

    def prepare(self) -> None:
        """Make the folder, and clear away what nobody finished writing. Raises OSError."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(FOLDER, 0o700, dir_fd=self.layout.root)
        for name in os.listdir(self.path):
            if name.startswith(".") and name.endswith(".tmp"):
                with contextlib.suppress(OSError):
                    if time.time() - (self.path / name).lstat().st_mtime > _STALE_S:
                        shutil.rmtree(self.path / name)

    # -- submissions ------------------------------------------------------------------------------------------------------

    def write(
        self,
        name: str,
        orders: Sequence[Order],
        intent: Mapping[str, Any],
        script: bytes,
        tick: Callable[[], object] = lambda: None,  # called now and then: a disk that is busy takes its time
    ) -> Submission:
        """Put a submission on disk before anything is submitted; it is there as a whole, or not at all. Raises OSError."""
        at = time.time()
        temporary = self.path / f".{name}.tmp"
        durable = self.layout.syncs
        each = durable and len(orders) <= _FEW
        document = {**intent, "name": name, "at": at, "tasks": [order.file for order in orders]}
        os.mkdir(temporary, 0o700)
        try:
            with opened_folder(temporary) as folder:
                write_new(folder, b"intent.json", orjson.dumps(document), each)
                write_new(folder, b"script", script, each)
                for index, order in enumerate(orders):
                    os.mkdir(str(index), 0o700, dir_fd=folder)
                    with opened_folder(str(index), folder) as below:
                        for file, content in order.files.items():
                            write_new(below, file.encode(), content, each)
                        write_new(below, b"out", b"", False)
                        self._link_output(below, order.file)
                        if each:
                            sync(below)
                    tick()
                if each:
                    sync(folder)
                elif durable:
                    _sync_all(folder, tick)
            with opened_folder(self.path) as root:
                os.rename(temporary.name, name, src_dir_fd=root, dst_dir_fd=root)
                if durable:
                    sync(root)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return _submission(name, document, {})

    def accepted(self, submission: Submission, job_id: str, cluster: str) -> Submission:
        """Keep the id of a job. Raises OSError; the job can be found by its name all the same."""
        facts = {"job_id": job_id, "cluster": cluster, "at": time.time()}
        with opened_folder(self.path / submission.name) as folder:
            replace_json(folder, "job.json", facts, durable=self.layout.syncs)
            intent = read_json(folder, "intent.json", _LARGE) or {}
        return _submission(submission.name, intent, facts)

    def names(self) -> list[str]:
        """Return the names of all submissions, oldest first."""
        try:
            return sorted(name for name in os.listdir(self.path) if _NAME.fullmatch(name))
        except FileNotFoundError:
            return []

    def read(self, name: str) -> Submission | None:
        """Return a submission, or None where it is gone or not whole."""
        try:
            with opened_folder(self.path / name) as folder:
                intent = read_json(folder, "intent.json", _LARGE)
                job = read_json(folder, "job.json") or {}
        except (FileNotFoundError, NotADirectoryError):
            return None
        if intent is None or not isinstance(intent.get("tasks"), list):
            return None
        return _submission(name, intent, job)

    def submissions(self) -> Iterator[Submission]:
        """Yield all submissions, oldest first."""
        for name in self.names():
            if (found := self.read(name)) is not None:
                yield found

    def find(self, file: str) -> tuple[Submission, int] | None:
        """Return the submission of a claimed task, and the task's index in it; None where it was never submitted."""
        for name in reversed(self.names()):
            submission = self.read(name)
            if submission is not None and file in submission.tasks:
                index = submission.tasks.index(file)
                if not self.sentinel(name, index).void:
                    return submission, index
        return None

    def describe(self, file: str, owner: str = "") -> str:
        """Return in words what a claimed task's job is doing, as far as this is known on disk."""
        if is_rented(owner):
            return "it is with the machines of cloud_provider: see 'dspy-supervisor cloud status'"
        found = self.find(file)
        if found is None:
            return "it is about to be submitted to Slurm"
        submission, index = found
        if not submission.job_id:
            return f"it was submitted to Slurm as job {submission.name}, whose number is not known yet"
        text = f"job {submission.job_of(index)}" + (f" of cluster {submission.cluster}" if submission.cluster else "")
        seen = self.seen(submission.name).get(str(index), {})
        if state := seen.get("state"):
            text += f", {state}"
            text += f" on {seen['nodes']}" if seen.get("nodes") else ""
            text += f" ({seen['reason']})" if seen.get("reason") else ""
        return text

    def seen(self, name: str) -> dict[str, dict[str, Any]]:
        """Return what was last seen of a submission's jobs, by index."""
        try:
            with opened_folder(self.path / name) as folder:
                found = (read_json(folder, "seen.json", _LARGE) or {}).get("elements")
        except (FileNotFoundError, NotADirectoryError):
            return {}
        return found if isinstance(found, dict) else {}

    def note_seen(self, name: str, elements: Mapping[str, Mapping[str, Any]]) -> None:
        """Keep what was seen of a submission's jobs. Best effort."""
        with contextlib.suppress(OSError), opened_folder(self.path / name) as folder:
            replace_json(folder, "seen.json", {"at": time.time(), "elements": elements}, durable=False)

    # -- one task of a submission ---------------------------------------------------------------------------------------------

    def folder(self, name: str, index: int) -> Path:
        """Return the folder of one task of a submission."""
        return self.path / name / str(index)

    def sentinel(self, name: str, index: int) -> Sentinel:
        """Return what the job of one task wrote itself. Raises OSError for what can't be read at the moment."""
        try:
            with opened_folder(self.folder(name, index)) as folder:
                return read_sentinel(folder)
        except (FileNotFoundError, NotADirectoryError):
            return Sentinel()

    def result(self, name: str, index: int, restart: int) -> bytes | None:
        """Return the JSON that a job wrote as its result, or None where there is none."""
        path = self.folder(name, index) / f"result.{restart}.json"
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            return file.read()

    def beat(self, name: str, index: int, restart: int) -> object:
        """Return the counter of a job's heartbeat, or None."""
        try:
            with opened_folder(self.folder(name, index)) as folder:
                return (read_json(folder, f"beat.{restart}.json") or {}).get("counter")
        except (FileNotFoundError, NotADirectoryError):
            return None

    def void(self, name: str, index: int, why: str) -> bool:
        """Take the attempt, so that no copy of the job runs it from now on; False where the job was faster."""
        path = self.folder(name, index)
        try:
            with opened_folder(path) as folder:
                now = read_sentinel(folder)
                return now.void or take(folder, now.started + 1, {"void": True, "why": why, "at": time.time()})
        except (FileNotFoundError, NotADirectoryError):
            return True  # a job that finds no folder ends at once

    def note_cancel(self, name: str, index: int, cause: str, message: str) -> None:
        """Keep why we end a job, before it is ended: the next bridge may be the one that sees its end. Raises OSError."""
        with opened_folder(self.folder(name, index)) as folder:
            facts = {"cause": cause, "message": message, "at": time.time()}
            replace_json(folder, "cancel.json", facts, durable=self.layout.syncs)

    def cancelled(self, name: str, index: int) -> Mapping[str, Any] | None:
        """Return why we ended a job, or None where we did not."""
        try:
            with opened_folder(self.folder(name, index)) as folder:
                return read_json(folder, "cancel.json")
        except (FileNotFoundError, NotADirectoryError):
            return None

    def forget(self, name: str, index: int) -> None:
        """Remove what is kept of one settled task, and the submission with the last of them."""
        shutil.rmtree(self.folder(name, index), ignore_errors=True)
        try:
            left = [entry for entry in os.listdir(self.path / name) if entry.isdecimal()]
        except FileNotFoundError:
            return
        if not left:
            shutil.rmtree(self.path / name, ignore_errors=True)

    def _link_output(self, folder: int, file: str) -> None:
        """Let `task logs` find what the job writes; where the filesystem has no hard links, it finds that at the end."""
        task = TaskName.parse(file)
        if task is None:
            return
        with contextlib.suppress(OSError):
            with contextlib.suppress(FileExistsError):
                os.mkdir(task.id, 0o750, dir_fd=self.layout.logs)
            with opened_folder(task.id, self.layout.logs) as logs:
                target = output_file(task)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(target, dir_fd=logs)  # of an earlier submission of this very attempt, which never ran
                os.link("out", target, src_dir_fd=folder, dst_dir_fd=logs, follow_symlinks=False)

    def keep_output(self, name: str, index: int, task: TaskName) -> None:
        """See that what the job wrote is among the task's logs. Best effort."""
        with contextlib.suppress(OSError):
            with contextlib.suppress(FileExistsError):
                os.mkdir(task.id, 0o750, dir_fd=self.layout.logs)
            with opened_folder(self.folder(name, index)) as folder, opened_folder(task.id, self.layout.logs) as logs:
                move_new(folder, b"out", logs, output_file(task).encode())


def output_file(task: TaskName) -> str:
    """Return the name in logs/ID/ of what the job of an attempt wrote."""
    return f"job.{task.attempt}.out"


def _sync_all(folder: int, tick: Callable[[], object]) -> None:
    """Sync a filesystem, which may take many seconds, in a child, so that we can go on ticking meanwhile. Raises OSError."""
    pid = os.fork()
    if pid == 0:
        code = errno.EIO
        try:
            sync_filesystem(folder)
            code = 0
        except OSError as error:
            code = error.errno or errno.EIO
        finally:
            os._exit(code)
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        while not poll.poll(_TICK_MS):
            tick()
    finally:
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        code = code if code > 0 else errno.EIO
        raise OSError(code, os.strerror(code))


def _submission(name: str, intent: Mapping[str, Any], job: Mapping[str, Any]) -> Submission:
    return Submission(
        name=name,
        at=float(intent.get("at", 0.0)),
        tasks=tuple(map(str, intent["tasks"])),
        array=bool(intent.get("array")),
        template=str(intent.get("template", "")),
        options=tuple(map(str, intent.get("options", ()))),
        cluster=str(job.get("cluster", "")),
        job_id=str(job.get("job_id", "")),
    )
