"""What happens, as it happens: in order, resumed where a listener was cut off, and honest about gaps."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from dspy_supervisor.client.access import Access
from dspy_supervisor.producer import envelope
from dspy_supervisor.services.gateway.lookout import Lookout
from dspy_supervisor.services.gateway.ring import Ring, SlowListener

from tests.conftest import END_S, until

from .api import Api, next_event, served

pytestmark = pytest.mark.xdist_group("gateway-events")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with served(tmp_path_factory.mktemp("events")) as found:
        yield found


def test_a_task_is_told_of_from_its_put_to_its_end(api: Api) -> None:
    with api.stream("/v1/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.readline() == b"retry: 1000\n"  # it listens
        task_id = api.put({"do": "raise_until", "until": 1})
        seen = []
        while not seen or seen[-1]["event"] != "done":
            _, _, event = next_event(stream)
            if event["id"] == task_id:
                seen.append(event)
    words = [event["event"] for event in seen]
    assert words[0] == "submitted" and words[-1] == "done"
    assert "delayed" in words or "requeued" in words
    assert {event["class"] for event in seen} == {"cpu_short"}
    assert all(set(event) == {"event", "id", "class", "at"} for event in seen)


def test_failures_and_cancellations_are_told_apart(api: Api) -> None:
    with api.stream("/v1/events") as stream:
        assert stream.readline()
        failing = api.put({"do": "raise"}, max_attempts=1)
        held = api.put({}, **{"class": "cpu_long"})
        api.post(f"/v1/tasks/{held}/cancel")
        ends: dict[str, str] = {}
        while len(ends) < 2:
            _, _, event = next_event(stream)
            if event["event"] in ("failed", "cancelled", "done"):
                ends[event["id"]] = event["event"]
    assert ends == {failing: "failed", held: "cancelled"}


def test_a_listener_goes_on_where_it_was_cut_off(api: Api) -> None:
    with api.stream("/v1/events") as stream:
        assert stream.readline()
        first = api.put(None, kind="echo")
        last, _, event = next_event(stream)
        assert (event["event"], event["id"]) == ("submitted", first)
    second = api.put(None, kind="echo")
    api.result(second)
    with api.stream("/v1/events", Last_Event_ID=last) as stream:
        seen = []
        while ("done", second) not in seen:
            _, kind, event = next_event(stream)
            assert kind == "message", "no reset"
            seen.append((event["event"], event["id"]))
    assert ("submitted", first) not in seen
    assert ("submitted", second) in seen


@pytest.mark.parametrize("last", ["deadbeef-7", "nonsense", "-", "deadbeef-99999999999999999999"])
def test_a_place_that_nobody_knows_is_answered_by_a_reset(api: Api, last: str) -> None:
    with api.stream("/v1/events", Last_Event_ID=last) as stream:
        number, kind, event = next_event(stream)
    assert (kind, event) == ("reset", {"event": "reset"})
    with api.stream(f"/v1/events?last_event_id={number}") as stream:
        assert stream.readline() == b"retry: 1000\n"
        assert stream.readline() == b"\n"


def test_the_state_is_streamed_each_second_and_says_whether_one_may_write(api: Api) -> None:
    with api.stream("/v1/live") as stream:
        for _ in range(2):
            _, kind, status = next_event(stream)
            assert kind == "status"
            assert status["gateway"]["writable"] is True
            assert status["classes"]["cpu_short"]["workers"] >= 0
            assert set(status["latency"]["cpu_short"]) == {
                f"{name}_{share}_s" for name in ("wait", "run", "total") for share in ("p50", "p99")
            }


def test_hundreds_of_listeners_all_hear_and_leave_nothing_behind(api: Api) -> None:
    streams = []
    try:
        for _ in range(200):
            connection = api.connect()
            connection.sendall(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            file = connection.makefile("rb")
            while b"retry" not in file.readline():
                pass
            streams.append((connection, file))
        task_id = api.put(None, kind="echo")
        for _, file in streams:
            while task_id.encode() not in file.readline():
                pass
    finally:
        for connection, file in streams:
            file.close()
            connection.close()
    until(lambda: api.state["connections"] < 10, "their connections are gone")


# -- the ring by itself --------------------------------------------------------------------------------------------------


def _heard(ring: Ring, last: str | None, pieces: int) -> list[bytes]:
    async def listen() -> list[bytes]:
        found = []
        async for chunk in ring.listen(last, lambda: False):
            found.append(chunk)
            if len(found) == pieces:
                break
        return found

    return asyncio.run(listen())


def _ids(chunk: bytes) -> list[str]:
    return [line[4:].decode() for line in chunk.splitlines() if line.startswith(b"id: ")]


def test_a_place_before_what_is_kept_is_answered_by_a_reset() -> None:
    ring = Ring(most=10)
    ring.add([{"n": n} for n in range(30)])
    notice = _heard(ring, None, 1)[0]
    assert b"event: reset" not in notice
    [epoch] = {name.partition("-")[0] for name in _ids(_heard(ring, "x", 1)[0])}
    assert b"event: reset" in _heard(ring, f"{epoch}-5", 1)[0]
    _, chunk = _heard(ring, f"{epoch}-25", 2)
    assert _ids(chunk) == [f"{epoch}-{n}" for n in range(26, 31)]
    assert [json.loads(line[6:])["n"] for line in chunk.splitlines() if line.startswith(b"data: ")] == list(
        range(25, 30)
    )


def test_a_listener_that_falls_out_of_the_ring_is_cut() -> None:
    async def listen() -> None:
        ring = Ring(most=10)
        chunks = ring.listen(None, lambda: False)
        await anext(chunks)
        ring.add([{"n": n} for n in range(30)])
        await anext(chunks)

    with pytest.raises(SlowListener, match="20 events"):
        asyncio.run(listen())


# -- what is seen of the folders ------------------------------------------------------------------------------------------


def test_a_folder_that_is_made_again_begins_a_new_epoch(tmp_path: Path) -> None:
    async def listen() -> None:
        with closing(Access(tmp_path / "queue", create=True)) as access:
            lookout = Lookout(access, lambda: False)
            chunks = lookout.listen(None)
            assert b"reset" not in await anext(chunks)
            put(access, "before")
            assert b'"before"' in await anext(chunks)
            (tmp_path / "queue" / "failed").rename(tmp_path / "queue" / "aside")
            (tmp_path / "queue" / "failed").mkdir(mode=0o700)
            assert b"event: reset" in await anext(chunks)
            access.reopen()
            put(access, "after")
            while b'"after"' not in await anext(chunks):
                pass
            await chunks.aclose()
            lookout.close()

    def put(access: Access, task_id: str) -> None:
        access.put([(task_id, envelope(1, task_id=task_id))], due=None, fresh=True)

    asyncio.run(asyncio.wait_for(listen(), END_S))


def test_a_trouble_of_the_lookout_ends_its_streams_so_that_listeners_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def listen() -> None:
        with closing(Access(tmp_path / "queue", create=True)) as access:
            lookout = Lookout(access, lambda: False)
            chunks = lookout.listen(None)
            await anext(chunks)
            monkeypatch.setattr(Ring, "add", lambda *_: 1 / 0)
            with pytest.raises(StopAsyncIteration):
                await anext(chunks)
            monkeypatch.undo()
            assert b"retry" in await anext(lookout.listen(None))
            lookout.close()

    asyncio.run(asyncio.wait_for(listen(), END_S))
