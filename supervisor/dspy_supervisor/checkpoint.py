"""Work that outlives its job: a handler asks whether its time is up, saves what it has, and goes on in the next job.

::

    from dspy_supervisor import checkpoint_requested, checkpoint_saved

    def train(task):
        saved = task.output_folder() / "checkpoint.json"
        step = json.loads(saved.read_text())["step"] if saved.exists() else 0
        while step < task.payload["steps"]:
            step += 1                                       # ... one step of work
            if checkpoint_requested():
                write_whole(saved, {"step": step})          # to a temporary name, then os.replace
                checkpoint_saved(f"at step {step}")         # does not return
        return {"steps": step}

A program does the same: it looks whether the file named by the variable DSPY_CHECKPOINT has become longer than nothing
(``[ -s "$DSPY_CHECKPOINT" ]``), keeps its work in TASK_FOLDER, and ends with exit code 85. Of several ranks all must agree on the
step at which they save; where one of them calls `checkpoint_saved`, the job as a whole has.

The wish comes before the end of the walltime, and when Slurm preempts or ends the job; outside of a job it never comes.
"""

from __future__ import annotations

import os
import socket
from typing import NoReturn

from .environment import checkpoint_file
from .parts import Retry

EXIT_REQUEUE = 85  #: of a program, or of a job: it saved its work and wants to go on


class CheckpointSaved(Retry, SystemExit):
    """The work is saved, and goes on from there in the next attempt. Ends a program with exit code 85."""

    def __init__(self, note: str = "") -> None:
        super().__init__(note or "a checkpoint was saved", 0.0)
        self.code = EXIT_REQUEUE


def checkpoint_requested() -> bool:
    """Whether what runs here should save its work now and end by `checkpoint_saved`; costs an open and a read."""
    if not (path := checkpoint_file()):
        return False
    try:
        # Opened anew each time: NFS then asks the server, which it does not for a name that was absent before.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return bool(os.read(descriptor, 1))
    finally:
        os.close(descriptor)


def checkpoint_saved(note: str = "") -> NoReturn:
    """End this attempt: its work is saved, and the next one goes on from there. Raises CheckpointSaved."""
    if path := checkpoint_file():
        # A file of its own for each rank: torchrun makes 1 of every exit code, and a rank may be on another host.
        marker = f"{path}.saved.{socket.gethostname()}.{os.getpid()}"
        os.close(os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    raise CheckpointSaved(note)
