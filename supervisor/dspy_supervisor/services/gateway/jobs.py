"""The Slurm jobs of a queue, as its job book on disk tells them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ...jobbook import JobBook, Submission
from ...layout import Layout
from ...record import timestamp
from ...task import TaskName

_MOST = 1000  #: newest tasks that are listed


class Job(NamedTuple):
    """One task that is a job."""

    submission: Submission
    place: int  #: in the submission, which is its index in the array
    seen: Mapping[str, Any]  #: of it at the cluster, as the bridge last noted


def jobs(layout: Layout) -> list[dict[str, Any]]:
    """Return the jobs that are not settled, newest first, as /v1/slurm/jobs shows them."""
    rows: list[dict[str, Any]] = []
    for job in _all(JobBook(layout)):
        if len(rows) >= _MOST:
            break
        name = TaskName.parse(job.submission.tasks[job.place])
        rows.append(
            {
                "id": job.submission.job_of(job.place) if job.submission.job_id else None,
                "name": job.submission.name,
                "task_id": name.id if name else None,
                "cluster": job.submission.cluster or None,
                "state": job.seen.get("state"),
                "nodes": job.seen.get("nodes") or None,
                "reason": job.seen.get("reason") or None,
                "submitted_at": timestamp(job.submission.at)[1:-1].decode(),
                "options": list(job.submission.options),
            }
        )
    return rows


def job_of(layout: Layout, file: str) -> Job | None:
    """Return the job of a claimed task; None while it was not submitted."""
    book = JobBook(layout)
    found = book.find(file)
    if found is None:
        return None
    submission, index = found
    return Job(submission, index, book.seen(submission.name).get(str(index), {}))


def _all(book: JobBook) -> Iterator[Job]:
    for name in reversed(book.names()):
        submission = book.read(name)
        if submission is None:
            continue
        seen = book.seen(name)
        for index in range(len(submission.tasks)):
            if book.folder(name, index).is_dir():  # it goes when the task is settled
                yield Job(submission, index, seen.get(str(index), {}))
