"""``python -m tests.rigs.soak [--minutes 60] [--rate 8] [--plant fd|memory|files|all] [--report FOLDER]``

Without --plant: a run, its report, and exit code 1 where something grows or a task is lost. With --plant: a short run of a
supervisor that leaks, which must be found; exit code 1 where it is not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ...conftest import Supervised, supervisors, until
from .chaos import Chaos
from .leaks import LEAKS
from .load import Load
from .watch import Watch

PLAY = "tests.system.handlers:play"
SAMPLE_S, ACCOUNT_S, CLEAR_S, KEPT_S = 5.0, 10.0, 30.0, 60
FLAT_AFTER = 0.5  #: of the run: what came before is warming up, and the half of it that is full of deaths
_PLANTED_MINUTES = 3.0
#: where each planted leak must show
SHOWS = {"memory": ("supervisor", "anon_kb"), "fd": ("supervisor", "fds"), "files": ("runtime", "files")}


def run(folder: Path, minutes: float, rate: float, seed: int, leak: str = "") -> dict[str, Any]:
    """Run for so many minutes, and return the report."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings: dict[str, object] = {
        "kinds": "echo,call,command,environment",
        "environments": "counting=tests.system.environments:Counting",
        "env_idle_s": 30,
        "retry_base_s": 0.1,
        "http_port": port,
        "metrics_port": 0,
        "durability": "none",
    }
    more = {
        "program": "tests.rigs.soak.leaks",
        "environ": {"SOAK_LEAK": leak, "SOAK_LEFT": str(folder / "run" / "left")},
    }
    with supervisors(folder) as start:

        def serve() -> Supervised:
            return start(
                *("--http", "--workers", "cpu_short=3"),
                handlers={"cpu_short": PLAY},
                settings=settings,
                **(more if leak else {}),
            )

        supervisor = serve()
        watch = Watch(folder, supervisor.queue, supervisor.runtime)
        load = Load(supervisor.queue, port, seed)
        chaos = Chaos(seed, minutes, serve)
        begin = time.monotonic()
        at = dict.fromkeys(("put", "sample", "account", "clear"), begin)
        while (now := time.monotonic()) < begin + minutes * 60:
            supervisor = chaos.step(supervisor)
            for what, every_s in (("sample", SAMPLE_S), ("account", ACCOUNT_S), ("clear", CLEAR_S)):
                if now >= at[what]:
                    at[what] = now + every_s
                    if what == "sample":
                        watch.sample(supervisor.pid)
                    elif what == "account":
                        load.account()
                    else:
                        _clear(supervisor)
            load.one()
            at["put"] = max(at["put"] + 1 / rate, now - 5)  # what was held up is made up for, not for ever
            time.sleep(max(0.0, at["put"] - time.monotonic()))
        growths = watch.growths(FLAT_AFTER * minutes * 60)
        until(lambda: load.account() or not load.accepted, "all that was accepted has ended", 120.0)
        with contextlib.suppress(AssertionError):  # what is no task is set aside after a grace; else it is reported
            until(lambda: not any(_depth(supervisor.queue).values()), "nothing is left in the queue", 60.0)
        drift, depth = _drift(port), _depth(supervisor.queue)
        load.close()
        code = supervisor.stop()
    return {
        "minutes": minutes,
        "put": dict(load.put),
        "ended": dict(load.ended),
        "refused_while_down": dict(load.refused),
        "kills": dict(chaos.kills),
        "left_in_the_queue": depth,
        "corrected_by_recounts": drift,
        "exit_code": code,
        "growths": [
            {**growth.series._asdict(), "level": round(growth.level), "by": round(growth.by, 1), "flat": growth.flat}
            for growth in growths
        ],
    }


def _clear(supervisor: Supervised) -> None:
    """Forget what ended a while ago, as a timer of the user's would."""
    command = [sys.executable, "-m", "dspy_supervisor", "queue", "gc", "--older-than", f"{KEPT_S}s"]
    states = [word for state in ("done", "failed", "quarantine") for word in ("--state", state)]
    subprocess.run([*command, *states, "--queue-dir", str(supervisor.queue)], check=True, stdout=subprocess.DEVNULL)


def _depth(queue: Path) -> dict[str, int]:
    return {name: len(list((queue / name).rglob("*.json"))) for name in ("pending", "delayed", "claimed")}


def _drift(port: int) -> float:
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        for line in answer.read().decode().splitlines():
            if "drift_tasks_total" in line and not line.startswith("#"):
                return float(line.split()[-1])
    raise AssertionError("no metric of drift")


def show(report: dict[str, Any]) -> bool:
    """Print a report; whether all is well."""
    for name in (
        "put",
        "ended",
        "refused_while_down",
        "kills",
        "left_in_the_queue",
        "corrected_by_recounts",
        "exit_code",
    ):
        print(f"{name.replace('_', ' ')}: {report[name]}")
    for one in report["growths"]:
        pid = f" {one['pid']}" if one["pid"] else ""
        verdict = "flat" if one["flat"] else "GROWS"
        print(f"  {one['who'] + pid:44} {one['what']:8} level {one['level']:>9} by {one['by']:>9}  {verdict}")
    well = all(one["flat"] for one in report["growths"]) and not any(report["left_in_the_queue"].values())
    return well and report["exit_code"] == 0


def main() -> int:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.rigs.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=8.0, help="tasks a second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plant", choices=(*LEAKS, "all"), help="leak this, and find it")
    parser.add_argument("--report", type=Path, help="a folder for samples and report; default: a temporary one")
    chosen = parser.parse_args()
    os.nice(5)
    folder = chosen.report or Path(tempfile.mkdtemp(prefix="soak-"))
    if not chosen.plant:
        folder.mkdir(parents=True, exist_ok=True)
        report = run(folder, chosen.minutes, chosen.rate, chosen.seed)
        (folder / "report.json").write_text(json.dumps(report, indent=1))
        well = show(report)
        print(f"{'FLAT' if well else 'NOT FLAT'}: samples and report in {folder}")
        return not well
    missed = []
    for leak in LEAKS if chosen.plant == "all" else (chosen.plant,):
        place = folder / leak
        place.mkdir(parents=True, exist_ok=True)
        report = run(place, min(chosen.minutes, _PLANTED_MINUTES), chosen.rate, chosen.seed, leak)
        found = [one for one in report["growths"] if not one["flat"] and (one["who"], one["what"]) == SHOWS[leak]]
        print(
            f"planted {leak}: " + ("; ".join(f"{one['who']} {one['what']} by {one['by']}" for one in found) or "MISSED")
        )
        missed += [] if found else [leak]
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
