"""AsyncQueue, with the hand of test_client_queue at work in a thread, as another process would be."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from dspy_supervisor import AsyncQueue, EnvelopeInvalid, QueueMissing, TaskFailed, TaskNotFound, WaitTimeout
from dspy_supervisor.client import endings
from dspy_supervisor.layout import Layout
from dspy_supervisor.task import State

from tests.hand import Hand

SOON_S = 20.0  #: far more than anything here takes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "queue"
    Layout.open(path, create=True).close()
    return path


@pytest.fixture
def hand(path: Path) -> Iterator[Hand]:
    hand = Hand(path)
    yield hand
    hand.close()


@pytest.fixture
def never_looks(monkeypatch):
    """Only events can wake: the next look is an hour away."""
    for name in ("_LOOK_S", "_LOOK_SILENT_S", "_DOUBT_S"):
        monkeypatch.setattr(endings, name, 3600.0)


async def turns() -> None:
    """Let every task of the loop come to its wait."""
    for _ in range(10):
        await asyncio.sleep(0)


def run(coroutine):
    """Run a test's coroutine; what asyncio would only log fails the test."""

    async def watched():
        said = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
        await asyncio.wait_for(coroutine, 60)
        assert not said

    asyncio.run(watched())


def test_many_awaits_share_one_watcher_and_no_thread(path, hand, never_looks):
    async def body():
        async with AsyncQueue(path) as queue:
            ids = await queue.submit_many(range(20), priority=1)
            waits = [asyncio.create_task(queue.result(task, SOON_S)) for task in ids]
            waits += [asyncio.create_task(queue.result(ids[0], SOON_S))]
            await turns()
            threads = threading.active_count()
            for number, task in enumerate(reversed(ids)):
                hand.finish(task, number)
            assert await asyncio.gather(*waits) == [*reversed(range(20)), 19]
            assert threading.active_count() == threads
            assert queue._reading is None

    run(body())


def test_the_verbs_do_what_those_of_queue_do(path, hand, tmp_path):
    async def body():
        async with AsyncQueue(path, runtime_dir=tmp_path / "run") as queue:
            task = await queue.submit({"n": 1}, "cpu_long", id="a1", priority=5)
            assert task == "a1"
            assert await queue.state("a1") is State.PENDING
            assert await queue.record("a1") is None
            hand.fail("a1", traceback="in the handler")
            with pytest.raises(TaskFailed, match="in the handler"):
                await queue.result("a1")
            await queue.retry("a1")
            assert await queue.cancel("a1") == "waiting"
            assert [info.state for info in await queue.list()] == [State.FAILED]
            with pytest.raises(TaskNotFound):
                await queue.result("nobody")
            with pytest.raises(EnvelopeInvalid):
                await queue.submit(float("nan"))

    run(body())


def test_a_wait_for_several_ends_as_it_was_asked_to(path, hand):
    async def body():
        async with AsyncQueue(path) as queue:
            a, b = await queue.submit_many([1, 2])
            first = asyncio.create_task(queue.wait([a, b], SOON_S, "FIRST_COMPLETED"))
            everything = asyncio.create_task(queue.wait([a, b], SOON_S))
            await turns()
            hand.finish(b)
            assert await first == ({b}, {a})
            assert await queue.wait([a], 0.01) == (set(), {a})
            hand.fail(a)
            assert await everything == ({a, b}, set())
            assert await queue.wait([a, b], return_when="FIRST_EXCEPTION") == ({a, b}, set())
            with pytest.raises(TaskNotFound):
                await queue.wait([a, "nobody"])

    run(body())


def test_a_wait_that_is_too_short_or_cancelled_leaves_nothing_behind(path, hand, never_looks):
    async def body():
        async with AsyncQueue(path) as queue:
            task = await queue.submit(1)
            with pytest.raises(WaitTimeout):
                await queue.result(task, 0.01)
            with pytest.raises(WaitTimeout):
                await queue.result(task, 0)
            waiting = asyncio.create_task(queue.result(task))
            await turns()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(queue.result(task), 0.01)
            assert not asyncio.get_running_loop().remove_reader(queue._endings.fileno())
            assert not queue._endings._waits
            hand.finish(task, "late")
            assert await queue.result(task, 0) == "late"

    run(body())


def test_one_queue_serves_one_loop_after_another(path, hand):
    queue = AsyncQueue(path)
    for number in range(2):

        async def body(number=number):
            task = await queue.submit(number)
            waiting = asyncio.create_task(queue.result(task, SOON_S))
            await turns()
            hand.finish(task, number)
            assert await waiting == number

        run(body())
    queue.close()


def test_two_loops_at_once_are_refused(path):
    async def body():
        async with AsyncQueue(path) as queue:
            task = await queue.submit(1)
            waiting = asyncio.create_task(queue.result(task))
            await turns()

            def other_loop():
                with pytest.raises(RuntimeError, match="each needs one of its own"):
                    asyncio.run(queue.result(task, 1))

            await asyncio.to_thread(other_loop)
            waiting.cancel()
            await asyncio.wait([waiting])

    run(body())


def test_a_folder_that_is_gone_ends_every_wait(path, monkeypatch):
    for name in ("_LOOK_S", "_LOOK_SILENT_S", "_GONE_S"):
        monkeypatch.setattr(endings, name, 0.05)

    async def body():
        async with AsyncQueue(path) as queue:
            ids = await queue.submit_many([1, 2])
            waits = [asyncio.create_task(queue.result(task)) for task in ids]
            await turns()
            path.rename(path.with_name("away"))
            assert {type(error) for error in await asyncio.gather(*waits, return_exceptions=True)} == {QueueMissing}
            path.with_name("away").rename(path)
            assert await queue.state(ids[0]) is State.PENDING

    run(body())
