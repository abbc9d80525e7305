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

import orjson
from dspy_fastpath.claim import Refused, claim, move, move_new, peek, read, sync, write_new
from dspy_fastpath.claim import exists as exists_at
from dspy_fastpath.envelope import EnvelopeError, Fields, scan
from dspy_fastpath.ids import uuid7

from .layout import Layout, list_folder, read_json, replace_json
from .record import MAX_HISTORY, Claim, same_task
from .task import Cause, TaskName

#: "I don't know": the server may have done it all the same
UNKNOWN = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT})
_SETTLE_TRIES = 3
#: what a record may hold more than an envelope: a result as deep as there are any, and our own keys beside the producer's
DEEPEST, MOST_EXTRAS = 1024, 1024
#: bytes: more than a task and a result of the most that settings allow (4 GiB each); a larger file is none of ours
LARGEST_RECORD = 1 << 34
_LAST_DUE = 253402300799.0  # epoch seconds, the end of the year 9999


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
        self._committed: Claim | None = None  # what was committed last, until it is published

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

    def read_delayed(self, delayed: str) -> Claim | None:
        """Read a task that lies in delayed/; None where it is gone."""
        parsed = parse_delayed(delayed)
        if parsed is None:
            raise Unusable(delayed, "not a name of delayed/")
        return self._read(self.layout.delayed, delayed, parsed[1])

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
        except EnvelopeError as error:
            raise Unusable(file, str(error)) from error
        except Refused as error:
            raise Unusable(file, str(error), may_change=_may_pass(error)) from error
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

    def leave_record(self, held: Claim, record: bytes) -> None:
        """Leave the record of a second run of an attempt beside the task's output, for its owner's supervisor. Raises OSError."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(held.name.id, 0o700, dir_fd=self.layout.logs)
        folder = self._open_logs(held.name.id)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_second_record(held.name), dir_fd=folder)
            write_new(folder, _second_record(held.name).encode(), record, False)
        finally:
            os.close(folder)

    def left_record(self, name: TaskName) -> bytes | None:
        """Return what `leave_record` left; None where it is gone. The caller vouches that it is whole."""
        try:
            folder = self._open_logs(name.id)
        except OSError:
            return None
        try:
            return read(folder, _second_record(name).encode(), LARGEST_RECORD, self.layout.owners).data
        except (FileNotFoundError, Refused):
            return None
        finally:
            os.close(folder)

    def forget_record(self, name: TaskName) -> None:
        """Remove what `leave_record` left, as far as it can be."""
        with contextlib.suppress(OSError):
            folder = self._open_logs(name.id)
            try:
                os.unlink(_second_record(name), dir_fd=folder)
            finally:
                os.close(folder)

    def fail(self, held: Claim, owner_folder: int, record: bytes) -> bool:
        """Record that a task is given up; False where the claim was taken meanwhile."""
        return self._complete(held, owner_folder, record, self.layout.failed)

    def retry(self, file: str, owner_folder: int, due: float, *, crashed: bool = False) -> bool:
        """Charge an attempt and put the task back, to wait until ``due`` (epoch seconds); False where it was taken.

        A time that is not in the future means pending/ at once.
        """
        charged = _parse(file).charged(crashed=crashed)
        if due > time.time():
            return self._put_back(owner_folder, file, self.layout.delayed, delayed_file(due, charged))
        return self._put_back(owner_folder, file, self.layout.pending, charged.file)

    def take(self, name: TaskName, owner_folder: int, due: float, *, crashed: bool = False) -> bool:
        """Take a claim from an owner that is dead, as `retry`; a record it had written before it died goes."""
        if not self.retry(name.file, owner_folder, due, crashed=crashed):
            return False
        with contextlib.suppress(OSError):  # without its claim nobody can commit it
            os.unlink(name.result_file, dir_fd=self.layout.results)
        return True

    def release(self, file: str, owner_folder: int) -> bool:
        """Give back a task that never started; no attempt is charged."""
        return self._put_back(owner_folder, file, self.layout.pending, file)

    def hand_over(self, folder: int, file: str, owner_folder: int, name: TaskName) -> bool:
        """Move a task into an owner's folder, under a name that was never there; False where it is gone."""
        return self._move(folder, file, owner_folder, name.file)

    def delay(self, file: str, due: float) -> bool:
        """Move a waiting task to delayed/ until ``due`` (epoch seconds); False where it is gone."""
        return self._put_back(self.layout.pending, file, self.layout.delayed, delayed_file(due, _parse(file)))

    def promote(self, delayed: str) -> bool:
        """Move a task whose time has come from delayed/ to pending/; False where it is gone."""
        parsed = parse_delayed(delayed)
        if parsed is None:
            raise Unusable(delayed, "not a name of delayed/")
        return self._put_back(self.layout.delayed, delayed, self.layout.pending, parsed[1].file)

    def quarantine(self, folder: int, file: str, reason: str, name: TaskName | None = None) -> str | None:
        """Move what can't be a task out of the way, as it came, with the reason beside it; None where it is gone.

        Returns the name in quarantine/: the file's own where that is safe, else a hash of it.
        """
        import hashlib  # not for every program that only puts tasks: it loads OpenSSL

        raw = os.fsencode(file)
        safe = name or TaskName.parse(file)
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
        return [note for note in notes if note is not None and _can_be_written(note)]

    def _open_logs(self, task_id: str) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(task_id, flags, dir_fd=self.layout.logs)

    # -- below ----------------------------------------------------------------------------------------------------------

    def _read(self, folder: int, file: str, name: TaskName | None = None) -> Claim | None:
        name = name or _parse(file)
        try:
            got = peek(folder, file.encode(), self.max_bytes, self.layout.owners, max_depth=self.max_depth)
        except EnvelopeError as error:
            raise Unusable(file, str(error)) from error
        except Refused as error:
            raise Unusable(file, str(error), may_change=_may_pass(error)) from error
        return None if got is None else Claim(name, got.data, got.fields, got.mtime)

    def _refuse_second(self, found: Claim) -> None:
        """Raise Unusable where the task's id has a record already: an id is used once."""
        file = f"{found.name.id}.json"
        for folder, state in ((self.layout.done, "done"), (self.layout.failed, "failed")):
            if not exists(folder, file):
                continue
            same = is_record_of(folder, file, found.envelope, found.fields)
            raise Unusable(
                found.file,
                f"the id {found.name.id!r} is {state} already"
                + (", with the same content" if same else ", with other content")
                + "; an id is used once",
                may_change=False,
            )

    def _complete(self, held: Claim, owner_folder: int, record: bytes, target: int) -> bool:
        layout = self.layout
        result = held.name.result_file.encode()
        if self._committed is held:  # by a try that met an error after it
            return self._publish_again(held, owner_folder, record, target)
        try:
            write_new(layout.results, result, record, layout.syncs)
        except FileExistsError:
            if exists(target, won_file(held.name)) and not exists(owner_folder, held.file):
                # Committed by a try of ours that met an error then.
                return self._conclude(held.name, target, owner_folder)
            if self._is_shared(held, owner_folder):
                self.quarantine(owner_folder, held.file, "a task of this id ran at the same time; an id is used once")
                self.fenced += 1
                return False
            # Left by an earlier try of ours, by our dead worker, or by a task of the same id, long gone.
            os.unlink(result, dir_fd=layout.results)
            write_new(layout.results, result, record, layout.syncs)
        if layout.syncs:
            sync(layout.results)
        if not self._move(owner_folder, held.file, target, won_file(held.name)):
            self.fenced += 1
            if self._is_recorded(target, won_file(held.name), held.name):  # by a try of ours that met an error after it
                self.forget_commit(held.name, target, published=True)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(result, dir_fd=layout.results)
            return False
        self._committed = held
        return self._publish_again(held, owner_folder, record, target)

    def _publish_again(self, held: Claim, owner_folder: int, record: bytes, target: int) -> bool:
        """Publish what this process has committed, for as often as it takes."""
        try:
            published = self._conclude(held.name, target, owner_folder)
        except FileNotFoundError:  # cleared away as an orphan: we were frozen for a day, between two calls
            write_new(self.layout.results, held.name.result_file.encode(), record, self.layout.syncs)
            published = self._conclude(held.name, target, owner_folder)
        self._committed = None
        return published

    def _conclude(self, name: TaskName, target: int, owner_folder: int) -> bool:
        """Publish what is committed, and forget the commit; False where the id has another record already."""
        published = self.publish(name, target)
        if self.layout.syncs_results:
            sync(target)
            sync(owner_folder)
        self.forget_commit(name, target, published=published)
        return published

    def publish(self, name: TaskName, target: int) -> bool:
        """Make the record of a committed attempt visible; False where its id has another record already, which stays.

        Raises FileNotFoundError where there is no record to publish.
        """
        layout, record = self.layout, f"{name.id}.json"
        if not exists(layout.failed if target == layout.done else layout.done, record):
            with contextlib.suppress(FileExistsError):
                moved = move_new(layout.results, name.result_file.encode(), target, record.encode())
                if moved or exists(target, record):
                    return True
                raise FileNotFoundError(errno.ENOENT, "the record of a committed attempt is gone", name.result_file)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name.result_file, dir_fd=layout.results)
        return False

    def forget_commit(self, name: TaskName, target: int, *, published: bool) -> None:
        """Remove a commit that has served; where its record was not published, only when the one that is there is its own."""
        won = won_file(name)
        if not published and not self._is_recorded(target, won, name):
            self.quarantine(
                target, won, f"the id {name.id!r} had a record when this one ended; an id is used once", name
            )
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(won, dir_fd=target)

    def _is_recorded(self, folder: int, file: str, name: TaskName) -> bool:
        """Whether the task in folder/file, if it is there, has a record that tells of the same content."""
        try:
            got = peek(folder, file.encode(), self.max_bytes, (), max_depth=DEEPEST)
        except (Refused, EnvelopeError):
            return False
        if got is None:
            return True
        ends = (self.layout.done, self.layout.failed)
        return any(is_record_of(end, f"{name.id}.json", got.data, got.fields) for end in ends)

    def _is_shared(self, held: Claim, owner_folder: int) -> bool:
        """Whether a second file of the same name, a stranger's, was claimed by another owner, or committed just now."""
        layout, won, me = self.layout, won_file(held.name), os.fstat(owner_folder)
        if exists(layout.done, won) or exists(layout.failed, won):
            return True
        for owner in list_folder(layout.claimed):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                if os.stat(owner, dir_fd=layout.claimed).st_ino != me.st_ino:
                    os.stat(f"{owner}/{held.file}", dir_fd=layout.claimed, follow_symlinks=False)
                    return True
        return False

    def _put_back(self, source_folder: int, source: str, target_folder: int, target: str) -> bool:
        """Move a task to where tasks wait. A stranger's file that took its name there makes room, and is kept aside."""
        there = identity(target_folder, target)
        if there is not None:
            ours = identity(source_folder, source)
            if ours == there:
                # Two names of one file, as a power cut can leave them: a rename between them does nothing.
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(source, dir_fd=source_folder)
                return True
            if ours is not None:
                self.quarantine(
                    target_folder, target, "a task of this name is in the queue already; an id is used once"
                )
        return self._move(source_folder, source, target_folder, target)

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


