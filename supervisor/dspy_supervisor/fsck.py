"""Whether a queue is as it should be, what it means where it isn't, and putting that right.

Nothing is ever deleted that could be the only copy of something: what does not belong is moved to quarantine/, with the
reason, and of two names of one file one goes. Looking disturbs nobody; mending is done under the supervisor's own lock, so
where one runs it does it itself.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from dspy_fastpath.claim import Refused, peek
from dspy_fastpath.envelope import EnvelopeError
from dspy_fastpath.ids import uuid7

from .config import Config
from .control_client import find_by_queue
from .environments import FOLDER as ENVIRONMENTS
from .environments import Marks, file_of, is_result
from .errors import AlreadyRunning, NotRunning, QueueMissing
from .jobbook import JobBook
from .layout import FOLDERS, IDENTITY, PAUSED, Durability, Layout, in_place_of, list_folder, read_json, walk_folder
from .lookup import Found, files, name_of
from .nodes import Observer, Presence, claims_of, node_of
from .recovery import (
    TEMPORARY_AGE_S,
    Recovered,
    clear_old,
    clock_of,
    count_old,
    settle_commits,
    take_from_dead,
)
from .retry import budget_of
from .runtime import make_runtime_folder
from .task import State, TaskName
from .taskqueue import TaskQueue, exists, parse_delayed, parse_won
from .tears import drop_names_as_records
from .undertaker import Undertaker

_DEEP = 1024  # nesting of a record: its task's and its result's are bounded elsewhere
_LARGE = 1 << 40


class Problem(NamedTuple):
    """One thing that is not as it should be."""

    place: str  #: below the queue's folder
    message: str
    remedy: str  #: what mends it; "" where nothing has to be done
    mended: bool = False


def examine(config: Config, *, repair: bool = False) -> Iterator[Problem]:
    """Yield what is wrong with the configured queue, and with ``repair`` mend it.

    Raises QueueMissing where the folder is no queue and never was, AlreadyRunning where a supervisor of this host serves
    it and ``repair`` is asked.
    """
    with ExitStack() as stack:
        closed = list(_identity(config, repair))
        yield from closed
        if closed and not repair:
            return  # it can't be opened, so no more can be seen
        layout = stack.enter_context(Layout.open(config.queue_dir, insecure=config.insecure))
        queue = TaskQueue(layout, max_bytes=config.max_task_bytes, max_depth=config.max_depth)
        presence = None
        if repair:
            make_runtime_folder(config.runtime_dir)
            lock = config.runtime_dir / f"{layout.queue_id}.{config.instance}.lock"
            presence = stack.enter_context(Presence(layout, lock))
        yield from _dead(config, queue, presence)
        yield from _records(queue, repair)
        yield from _second_names(queue, repair)
        yield from _strangers(queue, config, repair)
        yield from _submissions(layout)
        yield from _marks(layout, repair)
        yield from _left_over(layout, repair)
        if repair and (removed := clear_old(layout)):
            yield Problem(
                "results, pending", f"{removed} temporary files and records that nobody vouches for", "", True
            )


def _identity(config: Config, repair: bool) -> Iterator[Problem]:
    """Yield what keeps the queue from being opened."""
    folder, unknown = config.queue_dir, ""
    if not (folder / "pending").is_dir() and not (folder / IDENTITY).exists():
        raise QueueMissing(f"{folder} is no queue: 'dspy-supervisor start --queue-dir {folder}' makes one")
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = read_json(fd, IDENTITY)
        torn = found is None and os.path.lexists(folder / IDENTITY)
        missing = {name: in_place_of(fd, name) for name in FOLDERS if not (folder / name).is_dir()}
        if found is not None and not missing:
            return
        if repair:
            try:
                find_by_queue(config.runtime_dir, folder, config.instance)
            except NotRunning:
                pass
            else:
                raise AlreadyRunning(f"a supervisor of this host serves {folder}: 'dspy-supervisor stop' first")
            before: dict[str, str] = {}
            if torn:
                before = _told(folder / IDENTITY)
                os.makedirs(folder / "quarantine", 0o700, exist_ok=True)
                os.rename(IDENTITY, f"quarantine/{IDENTITY}.{uuid7()}", src_dir_fd=fd, dst_dir_fd=fd)
            again: dict[str, Any] = {}
            if found is None:
                again["durability"] = before.get("durability") or config.durability
                again["queue_id"] = before.get("queue_id")
                again["bounds"] = (config.max_pending, config.max_pending_bytes)
            with Layout.open(folder, create=True, insecure=config.insecure, **again) as layout:
                durability = layout.durability
            if not again.get("durability"):
                unknown = f"; it has durability {durability} now, whatever it had: --durability chooses another"
    finally:
        os.close(fd)
    if found is None:
        what = "is torn, or no file of ours" if torn else "is missing"
        remedy = "fsck --repair writes it again; the durability that was chosen is to be said to it, by --durability"
        yield Problem(IDENTITY, f"{what}: nobody knows which queue this is{unknown}", remedy, repair)
    for name, other in missing.items():
        if other is None:
            yield Problem(name, "the folder is missing", "fsck --repair, or the next start, makes it", repair)
        else:
            remedy = "move it away, and fsck --repair, or the next start, makes the folder"
            yield Problem(name, f"{other} is where the queue has a folder of its own", remedy)


def _told(identity: Path) -> dict[str, str]:
    """Return what a torn queue.json still says: its queue's id and durability, where these are whole."""
    try:
        with identity.open("rb") as file:
            content = file.read(1 << 16)
    except OSError:  # a folder, or no longer there
        return {}
    levels = "|".join(Durability).encode()
    found = re.findall(rb'"(queue_id)": ?"([0-9A-Za-z-]{1,64})"|"(durability)": ?"(' + levels + rb')"', content)
    return {(one or other).decode(): (value or level).decode() for one, value, other, level in found}


