"""The pressure on this host: processors, stalls (PSI), memory against the limits of its control groups, and load.

Read from /proc and /sys/fs/cgroup, in version 1, 2, both or none of control groups. What counts for us is the
tightest of all groups above this process and the machine itself. nan is what this kernel or container does not tell.
Sources: proc(5), cgroups(7), Documentation/accounting/psi.rst, Documentation/admin-guide/cgroup-v1/memory.rst.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dspy_fastpath.counters import HostValue as Value

_UNLIMITED = 1 << 60  # version 1 writes a number near 2**63 where there is no limit


class _Group(NamedTuple):
    """One control group: its folder, and the kernel's version of the interface."""

    folder: Path
    version: int


class Host:
    """Samples of this host, each since the one before.

    ``root`` is where proc and sys lie; ``cpus`` are the processors this process may use.
    """

    def __init__(self, root: Path = Path("/"), cpus: set[int] | None = None) -> None:
        self._root = root
        self._cpus = os.sched_getaffinity(0) if cpus is None else cpus
        groups = list(_groups(root))
        self._memory = [group for kind, group in groups if kind == "memory"]
        self._cpu = [group for kind, group in groups if kind == "cpu"]
        self._accounts = [group for kind, group in groups if kind == "cpuacct"]
        self._pressure = [group for kind, group in groups if kind == "cpu" and group.version == 2]
        self._before: tuple[float, float, float, float] | None = None

    def sample(self, now: float) -> dict[Value, float]:
        """Return what the host tells at ``now``, in seconds; CPU_BUSY is nan the first time."""
        cpus = self._cpu_count()
        values = {Value.CPUS: cpus, Value.CPU_BUSY: self._busy(now, cpus), Value.LOAD: self._load()}
        for resource, some, full in (
            ("cpu", Value.PSI_CPU, None),
            ("memory", Value.PSI_MEMORY, Value.PSI_MEMORY_FULL),
            ("io", Value.PSI_IO, Value.PSI_IO_FULL),
        ):
            told = self._stalls(resource)
            values[some] = told.get("some", math.nan)
            if full is not None:
                values[full] = told.get("full", math.nan)
        values[Value.HOST_MEMORY_LIMIT], values[Value.HOST_MEMORY_FREE], values[Value.SWAP_FREE] = self._memory_left()
        values[Value.OOM_KILLS] = self._oom_kills()
        return values

    def _cpu_count(self) -> float:
        """Return how many processors' time can be had: those of the affinity mask, bounded by each group's quota."""
        allowed = float(len(self._cpus))
        for folder, version in self._cpu:
            if version == 2:
                quota, _, period = (_text(folder / "cpu.max") or "max").partition(" ")
            else:
                quota = _text(folder / "cpu.cfs_quota_us") or "-1"
                period = _text(folder / "cpu.cfs_period_us") or "100000"
            if quota not in ("max", "-1") and float(period or 100000) > 0:
                allowed = min(allowed, float(quota) / float(period or 100000))
        return allowed

    def _busy(self, now: float, cpus: float) -> float:
        """Return the share in use since the last sample: of the processors, or of the group's quota if that is more."""
        total = busy = 0.0
        for line in (_text(self._root / "proc/stat") or "").splitlines():
            name, _, counts = line.partition(" ")
            if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in self._cpus:
                ticks = [float(count) for count in counts.split()[:8]]  # the guests' time is in user and nice already
                total += sum(ticks)
                busy += sum(ticks) - sum(ticks[3:5])  # idle and waiting for a disk
        used_s = self._used_s()
        before, self._before = self._before, (now, total, busy, used_s)
        if before is None or now <= before[0]:
            return math.nan
        elapsed_s, ticks_more = now - before[0], total - before[1]
        shares = [(busy - before[2]) / ticks_more] if ticks_more > 0 else []
        if not math.isnan(group := (used_s - before[3]) / elapsed_s / cpus):
            shares.append(group)
        return min(1.0, max(0.0, *shares)) if shares else math.nan

    def _used_s(self) -> float:
        """Return the processor time of this process's group so far, in seconds; nan where there is none."""
        for folder, version in self._accounts:
            if version == 2 and (used := _table(folder / "cpu.stat").get("usage_usec")) is not None:
                return used / 1e6
            if version == 1 and (text := _text(folder / "cpuacct.usage")):
                return float(text) / 1e9
        return math.nan

    def _load(self) -> float:
        words = (_text(self._root / "proc/loadavg") or "").split()
        return float(words[0]) if words else math.nan

    def _stalls(self, resource: str) -> dict[str, float]:
        """Return the shares of the last 10 s in which some, or all, waited: of our own group where that is told."""
        places = [group.folder / f"{resource}.pressure" for group in self._pressure[:1]]
        for place in [*places, self._root / "proc/pressure" / resource]:
            told: dict[str, float] = {}
            for line in (_text(place) or "").splitlines():  # some avg10=0.12 avg60=...; unreadable where PSI is off
                kind, *numbers = line.split()
                shares = [number[6:] for number in numbers if number.startswith("avg10=")]
                if shares:
                    told[kind] = float(shares[0]) / 100
            if told:
                return told
        return {}

    def _memory_left(self) -> tuple[float, float, float]:
        """Return the limit, what is free below every limit, and free swap, in bytes."""
        machine = {name: 1024 * kb for name, kb in _table(self._root / "proc/meminfo", ":").items()}
        limit = machine.get("MemTotal", math.nan)
        free = machine.get("MemAvailable", machine.get("MemFree", math.nan))
        for folder, version in self._memory:
            statistics = _table(folder / "memory.stat")
            if version == 2:
                bounds = [_number(folder / "memory.max"), _number(folder / "memory.high")]
                used, cache = _number(folder / "memory.current"), statistics.get("inactive_file", 0.0)
            else:
                bounds = [_number(folder / "memory.limit_in_bytes")]
                used, cache = _number(folder / "memory.usage_in_bytes"), statistics.get("total_inactive_file", 0.0)
            bound = min((each for each in bounds if each < _UNLIMITED), default=math.inf)  # nan is below nothing
            if bound < math.inf:
                limit = bound if math.isnan(limit) else min(limit, bound)
                left = bound - used + cache
                free = min((each for each in (free, left) if not math.isnan(each)), default=math.nan)
        return limit, free if math.isnan(free) else max(0.0, free), machine.get("SwapFree", math.nan)

    def _oom_kills(self) -> float:
        for folder, version in self._memory[:1]:
            return _table(folder / ("memory.events" if version == 2 else "memory.oom_control")).get(
                "oom_kill", math.nan
            )
        return math.nan


