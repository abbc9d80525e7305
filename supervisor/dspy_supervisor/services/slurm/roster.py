"""The tasks that one bridge carries, with their jobs, in memory: what was seen of each, and for how long what was not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from ...jobbook import JobBook, Submission
from ...jobfolder import Sentinel
from ...task import Cause
from .listing import AccountRow, JobRow
from .states import LIVE, Fate, fate_of, look_up
from .verdict import Accounting, Evidence

SILENT_S = 900.0  #: a job that runs and gives no sign of life for so long is suspect
_BEAT_S = 90.0  # three times what lies between two signs of life
_LOOK_AT_BEAT_S = 60.0


@dataclass(slots=True, eq=False)
class Element:
    """One carried task. Times are monotonic seconds."""

    file: str
    job: Job | None = None  #: None: it is not submitted yet
    index: int = 0
    row: JobRow | None = None
    listings: int = 0  #: successful ones without it, in a row
    missing_since: float | None = None
    over_since: float | None = None  #: since it was first seen to be over, or was missing
    account: AccountRow | None = None
    ended: tuple[Cause, str] | None = None  #: we end it, for this
    told_to_end: float = float("-inf")  #: when scancel was last asked
    beat: object = None
    beat_at: float | None = None  #: when the heartbeat was last seen to change, or was first looked at
    beat_changed: bool = False
    beat_looked: float = float("-inf")
    ran: bool = False  #: it was seen running
    state: str = ""  #: the last word for people

    @property
    def job_id(self) -> str:
        """Its job, as Slurm's commands take it; "" where that is not known."""
        job = self.job
        if job is None or not job.submission.job_id:
            return ""
        return job.submission.job_of(self.index)

    @property
    def is_over(self) -> bool:
        """Whether the controller says so, or does not know it."""
        return self.over_since is not None

    def see(self, row: JobRow | None, now: float) -> bool:
        """Take what a listing that succeeded says of it; return whether that is news."""
        before = (self.row.state, self.row.nodes, self.row.reason) if self.row else None
        self.row = row
        if row is None:
            self.listings += 1
            if self.missing_since is None:
                self.missing_since = self.over_since = now
                self.beat_at, self.beat_changed = None, False
        else:
            self.listings, self.missing_since = 0, None
            if fate_of(row.state) in LIVE:
                self.over_since, self.account = None, None
            elif self.over_since is None:
                self.over_since = now
            self.ran = self.ran or fate_of(row.state) is Fate.RUNNING
        return before != ((row.state, row.nodes, row.reason) if row else None)

    def look_at_beat(self, book: JobBook, sentinel: Sentinel, now: float) -> None:
        """See whether its heartbeat moved since the last look."""
        if self.job is None or sentinel.started < 0:
            return
        counter = book.beat(self.job.submission.name, self.index, sentinel.started)
        self.beat_looked = now
        if self.beat_at is None:
            self.beat, self.beat_at = counter, now
        elif counter != self.beat:
            self.beat, self.beat_at, self.beat_changed = counter, now, True

    def needs_beat(self, now: float) -> bool:
        """Whether its heartbeat should be looked at again."""
        if self.row is None:
            return self.is_over
        return fate_of(self.row.state) is Fate.RUNNING and now - self.beat_looked > _LOOK_AT_BEAT_S

    def evidence(self, sentinel: Sentinel, accounting: Accounting, now: float, witness_s: float) -> Evidence:
        """Return all that is known of its job."""
        quiet_s = now - self.beat_at if self.beat_at is not None else 0.0
        return Evidence(
            row=self.row,
            listings=self.listings,
            missing_s=now - self.missing_since if self.missing_since is not None else 0.0,
            account=self.account,
            accounting=accounting,
            over_s=now - self.over_since if self.over_since is not None else 0.0,
            sentinel=sentinel,
            silent=quiet_s > SILENT_S,
            beats=self.beat_changed and quiet_s < _BEAT_S,
            siblings=self.job is not None and self.job.submission.array and (self.job.listed or self.job.accounted),
            ended=self.ended,
            witness_s=witness_s,
            shares_id=self.job is not None and self.job.shares_id,
        )


@dataclass(slots=True, eq=False)
class Job:
    """One submission, and those of its tasks that are ours. Times are monotonic seconds."""

    submission: Submission
    elements: dict[int, Element] = field(default_factory=dict)
    calling: bool = False  #: sbatch is at work
    quiet_at: float = 0.0  #: when the last request of ours ended
    absences: int = 0  #: successful listings without it, while its id is not known
    first_absent: float | None = None
    asked: bool = False  #: the accounting was asked for its name, and knows it not
    listed: bool = False  #: the last listing has some of it
    accounted: bool = False  #: the accounting has some of it
    shares_id: bool = False  #: the controller gave its id to another of ours, too: it was killed, and forgot one

    @property
    def is_open(self) -> bool:
        """Whether it is not known if the cluster has it."""
        return not self.submission.job_id and not self.calling

    def identified(self, job_id: str, cluster: str = "") -> None:
        """Keep its id."""
        self.submission = replace(self.submission, job_id=job_id, cluster=cluster or self.submission.cluster)

    def miss(self, listed_at: float) -> None:
        """Take a listing, begun at ``listed_at``, that did not have it."""
        if listed_at < self.quiet_at:
            return
        self.absences += 1
        if self.first_absent is None:
            self.first_absent = listed_at

    def seen(self) -> dict[str, dict[str, str]]:
        """Return what is known of its tasks' jobs, for people."""
        found = {}
        for index, element in self.elements.items():
            row = element.row
            facts = {"state": element.state}
            if row is not None:
                facts |= {"nodes": row.nodes, "reason": row.reason if row.reason not in ("None", "N/A") else ""}
            found[str(index)] = {name: value for name, value in facts.items() if value}
        return found


