"""Puts of callers that wait side by side share their syncs, and each gets the answer that it would get alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection
from concurrent.futures import Future
from pathlib import Path

import pytest
from dspy_supervisor import Queue
from dspy_supervisor.client.envelopes import Prepared, prepare
from dspy_supervisor.errors import DuplicateTask, EnvelopeInvalid, QueueFull
from dspy_supervisor.layout import Layout
from dspy_supervisor.services.gateway.disk import Disk


class Counted(Queue):
    """A queue that notes what it was given together; the first put waits until it is let go."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.together: list[int] = []
        self.first, self.gate = threading.Event(), threading.Event()

    def put(self, tasks: Collection[Prepared]) -> None:
        self.together.append(len(tasks))
        self.first.set()
        assert self.gate.wait(30)
        super().put(tasks)


def queue_of(tmp_path: Path, durability: str, max_pending: int = 0) -> Counted:
    Layout.open(tmp_path / "q", create=True, durability=durability, bounds=(max_pending, 0)).close()
    return Counted(tmp_path / "q")


def put_together(queue: Counted, tasks: list[Prepared]) -> list[BaseException | None]:
    """Put one task, and the others while its syncs run; return what each was told."""

    async def all_of_them() -> list[BaseException | None]:
        disk = Disk(queue)
        first = asyncio.create_task(disk.put(prepare("first", id="first")))
        assert await asyncio.to_thread(queue.first.wait, 30)
        puts = [asyncio.create_task(disk.put(task)) for task in tasks]
        await asyncio.sleep(0)  # each has begun
        queue.gate.set()
        await first
        told = await asyncio.gather(*puts, return_exceptions=True)
        await asyncio.to_thread(disk.close)
        return told

    return asyncio.run(all_of_them())


def test_those_that_come_while_one_is_synced_are_put_together(tmp_path: Path) -> None:
    queue = queue_of(tmp_path, "task")
    assert put_together(queue, [prepare(number, id=f"t{number}") for number in range(50)]) == [None] * 50
    assert queue.together == [1, 50]
    assert len(list((tmp_path / "q/pending").glob("*.json"))) == 51


def test_of_those_that_are_put_together_only_the_wrong_ones_are_refused(tmp_path: Path) -> None:
    queue = queue_of(tmp_path, "task")
    wrong = [prepare("other", id="first"), Prepared("bad", b"{", False, 0.0)]
    good = [prepare(number, id=f"t{number}") for number in range(10)]
    told = put_together(queue, [*good[:5], *wrong, *good[5:], prepare("first", id="first")])
    assert [told.pop(5).__class__, told.pop(5).__class__] == [DuplicateTask, EnvelopeInvalid]
    assert told == [None] * 11  # the very same task again is answered as accepted
    assert len(list((tmp_path / "q/pending").glob("*.json"))) == 11


class Swift(Queue):
    """A queue whose tasks are taken as soon as they are put."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.taken: list[str] = []

    def put(self, tasks: Collection[Prepared]) -> None:
        try:
            super().put(tasks)
        finally:
            (folder := self.path / "claimed" / "worker").mkdir(exist_ok=True)
            for file in (self.path / "pending").glob("*.json"):
                file.rename(folder / file.name)
                self.taken.append(file.stem)


def test_a_task_that_was_accepted_before_another_was_refused_is_not_put_again(tmp_path: Path) -> None:
    Layout.open(tmp_path / "q", create=True, durability="task").close()
    queue = Swift(tmp_path / "q")
    queue.put([prepare(1, id="there")])
    told: list[Future[None]] = [Future(), Future()]
    made = prepare("made")
    assert made.fresh
    Disk(queue)._put(list(zip([made, prepare(2, id="there")], told, strict=True)))
    assert [type(one.exception()) for one in told] == [type(None), DuplicateTask]
    assert queue.taken == ["there", made.id]


def test_of_those_for_whom_there_is_no_room_each_is_told(tmp_path: Path) -> None:
    queue = queue_of(tmp_path, "task", max_pending=4)
    told = put_together(queue, [prepare(number, id=f"t{number}") for number in range(10)])
    assert [type(one) for one in told].count(QueueFull) == 7
    assert len(list((tmp_path / "q/pending").glob("*.json"))) == 4


def test_the_same_id_twice_at_once_is_one_task_or_a_refusal(tmp_path: Path) -> None:
    queue = queue_of(tmp_path, "task")
    told = put_together(queue, [prepare(1, id="a"), prepare(1, id="a"), prepare(2, id="a")])
    assert [type(one) for one in told] == [type(None), type(None), DuplicateTask]


def test_where_nothing_is_synced_a_put_is_made_at_once(tmp_path: Path) -> None:
    queue = queue_of(tmp_path, "none")
    queue.gate.set()
    before = threading.active_count()
    asyncio.run(Disk(queue).put(prepare(1, id="a")))
    assert (tmp_path / "q/pending/a.json").exists()
    assert threading.active_count() == before


def test_a_caller_who_leaves_while_his_task_waits_takes_nothing_with_him(tmp_path: Path) -> None:
    queue = queue_of(tmp_path, "task")

    async def leave() -> None:
        disk = Disk(queue)
        first = asyncio.create_task(disk.put(prepare(1, id="first")))
        assert await asyncio.to_thread(queue.first.wait, 30)
        left, stays = (asyncio.create_task(disk.put(prepare(1, id=name))) for name in ("left", "stays"))
        await asyncio.sleep(0)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        queue.gate.set()
        await asyncio.gather(first, stays)
        await asyncio.to_thread(disk.close)

    asyncio.run(leave())
    assert {path.name for path in (tmp_path / "q/pending").glob("*.json")} == {"first.json", "stays.json"}