def _groups(root: Path) -> Iterator[tuple[str, _Group]]:
    """Yield (controller, group) of this process and of each group above it, its own first."""
    mounts = list(_mounts(root))
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        version = 2 if number == "0" and not names else 1
        for kind in ("memory", "cpu", "cpuacct"):
            if version == 1 and kind not in names.split(","):
                continue
            for mounted, top, mount_version, controllers in mounts:
                if mount_version != version or (version == 1 and kind not in controllers):
                    continue
                yield from ((kind, _Group(folder, version)) for folder in _upwards(root, mounted, top, path))
                break


def _mounts(root: Path) -> Iterator[tuple[str, str, int, list[str]]]:
    """Yield (place, group that is mounted there, version, controllers) of each mounted hierarchy."""
    for line in (_text(root / "proc/self/mountinfo") or "").splitlines():
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if len(fields) > 4 and len(kinds) > 2 and kinds[0] in ("cgroup", "cgroup2"):
            yield fields[4], fields[3], 2 if kinds[0] == "cgroup2" else 1, kinds[2].split(",")


def _upwards(root: Path, mounted: str, top: str, path: str) -> Iterator[Path]:
    """Yield the folders of a group and of those above it, as far as they are seen from here."""
    base = root / mounted.lstrip("/")
    inside = os.path.relpath(path, top)
    if inside.startswith(".."):  # the path is another namespace's: what is mounted is the container's own group
        inside = "."
    folder = base / inside
    while True:
        if folder.is_dir():
            yield folder
        if folder == base:
            return
        folder = folder.parent


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def _number(path: Path) -> float:
    text = _text(path)
    return math.inf if text == "max" else float(text) if text and text.isdigit() else math.nan


def _table(path: Path, separator: str | None = None) -> dict[str, float]:
    """Return the numbers of a file of names and numbers, one pair a line."""
    found: dict[str, float] = {}
    for line in (_text(path) or "").splitlines():
        name, *rest = line.split(separator, 1)
        words = rest[0].split() if rest else []
        if words and words[0].isdigit():
            found[name.strip()] = float(words[0])
    return found
