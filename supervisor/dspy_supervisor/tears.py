"""What a power cut leaves of a move between two folders: a file under both of its names, or a task beside what came of it.

A filesystem that keeps the end of a rename and forgets its beginning (btrfs does, where one of the two folders was synced)
shows one file under two names. If the end was renamed on, or removed, before the cut, what shows beside the forgotten beginning
is another file of the same task: its record, or the record that was let loose again.

- Of two names of one file the furthest stays: done > failed > higher attempt > claimed > pending. A record that was let loose
  again is the earlier name of the file that waits.
- Of two files of one task, which ask for the very same, the record stays, or the higher attempt.
- What asks for something else is a stranger's: it stays, to be refused by name.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from itertools import chain

from dspy_fastpath.claim import Refused, read
from dspy_fastpath.envelope import EnvelopeError, scan

from .layout import Layout, list_folder, walk_folder
from .lookup import Found, files, find, name_of, read_found
from .record import same_task
from .task import State, TaskName
from .taskqueue import DEEPEST, MOST_EXTRAS, exists, identity, is_record_of, parse_won, won_file

_PENDING, _DELAYED, _CLAIMED = 0, 1, 2
_Rank = tuple[int, int, int]  # how far a name is: committed or not, attempt, where it lies


def drop_second_names(layout: Layout) -> int:
    """Leave one name of each task that a power cut left under two: the furthest; return how many went."""
    dropped = _drop_published(layout)
    for name, rank, folder, file in list(_movers(layout)):
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(file, dir_fd=folder, follow_symlinks=False)
            if status.st_nlink < 2:
                continue
            others = [other for other in _other_names(layout, name.id, status) if other[1:] != (folder, file)]
            # They all lead to this one file, which stays for as long as the furthest of them does.
            for _, lesser_folder, lesser in sorted([*others, (rank, folder, file)])[:-1]:
                os.unlink(lesser, dir_fd=lesser_folder)
                dropped += 1
    return dropped


def _drop_published(layout: Layout) -> int:
    """Remove the names in results/ of records that are published; return how many went."""
    dropped = 0
    for file in list_folder(layout.results):
        ours = identity(layout.results, file)
        record = f"{file.rpartition('~')[0]}.json"
        if ours is not None and ours in (identity(layout.done, record), identity(layout.failed, record)):
            os.unlink(file, dir_fd=layout.results)
            dropped += 1
    return dropped


def drop_superseded(layout: Layout) -> int:
    """Remove what stands for a task beside what came of it; return how many went. Nobody else may be at work."""
    furthest: dict[str, Found] = {}
    for found in _all_of(layout, State.PENDING, State.DELAYED, State.CLAIMED, part="~"):
        name = name_of(found)
        if name.id not in furthest or name_of(furthest[name.id]).attempt < name.attempt:
            furthest[name.id] = found
    # In this order: what is a record in name alone would else be taken for one.
    dropped = _remove(layout, _let_loose(layout, furthest))
    dropped += _remove(layout, _tried_before(layout, furthest))
    return dropped + _remove(layout, _ended(layout))


def is_further(layout: Layout, name: TaskName, folder: int) -> bool:
    """Whether a claim in an open folder is only a second name of a task that is further, or the content of a record."""
    try:
        status = os.stat(name.file, dir_fd=folder, follow_symlinks=False)
        if status.st_nlink > 1 and any(
            rank > (1, name.attempt, _CLAIMED) for rank, _, _ in _other_names(layout, name.id, status)
        ):
            return True
        record = f"{name.id}.json"
        ends = [end for end in (layout.done, layout.failed) if exists(end, record)]
        if not ends:
            return False
        data = read(folder, name.file.encode(), 1 << 40, ()).data
        fields = scan(data, DEEPEST, MOST_EXTRAS)
    except (FileNotFoundError, Refused, EnvelopeError):
        return False
    return any(is_record_of(end, record, data, fields) for end in ends)


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


def _let_loose(layout: Layout, furthest: Mapping[str, Found]) -> Iterator[Found]:
    """Yield the names as a record of each file that waits as a task again."""
    records = [Found(State.FAILED, f"{task_id}.json", layout.failed) for task_id in furthest]
    results = [Found(State.CLAIMED, file, layout.results) for file in (list_folder(layout.results) if furthest else ())]
    for record in (*records, *results):
        again = furthest.get(_id(record.file))
        if again is not None and identity(*_place(layout, record)) == identity(*_place(layout, again)):
            yield record


def _tried_before(layout: Layout, furthest: Mapping[str, Found]) -> Iterator[Found]:
    """Yield earlier attempts of what waits as a task again. Not those in pending/: it reaches the disk as a whole."""
    committed = [
        (name, Found(state, won_file(name), target))
        for state, target in ((State.DONE, layout.done), (State.FAILED, layout.failed))
        for name in commits(target)
    ]
    held = ((name_of(found), found) for found in _all_of(layout, State.CLAIMED, State.DELAYED))
    for name, found in chain(committed, held):
        again = furthest.get(name.id)
        if again is not None and name_of(again).attempt > name.attempt and _ask_the_same(layout, found, again):
            yield found


def _ended(layout: Layout) -> Iterator[Found]:
    """Yield what waits of tasks that have a record; of claims `is_further` tells.

    By hashes of ids: a million that wait take two seconds and 80 MB, for a moment.
    """
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
        record = records.get(name_of(found).id)
        if record is not None and _ask_the_same(layout, found, record):
            yield found


def _id(file: str) -> str:
    return file.removesuffix(".json").partition("~")[0]


def _all_of(layout: Layout, *states: State, part: str = "") -> Iterator[Found]:
    return chain.from_iterable(files(layout, state, part=part) for state in states)


def _ask_the_same(layout: Layout, a: Found, b: Found) -> bool:
    """Whether two files of a task, envelopes or records, ask for the same."""
    first, second = read_found(layout, a), read_found(layout, b)
    return first is not None and second is not None and same_task(*first, *second)


def _place(layout: Layout, found: Found) -> tuple[int, str]:
    """Return the open folder that a file is below, and its path there."""
    return (layout.claimed, f"{found.owner}/{found.file}") if found.folder is None else (found.folder, found.file)


def _remove(layout: Layout, lesser: Iterator[Found]) -> int:
    removed = 0
    for found in list(lesser):
        folder, file = _place(layout, found)
        with contextlib.suppress(FileNotFoundError):  # cancelled or cleared away meanwhile, by hand
            os.unlink(file, dir_fd=folder)
            removed += 1
    return removed
