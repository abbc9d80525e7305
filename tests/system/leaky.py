"""The process that runs tasks in a sandbox, with the gap in its walls that PLANTED names: what the proof must find."""

from __future__ import annotations

import os
import sys

from dspy_supervisor import cell
from dspy_supervisor.sandbox import kernel, walls


def _nothing(*_given: object, **_more: object) -> None:
    """Build no wall."""


gap = os.environ["PLANTED"]
if gap == "filter":
    kernel.install_filter = _nothing
elif gap == "privileges":
    kernel.drop_privileges = kernel.install_filter = _nothing  # the filter needs this one
elif gap == "files":
    kernel.landlock = walls.build_tree = _nothing
elif gap == "descriptors":
    os.dup(0)

if __name__ == "__main__":
    sys.exit(cell.main())
