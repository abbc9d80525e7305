"""Where the time of one task goes: every system call of producer, supervisor and worker, and the time between them.

::

    python -m bench.timeline [--calls 300]          needs perf(1), and root or kernel.perf_event_paranoid <= -1

Tasks go through an idle worker, one at a time. Shown is the most frequent sequence of calls of each process, with medians
in us: when it happened since the put began, the time spent outside the kernel before it, and inside it. Tracing adds
about a microsecond a call.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import signal
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bench import script
from bench.ours import Ours

INTERVAL_S = 0.003
PROCESSES = ("producer", "supervisor", "worker")
UNISTD = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
_LINE = re.compile(r"\s*(\d+)\s+([\d.]+):\s+raw_syscalls:sys_(enter|exit):\s+NR (-?\d+)")


class Event(NamedTuple):
    """One crossing of the kernel's border."""

    at: float  #: us
    process: str
    side: str  #: enter or exit
    call: str


def call_names() -> dict[int, str]:
    """Return the names of system calls by number; empty where the kernel's header is not installed."""
    if not UNISTD.exists():
        return {}
    found = re.finditer(r"#define __NR_(\w+) (\d+)", UNISTD.read_text())
    return {int(match[2]): match[1] for match in found}


def read_events(recorded: Path, processes: dict[int, str]) -> Iterator[Event]:
    """Yield what perf recorded."""
    names = call_names()
    command = ["perf", "script", "-i", recorded, "-F", "pid,time,event,trace"]
    for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines():
        if match := _LINE.match(line):
            pid, at, side, number = match.groups()
            yield Event(float(at) * 1e6, processes.get(int(pid), "?"), side, names.get(int(number), number))


def split(events: Iterator[Event]) -> list[list[Event]]:
    """Return the events of each task: a task begins where the producer's sleep ends."""
    tasks: list[list[Event]] = []
    for event in events:
        if event.process == "producer" and (event.side, event.call) == ("exit", "clock_nanosleep"):
            tasks.append([])
        if tasks:
            tasks[-1].append(event)
    return tasks[10:-1]  # the first ones warm up, the last one is not whole


class Moment(NamedTuple):
    """One system call of the usual sequence of a process, medians in us."""

    at: float  #: since the put began
    outside: float  #: spent before it, outside the kernel
    inside: float  #: spent in it; nan for the call that the process was woken from
    call: str


def usual(process: str, tasks: Sequence[Sequence[Event]]) -> tuple[int, list[Moment]]:
    """Return the most frequent sequence of one process, and of how many tasks it is."""
    own = [[event for event in task if event.process == process] for task in tasks]
    sequences = [tuple((event.side, event.call) for event in events) for events in own]
    sequence, times = Counter(sequences).most_common(1)[0]
    alike = [
        (task[0].at, events) for task, events, found in zip(tasks, own, sequences, strict=True) if found == sequence
    ]
    moments = []
    for index, (side, call) in enumerate(sequence):
        at = statistics.median(events[index].at - begun for begun, events in alike)
        since = statistics.median(
            events[index].at - (events[index - 1].at if index else begun) for begun, events in alike
        )
        if side == "enter":
            is_left = index + 1 < len(sequence)
            inside = (
                statistics.median(events[index + 1].at - events[index].at for _, events in alike) if is_left else 0.0
            )
            moments.append(Moment(at, since, inside, call))
        elif not index:
            moments.append(Moment(at, since, math.nan, call))
    return times, moments


def show(process: str, tasks: Sequence[Sequence[Event]]) -> None:
    """Print the most frequent sequence of one process."""
    times, moments = usual(process, tasks)
    print(f"\n{process}: {times} of {len(tasks)} tasks went like this\n{'at':>9}{'outside':>10}{'inside':>10}")
    for at, outside, inside, call in moments:
        if math.isnan(inside):
            print(f"{at:9.1f}{'':20}  woken from {call}")
        else:
            print(f"{at:9.1f}{outside:10.1f}{inside:10.1f}  {call}")


def record(folder: Path, calls: int) -> list[list[Event]]:
    """Return what the processes of a supervisor asked of the kernel for each of many tasks."""
    recorded = folder / "perf.data"
    with Ours(folder, sync=False) as ours:
        ours.start(1)
        for _ in range(50):
            ours.call()
        processes = {ours.pid: "supervisor", ours.workers[0]: "worker", os.getpid(): "producer"}
        pids = ",".join(map(str, processes))
        tracepoints = "raw_syscalls:sys_enter,raw_syscalls:sys_exit"
        with subprocess.Popen(["perf", "record", "-q", "-e", tracepoints, "-p", pids, "-o", recorded]) as perf:
            time.sleep(1.0)  # perf says nowhere that it has begun
            for _ in range(calls):
                time.sleep(INTERVAL_S)
                ours.call()
            perf.send_signal(signal.SIGINT)
    return split(read_events(recorded, processes))


def measure(folder: Path, options: argparse.Namespace) -> script.Facts:
    """Print the timelines; return nothing else."""
    tasks = record(folder, options.calls)
    for process in PROCESSES:
        show(process, tasks)
    print()
    return {}


if __name__ == "__main__":
    script.main(__doc__, measure, calls=300)