class Roster:
    """All carried tasks and their jobs."""

    def __init__(self) -> None:
        self.elements: dict[str, Element] = {}  #: by file
        self.jobs: dict[str, Job] = {}  #: by name

    def add(self, file: str) -> Element:
        """Take a task that is not submitted yet."""
        element = self.elements[file] = Element(file)
        return element

    def attach(self, submission: Submission, elements: Mapping[int, Element], *, calling: bool, now: float) -> Job:
        """Give tasks their submission."""
        job = self.jobs.get(submission.name)
        if job is None:
            job = self.jobs[submission.name] = Job(submission, calling=calling, quiet_at=now)
        for index, element in elements.items():
            element.job, element.index = job, index
            job.elements[index] = element
        return job

    def detach(self, element: Element) -> None:
        """Take a task from its submission, which goes with the last of them."""
        job = element.job
        if job is not None:
            job.elements.pop(element.index, None)
            if not job.elements and not job.calling:
                self.jobs.pop(job.submission.name, None)
        self.elements[element.file] = Element(element.file, ended=element.ended)

    def remove(self, element: Element) -> None:
        """Forget a task that is settled, or somebody else's now."""
        self.detach(element)
        self.elements.pop(element.file, None)

    def submitted(self) -> Iterator[Element]:
        """Yield the tasks whose job's id is known."""
        for job in list(self.jobs.values()):
            if job.submission.job_id:
                yield from list(job.elements.values())

    def counts(self) -> dict[str, int]:
        """Return how many tasks are in which state of the cluster."""
        found = dict.fromkeys(("waiting", "submitting", "pending", "running", "ending", "held", "unknown"), 0)
        for element in self.elements.values():
            found[_word(element)] += 1
        return found


def _word(element: Element) -> str:
    if element.job is None:
        return "waiting"
    if not element.job.submission.job_id:
        return "submitting"
    if element.row is None:
        return "unknown" if element.is_over else "pending"
    fate = fate_of(element.row.state, element.row.reason)
    words = {Fate.QUEUED: "pending", Fate.RUNNING: "running", Fate.PAUSED: "running", Fate.HELD: "held"}
    return words.get(fate, "unknown" if fate is Fate.UNKNOWN else "ending")


Rows = dict[str, dict[int, list[JobRow]]]


def by_name(rows: Iterable[JobRow], prefix: str) -> Rows:
    """Return the rows of jobs whose names begin so, by name and index (0 where it is no array)."""
    found: Rows = {}
    for row in rows:
        if row.name.startswith(prefix):
            found.setdefault(row.name, {}).setdefault(row.index or 0, []).append(row)
    return found


def choose(rows: Iterable[JobRow], job_id: str) -> tuple[JobRow | None, list[JobRow]]:
    """Return the row that counts of those of one name and index, and the others: copies, that are to be ended.

    The one whose id is known counts; else the one that runs, else the oldest: a copy that starts late ends by itself.
    """
    every = sorted(
        rows, key=lambda row: (row.job_id != job_id, fate_of(row.state) is not Fate.RUNNING, int(row.job_id))
    )
    copies = [row for row in every[1:] if row.job_id != every[0].job_id and look_up(row.state).fate in LIVE]
    return (every[0] if every else None), copies


def latest(rows: Iterable[AccountRow], name: str) -> dict[int, AccountRow]:
    """Return the last incarnation of each task of one submission, by index: a job that has its number is another's."""
    found: dict[int, AccountRow] = {}
    for row in rows:
        if row.name != name:
            continue
        for at in indices(row.key):
            if at not in found or (row.submitted or 0.0) >= (found[at].submitted or 0.0):
                found[at] = row
    return found


def indices(key: str) -> list[int]:
    """Return which elements a key names: 0 for what is no array, and more than one for 132_[0-3,7%2], which wait or waited."""
    _, array, written = key.partition("_")
    if not array:
        return [0]
    found: list[int] = []
    for part in written.strip("[]").partition("%")[0].split(","):
        if (match := re.fullmatch(r"(\d{1,8})(?:-(\d{1,8})(?::(\d{1,8}))?)?", part)) is None:
            continue  # "...", where a long list was cut
        first, last, step = (int(number) if number else None for number in match.groups())
        if first is not None:
            found += range(first, (first if last is None else last) + 1, step or 1)
    return found
