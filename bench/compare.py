"""The C floor, ours and the rivals, measured in one run in interleaved rounds, and where each goal stands.

::

    bench/rivals/setup; python -m bench.compare [--quick | --full] [--only NAME]... [--rounds N]

Absolute figures move by 30 % and more from hour to hour, so only ratios within a run count: each round measures
everybody once, a ratio is taken within a round, and its median over the rounds is told. A latency is from before the
producer's first system call, one task at a time, 3 ms apart, 200 bytes of payload; a rate is of a backlog that was
there before the workers, from the first to the last start of a no-op handler. What is found goes to bench/results/ too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from bench import floor, goals, machine, rivals
from bench.goals import Figure, Measurement

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("results")
RIVALS_PYTHON = ROOT / ".venvs" / "rivals" / "bin" / "python"
TIMEOUT_S = 120.0
BUSY = 0.15  #: share of the CPUs

FLOORS = ("floor", "floor-protocol")

Figures = dict[Measurement, list[dict[str, float]]]  # one dict of figures a round


class Sizes(NamedTuple):
    """How much is measured in one round."""

    rounds: int
    calls: int
    seconds: float  #: bound on the calls of a slow player
    backlog: int  #: of the floor and ours; a rival's is its own
    puts: int
    share: float  #: of a rival's own backlog


QUICK = Sizes(rounds=2, calls=120, seconds=1.5, backlog=4000, puts=4000, share=0.3)
NORMAL = Sizes(rounds=5, calls=250, seconds=3.0, backlog=10_000, puts=10_000, share=0.5)
FULL = Sizes(rounds=5, calls=300, seconds=3.0, backlog=20_000, puts=10_000, share=1.0)


def plan(full: bool, only: Sequence[str]) -> list[Measurement]:
    """Return what one round measures, those that are compared with each other side by side."""
    found = []
    names = list(rivals.MODULES) if full else list(rivals.QUICK)
    for where in ("ext4", "tmpfs"):
        folder_rivals = [name for name in names if name in rivals.FOLDER]
        found += [Measurement(name, "latency", where) for name in (*FLOORS, "ours", *folder_rivals)]
    found += [Measurement(name, "latency", "ext4", sync=True) for name in (*FLOORS, "ours")]
    found += [Measurement(name, "latency", "ext4") for name in names if name not in rivals.FOLDER]
    for where in ("ext4", "tmpfs"):
        found += [
            Measurement(name, "drain", where, workers=workers) for workers in (1, 2) for name in (*FLOORS, "ours")
        ]
    found += [Measurement(name, "drain", "ext4", sync=True) for name in (*FLOORS, "floor-log", "ours")]
    found += [Measurement(name, "drain", "ext4") for name in names]
    if full:
        found += [Measurement(name, "latency", "ext4", sync=True) for name in rivals.DURABLE]
        found += [Measurement(name, "drain", "ext4", workers=2) for name in names]
        found += [Measurement("floor-log", "drain", "ext4", workers=workers) for workers in (1, 2)]
        found += [Measurement(name, "drain", "ext4", sync=True) for name in rivals.DURABLE]
    found += [Measurement("floor", "put", "ext4"), Measurement("ours", "put", "ext4", sync=True)]
    return [measurement for measurement in dict.fromkeys(found) if not only or measurement.who in only]


def measure(what: Measurement, folder: Path, sizes: Sizes) -> dict[str, float]:
    """Return the figures of one measurement: latencies in us, rates per second."""
    found = measure_floor(what, folder, sizes) if what.who.startswith("floor") else play(what, folder, sizes)
    if what.what != "latency":
        return {"rate": found["tasks"] / found["seconds"]}
    return {
        f"{point}_{name}": value
        for point, latencies in found.items()
        for name, value in (("p50", percentile(latencies, 0.5)), ("p99", percentile(latencies, 0.99)))
    }


def measure_floor(what: Measurement, folder: Path, sizes: Sizes) -> dict[str, Any]:
    """Run the C program."""
    steps = "protocol" if what.who == "floor-protocol" else "least"
    if what.what == "latency":
        return dict(floor.latency(folder, sizes.calls, what.sync, 0.003, steps))
    if what.what == "put":
        return dict(floor.put(folder, sizes.puts, "group" if what.sync else "none"))
    log = what.who == "floor-log"
    sync = ("group" if log else "each") if what.sync else "none"
    tasks = sizes.backlog // 10 if sync == "each" else sizes.backlog
    return dict(floor.drain(folder, tasks, what.workers, "log" if log else "files", sync, steps))


def play(what: Measurement, folder: Path, sizes: Sizes) -> dict[str, Any]:
    """Run bench/play.py in the environment of the player."""
    ours = what.who == "ours"
    backlog = sizes.backlog if ours else int(rivals.BACKLOGS[what.who] * sizes.share)
    tasks = {"latency": sizes.calls, "put": sizes.puts, "drain": backlog // 10 if what.sync else backlog}[what.what]
    command = [
        *(sys.executable if ours else RIVALS_PYTHON, "-m", "bench.play", what.who, folder, what.what),
        *("--tasks", str(tasks), "--seconds", str(sizes.seconds), "--workers", str(what.workers)),
        *(["--sync"] if what.sync else []),
    ]
    log = folder.with_suffix(".log")
    with log.open("wb") as errors:
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    try:
        out, _ = child.communicate(timeout=TIMEOUT_S)
    finally:
        end_group(child)
    if child.returncode != 0:
        tail = log.read_text(errors="replace").strip().splitlines()[-1:]
        raise RuntimeError(f"{what}: ended with {child.returncode}: {''.join(tail)}")
    found: dict[str, Any] = json.loads(out)
    return found


def end_group(child: subprocess.Popen[bytes]) -> None:
    """End whatever is left of a player and its servers."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which this share of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


