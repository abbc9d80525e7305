"""The replay of recorded windows: what each policy would have answered to what a real controller saw.

A supervisor with the setting ``record_windows`` keeps one JSON object a line for each class and window, oldest first::

    {"at": 1700000000.0, "class": "gpu", "lowest": 1, "highest": 4, "interval_s": 2.0, "limit": 3, "inflight": 2.9, ...}

``at`` is the end of the window in seconds since the epoch; the other keys are the names of `Input` in lower case, where
null, or no key at all, means not known. The limit of each window is the one that held, whatever a policy would have
liked: an answer changes nothing that comes later. So a replay tells what a policy thinks of a real day, not how that day
would have gone.

A queue's folder is taken too: then its history is replayed, whose windows are a minute long and know less.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import SupervisorError
from ..history import minutes
from ..limit import Input, Policy, Reason, Step, new_state, parameters
from ..task import WorkloadClass
from .plant import Floats

HEAD = ("class", "policy", "windows", "as it was", "more", "fewer", "mean limit", "most frequent reasons")
_FORGOTTEN = 0.2  # of the baseline of run times, in a minute
_STALLS = {"cpu": "cpu", "mem": "memory", "io": "io"}
_HIGHEST = 32.0  # where the file doesn't say: the original's Max


class RecordUnreadable(SupervisorError):
    """A file of recorded windows can't be read, or holds something else."""


@dataclass(frozen=True)
class Recording:
    """The windows of one class."""

    workload: str
    at_s: Floats  #: since the first window of the file
    windows: Floats  #: [window, Input]
    lowest: float
    highest: float


@dataclass(frozen=True)
class Answers:
    """What one policy says to the windows of one class."""

    policy: str
    limits: Floats  #: for the window that follows each
    reasons: tuple[int, ...]


def read(path: Path) -> list[Recording]:
    """Return the recordings of a file, or of the history of a queue's folder, one a class. Raises RecordUnreadable."""
    if path.is_dir():
        return _remembered(path)
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines()
    except OSError as error:
        raise RecordUnreadable(f"{path}: {error.strerror}") from None
    by_class: dict[str, list[Mapping[str, Any]]] = {}
    for number, line in enumerate(lines, 1):
        try:
            window = json.loads(line)
            float(window["at"]), float(window["limit"]), str(window["class"])
        except (ValueError, TypeError, KeyError):
            if number == len(lines) and number > 1:  # its writer was at work, or died there
                break
            raise RecordUnreadable(
                f"{path}, line {number}: expected an object with at, class and limit, as record_windows writes it"
            ) from None
        by_class.setdefault(str(window["class"]), []).append(window)
    if not by_class:
        raise RecordUnreadable(f"{path}: no window in it; the setting record_windows lets a supervisor write one")
    begin = min(float(windows[0]["at"]) for windows in by_class.values())
    return [_recording(workload, windows, begin) for workload, windows in by_class.items()]


def answer(recording: Recording, policy: Policy, step: Step) -> Answers:
    """Return what a policy says to each window, remembering those before."""
    state = np.array(new_state())
    params = np.array(parameters(recording.lowest, recording.highest))
    said = [step(int(policy), window, state, params) for window in recording.windows]
    return Answers(policy.name.lower(), np.array([limit for limit, _ in said]), tuple(int(why) for _, why in said))


def rows(recording: Recording, answers: Sequence[Answers]) -> Iterator[tuple[object, ...]]:
    """Yield the lines of a table: how often each policy wants the recorded limit, a higher one, a lower one."""
    limit = recording.windows[:, Input.LIMIT]
    followed = np.append(limit[1:], limit[-1])  # what held after each window
    for one in answers:
        often = ", ".join(
            f"{Reason(reason).name.lower()} {many}" for reason, many in Counter(one.reasons).most_common(3)
        )
        yield (
            recording.workload,
            one.policy,
            len(limit),
            int((one.limits == followed).sum()),
            int((one.limits > followed).sum()),
            int((one.limits < followed).sum()),
            float(one.limits.mean()),
            often,
        )


def _remembered(queue_dir: Path) -> list[Recording]:
    """Return the minutes of a queue's history as windows."""
    by_class: dict[str, list[dict[str, Any]]] = {}
    base_s: dict[str, float] = {}
    for at, interval_s, workload, minute in minutes(queue_dir):
        wait_s, run_s = minute["wait"].mean_s, minute["run"].mean_s
        if run_s is not None:
            before_s = base_s.get(workload, run_s)
            base_s[workload] = before_s + (run_s - before_s) * _FORGOTTEN
        window = {name: minute[name] for name in ("limit", "inflight", "done", "timeouts", "ooms")}
        window |= {"at": at, "interval_s": interval_s, "backlog": minute["pending"], "throttle": 0}
        window |= {"errors": minute["failed"] + minute["retried"], "done_rate": minute["done"] / interval_s}
        window |= {"wait_s": wait_s, "run_s": run_s, "run_base_s": base_s.get(workload)}
        window |= _of_host(minute["host"])
        if workload == WorkloadClass.GPU and minute["gpus"]:
            window |= _of_gpus(list(minute["gpus"].values()))
        by_class.setdefault(workload, []).append(window)
    used = {name: windows for name, windows in by_class.items() if any(one["inflight"] for one in windows)}
    if not used:
        raise RecordUnreadable(f"{queue_dir}: no task ran in its history; a supervisor writes that once a minute")
    begin = min(float(windows[0]["at"]) for windows in used.values())
    return [_recording(workload, windows, begin) for workload, windows in used.items()]


def _of_host(host: Mapping[str, float]) -> dict[str, Any]:
    window: dict[str, Any] = {f"psi_{short}": host.get(f"psi_{name}") for short, name in _STALLS.items()}
    if host.get("memory_limit"):
        window["mem_free_share"] = host.get("memory_free", 0.0) / host["memory_limit"]
    return window


def _of_gpus(gpus: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    busy = [gpu["utilization"] for gpu in gpus if "utilization" in gpu]
    return {
        "gpu_busy": sum(busy) / len(busy) if busy else None,
        "vram_free": sum(gpu.get("memory_free", 0.0) for gpu in gpus),
        "vram_total": sum(gpu.get("memory_total", 0.0) for gpu in gpus),
        "telemetry_age_s": 0.0,
    }


def _recording(workload: str, windows: Sequence[Mapping[str, Any]], begin: float) -> Recording:
    seen = np.array([[_number(window.get(name.name.lower())) for name in Input] for window in windows])
    most = max(_HIGHEST, float(seen[:, Input.LIMIT].max()))
    return Recording(
        workload,
        np.array([float(window["at"]) - begin for window in windows]),
        seen,
        float(windows[-1].get("lowest") or 1.0),
        float(windows[-1].get("highest") or most),
    )


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
