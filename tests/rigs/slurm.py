"""What takes minutes on a real cluster: random faults, deaths and outages, and a training that spans nodes.

::

    python -m tests.rigs.slurm                    all of it, and a report
    python -m tests.rigs.slurm chaos --seed 7     one of SCENARIOS; the same seed plans the same faults
    python -m tests.rigs.slurm --planted          the planted bugs, each of which must be found

Needs Slurm (deploy/slurm/dev-cluster install); the trainings need torch in the same environment, and are left out without it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..conftest import ROOT, Supervised, supervisors, until
from ..slurm.bridge import Bridge
from ..slurm.dev_cluster import DevCluster, dev_cluster, missing
from ..slurm.faults import Faults

TASKS = 200
#: of one sbatch and how often: in some the job exists all the same, in some it doesn't, and none tells which
FAULTS = {
    "sbatch refuse": 3,
    "sbatch lost": 3,
    "sbatch cut 0": 2,
    "sbatch cut 1": 2,
    "sbatch delay 0.5": 3,
    "squeue refuse": 1,
    "squeue cut 5": 1,
    "sacct refuse": 1,
}


def chaos(bridge: Bridge, seed: int, tasks: int = TASKS) -> str:
    """Submissions of which many go wrong, while the bridge is killed again and again."""
    dice = random.Random(seed)
    faults = dice.choices(list(FAULTS), list(FAULTS.values()), k=tasks // 2)
    bridge.faults.plan(*faults)
    supervisor = bridge.carry(breaker_starts=1000)
    for number in range(tasks):
        bridge.shell(f"t{number}", f"sleep {dice.uniform(0, 1):.2f}", resources={"comment": f"t{number}"})  # no array
    kills = 0
    while (submitted := bridge.faults.counts()["sbatch"]) < tasks and kills < 20:
        wanted = submitted + dice.randint(2, 20)
        until(
            lambda wanted=wanted: bridge.faults.counts()["sbatch"] >= wanted or bridge.ended() == tasks,
            "it submits",
            300.0,
        )  # type: ignore[misc]
        kills += _kill_bridge(bridge, supervisor, dice.uniform(0, 0.3))
    bridge.drain(tasks, 600.0)
    bridge.check(drained=True)
    runs, jobs = bridge.runs(), bridge.jobs()
    assert len(jobs) == tasks, f"{len(jobs)} jobs for {tasks} tasks"
    assert len(runs) == len(set(runs)) == tasks, f"{len(runs)} runs"
    return f"{tasks} tasks, {len(faults) - bridge.faults.left()} faults, {kills} kills of the bridge: {len(jobs)} jobs"


def outage(bridge: Bridge, seed: int) -> str:
    """slurmctld is gone for a minute: jobs run on and end, and tasks arrive."""
    bridge.carry()
    for number in range(10):
        bridge.waiting(f"before{number}", max_attempts=1)
    for number in range(10):
        bridge.running(f"before{number}")
    bridge.cluster.do("kill", "slurmctld")
    gone = time.monotonic()
    calls = sum(bridge.faults.counts().values())
    for number in range(10):
        bridge.shell(f"during{number}", max_attempts=1)
        bridge.release(f"before{number}")
    while time.monotonic() - gone < 60:
        time.sleep(1)
    calls = sum(bridge.faults.counts().values()) - calls
    bridge.cluster.do("start", "slurmctld")
    bridge.drain(20, 300.0)
    bridge.check(drained=True)
    runs = bridge.runs()
    assert len(runs) == len(set(runs)) == 20
    return f"10 tasks ended and 10 came in {time.monotonic() - gone:.0f} s: each ran once; {calls} calls in that minute"


def accidents(bridge: Bridge, seed: int, tasks: int = TASKS) -> str:
    """Tasks, while nodes lose power, daemons hang, die and come back."""
    dice = random.Random(seed)
    cluster = bridge.cluster
    for number in range(tasks):
        bridge.shell(f"t{number}", f"sleep {dice.uniform(2, 10):.2f}", max_attempts=1)
    bridge.carry()
    happened = []
    names = [*cluster.nodes, *cluster.nodes[:2], "slurmctld", "slurmctld", "slurmdbd"]
    until(lambda: len(bridge.runs()) > tasks // 10, "they run", 120.0)
    while bridge.ended() < tasks and len(happened) < 15:
        name, accident = dice.choice(names), dice.choice(["kill", "pause"])
        with contextlib.suppress(AssertionError):  # it is down already
            cluster.do(accident, name)
            happened.append(f"{accident} {name}")
        time.sleep(dice.uniform(0.5, 3))
        if dice.random() < 0.7:
            cluster.do("heal")
    cluster.do("heal")
    bridge.drain(tasks, 500.0)
    bridge.check(drained=True)
    runs = bridge.runs()
    assert len({run[0] for run in runs}) == tasks
    return f"{tasks} tasks, {', '.join(happened)}: all done, {len(runs) - tasks} of them twice for dead nodes"


def amnesia(bridge: Bridge, seed: int) -> str:
    """slurmctld is killed in the seconds in which it has taken a job and not yet saved that."""
    supervisor = bridge.carry()
    for number in range(8):
        before = bridge.faults.counts()["sbatch"]
        bridge.shell(f"t{number}", max_attempts=1)
        until(lambda before=before: bridge.faults.counts()["sbatch"] > before, "it is submitted", 60.0)  # type: ignore[misc]
        bridge.cluster.do("kill", "slurmctld")
        bridge.cluster.do("start", "slurmctld")
    bridge.cluster.do("heal")
    bridge.drain(8, 500.0)
    bridge.check(drained=True, may_fail=[f"t{number}" for number in range(8)])
    runs = bridge.runs()
    assert len(runs) == len(set(runs)), "an attempt ran twice"
    assert supervisor.process.poll() is None
    return f"8 tasks, 8 kills of slurmctld right after sbatch: {len(runs)} runs, none of an attempt twice"


def ddp(bridge: Bridge, seed: int) -> str:
    """Two nodes of two ranks each train, by torchrun and by srun alone; a rank is lost; time is up, and it goes on."""
    if importlib.util.find_spec("torch") is None:
        return "left out: no torch in this environment"
    bridge.carry(slurm_partition="gpu", slurm_memory="2G", slurm_cpus=2, slurm_gpus=2, slurm_python=sys.executable)
    told = []
    for template in ("train_ddp_srun", "train_ddp"):
        told.append(f"{template}: {_train(bridge, template)}")
    return "; ".join(told)


def _train(bridge: Bridge, template: str) -> str:
    folder = bridge.train(template, "lost", method="lose-a-rank")
    _gate(folder)
    record = bridge.record(f"lost-{template}", 300.0)
    assert record["status"] == "done", record
    starts = _starts(folder)
    assert [start[1] for start in starts] == ["0", "30"], starts  # it was lost at 35: from the checkpoint at 30
    assert all(start[2] == "4" for start in starts), starts
    folder = bridge.train(template, "time")
    until(lambda: (folder / "checkpoint.pt").exists() and _starts(folder), "it trains", 120.0)
    until(lambda: _step(folder) >= 50, "it has come far", 120.0)
    job = bridge.job_of(f"time-{template}")
    bridge.cluster.run("scancel", "--batch", "--signal=USR1", job)  # as --signal=B:USR1@120 does before the end
    until(lambda: len(_starts(folder)) == 2, "it goes on in the next job", 300.0)
    _gate(folder)
    record = bridge.record(f"time-{template}", 300.0)
    assert record["status"] == "done", record
    assert int(_starts(folder)[1][1]) >= 50, _starts(folder)
    hosts = _starts(folder)[0][3]
    return f"4 ranks on {hosts}; a lost rank, and a wish to save: resumed at step 30 and {_starts(folder)[1][1]}"


def _gate(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gate").touch()


def _starts(folder: Path) -> list[list[str]]:
    path = folder / "trace"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def _step(folder: Path) -> int:
    import torch

    return int(torch.load(folder / "checkpoint.pt", weights_only=True)["step"])


def _kill_bridge(bridge: Bridge, supervisor: Supervised, after_s: float) -> int:
    time.sleep(after_s)
    with contextlib.suppress(ProcessLookupError, TypeError):  # it is being replaced
        os.kill(bridge.service(supervisor), signal.SIGKILL)
        return 1
    return 0


SCENARIOS: dict[str, Callable[..., str]] = {one.__name__: one for one in (chaos, outage, accidents, amnesia, ddp)}


#: planted bug: the scenario that must find it
PLANTS = {"resubmits": "chaos", "forgets": "chaos", "charges": "accidents"}
PLANTED_TASKS = 40


class Planted(Bridge):
    """A queue whose supervisors have a bug."""

    plant = ""

    def start(self, *options: str, **more: Any) -> Supervised:
        """Start a supervisor with the bug."""
        environ = more.pop("environ", {})
        return super().start(
            *options, program="tests.rigs.planted_bridge", environ=environ | {"PLANT": self.plant}, **more
        )


@contextlib.contextmanager
def _bridge(cluster: DevCluster, plant: str = "") -> Iterator[Bridge]:
    with tempfile.TemporaryDirectory(prefix="dspy-rig-") as name:
        folder = Path(name)
        with supervisors(folder) as start:
            made = (Planted if plant else Bridge)(folder, start, cluster, Faults(folder / "bin"))
            if isinstance(made, Planted):
                made.plant = plant
            yield made


class Row(NamedTuple):
    """What came of one scenario."""

    name: str
    holds: bool
    told: str
    took_s: float
    calls: dict[str, int]


def play(cluster: DevCluster, name: str, seed: int, plant: str = "") -> Row:
    """Play a scenario, with a planted bug or without."""
    cluster.do("heal", "--cancel")
    began = time.monotonic()
    with _bridge(cluster, plant) as bridge:
        holds = True
        try:
            told = SCENARIOS[name](bridge, seed, *([PLANTED_TASKS] if plant else []))
        except AssertionError as error:
            holds, told = False, " ".join(str(error).split("\n", maxsplit=1)[0].split())
            for log in [] if plant else sorted(bridge.folder.glob("supervisor.*.log")):
                print(log.read_text(errors="replace")[-4000:], file=sys.stderr)
        calls = dict(sorted(bridge.faults.counts().items()))
    return Row(name, holds, told, time.monotonic() - began, calls)


def main() -> int:
    """Run what was asked for, and report; 1 where something does not hold, or a planted bug is not found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", nargs="*", metavar="scenario", help=", ".join(SCENARIOS), default=list(SCENARIOS))
    parser.add_argument("--planted", action="store_true", help="the planted bugs instead")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    if absent := missing():
        raise SystemExit(f"Slurm is not installed ({', '.join(absent)}): {ROOT}/deploy/slurm/dev-cluster install")
    failed = 0
    pairs = [(scenario, plant) for plant, scenario in PLANTS.items()] if chosen.planted else []
    print("| scenario | what was seen | time | calls |\n| --- | --- | --- | --- |")
    with dev_cluster() as cluster:
        for name, plant in pairs or [(name, "") for name in chosen.scenario]:
            row = play(cluster, name, chosen.seed, plant)
            failed += row.holds == bool(plant)
            verdict = "" if row.holds else "DOES NOT HOLD: "
            if plant:
                verdict = f"planted bug {plant}: {'NOT FOUND' if row.holds else 'found'}: "
            calls = ", ".join(f"{command} {count}" for command, count in row.calls.items())
            print(f"| {name} | {verdict}{row.told} | {row.took_s:.0f} s | {calls} |", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