@contextmanager
def folders(disk: Path) -> Iterator[Mapping[str, Path]]:
    """Two folders that go at the end: on the disk and in memory."""
    disk.mkdir(parents=True, exist_ok=True)
    # the paths stay short: a unix socket's may have 107 bytes
    with tempfile.TemporaryDirectory(dir=disk, prefix="b") as slow, tempfile.TemporaryDirectory(dir="/dev/shm") as fast:
        yield {"ext4": Path(slow), "tmpfs": Path(fast)}


def run_rounds(measurements: Sequence[Measurement], sizes: Sizes, disk: Path) -> tuple[Figures, dict[str, str]]:
    """Return the figures of all rounds, and why a player could not be measured."""
    figures: Figures = {measurement: [] for measurement in measurements}
    failed: dict[str, str] = {}
    with folders(disk) as places:
        for turn in range(sizes.rounds):
            for number, what in enumerate(measurements, 1):
                progress(f"round {turn + 1}/{sizes.rounds}, {number}/{len(measurements)}: {what}")
                folder = places[what.where] / "q"
                folder.mkdir()
                begun = time.monotonic()
                try:
                    figures[what].append(measure(what, folder, sizes) | {"took_s": time.monotonic() - begun})
                except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                    failed[str(what)] = str(error)
                finally:
                    shutil.rmtree(folder, ignore_errors=True)
    progress("")
    return figures, failed


def progress(text: str) -> None:
    """Overwrite the line of a terminal that says what is being measured."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()


def middle(figures: Figures, figure: Figure) -> float | None:
    """Return the median of a figure over the rounds."""
    found = [turn[figure.metric] for turn in figures.get(figure.of, []) if figure.metric in turn]
    return statistics.median(found) if found else None


def ratio(figures: Figures, ours: Figure, yardstick: Figure) -> float | None:
    """Return the median over the rounds of ours / yardstick."""
    pairs = zip(figures.get(ours.of, []), figures.get(yardstick.of, []), strict=False)
    found = [one[ours.metric] / other[yardstick.metric] for one, other in pairs]
    return statistics.median(found) if found else None


def print_latencies(figures: Figures) -> None:
    """Print each player's latency beside its ratio to the floor."""
    print(f"\n{'latency, us':34}{'put p50':>9}{'start p50':>11}{'p99':>9}{'seen p50':>12}{'p99':>11}", end="")
    print(f"{'x floor: start':>16}{'seen':>8}")
    for what, turns in figures.items():
        if what.what != "latency" or not turns:
            continue
        values = [
            middle(figures, Figure(what, metric)) or 0.0
            for metric in ("put_p50", "start_p50", "start_p99", "seen_p50", "seen_p99")
        ]
        base = what._replace(who="floor")
        ratios = [ratio(figures, Figure(what, metric), Figure(base, metric)) for metric in ("start_p50", "seen_p50")]
        put, start, start99, seen, seen99 = (f"{value:,.0f}" for value in values)
        told = [f"{value:,.2f}" if value else "-" for value in ratios]
        print(f"{what.title:34}{put:>9}{start:>11}{start99:>9}{seen:>12}{seen99:>11}{told[0]:>16}{told[1]:>8}")