def _second_record(name: TaskName) -> str:
    return f"second.{name.attempt}.json"


def won_file(name: TaskName) -> str:
    """The hidden name in done/ or failed/ that is the commit of an attempt."""
    return f".{name.file}.won"


def parse_won(file: str) -> TaskName | None:
    """Return the attempt a commit stands for, or None where the name is no commit."""
    return TaskName.parse(file[1:-4]) if file.startswith(".") and file.endswith(".won") else None


def delayed_file(due: float, name: TaskName) -> str:
    """The name in delayed/ of a task that waits until ``due`` (epoch seconds): sorted by time, in milliseconds.

    A time after the year 9999, infinity among them, is that year's end: not_before comes from outside.
    """
    return f"{int(min(max(due, 0.0), _LAST_DUE) * 1000):015d}.{name.file}"


def parse_delayed(file: str) -> tuple[float, TaskName] | None:
    """Return when a task in delayed/ is due (epoch seconds) and its name, or None where the name is not one of ours."""
    due, dot, rest = file.partition(".")
    name = TaskName.parse(rest) if dot and len(due) == 15 and due.isascii() and due.isdigit() else None
    return None if name is None else (int(due) / 1000, name)


def exists(folder: int, file: str) -> bool:
    """Whether a name is in an open folder, whatever it is."""
    return exists_at(folder, os.fsencode(file))


