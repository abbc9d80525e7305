"""What a sandbox costs a task: a call of a handler that does nothing, and of a program (`true`), without one and in each.

::

    python -m bench.sandbox [--calls 100] [--rounds 3]

The four take turns within a round, so what others do to this machine meets them alike.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from pathlib import Path

from dspy_supervisor.config_sandbox import MECHANISMS

from bench import script
from bench.ours import CLASS, Ours
from bench.player import TIMEOUT_S

KINDS = ("off", *MECHANISMS)
_EACH = 10  # calls before it is the next one's turn


class Walled(Ours):
    """A supervisor with one worker, and its handler behind these walls or none."""

    def __init__(self, folder: Path, sandbox: str) -> None:
        folder.mkdir()
        super().__init__(folder, sync=False)
        self.options = ("--kinds", "command", "--set", f"class.{CLASS}.sandbox={sandbox}", "--no-http")

    def program_ns(self) -> int:
        """Return how long it takes to have `true` run as a task."""
        begun = time.monotonic_ns()
        self.queue.result(self.queue.submit({"argv": ["true"]}, kind="command", task_class=CLASS), timeout=TIMEOUT_S)
        return time.monotonic_ns() - begun


def measure(folder: Path, options: argparse.Namespace) -> script.Facts:
    """Return the median of each in ms, and its ratio to that without a sandbox."""
    calls: dict[str, list[int]] = {kind: [] for kind in KINDS}
    programs: dict[str, list[int]] = {kind: [] for kind in KINDS}
    with contextlib.ExitStack() as stack:
        players = {kind: stack.enter_context(Walled(folder / kind, kind)) for kind in KINDS}
        for player in players.values():
            player.start(1)
            player.call()
        for _ in range(options.rounds * options.calls // _EACH):
            for kind, player in players.items():
                for _ in range(_EACH):
                    call = player.call()
                    calls[kind].append(call.seen - call.begun)
                    programs[kind].append(player.program_ns())
    facts = {}
    for name, taken in (("call", calls), ("program", programs)):
        p50 = {kind: statistics.median(taken[kind]) / 1e6 for kind in KINDS}
        for kind in KINDS:
            facts[f"{name}_{kind}_ms_p50"] = p50[kind]
        for kind in MECHANISMS:
            facts[f"{name}_{kind}_ratio"] = p50[kind] / p50["off"]
    return facts


if __name__ == "__main__":
    script.main(__doc__, measure, calls=100, rounds=3)
