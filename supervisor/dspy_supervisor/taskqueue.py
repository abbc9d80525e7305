"""The moves of a task between the folders of its queue. Everything here is one rename, or is prepared by one.

::

    claim    pending/N          -> claimed/OWNER/N
    finish   claimed/OWNER/N    -> done/.N.won        after results/ID~A.json is written: the one commit point
             results/ID~A.json  -> done/ID.json       the record is published; then .N.won goes
    fail     the same, to failed/
    retry    claimed/OWNER/N    -> delayed/DUE.ID~A+1xC.json
    release  claimed/OWNER/N    -> pending/N          it never started
    take     claimed/DEAD/N     -> pending/ID~A+1xC.json or delayed/...: the same source as the owner's commit, so one wins
    promote  delayed/DUE.M      -> pending/M

A result is written under its final name in results/: the name belongs to one attempt of one owner, and nobody reads it
before the commit that vouches for it, so a temporary name would only cost a rename.

A call that fails is not believed (on NFSv3 a lost reply makes a rename that happened look like ENOENT): where the target
can only be ours, its being there settles it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from dspy_fastpath.claim import Refused, claim, move, move_new, peek, sync, write_new
from dspy_fastpath.envelope import EnvelopeError
from dspy_fastpath.ids import uuid7

from .layout import Layout, read_json, replace_json
from .record import MAX_HISTORY, Claim, same_task
from .task import Cause, TaskName

#: "I don't know": the server may have done it all the same
UNKNOWN = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT})
_SETTLE_TRIES = 3


class Unusable(Exception):
    """A file in the queue is no task: ``reason`` says why. It is moved to quarantine/ by whoever holds it.

    ``may_change``: its producer may still be at work on it.
    """

    def __init__(self, file: str, reason: str, *, may_change: bool = True) -> None:
        super().__init__(f"{file!r}: {reason}")
        self.file, self.reason, self.may_change = file, reason, may_change


class TaskQueue:
    """The queue in the folders of a layout, as one owner of claims sees it."""

    def __init__(self, layout: Layout, *, max_bytes: int = 64 << 20, max_depth: int = 128) -> None:
        self.layout = layout
        self.max_bytes = max_bytes  #: largest task, bytes
        self.max_depth = max_depth  #: deepest nesting of a task's JSON
        self.fenced = 0  #: completions that were refused, since the claim had been taken meanwhile

    # -- owners ---------------------------------------------------------------------------------------------------------

    def open_owner(self, owner: str) -> int:
        """Return a descriptor of claimed/OWNER/, made where it isn't there."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(owner, 0o700, dir_fd=self.layout.claimed)
        return os.open(owner, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.layout.claimed)

    def close_owner(self, owner: str) -> bool:
        """Remove claimed/OWNER/; False where something still lies in it."""
        try:
            os.rmdir(owner, dir_fd=self.layout.claimed)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
        return True

    # -- one task -------------------------------------------------------------------------------------------------------

    def look(self, file: str) -> Claim | None:
        """Read a waiting task without claiming it; None where it is gone. Raises Unusable, or OSError for our trouble."""
        return self._read(self.layout.pending, file)

    def claim(self, file: str, owner_folder: int) -> Claim | None:
        """Claim a waiting task; None where somebody else was faster.

        After Unusable and after OSError the file may lie in the owner's folder: see `quarantine` and `release`.
        """
        name = _parse(file)
        try:
            got = claim(
                self.layout.pending,
                file.encode(),
                owner_folder,
                self.max_bytes,
                self.layout.owners,
                max_depth=self.max_depth,
            )
        except (Refused, EnvelopeError) as error:
            raise Unusable(file, str(error)) from error
        if got is None:
            return None
        found = Claim(name, got.data, got.fields, got.mtime)
        self._refuse_second(found)
        return found

    def read_claim(self, file: str, owner_folder: int) -> Claim | None:
        """Read a task that lies in an owner's folder; None where it is gone."""
        return self._read(owner_folder, file)

    def finish(self, held: Claim, owner_folder: int, record: bytes) -> bool:
        """Record the one success of a task; False where the claim was taken meanwhile, and the result is void."""
        return self._complete(held, owner_folder, record, self.layout.done)

    def fail(self, held: Claim, owner_folder: int, record: bytes) -> bool:
        """Record that a task is given up; False where the claim was taken meanwhile."""
        return self._complete(held, owner_folder, record, self.layout.failed)

    def retry(self, file: str, owner_folder: int, due: float, *, crashed: bool = False) -> bool:
        """Charge an attempt and put the task back, to wait until ``due`` (epoch seconds); False where it was taken.

        A time that is not in the future means pending/ at once.
        """
        charged = _parse(file).charged(crashed=crashed)
        if due <= time.time():
            return self._move(owner_folder, file, self.layout.pending, charged.file)
        return self._move(owner_folder, file, self.layout.delayed, delayed_file(due, charged))

    def take(self, name: TaskName, owner_folder: int, due: float, *, crashed: bool = False) -> bool:
        """Take a claim from an owner that is dead, as `retry`; a record it had written before it died goes."""
        if not self.retry(name.file, owner_folder, due, crashed=crashed):
            return False
        with contextlib.suppress(OSError):  # without its claim nobody can commit it
            os.unlink(name.result_file, dir_fd=self.layout.results)
        return True

    def release(self, file: str, owner_folder: int) -> bool:
        """Give back a task that never started; no attempt is charged."""
        return self._move(owner_folder, file, self.layout.pending, file)

    def delay(self, file: str, due: float) -> bool:
        """Move a waiting task to delayed/ until ``due`` (epoch seconds); False where it is gone."""
        return self._move(self.layout.pending, file, self.layout.delayed, delayed_file(due, _parse(file)))

    def promote(self, delayed: str) -> bool:
        """Move a task whose time has come from delayed/ to pending/; False where it is gone."""
        parsed = parse_delayed(delayed)
        if parsed is None:
            raise Unusable(delayed, "not a name of delayed/")
        return self._move(self.layout.delayed, delayed, self.layout.pending, parsed[1].file)

    def quarantine(self, folder: int, file: str, reason: str) -> str | None:
        """Move what can't be a task out of the way, as it came, with the reason beside it; None where it is gone.

        Returns the name in quarantine/: the file's own where that is safe, else a hash of it.
        """
        import hashlib  # not for every program that only puts tasks: it loads OpenSSL

        raw = os.fsencode(file)
        safe = TaskName.parse(file)
        stem = safe.id if safe else hashlib.sha256(raw).hexdigest()[:32]
        kept = f"{stem}.{uuid7()}.json"
        facts = {"file": ascii(file)[1:-1], "reason": reason[:4096], "quarantined_at": time.time()}
        why = f"{kept}.reason"
        replace_json(self.layout.quarantine, why, facts, durable=self.layout.syncs)
        if self._move(folder, file, self.layout.quarantine, kept):
            return kept
        with contextlib.suppress(FileNotFoundError):
            os.unlink(why, dir_fd=self.layout.quarantine)
        return None

    # -- attempts that are over -----------------------------------------------------------------------------------------

    def note_attempt(self, name: TaskName, error: Mapping[str, Any]) -> None:
        """Keep how an attempt ended, for the record of the last one. Best effort: it decides nothing by itself."""
        with contextlib.suppress(OSError):
            with contextlib.suppress(FileExistsError):
                os.mkdir(name.id, 0o700, dir_fd=self.layout.logs)
            folder = self._open_logs(name.id)
            try:
                replace_json(folder, f"attempt.{name.attempt}.json", {"attempt": name.attempt, **error}, durable=False)
            finally:
                os.close(folder)

    def history(self, name: TaskName) -> list[dict[str, Any]]:
        """Return how the earlier attempts of a task ended, oldest first, the last MAX_HISTORY of them."""
        if not name.attempt:
            return []
        try:
            folder = self._open_logs(name.id)
        except OSError:
            return []
        try:
            numbers = range(max(0, name.attempt - MAX_HISTORY), name.attempt)
            notes = [read_json(folder, f"attempt.{number}.json") for number in numbers]
        finally:
            os.close(folder)
        return [note for note in notes if note is not None]

    def _open_logs(self, task_id: str) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(task_id, flags, dir_fd=self.layout.logs)

    # -- below ----------------------------------------------------------------------------------------------------------

    def _read(self, folder: int, file: str) -> Claim | None:
        name = _parse(file)
        try:
            got = peek(folder, file.encode(), self.max_bytes, self.layout.owners, max_depth=self.max_depth)
        except EnvelopeError as error:
            raise Unusable(file, str(error)) from error
        except Refused as error:
            # Two names are what a put by link and unlink looks like for a moment; no other of these kinds passes.
            raise Unusable(file, str(error), may_change=error.links > 1) from error
        return None if got is None else Claim(name, got.data, got.fields, got.mtime)

    def _refuse_second(self, found: Claim) -> None:
        """Raise Unusable where the task's id has a record already: an id is used once."""
        file = f"{found.name.id}.json"
        for folder, state in ((self.layout.done, "done"), (self.layout.failed, "failed")):
            if not exists(folder, file):
                continue
            same = False
            with contextlib.suppress(Refused, EnvelopeError):
                record = peek(folder, file.encode(), 1 << 40, ())
                same = record is not None and same_task(found.envelope, found.fields, record.data, record.fields)
            raise Unusable(
                found.file,
                f"the id {found.name.id!r} is {state} already"
                + (", with the same content" if same else ", with other content")
                + "; an id is used once",
            )

    def _complete(self, held: Claim, owner_folder: int, record: bytes, target: int) -> bool:
        layout = self.layout
        result = held.name.result_file.encode()
        try:
            write_new(layout.results, result, record, layout.syncs)
        except FileExistsError:  # left by a task of the same id, long gone
            os.unlink(result, dir_fd=layout.results)
            write_new(layout.results, result, record, layout.syncs)
        if layout.syncs:
            sync(layout.results)
        won = won_file(held.name)
        if not self._move(owner_folder, held.file, target, won):
            self.fenced += 1
            with contextlib.suppress(FileNotFoundError):
                os.unlink(result, dir_fd=layout.results)
            return False
        self.publish(held.name, target)
        if layout.syncs_results:
            sync(target)
            sync(owner_folder)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(won, dir_fd=target)
        return True

    def publish(self, name: TaskName, target: int) -> bool:
        """Make the record of a committed attempt visible; False where its id has a record already, which stays."""
        try:
            move_new(self.layout.results, name.result_file.encode(), target, f"{name.id}.json".encode())
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name.result_file, dir_fd=self.layout.results)
            return False
        return True

    def _move(self, source_folder: int, source: str, target_folder: int, target: str) -> bool:
        """Rename, where the target's name can only be made by this call; False where the source is gone."""
        before, after = os.fsencode(source), os.fsencode(target)
        for tries_left in reversed(range(_SETTLE_TRIES)):
            try:
                if move(source_folder, before, target_folder, after):
                    return True
                return self.layout.filesystem.network and exists(target_folder, target)
            except OSError as error:
                if error.errno not in UNKNOWN:
                    raise
                if exists(target_folder, target):
                    return True
                if not tries_left:
                    raise
        raise AssertionError("unreachable: the last try returns or raises")