def identity(folder: int, file: str) -> tuple[int, int] | None:
    """Return device and inode of what has a name in an open folder, or None where nothing has it."""
    try:
        status = os.stat(file, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def is_record_of(folder: int, file: str, envelope: bytes, fields: Fields) -> bool:
    """Whether folder/file is a record, or an envelope, of the same content."""
    try:
        found = read(folder, file.encode(), LARGEST_RECORD, ()).data
        return same_task(envelope, fields, found, scan(found, DEEPEST, MOST_EXTRAS))
    except (FileNotFoundError, Refused, EnvelopeError):
        return False


def past_causes(history: Sequence[Mapping[str, Any]]) -> list[Cause]:
    """Return the causes in the notes of earlier attempts, as far as they are known words."""
    known = set(Cause)
    causes = [note.get("cause") for note in history]
    return [Cause(cause) for cause in causes if isinstance(cause, str) and cause in known]


def _may_pass(error: Refused) -> bool:
    """Whether a refused file may become a task: two names are what a put by link and unlink shows for a moment."""
    return error.links > 1 and "hard link" in error.reason  # a folder has more than one link too


def _can_be_written(note: Mapping[str, Any]) -> bool:
    """Whether a note can be part of a record: a task may have written anything into its own folder."""
    try:
        orjson.dumps(note)
    except TypeError:  # nested deeper than the encoder goes
        return False
    return True


def _parse(file: str) -> TaskName:
    name = TaskName.parse(file)
    if name is None:
        raise Unusable(file, "the name is not ID.json with an ID of letters, digits, '.', '_' and '-', at most 100")
    return name