def _dead(config: Config, queue: TaskQueue, presence: Presence | None) -> Iterator[Problem]:
    """Yield what dead owners left: claims, and commits that were not published."""
    layout = queue.layout
    me = presence.node if presence is not None else ""
    observer = Observer(me, layout, config.runtime_dir, config.take_after_s, config.heartbeat_s)
    others = observer.others()
    dead = observer.dead(time.monotonic(), beating=True)
    commits = [
        (target, name)
        for target in ("done", "failed")
        for name in list_folder(getattr(layout, target))
        if parse_won(name)
    ]
    if presence is not None:
        result = Recovered()
        # Or `_second_names` takes them for records; what else a power cut tore, it finds itself.
        if others == dead and (dropped := drop_names_as_records(layout)):
            yield Problem(
                "failed", f"{dropped} second names, as records, of tasks that wait again", "removed", mended=True
            )
        settle_commits(queue, result, alone=others == dead)
        undertaker = Undertaker(queue, presence)
        budget = budget_of(config, config.classes["cpu_short"])
        claims = claims_of(layout, dead)
        take_from_dead(undertaker, claims, budget, result, "its supervisor was dead when fsck took it")
        undertaker.close()
        for node in dead:
            observer.forget(node)
    else:
        claims = claims_of(layout, dead)
    remedy = "the next start, or fsck --repair, takes them back"
    for owner, held in claims.items():
        yield Problem(
            f"claimed/{owner}", f"{len(held)} tasks of a supervisor that is dead", remedy, presence is not None
        )
    for target, name in commits:
        # Of one that is at work this is seen for a moment; of one that is dead it stays.
        if presence is not None or others == dead:
            remedy = "the next start, or fsck --repair, publishes it"
            mended = not exists(getattr(layout, target), name)
            yield Problem(f"{target}/{name}", "an attempt that committed and was not published", remedy, mended)
    holding = {node_of(owner) for owner in claims_of(layout, others)}
    for node in sorted(others - dead):
        if node in holding and read_json(layout.nodes, f"{node}.hb") is None:
            message = f"tasks of node {node}, which has no heartbeat"
            yield Problem(
                f"claimed/{node}.*", message, f"a supervisor takes them after {config.take_after_s:g} s of silence"
            )


