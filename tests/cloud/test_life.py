"""One machine from its order to its end: rented when a task waits, given it over ssh, and deleted with the supervisor."""

from __future__ import annotations

import json

from dspy_supervisor.layout import Layout
from dspy_supervisor.services.cloud.book import Book

from tests.cloud.conftest import put
from tests.conftest import until


def test_tasks_run_on_a_rented_machine_and_come_home(cloud):
    one = cloud.start()
    put(one.queue, "a1", {"n": 1})
    put(one.queue, "a2", {"refuse": True})
    done, failed = one.queue / "done" / "a1.json", one.queue / "failed" / "a2.json"
    until(lambda: done.exists() and failed.exists(), f"both tasks came home; {one.log[-2000:]}", 60)
    record, refused = json.loads(done.read_text()), json.loads(failed.read_text())
    pod = cloud.account.live[0]
    assert record["runner_result"] == {"where": str(cloud.booted[0].home), "big": 9007199254740993}
    assert record["owner"] == pod["name"] and record["payload"] == {"n": 1}
    assert (one.queue / "logs" / "a1" / "note.txt").read_text() == "of a1"
    assert refused["error"]["cause"] == "refused" and refused["error"]["machine"] == pod["name"]
    assert [order["pod"]["maxPrice"] for order in cloud.account.orders] == [1]
    state = one.status()["services"]["cloud"]
    assert state["rate_hr"] == 0.4 and 0 < state["spent"] < 0.1 and state["cap"] == 5
    assert one.stop() == 0
    assert cloud.account.live == []
    with Layout.open(one.queue) as layout:
        book = Book(layout)
        assert [(entry.why, entry.is_open) for entry in book.entries()] == [("the supervisor is stopping", False)]
        book.close()
    assert cloud.booted[0].processes() == []
