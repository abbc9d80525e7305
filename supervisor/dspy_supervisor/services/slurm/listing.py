"""What squeue, sacct and scontrol print, as rows. Text with a header and a mark at the end of each line.

The header tells a listing of nothing from no listing at all, and the mark one that was cut off: a listing that is not whole
is refused, since what is missing in it would be taken for gone. Asked as text, because JSON costs ten times as much and
lies in some versions (22.05 answers an empty list and success when no controller can be reached).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

_SEPARATOR, _MARK = "|", "|."
_SQUEUE_FIELDS = ("%i", "%A", "%T", "%V", "%S", "%M", "%N", "%j", "%r")  # the reason is the cluster's text: last
_SACCT_FIELDS = (
    "jobid", "jobidraw", "state", "exitcode", "derivedexitcode", "submit", "start", "end", "elapsedraw", "maxrss",
    "alloctres", "nodelist", "jobname",
)  # fmt: skip
#: all jobs of this user, ended ones that the controller remembers among them; a row for each element of an array
SQUEUE = ("squeue", "--me", "-r", "-t", "all", "-o", _SEPARATOR.join(_SQUEUE_FIELDS) + _MARK)
SCONTROL = ("scontrol", "-o", "show", "job")
MAX_IDS = 2000  #: in one command: one argument ends at 128 KiB
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}


class Incomplete(Exception):
    """What a command printed is not the whole of its answer."""


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job, or one element of an array, as the controller knows it."""

    key: str  #: 132, or 132_5
    job_id: str  #: without the index
    index: int | None  #: in its array
    state: str
    name: str
    reason: str = ""
    nodes: str = ""
    submitted: float | None = None  #: epoch seconds
    started: float | None = None


@dataclass(frozen=True, slots=True)
class AccountRow:
    """One incarnation of a job in the accounting: a requeued job has several."""

    key: str
    name: str
    state: str
    code: int = 0  #: exit code
    signal: int = 0
    derived: int = 0  #: highest exit code of its steps
    submitted: float | None = None
    started: float | None = None
    ended: float | None = None
    elapsed_s: float | None = None
    nodes: str = ""
    max_rss_bytes: int | None = None  #: of its largest step
    gpus: int = 0
    step_out_of_memory: bool = False


def sacct_argv(ids: Sequence[str]) -> tuple[str, ...]:
    """Return the command that asks the accounting for these jobs, all their incarnations and steps."""
    return ("sacct", "-D", "-p", "-o", ",".join(_SACCT_FIELDS), "-j", ",".join(ids))


def sacct_by_name_argv(names: Sequence[str], since: float) -> tuple[str, ...]:
    """Return the command that looks for jobs by their names; ``since``: epoch seconds, or only today's are found."""
    from datetime import datetime

    start = datetime.fromtimestamp(since).strftime("%Y-%m-%dT%H:%M:%S")
    return ("sacct", "-D", "-p", "-o", ",".join(_SACCT_FIELDS), "-S", start, "--name=" + ",".join(names))


def parse_squeue(text: str) -> list[JobRow]:
    """Return the jobs of a listing. Raises Incomplete."""
    lines = text.split("\n")
    if not lines[0].endswith(_MARK) or not lines[0].startswith("JOBID") or lines[-1] != "":
        raise Incomplete(f"squeue: a listing without its header or its end ({len(text)} characters)")
    if len(lines) > 2 and not lines[-2].endswith(_MARK):
        raise Incomplete("squeue: a listing that is cut off")
    rows = []
    for line in lines[1:-1]:
        fields = line.removesuffix(_MARK).split(_SEPARATOR, len(_SQUEUE_FIELDS) - 1)
        if len(fields) != len(_SQUEUE_FIELDS) or not line.endswith(_MARK):
            continue  # part of a name with a newline in it, which is none of ours
        key, _, state, submitted, started, _, nodes, name, reason = fields
        job_id, index = _split(key)
        rows.append(JobRow(key, job_id, index, state, name, reason, nodes, _time(submitted), _time(started)))
    return rows


