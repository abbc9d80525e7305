"""Compiles floor.c and reads what it measures."""

from __future__ import annotations

import csv
import json
import os
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("floor.c")
PROGRAM = Path(__file__).with_name("floor")


def build() -> Path:
    """Return the program, compiled anew where the source is younger."""
    if not PROGRAM.exists() or PROGRAM.stat().st_mtime < SOURCE.stat().st_mtime:
        temporary = PROGRAM.with_suffix(f".{os.getpid()}")
        command = ["cc", "-O2", "-Wall", "-Wextra", "-D_GNU_SOURCE", "-o", temporary, SOURCE]
        subprocess.run(command, check=True)
        temporary.rename(PROGRAM)
    return PROGRAM


def run(what: str, folder: Path, **options: object) -> str:
    """Return what the program printed; options as in floor.c, with underscores."""
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return subprocess.run([build(), what, folder, *words], check=True, stdout=subprocess.PIPE, text=True).stdout


def latency(folder: Path, tasks: int, sync: bool, interval_s: float, steps: str = "least") -> dict[str, list[float]]:
    """Return, for each point on the way of a task, us since before the producer's first system call."""
    durability, interval_us = "full" if sync else "none", int(interval_s * 1e6)
    text = run("latency", folder, tasks=tasks, sync=durability, interval_us=interval_us, steps=steps)
    rows = list(csv.DictReader(text.splitlines()))
    return {point: [int(row[point]) / 1000 for row in rows] for point in rows[0]}


def drain(folder: Path, tasks: int, workers: int, results: str, sync: str, steps: str = "least") -> dict[str, float]:
    """Return tasks and seconds of a backlog; results are "none", "files" or "log", sync "none", "each" or "group"."""
    text = run("drain", folder, tasks=tasks, workers=workers, results=results, sync=sync, steps=steps)
    found: dict[str, float] = json.loads(text)
    return found


def put(folder: Path, tasks: int, sync: str) -> dict[str, float]:
    """Return tasks and seconds of one producer."""
    found: dict[str, float] = json.loads(run("put", folder, tasks=tasks, sync=sync))
    return found
