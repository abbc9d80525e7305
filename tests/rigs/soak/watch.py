"""What is measured of each process and of the folders, and when a series of it counts as flat."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import psutil

_FOLDERS = ("pending", "delayed", "claimed", "done", "failed")
#: how much a series may grow over the part that is judged: by this, or by this share of its level
TOLERANCE = {
    "anon_kb": (2048.0, 0.05),
    "fds": (2.0, 0.0),
    "threads": (1.0, 0.0),
    "files": (60.0, 0.05),
    "kb": (2048.0, 0.1),
}
_MIN_SAMPLES = 8


class Series(NamedTuple):
    """One measured thing of one process, or of the folders."""

    who: str
    pid: int
    what: str


class Growth(NamedTuple):
    """What a series did over the part that is judged."""

    series: Series
    level: float
    by: float  #: Theil and Sen's slope, times the time it was watched for
    seconds: float
    flat: bool


def role(process: psutil.Process) -> str:
    """Return what a process of a supervisor's is, by its title, without numbers; "" for the programs of tasks."""
    with contextlib.suppress(psutil.Error):
        title = " ".join(process.cmdline())
        if title.startswith("dspy-supervisor: "):
            return re.sub(r"\s*\d+", "", title.removeprefix("dspy-supervisor: ")).strip()
    return ""


def measure(pid: int) -> dict[str, float]:
    """Return the memory of its own, descriptors and threads of a process; nothing if it is gone.

    RssAnon, and not PSS: shares change with each worker that is forked or killed.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        found = re.search(r"^RssAnon:\s+(\d+)", status, re.MULTILINE)
        return {
            "anon_kb": float(found[1]) if found else 0.0,
            "fds": float(len(os.listdir(f"/proc/{pid}/fd"))),
            "threads": float(len(os.listdir(f"/proc/{pid}/task"))),
        }
    except OSError:
        return {}


class Watch:
    """Takes samples and judges them."""

    def __init__(self, folder: Path, queue: Path, runtime: Path) -> None:
        self._queue, self._runtime = queue, runtime
        self._file = (folder / "samples.jsonl").open("a")
        self._begin = time.monotonic()
        self.series: dict[Series, list[tuple[float, float]]] = defaultdict(list)

    def sample(self, supervisor: int) -> None:
        """Measure everything once."""
        now = time.monotonic() - self._begin
        family = [(supervisor, "supervisor")]
        with contextlib.suppress(psutil.Error):
            family += [(one.pid, name) for one in psutil.Process(supervisor).children() if (name := role(one))]
        line: dict[str, object] = {"at_s": round(now, 1)}
        for pid, name in family:
            facts = measure(pid)
            line[f"{name} {pid}"] = facts
            for what, value in facts.items():
                self.series[Series(name, pid, what)].append((now, value))
        for name, root, skip in (("queue", self._queue, _FOLDERS), ("runtime", self._runtime, ())):
            files, size = _tree(root, skip)
            self.series[Series(f"{name}: beside tasks" if skip else name, 0, "files")].append((now, files))
            self.series[Series(f"{name}: beside tasks" if skip else name, 0, "kb")].append((now, size / 1024))
            line[name] = {"files": files, "bytes": size}
        line["depth"] = {name: sum(1 for _ in _walk(self._queue / name)) for name in _FOLDERS}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def growths(self, since_s: float) -> list[Growth]:
        """Judge each series from since_s on; those of processes that lived shorter than half of that are left out."""
        end = time.monotonic() - self._begin
        found = []
        for series, points in sorted(self.series.items()):
            part = [point for point in points if point[0] >= since_s]
            seconds = part[-1][0] - part[0][0] if part else 0.0
            if len(part) < _MIN_SAMPLES or seconds < (end - since_s) / 2:
                continue
            level = median(value for _, value in part)
            by = slope(part) * seconds
            more, share = TOLERANCE[series.what]
            found.append(Growth(series, level, by, seconds, by <= max(more, share * level)))
        return found


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the median of the slopes between all pairs (Theil and Sen): single peaks do not count."""
    few = points[:: max(1, len(points) // 120)]
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for n, a in enumerate(few) for b in few[n + 1 :] if b[0] > a[0]]
    return median(slopes) if slopes else 0.0


def _tree(root: Path, skip: Iterable[str]) -> tuple[int, int]:
    count = size = 0
    for path in _walk(root, frozenset(skip)):
        with contextlib.suppress(OSError):
            size += path.lstat().st_blocks * 512
            count += 1
    return count, size


def _walk(root: Path, skip: frozenset[str] = frozenset()) -> Iterable[Path]:
    for folder, folders, files in os.walk(root):
        if Path(folder) == root:
            folders[:] = [name for name in folders if name not in skip]
        yield from (Path(folder, name) for name in files)
