"""What a page says and a test does not run, each with the reason and, where there is one, the test that runs the same.

A row is a pattern, matched at the beginning of a command, or of a whole block that is no shell. Commands of this program that
are not run are read by their parser all the same.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class NotRun(NamedTuple):
    """One kind of command."""

    pattern: str
    reason: str
    instead: str = ""  #: file of the repository that tries it


TABLE = (
    NotRun(r"make \w+", "takes minutes, and is run by whoever runs this"),
    NotRun(r"(python3 -m venv|pip install|uv )", "installs what is installed already", "tests/wheels"),
    NotRun(
        r"(eval \"\$\()?deploy/slurm/dev-cluster|dspy-supervisor (slurm |start .*--mode cluster)",
        "needs a Slurm cluster",
        "tests/slurm/test_dev_cluster.py",
    ),
    NotRun(
        r"dspy-supervisor simulate --(scenario|replay)",
        "compiles for many seconds, or needs a recording of hours",
        "tests/unit/test_simulate_judge.py",
    ),
    NotRun(
        r"dspy-supervisor cloud ", "asks a provider of machines, who wants an account", "tests/cloud/test_commands.py"
    ),
    NotRun(r"#!/bin/bash\n#SBATCH", "a template that Slurm runs", "tests/slurm/test_matrix.py"),
    NotRun(
        r"(.*\n)*from dspy_supervisor\.dspy import |dspy-supervisor start .*--kinds dspy",
        "needs a language model, and takes seconds to import",
        "tests/dspy/test_evaluate.py",
    ),
    NotRun(r"(sudo |systemctl |journalctl |loginctl )", "needs systemd as PID 1 and root", "tests/guest/systemd.py"),
)


def reason(text: str) -> NotRun | None:
    """Return why a command or a block is not run, or None where it is."""
    return next((row for row in TABLE if re.match(row.pattern, text)), None)
