"""A queue of each format that was released is served by this program: what it holds goes on, and nothing of it is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from dspy_supervisor import Queue
from dspy_supervisor.environments import Marks
from dspy_supervisor.history import summary
from dspy_supervisor.jobbook import JobBook
from dspy_supervisor.layout import FORMAT, Layout
from dspy_supervisor.walltime import RunTimes

from ..conftest import Start, until
from ..system.invariants import places, violations
from .make import PLAY

RELEASED = sorted(path.name for path in Path(__file__).parent.iterdir() if path.name.isdecimal())


def test_the_format_of_this_program_was_kept_for_the_programs_to_come() -> None:
    assert RELEASED[-1] == str(FORMAT), "python -m tests.formats.make"


@pytest.mark.parametrize("released", RELEASED)
def test_a_queue_of_this_format_is_served_and_loses_nothing(tmp_path: Path, supervisor: Start, released: str) -> None:
    folder = Path(__file__).parent / released
    expected = json.loads((folder / "expected.json").read_bytes())
    queue = tmp_path / "queue"
    shutil.copytree(folder / "queue", queue, symlinks=True)
    queue.chmod(0o700)
    (tmp_path / "gate").touch()
    everything = {*expected["done"], *expected["failed"], *expected["run"], *expected["stay"], "command"}
    assert set(places(queue)) == everything
    minutes = summary(queue, 0.0)
    assert minutes is not None and minutes["classes"]["cpu_short"]["done"] >= 2
    settings = {"heartbeat_s": 0.1, "take_after_s": 1, "sweep_s": 0.2}
    one = supervisor("--workers", "cpu_long=1", handlers={**PLAY, "cpu_long": "echo"}, settings=settings)
    with Queue(queue) as client:
        for task_id, number in {**expected["done"], **expected["run"]}.items():
            assert client.result(task_id, timeout=60)["n"] == number, task_id
    assert json.loads((queue / "done" / "command.json").read_bytes())["runner_result"]["stdout_tail"] == "out\n"
    for task_id, cause in expected["failed"].items():
        record = json.loads((queue / "failed" / f"{task_id}.json").read_bytes())
        assert record["error"]["cause"] == cause
        assert [attempt["cause"] for attempt in record["history"]] == [cause]
    waiting = json.loads((queue / "done" / "waiting.json").read_bytes())
    assert (waiting["priority"], waiting["affinity"]) == (7, "k")
    found = places(queue)
    assert {task_id: found[task_id][0].partition("/")[0] for task_id in expected["stay"]} == expected["stay"]
    assert violations(queue, everything, may_fail=expected["failed"]) == [
        f"I3: quarantine/ holds {path.name}" for path in (queue / "quarantine").glob("*.json")
    ]
    status = one.status()
    assert status["queue_id"] == expected["queue_id"]
    assert status["classes"]["cpu_long"]["state"] == "paused"
    with Layout.open(queue) as layout:
        assert JobBook(layout).describe("carried.json") == "job 4711"
        mark = Marks(layout).read("cpu_short", "env-7")
        assert mark is not None and mark.task == "done"
        assert RunTimes(layout).expected_s("cpu_short", "echo") > 2.5
    until(lambda: one.ask("explain", id="carried")["explanation"], "it is explained")
    assert one.stop() == 0