def _records(queue: TaskQueue, repair: bool) -> Iterator[Problem]:
    """Yield what lies in done/ and failed/ and is no record."""
    layout = queue.layout
    for state, folder in ((State.DONE, layout.done), (State.FAILED, layout.failed)):
        for file in list_folder(folder):
            if file.startswith("."):
                continue
            reason = _why_no_record(folder, file, state)
            if reason and exists(folder, file):
                mended = repair and queue.quarantine(folder, file, f"in {state}/, but {reason}") is not None
                yield Problem(f"{state}/{ascii(file)[1:-1]}", reason, "fsck --repair moves it to quarantine/", mended)


def _why_no_record(folder: int, file: str, state: State) -> str:
    try:
        got = peek(folder, os.fsencode(file), _LARGE, (), max_depth=_DEEP)
    except Refused as error:
        return f"it is no record: {error.reason}"
    except EnvelopeError as error:
        return f"it is torn, or no record: {error}"
    if got is None:
        return ""
    record = orjson.loads(got.data)
    if state is State.DONE and is_result(file, record):
        return ""  # beside a record, for a client of the earlier RL runner
    if f"{record.get('task_id')}.json" != file:
        return f"it is no record of this task: its task_id is {record.get('task_id')!r}"
    if record.get("status") != state:
        return f"its status is {record.get('status')!r}"
    return ""


def _second_names(queue: TaskQueue, repair: bool) -> Iterator[Problem]:
    """Yield the second name of each task that has two: the one that is further counts."""
    layout = queue.layout
    places: dict[str, list[Found]] = {}
    for state in State:
        for found in files(layout, state):
            places.setdefault(name_of(found).id, []).append(found)
    for task_id, held in places.items():
        if len(held) < 2:
            continue
        held.sort(key=_reach)
        best = held[-1]
        for found in held[:-1]:
            # It may have moved from one place to the other between two listings.
            if found.folder is None or not (exists(found.folder, found.file) and _is_there(layout, best)):
                continue
            reason = f"task {task_id} is {best.state} as {best.file}, and this is a second name for it"
            mended = repair and queue.quarantine(found.folder, found.file, reason) is not None
            yield Problem(f"{found.state}/{found.file}", reason, "fsck --repair moves it to quarantine/", mended)


def _reach(found: Found) -> tuple[int, int, int]:
    """Order the names of one task: done > failed > higher attempt > claimed > delayed > pending."""
    ended = {State.DONE: 2, State.FAILED: 1}.get(found.state, 0)
    return (
        ended,
        name_of(found).attempt,
        (State.PENDING, State.DELAYED, State.CLAIMED, State.FAILED, State.DONE).index(found.state),
    )


def _is_there(layout: Layout, found: Found) -> bool:
    if found.folder is not None:
        return exists(found.folder, found.file)
    return os.path.lexists(layout.path / "claimed" / (found.owner or "") / found.file)


