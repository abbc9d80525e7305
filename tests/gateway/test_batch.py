"""Many tasks in one request, a line each way, streamed both ways."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from tests.conftest import END_S, until

from .api import Api, served

pytestmark = pytest.mark.xdist_group("gateway-batch")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with served(tmp_path_factory.mktemp("batch"), settings={"http_max_body_bytes": 100_000}) as found:
        yield found


def _lines(api: Api, body: bytes) -> list[dict[str, object]]:
    answer = api.post("/v1/tasks/batch", body, Content_Type="application/x-ndjson")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/x-ndjson")
    assert answer.body.endswith(b"\n") or not answer.body
    return [json.loads(line) for line in answer.body.splitlines()]


def test_each_line_is_answered_in_its_place(api: Api) -> None:
    body = b'{"id":"b1","payload":{"n":1}}\n{"id":"b2"\n\n{"payload":{"n":3}}\n'
    body += b'{"id":"b/4","payload":1}\r\n{"id":"b1","payload":{"n":9}}'
    first, torn, made, unfit, taken = _lines(api, body)
    assert first == {"id": "b1"}
    assert torn["status"] == 400 and "invalid JSON" in str(torn["error"])
    assert set(made) == {"id"}
    assert unfit["status"] == 422 and "an id is" in str(unfit["error"])
    assert taken["status"] == 409
    assert api.result("b1")["result"]["n"] == 1
    assert api.result(str(made["id"]))["result"]["n"] == 3


def test_a_line_that_is_refused_makes_no_other_task_run_twice(api: Api) -> None:
    assert _lines(api, b'{"id":"used","kind":"echo","payload":1}') == [{"id": "used"}]
    body = b'{"kind":"echo","payload":1}\n' * 20 + b'{"id":"used","kind":"echo","payload":2}\n'
    *made, taken = _lines(api, body)
    assert taken["status"] == 409
    for one in made:
        assert api.result(str(one["id"]))["result"] == 1
    until(lambda: not list((api.queue / "pending").glob("*.json")), "nothing waits")
    assert list((api.queue / "quarantine").iterdir()) == []


def test_an_empty_batch_is_answered_by_nothing(api: Api) -> None:
    assert _lines(api, b"") == []
    assert _lines(api, b"\n \n") == []


def test_the_same_batch_again_is_accepted_as_it_was(api: Api) -> None:
    body = b"\n".join(b'{"id":"again%d","payload":{"n":%d}}' % (n, n) for n in range(40))
    assert _lines(api, body) == _lines(api, body) == [{"id": f"again{n}"} for n in range(40)]


def test_thousands_of_tasks_are_accepted_in_their_order_and_all_run(api: Api) -> None:
    number = 1200
    filling = b"x" * 100
    body = b"\n".join(b'{"id":"m%d","kind":"echo","payload":"%b"}' % (n, filling) for n in range(number))
    assert len(body) > 100_000, "the bound of a body is that of a line here"
    assert _lines(api, body) == [{"id": f"m{n}"} for n in range(number)]
    done = api.queue / "done"
    until(lambda: all((done / f"m{n}.json").exists() for n in range(number)), "all run", 90.0)


def test_a_line_is_answered_while_the_next_is_still_to_come(api: Api) -> None:
    with api.connect() as caller:
        caller.settimeout(END_S)
        caller.sendall(b"POST /v1/tasks/batch HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        answers = caller.makefile("rb")
        for n in range(3):
            _send(caller, b'{"id":"s%d","kind":"echo","payload":1}\n' % n)
            while b"s%d" % n not in answers.readline():
                pass
            assert api.result(f"s{n}")["result"] == 1
        caller.sendall(b"0\r\n\r\n")
        assert answers.readline() + answers.readline() == b"\r\n0\r\n"


def test_a_line_that_never_ends_is_cut_and_what_came_before_it_stays(api: Api) -> None:
    body = (
        b'{"id":"before","kind":"echo","payload":1}\n{"payload":"'
        + b"x" * 200_000
        + b'"}\n{"id":"after","payload":1}\n'
    )
    first, refusal = _lines(api, body)
    assert first == {"id": "before"}
    assert refusal["status"] == 413
    assert api.result("before")["status"] == "done"
    assert api.get("/v1/tasks/after").status == 404


def test_a_caller_that_leaves_in_the_middle_keeps_what_it_put(api: Api) -> None:
    with api.connect() as caller:
        caller.sendall(b"POST /v1/tasks/batch HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        _send(caller, b'{"id":"left","kind":"echo","payload":1}\n{"id":"half')
    assert until(lambda: api.get("/v1/tasks/left/result?wait_s=5").status == 200, "it runs")
    assert api.get("/v1/tasks/half").status == 404


def _send(caller: socket.socket, data: bytes) -> None:
    caller.sendall(b"%x\r\n%b\r\n" % (len(data), data))
