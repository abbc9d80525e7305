"""What a scrape of the metrics costs after ten thousand workers died, beside one before, and beside prometheus_client's own text.

::

    python -m bench.scrape [--deaths 10000] [--gpus 8]
"""

from __future__ import annotations

import argparse
import gzip
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from dspy_fastpath.counters import Counter, Histogram, Page, SlotState
from dspy_supervisor.metrics import Exposition, View
from prometheus_client.exposition import choose_encoder

from bench import script

CLASSES = ("cpu_short", "cpu_long", "gpu", "gpu_slurm")
MODERN = "application/openmetrics-text; version=1.0.0"
ROUNDS = 100


def cpu_ms(work: Callable[[], object]) -> float:
    """Return the median processor time of a call."""
    times = []
    for _ in range(ROUNDS):
        begun = time.process_time()
        work()
        times.append(time.process_time() - begun)
    return statistics.median(times) * 1e3


def measure(folder: Path, options: argparse.Namespace) -> script.Facts:
    """Return the facts."""
    exposition = Exposition()
    with Page.create(folder / "page", "bench", CLASSES, 1024) as page:
        for place in range(options.gpus):
            page.gpu_write(place, b"GPU-%d" % place, dict.fromkeys(range(20), 1.0), time.monotonic())

        def scrape() -> bytes:
            return exposition.text(View(page, {}), MODERN).body

        before, before_ms = len(scrape().splitlines()), cpu_ms(scrape)
        for number in range(options.deaths):
            slot, klass = number % 1024, number % len(CLASSES)
            page.slot_set(slot, 1000 + number, number, klass, SlotState.BUSY)
            page.observe(klass, Histogram.RUN, number * 1e-3)
            page.slot_set(slot, 0, 0, 0, SlotState.EMPTY)
            page.add(klass, Counter.RESTARTS)
        after, after_ms = scrape(), cpu_ms(scrape)
        encode, _ = choose_encoder(MODERN)
        theirs_ms = cpu_ms(lambda: encode(exposition.registry))
        squeezed_ms = cpu_ms(lambda: exposition.text(View(page, {}), MODERN, "gzip"))
    return {
        "lines_before": before,
        "lines": len(after.splitlines()),
        "kb": len(after) / 1024,
        "gzip_kb": len(gzip.compress(after, 1)) / 1024,
        "cpu_ms_before": before_ms,
        "cpu_ms": after_ms,
        "cpu_ms_gzip": squeezed_ms,
        "cpu_ms_prometheus_client": theirs_ms,
        "times_ours": theirs_ms / after_ms,
    }


if __name__ == "__main__":
    script.main(__doc__, measure, deaths=10_000, gpus=8)
