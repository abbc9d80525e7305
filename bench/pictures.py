"""The pictures of docs/how-it-works.md: where a task can be, where its time goes, what the controller does in a warm case.

::

    python -m bench.pictures [--only states|timeline|controller]      writes docs/states.svg, timeline.svg, heat.svg

States are drawn from nothing but the names in task.py; the timeline is measured here and now (see bench.timeline: perf and
the right to trace), the controller is simulated. Plain SVG, without a library.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import numpy as np
from dspy_supervisor.limit import Policy, compile_step
from dspy_supervisor.simulate import judge, plant
from dspy_supervisor.simulate.scenarios import SCENARIOS
from dspy_supervisor.task import State

from bench import machine, timeline
from bench.player import ROOT

DOCS = ROOT / "docs"
INK, SOFT, LINE, BLUE, ORANGE, GREEN, RED, GREY = (
    *("#1c2530", "#5a6775", "#c9d1da", "#0b5fb0", "#d9740b", "#3a9a52", "#c44e52", "#9aa5b1"),
)
Point = tuple[float, float]


class Picture:
    """Lines, boxes and words on white, in pixels; ``describes`` is what a reader is told who can't see it."""

    def __init__(self, width: int, height: int, describes: str) -> None:
        self.width, self.height, self.describes, self.parts = width, height, describes, list[str]()

    def box(
        self, x: float, y: float, width: float, height: float, colour: str, *, line: str = "", round: int = 3
    ) -> None:
        edge = f' stroke="{line}" stroke-width="1.5"' if line else ""
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{round}" fill="{colour}"{edge}/>'
        )

    def words(self, x: float, y: float, text: str, *, at: str = "middle", size: int = 13, colour: str = INK) -> None:
        shown = escape(text)
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{at}" fill="{colour}">{shown}</text>'
        )

    def path(
        self, points: Sequence[Point], colour: str, *, wide: float = 1.5, dash: str = "", arrow: bool = False
    ) -> None:
        steps = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        more = (f' stroke-dasharray="{dash}"' if dash else "") + (' marker-end="url(#tip)"' if arrow else "")
        self.parts.append(f'<polyline points="{steps}" fill="none" stroke="{colour}" stroke-width="{wide}"{more}/>')

    def save(self, path: Path) -> None:
        tip = '<path d="M0,0 L9,4.5 L0,9 z" fill="#5a6775"/>'
        path.write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" role="img" '
            f'font-family="system-ui, sans-serif">\n<title>{escape(self.describes)}</title>\n<defs><marker id="tip" '
            f'markerWidth="9" markerHeight="9" refX="8" refY="4.5" orient="auto" markerUnits="userSpaceOnUse">{tip}</marker>'
            f'</defs>\n<rect width="{self.width}" height="{self.height}" rx="8" fill="#ffffff"/>\n'
            + "\n".join(self.parts)
            + "\n</svg>\n"
        )
        print(f"wrote {path}")


def states() -> None:
    """Draw the folders that a task can be in, and what moves it."""
    picture = Picture(860, 400, "The folders of a queue, and what moves a task from one to another")
    places = {
        "a producer": (90, 90, SOFT),
        State.PENDING: (290, 90, BLUE),
        State.CLAIMED: (530, 90, ORANGE),
        State.DONE: (765, 90, GREEN),
        State.DELAYED: (440, 240, GREY),
        State.FAILED: (765, 240, RED),
        "quarantine": (140, 240, GREY),
    }
    wide, high = 62, 22
    for name, (x, y, colour) in places.items():
        picture.box(x - wide, y - high, 2 * wide, 2 * high, "#ffffff", line=colour, round=8)
        picture.words(x, y + 5, f"{name}/" if name != "a producer" else name, size=15)
    moves: list[tuple[Sequence[Point], Point, str]] = [
        (((152, 90), (226, 90)), (189, 80), "put"),
        (((352, 90), (466, 90)), (409, 80), "claim"),
        (((592, 90), (701, 90)), (646, 80), "commit"),
        (((530, 68), (530, 35), (290, 35), (290, 66)), (410, 27), "its worker or its host died"),
        (((530, 112), (530, 240), (504, 240)), (476, 180), "failed, tries left"),
        (((378, 240), (345, 240), (345, 114)), (393, 205), "its time is here"),
        (((570, 112), (570, 240), (701, 240)), (596, 180), "last try"),
        (((270, 112), (270, 240), (204, 240)), (236, 180), "is no task"),
        (((765, 262), (765, 330), (312, 330), (312, 114)), (540, 320), "task retry"),
    ]
    for points, (x, y), text in moves:
        picture.path(points, SOFT, arrow=True)
        picture.words(x, y, text, size=12, colour=SOFT)
    picture.words(
        430, 375, "Each arrow is completed by one rename on one filesystem, which exactly one process wins.", size=14
    )
    picture.save(DOCS / "states.svg")


