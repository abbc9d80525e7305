"""Makes a queue's folder with all that this version keeps there, for the tests of later versions.

``python -m tests.formats.make`` writes tests/formats/FORMAT/queue and expected.json, once, at a release: a folder that is there
is what was released, and is never made again.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson
from dspy_supervisor import Queue
from dspy_supervisor.environments import Mark, Marks
from dspy_supervisor.jobbook import JobBook, Order, new_name
from dspy_supervisor.layout import FORMAT, Layout
from dspy_supervisor.pause import Pause
from dspy_supervisor.record import Run, done_record
from dspy_supervisor.task import TaskName
from dspy_supervisor.taskqueue import TaskQueue, delayed_file, won_file
from dspy_supervisor.walltime import RunTimes

from ..conftest import ROOT, supervisors, until

HERE = Path(__file__).parent
FAR = 4102444800.0  # 2100-01-01
PLAY = {"cpu_short": "tests.system.handlers:play"}
DEAD = "0123456789abcdefdead"  # a node that nobody knows


def main() -> int:
    target = HERE / str(FORMAT)
    if target.exists():
        print(f"{target} is there: what was released is not made again")
        return 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        expected = _fill(folder)
        _anonymise(folder)
        shutil.copytree(folder / "queue", target / "queue", symlinks=True)
    (target / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    print(target)
    return 0


def _fill(folder: Path) -> dict[str, Any]:
    queue = folder / "queue"
    with supervisors(folder) as start:
        one = start(
            handlers=PLAY, settings={"retry_base_s": 0.01, "partial_grace_s": 0.1, "kinds": "command", "sweep_s": 0.1}
        )
        with Queue(queue) as client:
            client.submit({"do": "echo", "n": 7}, id="done")
            client.submit({"argv": ["sh", "-c", "echo out; echo err >&2"]}, id="command", kind="command")
            client.submit({"do": "raise"}, id="failed", max_attempts=2)
            for task_id in ("done", "command", "failed"):
                until(lambda task_id=task_id: _ended(queue, task_id), f"{task_id} ends")  # type: ignore[misc]
        (queue / "pending" / "torn.json").write_bytes(b'{"id": "torn", "payl')
        until(lambda: any((queue / "quarantine").iterdir()), "it is refused")
        one.stop()
        one = start(handlers=PLAY)
        with Queue(queue) as client:
            client.submit({"do": "gate", "begun": "begun", "gate": "gate"}, id="running", timeout=600)
            until((folder / "begun").exists, "it runs")
            one.ask("pause", classes=["cpu_long"], reason="for the night")
            one.kill()
            client.submit(
                {"do": "echo", "n": 1}, id="waiting", priority=7, timeout=60, max_attempts=5, affinity="k",
                task_class="cpu_short",
            )  # fmt: skip
            client.submit({"do": "echo", "n": 2}, id="due", delay=0.01)
            client.submit({"do": "echo", "n": 3}, id="far", delay=86400)
            client.submit({"do": "echo", "n": 4}, id="paused", task_class="cpu_long")
            client.submit({"do": "echo", "n": 5}, id="charged")
            client.submit({"do": "echo", "n": 6}, id="committed")
            client.submit({"do": "echo", "n": 8}, id="carried", task_class="gpu_slurm")
        (queue / "pending" / "foreign.json").write_bytes(
            b'{"ID": "foreign", "Class": "CPU_SHORT", "Payload": {"n": 9}}'
        )
    with Layout.open(queue) as layout:
        _by_hand(layout)
    return {
        "queue_id": json.loads((queue / "queue.json").read_bytes())["queue_id"],
        "done": {"done": 7, "committed": 6},
        "failed": {"failed": "raised"},
        "run": {"waiting": 1, "due": 2, "charged": 5, "running": None, "foreign": 9},
        "stay": {"far": "delayed", "paused": "pending", "carried": "claimed"},
    }


def _by_hand(layout: Layout) -> None:
    """Put there what only many machines, or a moment, would leave."""
    queue = TaskQueue(layout)
    os.rename("charged.json", "charged~2x1.json", src_dir_fd=layout.pending, dst_dir_fd=layout.pending)
    queue.note_attempt(TaskName("charged", 1), {"cause": "raised", "message": "the second attempt"})
    (far,) = [file for file in os.listdir(layout.delayed) if file.endswith(".far.json")]
    os.rename(far, delayed_file(FAR, TaskName("far")), src_dir_fd=layout.delayed, dst_dir_fd=layout.delayed)
    # A worker that died between its commit and the publishing of its record.
    own = queue.open_owner(f"{DEAD}.1.0")
    held = queue.claim("committed.json", own)
    assert held is not None
    record = done_record(held, b'{"n":6}', Run(time.time(), time.time(), 0.1, 4711, f"{DEAD}.1.0"), [])
    with open(os.open(held.name.result_file, os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=layout.results), "wb") as file:
        file.write(record)
    os.rename("committed.json", won_file(held.name), src_dir_fd=own, dst_dir_fd=layout.done)
    os.close(own)
    # A job of a cluster, which nobody here watches.
    jobs = queue.open_owner(f"{DEAD}.2.slurm")
    assert queue.claim("carried.json", jobs) is not None
    os.close(jobs)
    book, name = JobBook(layout), new_name(layout.queue_id)
    book.prepare()
    intent = {"array": False, "template": "task", "options": ["--gpus=1"], "cluster": ""}
    made = book.write(name, [Order("carried.json", {"task.json": b"{}"})], intent, b"#!/bin/sh\n")
    book.accepted(made, "4711", "")
    Marks(layout).write(Mark("env-7", "cpu_short", f"{DEAD}.1.0", "done", time.time()))
    times = RunTimes(layout)
    times.learn("cpu_short", "echo", 2.5)
    times.save()
    assert Pause(layout).read() is not None


def _ended(queue: Path, task_id: str) -> bool:
    return any((queue / state / f"{task_id}.json").exists() for state in ("done", "failed"))


def _anonymise(folder: Path) -> None:
    """Leave nothing of this machine in it."""
    queue = folder / "queue"
    for path in (queue / "nodes").iterdir():
        beat = orjson.loads(path.read_bytes()) | {"boot_id": "", "machine_id": "", "host": "old", "pid_space": ""}
        path.write_bytes(orjson.dumps(beat))
    for path in list(queue.rglob("*")):
        if path.is_file():
            text = path.read_bytes().replace(str(ROOT).encode(), b"/opt/program").replace(str(folder).encode(), b"/srv")
            path.write_bytes(text.replace(os.uname().nodename.encode(), b"old"))
    for path in (queue / "history").iterdir():
        path.rename(path.with_name(path.name.split(".")[0] + ".old.main.jsonl"))


if __name__ == "__main__":
    sys.exit(main())
