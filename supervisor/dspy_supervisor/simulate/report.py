"""What was found out, as rows of a table and as one JSON document."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from ..limit import Reason
from .judge import SETTLED_S, Outcome, Verdict

HEAD = ("scenario", "policy", "done", "of best", "worst run", "settles, s", "swing", "overshoot", "OOMs", "changes")
GOAL = 0.9  #: of what the best fixed limit does
_RIVALS = ("plan", "watermark")


def table(outcomes: Iterable[Outcome]) -> str:
    """Return all rows under their heads: words to the left, numbers to the right."""
    lines = [HEAD, *rows(outcomes)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def rows(outcomes: Iterable[Outcome]) -> Iterator[tuple[str, ...]]:
    """Yield the lines of the table: for each scenario its best fixed limit, the policies, and the highest limit."""
    for outcome in outcomes:
        name = outcome.scenario.name
        yield (name, f"best fixed: {outcome.best}", f"{outcome.best_done:.0f}", "100 %", *[""] * 6)
        for one in outcome.verdicts:
            yield (
                name,
                one.policy,
                f"{one.done:.0f}",
                f"{one.share * 100:.0f} %",
                f"{one.worst * 100:.0f} %",
                number(one.settling_s),
                number(one.swing),
                number(one.overshoot),
                f"{one.ooms:.0f}",
                f"{one.changes:.0f}",
            )
        highest = outcome.highest_share
        many = len(outcome.by_limit)
        yield (name, f"highest: {many}", f"{highest * outcome.best_done:.0f}", f"{highest * 100:.0f} %", *[""] * 6)


def misses(outcomes: Iterable[Outcome]) -> Iterator[str]:
    """Yield a sentence for everything in which `adaptive` falls short of its goals."""
    for outcome in outcomes:
        by_policy = {one.policy: one for one in outcome.verdicts}
        ours = by_policy.get("adaptive")
        if ours is None:
            continue
        name = outcome.scenario.name
        if ours.share < GOAL:
            yield f"{name}: {ours.share * 100:.0f} % of the best fixed limit"
        for rival in _RIVALS:
            # the last tasks of a run end before or after its end by chance: half a per cent says nothing
            if rival in by_policy and ours.share < by_policy[rival].share - 0.005:
                yield f"{name}: {rival} does more, {by_policy[rival].share * 100:.0f} % beside {ours.share * 100:.0f} %"
        if ours.settling_s > SETTLED_S:
            yield f"{name}: settles after {ours.settling_s:.0f} s"
        if ours.swing > 1.0:
            yield f"{name}: swings by {ours.swing:.0f} at rest"


def document(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """Return all figures as JSON has them; what isn't known is null."""
    listed = list(outcomes)
    return {
        "scenarios": [
            {
                "scenario": outcome.scenario.name,
                "says": outcome.scenario.says,
                "best_limit": outcome.best,
                "best_done": outcome.best_done,
                "done_by_limit": [float(done) for done in outcome.by_limit],
                "policies": [_plain(one) for one in outcome.verdicts],
            }
            for outcome in listed
        ],
        "misses": list(misses(listed)),
    }


def _plain(one: Verdict) -> dict[str, Any]:
    found = {
        name: None if isinstance(value, float) and math.isnan(value) else value for name, value in asdict(one).items()
    }
    found["reasons"] = {Reason(reason).name.lower(): many for reason, many in sorted(one.reasons.items())}
    return found


def number(value: float) -> str:
    """Return a figure of the table, or a dash where there is none."""
    return "-" if math.isnan(value) else f"{value:.0f}"
