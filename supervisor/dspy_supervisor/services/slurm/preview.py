"""What would be submitted for a queue as it is now, without submitting it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dspy_fastpath.envelope import scan

from ...config import Config
from ...jobbook import FOLDER, JobFacts, new_name
from ...layout import Layout, list_folder
from ...record import Claim
from ...task import TaskName, WorkloadClass
from ...taskqueue import TaskQueue, Unusable
from .pilots import CLASS
from .plan import JobPlan, JobRefused, plan_job
from .submit import Planned, grouped, sbatch_argv
from .templates import render

MAX_TASKS = 10_000  #: that are looked at


@dataclass(frozen=True, slots=True)
class Preview:
    """One sbatch that would be, or tasks that would be refused."""

    tasks: tuple[str, ...]  #: ids
    plan: JobPlan | None = None
    argv: tuple[str, ...] = ()
    script: bytes = b""
    refused: str = ""


def previews(config: Config, layout: Layout, max_array_size: int = 1001) -> Iterator[Preview]:
    """Yield what the tasks that wait now would become. Raises ConfigError."""
    planned = []
    for held in waiting(layout):
        try:
            planned.append(Planned(held, plan_job(config, config.classes[CLASS], held)))
        except JobRefused as error:
            yield Preview((held.name.id,), refused=str(error))
    for group in grouped(planned, max_array_size):
        ids = tuple(one.held.name.id for one in group)
        yield preview(config, layout, group[0].plan, ids)


def preview(config: Config, layout: Layout, plan: JobPlan, ids: tuple[str, ...]) -> Preview:
    """Return the command and the script that these tasks would be submitted by."""
    name = new_name(layout.queue_id)
    python = str(config.slurm_python or sys.executable)
    facts = JobFacts(name, Path(layout.path) / FOLDER / name, len(ids), len(ids) > 1, python)
    try:
        return Preview(ids, plan, sbatch_argv(plan, facts, os.getcwd()), render(config, plan, facts))
    except JobRefused as error:
        return Preview(ids, plan, refused=str(error))


def waiting(layout: Layout) -> Iterator[Claim]:
    """Yield the tasks that wait to become jobs, oldest names first; at most MAX_TASKS of the folder are read."""
    queue = TaskQueue(layout)
    for file in sorted(name for name in list_folder(layout.pending) if TaskName.parse(name))[:MAX_TASKS]:
        try:
            held = queue.look(file)
        except (Unusable, OSError):
            continue
        if held is not None and held.workload is WorkloadClass.GPU_SLURM:
            yield held


def task_of(raw: bytes) -> Claim:
    """Return a task that is in no queue, to see what would become of it. Raises EnvelopeError."""
    fields = scan(raw)
    name = TaskName(fields.id) if fields.id and TaskName.parse(f"{fields.id}.json") else TaskName("task")
    return Claim(name, raw, fields, 0.0)