def won_file(name: TaskName) -> str:
    """The hidden name in done/ or failed/ that is the commit of an attempt."""
    return f".{name.file}.won"


def parse_won(file: str) -> TaskName | None:
    """Return the attempt a commit stands for, or None where the name is no commit."""
    return TaskName.parse(file[1:-4]) if file.startswith(".") and file.endswith(".won") else None


def delayed_file(due: float, name: TaskName) -> str:
    """The name in delayed/ of a task that waits until ``due`` (epoch seconds): sorted by time, in milliseconds."""
    return f"{max(0, int(due * 1000)):015d}.{name.file}"


def parse_delayed(file: str) -> tuple[float, TaskName] | None:
    """Return when a task in delayed/ is due (epoch seconds) and its name, or None where the name is not one of ours."""
    due, dot, rest = file.partition(".")
    name = TaskName.parse(rest) if dot and len(due) == 15 and due.isascii() and due.isdigit() else None
    return None if name is None else (int(due) / 1000, name)


def exists(folder: int, file: str) -> bool:
    """Whether a name is in an open folder, whatever it is."""
    try:
        os.stat(file, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def past_causes(history: Sequence[Mapping[str, Any]]) -> list[Cause]:
    """Return the causes in the notes of earlier attempts, as far as they are known words."""
    known = set(Cause)
    return [Cause(note["cause"]) for note in history if note.get("cause") in known]


def _parse(file: str) -> TaskName:
    name = TaskName.parse(file)
    if name is None:
        raise Unusable(file, "the name is not ID.json with an ID of letters, digits, '.', '_' and '-', at most 100")
    return name