def _strangers(queue: TaskQueue, config: Config, repair: bool) -> Iterator[Problem]:
    """Yield what lies where tasks wait or run, and is no task. What is young may still be written, or be on its way."""
    layout, now = queue.layout, clock_of(queue.layout.nodes) if repair else time.time()
    for state, folder in ((State.PENDING, layout.pending), (State.DELAYED, layout.delayed)):
        for file in walk_folder(folder):
            if file.startswith(".") or (state is State.PENDING and file.endswith((".tmp", ".lock"))):
                continue
            reason = _why_no_task(queue, state, folder, file)
            if not reason or _age(folder, file, now) < config.partial_grace_s:
                continue
            reason = _why_no_task(queue, state, folder, file)  # looked at twice: it may have been replaced
            if not reason or not exists(folder, file):
                continue
            mended = repair and queue.quarantine(folder, file, reason) is not None
            place = f"{state}/{ascii(file)[1:-1]}"
            yield Problem(place, reason, "a supervisor, or fsck --repair, moves it to quarantine/", mended)
    for owner in walk_folder(layout.claimed):
        if not stat.S_ISDIR(os.stat(owner, dir_fd=layout.claimed, follow_symlinks=False).st_mode):
            reason = "no folder of an owner"
            mended = repair and queue.quarantine(layout.claimed, owner, reason) is not None
            place = f"claimed/{ascii(owner)[1:-1]}"
            yield Problem(place, reason, "fsck --repair moves it to quarantine/", mended)
    if exists(layout.root, PAUSED) and read_json(layout.root, PAUSED) is None:
        yield Problem(PAUSED, "it can't be read, so nothing is paused", "dspy-supervisor queue resume removes it")


def _why_no_task(queue: TaskQueue, state: State, folder: int, file: str) -> str:
    parsed = parse_delayed(file) if state is State.DELAYED else None
    if (parsed[1] if parsed else TaskName.parse(file) if state is State.PENDING else None) is None:
        return "a name that is no task's"
    try:
        peek(folder, os.fsencode(file), queue.max_bytes, queue.layout.owners, max_depth=queue.max_depth)
    except Refused as error:
        return f"it is no task: {error.reason}"
    except EnvelopeError as error:
        return f"it is no task: {error}"
    return ""


def _age(folder: int, file: str, now: float) -> float:
    """Return for how long a file has been as it is, in seconds; 0 where it is gone."""
    try:
        return now - os.stat(file, dir_fd=folder, follow_symlinks=False).st_ctime
    except FileNotFoundError:
        return 0.0


def _submissions(layout: Layout) -> Iterator[Problem]:
    """Yield the submissions to Slurm whose intent can't be read: their jobs may run, and nobody waits for them."""
    book = JobBook(layout)
    for name in book.names():
        if book.read(name) is None and (book.path / name).exists():
            message = "its intent can't be read, so nobody knows whose jobs these are; their tasks are submitted anew"
            remedy = f"remove the folder when 'squeue --name={name}' shows nothing"
            yield Problem(f"slurm/{name}", message, remedy)


def _marks(layout: Layout, repair: bool) -> Iterator[Problem]:
    """Yield what environments/ says of losses that were told already, and what is none of ours there."""
    marks = Marks(layout)
    known = {file_of(mark.task_class, mark.key): mark for mark in marks.all()}
    for file in sorted(marks.files()):
        mark = known.get(file)
        if mark is not None and not marks.is_over(mark):
            continue
        if repair:
            marks.remove_file(file)
        message = (
            f"the loss of what was kept under {mark.key!r} was told"
            if mark
            else "it does not say what is kept, or where"
        )
        yield Problem(f"{ENVIRONMENTS}/{ascii(file)[1:-1]}", message, "fsck --repair removes it", repair)


def _left_over(layout: Layout, repair: bool) -> Iterator[Problem]:
    """Yield what a death left that nobody will ask for again: reasons without their file, and what is old."""
    for file in walk_folder(layout.quarantine):
        if file.endswith(".json.reason") and not exists(layout.quarantine, file.removesuffix(".reason")):
            # Written before its file comes: of one that is being moved this is seen for a moment.
            if _age(layout.quarantine, file, time.time()) < TEMPORARY_AGE_S:
                continue
            if repair:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(file, dir_fd=layout.quarantine)
            yield Problem(f"quarantine/{file}", "a reason without its file", "fsck --repair removes it", repair)
    if not repair and (old := count_old(layout)):
        message = f"{old} temporary files and records that nobody vouches for"
        yield Problem("results, pending", message, "a supervisor, or fsck --repair, clears them")
