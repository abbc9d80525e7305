"""What telemetry costs: its process under a supervisor, CPU and memory, and one look at all GPUs and at the host.

::

    python -m bench.telemetry [--seconds 20] [--gpus 8] [--real 0]

The GPUs are those of the stand-in driver that the tests compile; ``--real 1`` takes the driver of this machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from dspy_fastpath.counters import Global, Page
from dspy_supervisor.gpu import read
from dspy_supervisor.host import Host
from dspy_supervisor.services.nvml import Nvml
from dspy_supervisor.services.watch import Watch

from bench import script
from bench.idle import fields, used_ns
from tests.conftest import supervisors, until
from tests.nvml import H100, Here, Script, compile_library

SETTLE_S = 3.0
ROUNDS = 200


def milliseconds(work: Callable[[], object]) -> float:
    """Return the median time of a call."""
    times = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1e3


def measure(folder: Path, options: argparse.Namespace) -> script.Facts:
    """Return the facts."""
    environ: dict[str, str] = {}
    if not options.real:
        library = compile_library(folder / "nvml")
        os.environ["NVML_SCRIPT"] = str(folder / "nvml.script")
        driver: Script = Here(folder / "nvml.script", library)
        environ = driver.environ
        for place in range(options.gpus):
            driver.gpu(place, uuid=f"GPU-{place}", bus=f"00000000:{place:02X}:00.0", **H100)
    watch, host = Watch([Nvml()]), Host()
    watch.look(time.monotonic())
    look_ms = milliseconds(lambda: watch.look(time.monotonic()))
    host_ms = milliseconds(lambda: host.sample(time.monotonic()))
    watch.close()
    with supervisors(folder) as start:
        one = start(settings={"enable_gpu": "true", "policy": "fixed"}, environ=environ)
        with Page.attach(one.socket.with_suffix(".page")) as page:
            until(lambda: page.get_global(Global.GPU_SAMPLES) > 0, "the first look", 90)
            time.sleep(SETTLE_S)
            pid = one.status()["services"]["telemetry"]["pid"]
            used, looks, begun = used_ns(pid), page.get_global(Global.GPU_SAMPLES), time.monotonic()
            time.sleep(options.seconds)
            elapsed_s = time.monotonic() - begun
            looks, used = page.get_global(Global.GPU_SAMPLES) - looks, used_ns(pid) - used
            read_ms = milliseconds(lambda: read(page))
        memory = fields(Path(f"/proc/{pid}/smaps_rollup"))
    return {
        "gpus": len(watch.look(time.monotonic()).devices),
        "look_ms": look_ms,
        "host_ms": host_ms,
        "looks_per_s": looks / elapsed_s,
        "cpu_percent": used / 1e9 / elapsed_s * 100,
        "pss_mb": memory["Pss"] / 1024,
        "rss_mb": memory["Rss"] / 1024,
        "read_page_ms": read_ms,  # by who decides: controller, admission
    }


if __name__ == "__main__":
    script.main(__doc__, measure, seconds=20, gpus=8, real=0)