def parse_sacct(text: str) -> list[AccountRow]:
    """Return the incarnations of jobs, oldest first, with what their steps say taken in. Raises Incomplete."""
    lines = text.split("\n")
    if not lines[0].startswith("JobID|") or lines[-1] != "" or not text.endswith("|\n"):
        raise Incomplete(f"sacct: an answer without its header or its end ({len(text)} characters)")
    rows: list[AccountRow] = []
    for line in lines[1:-1]:
        fields = line.removesuffix(_SEPARATOR).split(_SEPARATOR, len(_SACCT_FIELDS) - 1)
        if len(fields) != len(_SACCT_FIELDS):
            continue
        key, _, state, code, derived, submitted, started, ended, elapsed, rss, tres, nodes, name = fields
        base, dot, _ = key.partition(".")
        if dot:  # a step: it belongs to the incarnation above it
            if rows and rows[-1].key == base:
                rows[-1] = _with_step(rows[-1], state, rss)
            continue
        exit_code, signal = _pair(code)
        rows.append(
            AccountRow(
                key=key,
                name=name,
                state=state,
                code=exit_code,
                signal=signal,
                derived=_pair(derived)[0],
                submitted=_time(submitted),
                started=_time(started),
                ended=_time(ended),
                elapsed_s=float(elapsed) if elapsed.isdecimal() else None,
                nodes="" if nodes.startswith("None") else nodes,
                max_rss_bytes=_bytes(rss),
                gpus=_gpus(tres),
            )
        )
    return rows


def parse_scontrol(text: str) -> list[AccountRow]:
    """Return what the controller still knows of jobs, where there is no accounting. Raises Incomplete."""
    if text and not text.endswith("\n"):
        raise Incomplete("scontrol: an answer that is cut off")
    rows = []
    for line in text.splitlines():
        facts = dict(re.findall(r"(?:^| )(\w+)=(\S*)", line))
        if "JobId" not in facts or "JobState" not in facts:
            continue
        array, index = facts.get("ArrayJobId"), facts.get("ArrayTaskId", "")
        code, signal = _pair(facts.get("ExitCode", ""))
        started, ended = _time(facts.get("StartTime", "")), _time(facts.get("EndTime", ""))
        rows.append(
            AccountRow(
                key=f"{array}_{index}" if array and index.isdecimal() else facts["JobId"],
                name=facts.get("JobName", ""),
                state=facts["JobState"],
                code=code,
                signal=signal,
                derived=_pair(facts.get("DerivedExitCode", ""))[0],
                submitted=_time(facts.get("SubmitTime", "")),
                started=started,
                ended=ended,
                elapsed_s=ended - started if started is not None and ended is not None else None,
                nodes=facts.get("NodeList", "").replace("(null)", ""),
                gpus=_gpus(facts.get("TRES", "")),
            )
        )
    return rows


def chunks(ids: Iterable[str]) -> list[list[str]]:
    """Return ids in lists that fit into one command each."""
    every = list(ids)
    return [every[at : at + MAX_IDS] for at in range(0, len(every), MAX_IDS)]


def _with_step(row: AccountRow, state: str, rss: str) -> AccountRow:
    used = _bytes(rss)
    most = max((size for size in (row.max_rss_bytes, used) if size is not None), default=None)
    return replace(
        row,
        max_rss_bytes=most,
        step_out_of_memory=row.step_out_of_memory or state.startswith("OUT_OF_ME"),
    )


def _split(key: str) -> tuple[str, int | None]:
    job_id, _, index = key.partition("_")
    return job_id, int(index) if index.isdecimal() else None


def _pair(written: str) -> tuple[int, int]:
    code, _, signal = written.partition(":")
    return int(code) if code.isdecimal() else 0, int(signal) if signal.isdecimal() else 0


def _time(written: str) -> float | None:
    """Return an epoch time (commands are run with SLURM_TIME_FORMAT=%s), or None for N/A and Unknown."""
    return float(written) if written.isdecimal() else None


def _bytes(written: str) -> int | None:
    match = re.fullmatch(r"([0-9.]+)([KMGTP]?)", written)
    return int(float(match[1]) * _UNITS[match[2]]) if match else None


def _gpus(tres: str) -> int:
    match = re.search(r"(?:^|,)gres/gpu=(\d+)", tres)
    return int(match[1]) if match else 0