def print_rates(figures: Figures) -> None:
    """Print each player's rates beside their ratios to the floor, which never syncs a put."""
    head = f"{'rate, tasks per second':34}{'put':>10}{'drain, 1':>12}{'2 workers':>12}"
    print(f"\n{head}{'x floor: put':>16}{'1':>8}{'2':>8}")
    players = dict.fromkeys(what._replace(what="drain", workers=1) for what in figures if what.what != "latency")
    for player in players:
        columns = [player._replace(what="put"), player, player._replace(workers=2)]
        rates = [middle(figures, Figure(of, "rate")) for of in columns]
        if not any(rates):
            continue
        ratios = [
            ratio(
                figures, Figure(of, "rate"), Figure(of._replace(who="floor", sync=of.sync and of.what != "put"), "rate")
            )
            for of in columns
        ]
        put, one, two = (f"{value:,.0f}" if value else "-" for value in rates)
        told = [f"{value:,.2f}" if value else "-" for value in ratios]
        print(f"{player.title:34}{put:>10}{one:>12}{two:>12}{told[0]:>16}{told[1]:>8}{told[2]:>8}")


def print_goals(figures: Figures, facts: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Print where each goal stands; return the same as data."""
    rows = []
    print(f"\n{'goal':66}{'found':>12}{'wanted':>12}")
    for goal in goals.RATIOS:
        value = ratio(figures, goal.ours, goal.yardstick)
        rows.append(tell(goal.text, value, goal.wanted, goal.bound))
    for fact in goals.FACTS:
        found = facts.get(fact.script)
        value = None if found is None else found.get(fact.key)
        rows.append(tell(fact.text, value, fact.wanted, fact.bound))
    for text in goals.NOT_BUILT:
        print(f"{text:66}{'':>24}  nothing to measure yet")
    return rows


def tell(text: str, value: float | None, wanted: str, bound: float) -> dict[str, Any]:
    """Print one goal."""
    met = None if value is None else (value <= bound if wanted == "<=" else value >= bound)
    verdict = {None: "not measured", True: "met", False: "NOT MET"}[met]
    told = "-" if value is None else f"{value:,.3g}"
    print(f"{text:66}{told:>12}{wanted + f' {bound:,.3g}':>12}  {verdict}")
    return {"goal": text, "found": value, "wanted": f"{wanted} {bound}", "met": met}


def run_script(name: str, arguments: Sequence[str], disk: Path) -> dict[str, Any]:
    """Run one of the other scripts and return what it found."""
    progress(f"bench.{name} {' '.join(arguments)}")
    command = [sys.executable, "-m", f"bench.{name}", "--json", "--disk", str(disk), *arguments]
    ran = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=False)
    if ran.returncode:
        print(f"bench.{name} failed")
        return {}
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="about a minute: floor, ours, and the rivals in the goals")
    size.add_argument("--full", action="store_true", help="all rivals, and the scripts for memory, idleness, recovery")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="a floor, ours or a rival")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--disk", type=Path, default=ROOT / "build" / "bench", help="a folder on a real disk")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through every `finally` that ends a server
    floor.build()
    sizes = FULL if options.full else QUICK if options.quick else NORMAL
    sizes = sizes._replace(rounds=options.rounds or sizes.rounds)
    measurements = plan(options.full, options.only)
    if not RIVALS_PYTHON.exists():
        print("without rivals: bench/rivals/setup makes their environment", file=sys.stderr)
        measurements = [what for what in measurements if what.who not in rivals.MODULES]
    begun = time.monotonic()
    with machine.watch() as load:
        figures, failed = run_rounds(measurements, sizes, options.disk)
        facts: dict[str, dict[str, Any]] = {}
        if options.full and not options.only:
            for script in goals.SCRIPTS:
                facts[script] = run_script(script, [], options.disk)
    about = machine.describe(options.disk)
    print(
        f"{about}; {time.monotonic() - begun:.0f} s, {sizes.rounds} rounds; others used {load.others:.0%} of the CPUs"
    )
    if load.others > BUSY:
        print("others used so much that only ratios of 2 and more mean anything")
    print_latencies(figures)
    print_rates(figures)
    rows = print_goals(figures, facts)
    for what, why in failed.items():
        print(f"not measured: {why if what in why else f'{what}: {why}'}")
    RESULTS.mkdir(exist_ok=True)
    kept = {
        "machine": about,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "others_cpu_share": load.others,
        "sizes": sizes._asdict(),
        "figures": {str(what): turns for what, turns in figures.items()},
        "facts": facts,
        "goals": rows,
        "failed": failed,
    }
    path = RESULTS / time.strftime("compare-%Y%m%d-%H%M%S.json")
    path.write_text(json.dumps(kept, indent=1))
    print(f"\nkept in {path}")


if __name__ == "__main__":
    main()
