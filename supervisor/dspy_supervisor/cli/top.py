"""`top`: a queue and its supervisor in a terminal, live."""

from __future__ import annotations

import sys

import click

from ..config import Loaded
from .options import with_config


@click.command()
@with_config
def top(loaded: Loaded) -> int:
    """Watch a queue and its supervisor in the terminal.

    Classes, running tasks, failures, GPUs, Slurm jobs and services, each in a tab, live. Enter opens a task, / finds one,
    p pauses a class, + and - move its limit. Works without a supervisor, too: then what lies in the folders is counted.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError("top needs a terminal; 'dspy-supervisor status --json' tells the same to programs")
    from ..top import run

    return run(loaded.config)
