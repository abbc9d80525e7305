"""Pictures of what policies do: one scenario with all its curves, or many scenarios with their limits. Needs matplotlib."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ServiceUnavailable
from ..limit import Input
from .judge import Outcome
from .plant import Floats
from .replay import Answers, Recording

_COLOURS = {"adaptive": "#0b5fb0", "plan": "#d9740b", "watermark": "#3a9a52", "gradient": "#a05bb5"}
_OTHER = "#666666"
_BAND = "#dcdcdc"


def need_matplotlib() -> None:
    """Raise ServiceUnavailable, before anything is computed for a picture that can't be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ServiceUnavailable(
            "a picture needs matplotlib, which is not installed: pip install 'dspy-supervisor[plot]'"
        ) from None


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write the picture of one scenario, or of many, as PNG. Raises ServiceUnavailable, OSError."""
    figure, save = _figure(path)
    if len(outcomes) == 1:
        _one(figure, outcomes[0])
    else:
        _many(figure, outcomes)
    save()


def draw_replay(replays: Sequence[tuple[Recording, Sequence[Answers]]], path: Path) -> None:
    """Write a picture of recorded windows and what policies say to them. Raises ServiceUnavailable, OSError."""
    figure, save = _figure(path)
    figure.set_size_inches(11, 4.5 * len(replays))
    axes = figure.subplots(2 * len(replays), 1, squeeze=False, height_ratios=(3, 1.5) * len(replays)).flatten()
    for i, (recording, answers) in enumerate(replays):
        limits, rate = axes[2 * i : 2 * i + 2]
        at_s, windows = recording.at_s, recording.windows
        limits.step(
            at_s, windows[:, Input.LIMIT], where="pre", color="black", lw=4, alpha=0.25, label="limit that held"
        )
        limits.plot(at_s, windows[:, Input.INFLIGHT], color="#888888", lw=1, ls=":", label="tasks that ran")
        for one in answers:
            limits.step(at_s, one.limits, where="post", label=f"{one.policy} says", **_style(one.policy))
        limits.set_ylabel("limit, tasks")
        rate.plot(at_s, windows[:, Input.DONE_RATE], color=_OTHER, lw=1, label="done, tasks/s")
        rate.set_ylabel("done, tasks/s")
        rate.set_xlabel("recorded time, s")
        if not np.isnan(windows[:, Input.GPU_BUSY]).all():
            busy = rate.twinx()
            busy.plot(at_s, 100.0 * windows[:, Input.GPU_BUSY], color="#c44e52", lw=1)
            busy.set_ylabel("GPU busy, %", color="#c44e52")
            busy.set_ylim(0, 105)
        for place in (limits, rate):
            _tidy(place)
            place.set_xlim(0, max(1.0, float(at_s[-1])))
            place.set_ylim(0, max(1.0, place.get_ylim()[1]) * 1.1)
        limits.set_title(f"{recording.workload}: what the policies say to what was recorded", loc="left")
        limits.legend(ncols=6, frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.08))
    save()


def _figure(path: Path) -> tuple[Any, Callable[[], None]]:
    """Return an empty figure and what writes it; neither needs a display."""
    need_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    return figure, lambda: figure.savefig(path, dpi=110, format="png", metadata={"Software": None})


def _one(figure: Any, outcome: Outcome) -> None:
    figure.set_size_inches(11, 9)
    figure.suptitle(f"{outcome.scenario.name}: {outcome.scenario.says}", wrap=True)
    gpu = not outcome.scenario.host
    axes = figure.subplots(4, 1, sharex=True, height_ratios=(3, 2, 1.5, 1.5))
    _limits(axes[0], outcome)
    axes[0].set_ylabel("limit, tasks")
    for policy, run in outcome.trajectories.items():
        style = _style(policy)
        axes[1].plot(run.at_s, _smooth(run.rate), **style)
        axes[2].plot(run.at_s, run.backlog, **style)
        if gpu:
            axes[3].plot(run.at_s, run.temperature, **style)
        else:
            axes[3].plot(run.at_s, 100.0 * run.held, **style)
    axes[1].set_ylabel("done, tasks/s")
    axes[2].set_ylabel("waiting, tasks")
    axes[3].set_ylabel("hottest GPU, °C" if gpu else "memory held, %")
    axes[3].set_xlabel("simulated time, s")
    for one in axes[1:]:
        one.set_ylim(bottom=None if one is axes[3] else 0.0)
        _tidy(one)
    axes[0].legend(loc="upper center", bbox_to_anchor=(0.5, 1.22), ncols=6, frameon=False, fontsize=9)


def _many(figure: Any, outcomes: Sequence[Outcome]) -> None:
    across = min(4, len(outcomes))
    down = math.ceil(len(outcomes) / across)
    figure.set_size_inches(4.0 * across, 2.3 * down + 0.9)
    axes = figure.subplots(down, across, squeeze=False).flatten()
    for place, outcome in zip(axes, outcomes, strict=False):
        _limits(place, outcome)
        shares = {one.policy: one.share for one in outcome.verdicts}
        ours = f"   adaptive {shares['adaptive'] * 100:.0f} %" if "adaptive" in shares else ""
        place.set_title(f"{outcome.scenario.name}{ours}", fontsize=10, loc="left")
    for place in axes[len(outcomes) :]:
        place.axis("off")
    for place in axes[len(outcomes) - across : len(outcomes)]:
        place.set_xlabel("simulated time, s", fontsize=9)
    for place in axes[::across]:
        place.set_ylabel("limit, tasks", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)


def _limits(place: Any, outcome: Outcome) -> None:
    low, high = outcome.good
    place.axhspan(low - 0.4, high + 0.4, color=_BAND, lw=0, label="fixed limits that do 90 % of the best")
    place.axhline(outcome.best, color="black", lw=1, ls=(0, (5, 3)), label="best fixed limit")
    highest = float(high)
    for policy, run in outcome.trajectories.items():
        place.step(run.at_s, run.limit, where="pre", label=policy, **_style(policy))
        highest = max(highest, float(run.limit.max()))
    place.set_ylim(0, highest * 1.08 + 0.5)
    place.set_xlim(0, outcome.scenario.horizon_s)
    _tidy(place)


def _style(policy: str) -> dict[str, Any]:
    ours = policy == "adaptive"
    return {"color": _COLOURS.get(policy, _OTHER), "lw": 1.9 if ours else 1.1, "zorder": 4 if ours else 3}


def _smooth(values: Floats, windows: int = 5) -> Floats:
    """Return the mean of each value and those beside it, fewer at the ends."""
    weights = np.ones(windows)
    smooth: Floats = np.convolve(values, weights, "same") / np.convolve(np.ones_like(values), weights, "same")
    return smooth


def _tidy(place: Any) -> None:
    place.grid(True, color="#eeeeee", lw=0.8)
    place.set_axisbelow(True)
    for side in ("top", "right"):
        place.spines[side].set_visible(False)
    place.tick_params(labelsize=8)