def time_of_a_task(calls: int) -> None:
    """Draw what producer, supervisor and worker ask of the kernel while one task goes through them, medians."""
    with tempfile.TemporaryDirectory(dir=_disk(), prefix="b") as folder, machine.watch() as load:
        tasks = timeline.record(Path(folder), calls)
    lanes = {process: timeline.usual(process, tasks)[1] for process in timeline.PROCESSES}
    end = max(moment.at for moments in lanes.values() for moment in moments)
    picture = Picture(860, 360, "System calls of producer, supervisor and worker during one task, in microseconds")
    left, right, high = 100, 840, 34

    def across(us: float) -> float:
        return left + (right - left) * us / end

    for at, (colour, text) in enumerate(
        ((BLUE, "open, read"), (ORANGE, "write, send"), (GREEN, "rename"), (RED, "remove"))
    ):
        picture.box(left + 130 * at, 12, 12, 12, colour)
        picture.words(left + 130 * at + 18, 22, text, at="start", size=12)
    step = next(step for step in (100, 200, 500, 1000, 2000, 5000, 10000) if end / step <= 10)
    for us in range(0, int(end) + 1, step):
        picture.path(((across(us), 40), (across(us), 290)), "#eef1f4", wide=1)
        picture.words(across(us), 308, f"{us}", size=11, colour=SOFT)
    picture.words(left, 326, "microseconds since the producer's put began", at="start", size=11, colour=SOFT)
    for row, (process, moments) in enumerate(lanes.items()):
        y = 60 + 82 * row
        picture.words(10, y + high / 2 + 5, process, at="start", size=14)
        picture.path(((left, y + high / 2), (right, y + high / 2)), LINE, wide=1)
        named = 0.0
        for at, _, inside, call in moments:
            if math.isnan(inside) or (call in _WAITS and inside > 50):
                continue
            x, wide = across(at), max(1.5, across(at + inside) - across(at))
            picture.box(x, y, wide, high, _COLOURS.get(call, GREY), round=1)
            if call in _NAMED and x >= named:
                picture.words(x, y - 5, call, at="start", size=11, colour=_COLOURS[call])
                named = x + 7.0 * len(call)
    others = f"{machine.describe(_disk())}; durability none; other programs used {load.others:.0%} of the CPUs"
    picture.words(left, 348, others, at="start", size=10, colour=SOFT)
    picture.save(DOCS / "timeline.svg")


_WAITS = {"poll", "epoll_wait", "recvfrom", "clock_nanosleep"}
_NAMED = {"renameat", "renameat2", "sendto", "unlinkat"}
_COLOURS = {
    **dict.fromkeys(("openat", "read"), BLUE),
    **dict.fromkeys(("write", "sendto"), ORANGE),
    **dict.fromkeys(("renameat", "renameat2"), GREEN),
    "unlinkat": RED,
}


def _disk() -> Path:
    disk = ROOT / "build" / "bench"
    disk.mkdir(parents=True, exist_ok=True)
    return disk


def controller() -> None:
    """Draw what `adaptive` does with a card that gets too hot, beside the best fixed limit and none."""
    scenario = SCENARIOS["heat"]
    outcome = judge.try_out(scenario, (Policy.ADAPTIVE, Policy.GRADIENT), [301], compile_step(), plant.compiled())
    ours, other = outcome.trajectories["adaptive"], outcome.trajectories["gradient"]
    share = outcome.verdicts[0].share
    picture = Picture(860, 480, "The limit that the controller chooses, and what it does, while a card gets hot")
    panels: list[tuple[str, float, Callable[[judge.Trajectory], judge.Floats]]] = [
        ("limit, tasks", 34.0, lambda run: run.limit),
        ("done, tasks a second (mean of a minute)", 6.0, lambda run: run.rate),
        ("hottest GPU, degrees", 90.0, lambda run: run.temperature),
    ]
    left, right, high = 60, 840, 105
    for row, (title, most, values) in enumerate(panels):
        top = 50 + 140 * row
        for part in (0.0, 0.5, 1.0):
            y = top + high * (1 - part)
            picture.path(((left, y), (right, y)), "#eef1f4", wide=1)
            picture.words(left - 8, y + 4, f"{most * part:g}", at="end", size=11, colour=SOFT)
        picture.words(left, top - 8, title, at="start", size=12, colour=SOFT)
        for run, colour, wide in ((other, LINE, 1.5), (ours, BLUE, 2.2)):
            points = [
                (left + (right - left) * at / scenario.horizon_s, top + high * (1 - min(value, most) / most))
                for at, value in zip(run.at_s, _mean(values(run)) if row == 1 else values(run), strict=True)
            ]
            picture.path(points, colour, wide=wide)
        if not row:
            y = top + high * (1 - outcome.best / most)
            picture.path(((left, y), (right, y)), INK, wide=1, dash="6 4")
    legend = ((BLUE, "adaptive"), (LINE, "gradient"), (INK, f"best fixed limit, {outcome.best}"))
    for at, (colour, text) in zip((left, left + 110, left + 220), legend, strict=True):
        picture.path(((at, 20), (at + 22, 20)), colour, wide=2.2, dash="6 4" if colour == INK else "")
        picture.words(at + 28, 24, text, at="start", size=12)
    says = (
        f"A simulated card in a warm case, {scenario.horizon_s:g} s: adaptive does {share:.0%} of the best fixed limit."
    )
    picture.words(left, 470, says, at="start", size=12, colour=SOFT)
    picture.save(DOCS / "heat.svg")


def _mean(values: judge.Floats, windows: int = 30) -> judge.Floats:
    """Return at each place the mean of what came before it, up to a minute."""
    sums = np.cumsum(np.concatenate(([0.0], values)))
    begins = np.maximum(np.arange(len(values)) - windows + 1, 0)
    means: judge.Floats = (sums[1:] - sums[begins]) / (np.arange(len(values)) - begins + 1)
    return means


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("states", "timeline", "controller"))
    parser.add_argument("--calls", type=int, default=300, help="tasks that the timeline is the median of")
    options = parser.parse_args()
    if options.only in (None, "states"):
        states()
    if options.only in (None, "controller"):
        controller()
    if options.only in (None, "timeline"):
        time_of_a_task(options.calls)
    return 0


if __name__ == "__main__":
    sys.exit(main())
