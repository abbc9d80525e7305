"""What the controller costs: a step compiled and plain, and the process with its CPU, memory and wake-ups.

::

    python -m bench.controller [--seconds 20] [--steps 20000]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from dspy_supervisor.control_client import ask
from dspy_supervisor.limit import Input, Policy, Step, compile_step, new_state, parameters, step

from bench import script
from bench.idle import SETTLE_S, fields, used_ns, wakes
from bench.ours import Ours

COMPILES_S = 300.0  # the longest that Numba may take where nothing is cached


class Steered(Ours):
    """A supervisor with a controller."""

    options = ("--policy", "adaptive")

    @property
    def controller(self) -> dict[str, Any]:
        """What the controller says of itself."""
        found: dict[str, Any] = ask(next(self.runtime.glob("*.sock")), {"do": "status"}, 10.0)["services"]["controller"]
        return found


def step_us(chosen: Step, *, arrays: bool, steps: int) -> float:
    """Return the time of one step of `adaptive` in microseconds, the best of five."""
    window = [0.5] * len(Input)
    window[Input.LIMIT] = window[Input.INFLIGHT] = 4.0
    window[Input.OOMS] = window[Input.THROTTLE] = 0.0
    window[Input.DONE], window[Input.BACKLOG] = 20.0, 100.0
    state, params = new_state(), parameters(1.0, 32.0)
    vectors = tuple(np.array(each) for each in (window, state, params)) if arrays else (window, state, params)
    best = float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        for _ in range(steps):
            chosen(int(Policy.ADAPTIVE), *vectors)
        best = min(best, time.perf_counter() - begun)
    return best / steps * 1e6


def measure(folder: Path, options: argparse.Namespace) -> script.Facts:
    """Return the facts."""
    begun = time.process_time()
    compiled = compile_step()
    compile_s = time.process_time() - begun
    facts = {
        "step_compiled_us": step_us(compiled, arrays=True, steps=options.steps),
        "step_plain_us": step_us(step, arrays=False, steps=options.steps),
        "compile_cpu_s": compile_s,
    }
    with Steered(folder, sync=False) as ours:
        ours.start(4)
        ours.call()
        until = time.monotonic() + COMPILES_S
        while ours.controller.get("step") != "compiled":
            assert time.monotonic() < until, ours.controller
            time.sleep(0.2)
        time.sleep(SETTLE_S)
        pid = ours.controller["pid"]
        cpu, woken, begun = used_ns(pid), wakes(pid), time.monotonic()
        time.sleep(options.seconds)
        elapsed = time.monotonic() - begun
        memory = fields(Path(f"/proc/{pid}/smaps_rollup"))
        return {
            **facts,
            "controller_cpu_percent": (used_ns(pid) - cpu) / 1e9 / elapsed * 100,
            "controller_wakes_per_s": (wakes(pid) - woken) / elapsed,
            "controller_rss_mb": memory["Rss"] / 1024,
            "controller_pss_mb": memory["Pss"] / 1024,
        }


if __name__ == "__main__":
    script.main(__doc__, measure, seconds=20, steps=20_000)
