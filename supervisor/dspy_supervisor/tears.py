"""What a power cut leaves of a move between two folders: a file under both of its names, or a task beside what came of it.

A filesystem that keeps the end of a rename and forgets its beginning (btrfs does, where one of the two folders was synced)
shows one file under two names. If the end was renamed on, or removed, before the cut, what shows beside the forgotten beginning
is another file of the same task: its record, or the record that was let loose again.

- Of two names of one file the furthest stays: done > failed > higher attempt > claimed > pending. A record that was let loose
  again is the earlier name of the file that waits.
- Of two files of one task, which ask for the very same, the record stays, or the higher attempt; the other is set aside in
  quarantine/, since it may also be another producer's, that asks again.
- What asks for something else is a stranger's: it stays, to be refused by name. So does what can't be read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from itertools import chain

from dspy_fastpath.claim import Refused
from dspy_fastpath.envelope import EnvelopeError

from .layout import Layout, list_folder, walk_folder
from .lookup import Content, Found, files, find, folder_of, name_of, read_content
from .record import same_task
from .task import State, TaskName
from .taskqueue import (
    LARGEST_RECORD,
    TaskQueue,
    exists,
    identity,
    is_record_of,
    parse_won,
    won_file,
)

#: why a file is set aside: what its reason begins with
BESIDE = "a power cut left it, or it was put again before the next start: it asks for the same as"

_PENDING, _DELAYED, _CLAIMED = 0, 1, 2
_Rank = tuple[int, int, int]  # how far a name is: committed or not, attempt, where it lies
_Inode = tuple[int, int]


def drop_second_names(layout: Layout) -> int:
    """Leave one name of each task that a power cut left under two: the furthest; return how many went."""
    dropped = _drop_published(layout)
    groups: dict[tuple[str, _Inode], list[tuple[_Rank, int, str]]] = {}
    for name, rank, folder, file in _movers(layout):
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(file, dir_fd=folder, follow_symlinks=False)
            if status.st_nlink > 1:
                groups.setdefault((name.id, (status.st_dev, status.st_ino)), []).append((rank, folder, file))
    doubled = {task_id for task_id, _ in groups}
    for found in files(layout, State.PENDING) if groups else ():
        name = name_of(found)
        if name.id in doubled and (inode := identity(layout.pending, found.file)) is not None:
            group = groups.get((name.id, inode))
            if group is not None:
                group.append(((1, name.attempt, _PENDING), layout.pending, found.file))
    for (_, inode), names in groups.items():
        # They all lead to this one file, which stays for as long as the furthest of them does.
        for _, folder, file in sorted(names)[:-1]:
            dropped += _unlink(folder, file, inode)
    return dropped


def _drop_published(layout: Layout) -> int:
    """Remove the names in results/ of records that are published; return how many went."""
    dropped = 0
    for file in list_folder(layout.results):
        ours = identity(layout.results, file)
        record = f"{file.rpartition('~')[0]}.json"
        if ours is not None and ours in (identity(layout.done, record), identity(layout.failed, record)):
            dropped += _unlink(layout.results, file, ours)
    return dropped


def _unlink(folder: int, file: str, inode: _Inode) -> bool:
    """Remove a name that leads to this file."""
    with contextlib.suppress(FileNotFoundError):  # cleared away meanwhile, by hand
        if identity(folder, file) == inode:
            os.unlink(file, dir_fd=folder)
            return True
    return False


def drop_names_as_records(layout: Layout) -> int:
    """Remove the names as a record of files that wait as tasks again; return how many went."""
    return sum(_unlink(*_place(layout, record), inode) for record, inode in list(_let_loose(layout, _furthest(layout))))


def set_superseded_aside(queue: TaskQueue) -> int:
    """Move to quarantine/ what stands beside what came of it, and asks for the same; return how many went.

    After `drop_names_as_records`: what is a record in name alone would else be taken for one.
    """
    aside = _set_aside(queue, _tried_before(queue, _furthest(queue.layout)))
    return aside + _set_aside(queue, _ended(queue))


def _furthest(layout: Layout) -> dict[str, Found]:
    """Return the highest attempt of each task that waits again, where anything else of the task is there."""
    furthest: dict[str, Found] = {}
    tried = _tried(layout)
    for found in _all_of(layout, State.PENDING, State.DELAYED, State.CLAIMED, part="~") if tried else ():
        name = name_of(found)
        if name.id in tried and (name.id not in furthest or name_of(furthest[name.id]).attempt < name.attempt):
            furthest[name.id] = found
    return furthest


def is_further(queue: TaskQueue, name: TaskName, folder: int) -> bool:
    """Whether a claim in an open folder is only a second name of a task that is further, or the content of a record."""
    layout = queue.layout
    try:
        status = os.stat(name.file, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    if status.st_nlink > 1 and any(
        rank > (1, name.attempt, _CLAIMED) for rank, _, _ in _other_names(layout, name.id, status)
    ):
        return True
    record = f"{name.id}.json"
    ends = [end for end in (layout.done, layout.failed) if exists(end, record)]
    content = _read(layout, Found(State.CLAIMED, name.file, folder), queue.max_bytes) if ends else None
    return content is not None and any(is_record_of(end, record, *content) for end in ends)


def _movers(layout: Layout) -> Iterator[tuple[TaskName, _Rank, int, str]]:
    """Yield every name but those in pending/: each rename has one of these as its source or its target.

    A rename within one folder isn't torn in two: a folder reaches the disk as a whole.
    """
    for target, rank in ((layout.done, 3), (layout.failed, 2)):
        for name in commits(target):
            yield name, (rank, name.attempt, 0), target, won_file(name)
    for found in files(layout, State.CLAIMED):
        name = name_of(found)
        yield name, (1, name.attempt, _CLAIMED), layout.claimed, f"{found.owner}/{found.file}"
    for found in files(layout, State.DELAYED):
        name = name_of(found)
        yield name, (1, name.attempt, _DELAYED), layout.delayed, found.file


def _other_names(layout: Layout, task_id: str, status: os.stat_result) -> Iterator[tuple[_Rank, int, str]]:
    """Yield every name of one task, but records, that leads to one file."""
    names = [
        ((1, name_of(found).attempt, _DELAYED if found.state is State.DELAYED else _PENDING), found.folder, found.file)
        for state in (State.PENDING, State.DELAYED)
        for found in find(layout, task_id, thorough=True)
        if found.state is state and found.folder is not None
    ]
    names += [
        (rank, folder, file)
        for name, rank, folder, file in _movers(layout)
        if name.id == task_id and rank[2] != _DELAYED
    ]
    for rank, folder, file in names:
        if identity(folder, file) == (status.st_dev, status.st_ino):
            yield rank, folder, file


def commits(target: int) -> list[TaskName]:
    """Return the attempts whose commit lies in done/ or failed/."""
    return [name for name in map(parse_won, walk_folder(target)) if name is not None]


def _tried(layout: Layout) -> set[str]:
    """Return the ids of which something other than a waiting file is there: of few, where most tasks were never tried."""
    ids = {_id(file) for folder in (layout.failed, layout.results) for file in walk_folder(folder)}
    ids |= {name.id for target in (layout.done, layout.failed) for name in commits(target)}
    return ids | {name_of(found).id for found in _all_of(layout, State.CLAIMED, State.DELAYED)}


def _let_loose(layout: Layout, furthest: Mapping[str, Found]) -> Iterator[tuple[Found, _Inode]]:
    """Yield the names as a record of each file that waits as a task again."""
    records = [Found(State.FAILED, f"{task_id}.json", layout.failed) for task_id in furthest]
    results = [Found(State.CLAIMED, file, layout.results) for file in (list_folder(layout.results) if furthest else ())]
    for record in (*records, *results):
        again = furthest.get(_id(record.file))
        inode = identity(*_place(layout, record))
        if again is not None and inode is not None and inode == identity(*_place(layout, again)):
            yield record, inode


def _tried_before(queue: TaskQueue, furthest: Mapping[str, Found]) -> Iterator[tuple[Found, TaskName, Found]]:
    """Yield earlier attempts of what waits as a task again. Not those in pending/: it reaches the disk as a whole."""
    layout = queue.layout
    committed = [
        (name, Found(state, won_file(name), target))
        for state, target in ((State.DONE, layout.done), (State.FAILED, layout.failed))
        for name in commits(target)
    ]
    held = ((name_of(found), found) for found in _all_of(layout, State.CLAIMED, State.DELAYED))
    for name, found in chain(committed, held):
        again = furthest.get(name.id)
        if again is not None and name_of(again).attempt > name.attempt and _ask_the_same(queue, found, again):
            yield found, name, again


def _ended(queue: TaskQueue) -> Iterator[tuple[Found, TaskName, Found]]:
    """Yield what waits of tasks that have a record; of claims `is_further` tells.

    By hashes of ids: a million that wait take two seconds of processor time and 80 MB, for a moment.
    """
    layout = queue.layout
    waiting = {hash(_id(file)) for file in walk_folder(layout.pending)}
    waiting |= {hash(_id(file.partition(".")[2])) for file in walk_folder(layout.delayed)}
    if not waiting:
        return
    records: dict[str, Found] = {}
    for state, end in ((State.DONE, layout.done), (State.FAILED, layout.failed)):
        for file in walk_folder(end):
            if file.endswith(".json") and hash(_id(file)) in waiting:
                records[_id(file)] = Found(state, file, end)
    for found in _all_of(layout, State.PENDING, State.DELAYED) if records else ():
        name = name_of(found)
        record = records.get(name.id)
        if record is not None and _ask_the_same(queue, found, record):
            yield found, name, record


def _id(file: str) -> str:
    return file.removesuffix(".json").partition("~")[0]


def _all_of(layout: Layout, *states: State, part: str = "") -> Iterator[Found]:
    return chain.from_iterable(files(layout, state, part=part) for state in states)


def _ask_the_same(queue: TaskQueue, task: Found, other: Found) -> bool:
    """Whether a task and another file of it, a record perhaps, ask for the same."""
    first = _read(queue.layout, task, queue.max_bytes)
    second = _read(queue.layout, other, LARGEST_RECORD) if first is not None else None
    return first is not None and second is not None and same_task(*first, *second)


def _read(layout: Layout, found: Found, most_bytes: int) -> Content | None:
    """Read an envelope or a record; None where it can't be read: whoever meets it next says why."""
    try:
        return read_content(layout, found, most_bytes)
    except (OSError, MemoryError, Refused, EnvelopeError):
        return None


def _place(layout: Layout, found: Found) -> tuple[int, str]:
    """Return the open folder that a file is below, and its path there."""
    return (layout.claimed, f"{found.owner}/{found.file}") if found.folder is None else (found.folder, found.file)


def _set_aside(queue: TaskQueue, lesser: Iterator[tuple[Found, TaskName, Found]]) -> int:
    aside = 0
    for found, name, other in list(lesser):
        with contextlib.suppress(FileNotFoundError), folder_of(queue.layout, found) as folder:
            aside += queue.quarantine(folder, found.file, f"{BESIDE} {other.state}/{other.file}", name) is not None
    return aside
