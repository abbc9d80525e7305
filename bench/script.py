"""What idle, recovery, busy and million have in common: their options, a folder that goes at the end, their output."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from bench import machine
from bench.player import ROOT

Facts = Mapping[str, float]


def main(about: str | None, measure: Callable[[Path, argparse.Namespace], Facts], **more: int) -> None:
    """Measure in a new folder and print the facts, one a line or as JSON; ``more`` are whole-number options."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--disk", type=Path, default=ROOT / "build" / "bench", help="where to make the queue")
    parser.add_argument("--json", action="store_true")
    for name, default in more.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"default {default}")
    options = parser.parse_args()
    options.disk.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.disk, prefix="b") as folder, machine.watch() as load:
        facts = dict(measure(Path(folder), options))
    if options.json:
        print(json.dumps(facts))
        return
    print(f"{machine.describe(options.disk)}; others used {load.others:.0%} of the CPUs")
    for name, value in facts.items():
        print(f"{name:28}{value:>14,.3f}")
