"""How much of the workers' time goes into tasks when each uses 10 ms of CPU and there are always more.

::

    python -m bench.busy [--workers 2] [--tasks 400]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench import script
from bench.ours import Ours


class Busy(Ours):
    """Workers that compute."""

    handler = "bench.handlers:burn"


def measure(folder: Path, options: argparse.Namespace) -> script.Facts:
    """Return the share of workers x time, from the first start to the last end, that was spent in the handler."""
    with Busy(folder, sync=False) as ours:
        ours.fill(options.tasks)
        ours.start(options.workers)
        spans = ours.finish()
    elapsed = max(end for _, end in spans) - min(begun for begun, _ in spans)
    spent = sum(end - begun for begun, end in spans)
    return {
        "share": spent / elapsed / options.workers,
        "tasks_per_s": len(spans) / elapsed * 1e9,
        "handler_ms": spent / len(spans) / 1e6,  # more than 10: others used the CPU
    }


if __name__ == "__main__":
    script.main(__doc__, measure, workers=2, tasks=400)
