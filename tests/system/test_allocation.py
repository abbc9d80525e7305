"""A supervisor inside an allocation: it ends in time, hands back what it holds, and starts nothing that can't end."""

from __future__ import annotations

import json
import os
import signal
import time

from ..conftest import Supervised, until
from .rig import Rig, events, workers

#: the time of an allocation that is not served: drain, grace, and a reserve of 5 s
SHORT: dict[str, object] = {"drain_s": 0.5, "kill_grace_s": 0.5}
RESERVE_S = 6.0
ONCE: dict[str, object] = {"class.cpu_short.max_attempts": 1, "class.cpu_short.max_crashes": 1}

TRAIN = """
import json, time
from dspy_supervisor import checkpoint_requested, checkpoint_saved

def train(task):
    saved = task.output_folder() / "checkpoint.json"
    step = json.loads(saved.read_text())["step"] if saved.exists() else 0
    while step < task.payload["steps"]:
        step += 1
        (task.folder / "running").write_text(str(step))
        if checkpoint_requested():
            saved.write_text(json.dumps({"step": step}))
            checkpoint_saved()
        time.sleep(0.01)
    return {"steps": step, "attempt": task.attempt}
"""


def test_a_supervisor_without_work_ends_by_itself_when_told_how_long_to_wait(rig: Rig) -> None:
    supervisor = rig.start(settings={"idle_exit_s": 0.3})
    gate = rig.gate("a1")
    gate.wait()
    gate.open()
    assert rig.record("a1")["status"] == "done"
    assert supervisor.wait() == 0
    assert events(supervisor, "idle")


def test_before_its_end_an_allocation_hands_back_what_it_holds_and_the_next_one_knows_how_long_it_takes(
    rig: Rig,
) -> None:
    gate = rig.gate("long", kind=None)
    first = rig.start(workers=1, settings={**SHORT, **ONCE, "ends_at": time.time() + RESERVE_S + 5.0})
    gate.wait()
    rig.drop("later")
    assert first.wait() == 0
    assert events(first, "allocation_ends")
    # nothing was charged, though the task may be tried but once
    assert sorted(path.name for path in (rig.queue / "pending").glob("*.json")) == ["later.json", "long~1x0.json"]
    learned = json.loads((rig.queue / "slurm/run_times.json").read_bytes())
    assert learned["cpu_short/"][0] > 0
    # an hour is left to serve, and what runs for so long is not begun
    (rig.queue / "slurm/run_times.json").write_text('{"cpu_short/": [100000.0, 0.0]}')
    second = rig.start(workers=1, settings={**SHORT, "ends_at": time.time() + 3600})
    until(lambda: _held(second) == 2, "both are held")
    assert "this allocation has" in json.dumps(second.ask("explain", id="later"))
    assert second.stop() == 0
    assert rig.ended() == 0
    # the queue's own supervisor has all the time there is
    gate.open()
    rig.start(workers=1, settings=ONCE)
    assert rig.record("long")["status"] == "done"
    assert rig.record("later")["status"] == "done"
    rig.check(drained=True)


def test_the_end_that_slurm_sends_to_all_processes_at_once_is_no_fault_of_a_task(rig: Rig) -> None:
    supervisor = rig.start(workers=1, settings={**ONCE, "ends_at": time.time() + 3600})
    gate = rig.gate("a1")
    gate.wait()
    for pid in [*workers(supervisor), supervisor.pid]:
        os.kill(pid, signal.SIGTERM)
    assert supervisor.wait() == 0
    assert [path.name for path in (rig.queue / "pending").glob("*.json")] == ["a1~1x0.json"]
    gate.open()
    rig.start(workers=1, settings=ONCE)
    assert rig.record("a1")["status"] == "done"


def test_a_drain_asks_for_a_checkpoint_and_the_task_goes_on_from_it_uncharged(rig: Rig) -> None:
    code = rig.folder / "code"
    code.mkdir()
    (code / "training.py").write_text(TRAIN)
    more = {"handlers": {"cpu_short": "training:train"}, "settings": ONCE, "workers": 1}
    first = rig.start(**more)  # type: ignore[arg-type]
    rig.drop("a1", {"steps": 1_000_000})
    home = rig.queue / "logs/a1"
    until((home / "running").exists, "it trains")
    assert first.stop() == 0
    step = json.loads((home / "checkpoint.json").read_text())["step"]
    waiting = next(rig.queue.glob("*/*a1~1x0.json"))
    # no test wants to wait for a million steps
    document = json.loads(waiting.read_bytes())
    document["payload"]["steps"] = step + 1
    waiting.write_bytes(json.dumps(document).encode())
    rig.start(**more)  # type: ignore[arg-type]
    assert rig.record("a1")["runner_result"] == {"steps": step + 1, "attempt": 1}


def _held(supervisor: Supervised) -> int:
    found: int = supervisor.status()["classes"]["cpu_short"]["held"]
    return found
