"""Laptop mode in all, as a user has it: start to first result, and memory of the whole tree of processes.

::

    python -m bench.laptop [--rounds 9]

A task lies in a queue that was never served; `dspy-supervisor start --mode laptop` is started with nothing but the queue's
place and a handler. The time runs from before the start to the record in done/. Memory is PSS (proc(5)), what n processes
share counted as an n-th for each: right after that, and once a worker of each class has run a task.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from dspy_supervisor.bounds import own_bytes
from dspy_supervisor.proctree import trees

from bench import script
from bench.player import TIMEOUT_S, wait_until

CLASSES = ("cpu_short", "cpu_long", "gpu")
BARE = (sys.executable, "-c", "pass")


def drop(queue: Path, task: str, task_class: str) -> None:
    """Put a task as any program may: a file, renamed into pending/."""
    temporary = queue / "pending" / f".{task}.tmp"
    temporary.write_text(json.dumps({"id": task, "class": task_class, "payload": {"n": 1}}))
    os.rename(temporary, queue / "pending" / f"{task}.json")


def wait_done(queue: Path, *tasks: str) -> None:
    """Return when these have their records."""
    wait_until(lambda: all((queue / "done" / f"{task}.json").exists() for task in tasks), f"no result of {tasks}")


def one(folder: Path) -> tuple[float, float, float, int]:
    """Return seconds to the first result, MB of the tree then and after a task of each class, and its processes."""
    queue = folder / "queue"
    (queue / "pending").mkdir(parents=True)
    queue.chmod(0o700)
    drop(queue, "first", CLASSES[0])
    command = [Path(sys.executable).with_name("dspy-supervisor"), "start", "--mode", "laptop", "--queue-dir", queue]
    command += [f"--handler={name}=echo" for name in CLASSES]
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder), "XDG_RUNTIME_DIR": str(folder)}
    with (folder / "log").open("wb") as log:
        begun = time.monotonic()
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environ)
    try:
        wait_done(queue, "first")
        took = time.monotonic() - begun
        first = own_bytes(trees([process.pid])[process.pid])
        for name in CLASSES:
            drop(queue, name, name)
        wait_done(queue, *CLASSES)
        tree = trees([process.pid])[process.pid]
        return took, first / 1e6, own_bytes(tree) / 1e6, len(tree)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(TIMEOUT_S)


def bare() -> float:
    """Return the seconds that a Python takes to do nothing."""
    begun = time.monotonic()
    subprocess.run(BARE, check=True)
    return time.monotonic() - begun


def measure(folder: Path, options: argparse.Namespace) -> script.Facts:
    """Return the facts."""
    found = []
    for _ in range(options.rounds):
        found.append((bare(), *one(folder / "laptop")))
        shutil.rmtree(folder / "laptop")
    bares, times, firsts, trees_mb, processes = zip(*found, strict=True)
    return {
        "start_to_result_median_s": median(times),
        "start_to_result_worst_s": max(times),
        "bare_python_starts": median(times) / median(bares),
        "tree_at_first_result_mb": max(firsts),
        "tree_mb": max(trees_mb),
        "processes": max(processes),
    }


if __name__ == "__main__":
    script.main(__doc__, measure, rounds=9)
