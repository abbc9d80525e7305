"""How much of the best fixed limit's throughput each policy reaches, in every scenario of the simulator.

::

    python -m bench.controller_table [--seeds 5] [--strangers 60] [--scenario NAME ...] [--no-write]

The whole table is printed; docs/controller.md and its picture are written anew, unless only some scenarios were asked for.
The seeds begin at 301, and those of the strangers at 3001: `adaptive` was tuned with lower ones.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from dspy_supervisor.limit import Policy, compile_step
from dspy_supervisor.simulate import judge, picture, plant, report
from dspy_supervisor.simulate.judge import Outcome
from dspy_supervisor.simulate.scenarios import SCENARIOS, stranger

DOCS = Path(__file__).parents[1] / "docs"
FIRST_SEED, FIRST_STRANGER = 301, 3001
POLICIES = (Policy.ADAPTIVE, Policy.PLAN, Policy.WATERMARK, Policy.GRADIENT)

_TEXT = """\
# The controller beside the best fixed limit

This page is written by `python -m bench.controller_table`, from {seeds} runs of each scenario with different tasks and
noise, none of which `adaptive` was tuned with. `dspy-supervisor simulate --scenario NAME --png FILE` shows one in detail.

## What is compared

The simulator (`supervisor/dspy_supervisor/simulate`) lets tasks run on devices whose throughput saturates and then falls
with the number of tasks, which have memory, heat and a power cap, and of which others take their share. A task that
doesn't fit into memory dies and waits again. All policies begin at the same limit, see the same windows of
{interval:g} s as the controller of a supervisor, and meet the same tasks.

- **best fixed**: for each scenario *all* fixed limits from 1 to the highest are run through the whole of it; the best is
  the one under which most tasks end well. It knows the scenario beforehand, so where the world changes during a run it
  is a compromise that a policy may beat.
- **plan**: a GPU busier than 0.8: one less; idler than 0.5: one more.
- **watermark**: two more while more than 40 tasks wait; two less when tasks wait longer than 2 s or a fifth of them fail.
  Decrease wins, so a queue that is never empty drives it down: that is the original's rule, as it was.
- **gradient**: run time beside its own baseline, after Netflix's Gradient2.
- **adaptive**: the default, this project's own.
- **highest**: no policy at all, as many tasks as the class allows.

A policy *settles* when its limit leaves the band of one task around its level no more; the table shows the longest time
over all runs and stretches without change. *Swing* is the widest range of the limit at rest, from {settled:g} s after the
stretch's begin; *overshoot* how far above that the limit went before. OOMs are tasks killed for GPU memory in a run.

## What came out

{verdict}

![The limits that the policies chose](controller.png)

In grey the fixed limits that do at least nine tenths of the best; a line inside it loses little, wherever it is.

| scenario | best fixed | adaptive | plan | watermark | gradient | highest | adaptive: worst run | settles, s | swing | OOMs |
|---|---|---|---|---|---|---|---|---|---|---|
{shares}

## Worlds that nobody tuned for

A policy may do well in the worlds it was made in, and nowhere else. So {strangers} more worlds were drawn by chance: width
and fall of the curve, length and spread of the tasks, their memory, heat, power, and the limit at the start, each over its
range of magnitudes; the highest limit is 48, and within a run nothing changes.

| share of the best fixed limit | adaptive | plan | watermark | gradient | highest |
|---|---|---|---|---|---|
{strange}

## What the scenarios stand for

| scenario | in the world | a run |
|---|---|---|
{scenarios}

## The whole table

```text
{table}
```
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Try everything out, print it, and keep it in docs/."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--strangers", type=int, default=60)
    parser.add_argument("--scenario", action="append", choices=list(SCENARIOS))
    parser.add_argument("--no-write", action="store_true", help="leave docs/ as it is")
    options = parser.parse_args(arguments)
    step, advance = compile_step(), plant.compiled()
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    strangers = [] if options.scenario else [stranger(FIRST_STRANGER + i) for i in range(options.strangers)]
    began = time.perf_counter()
    outcomes = [
        judge.try_out(SCENARIOS[name], POLICIES, seeds, step, advance) for name in options.scenario or SCENARIOS
    ]
    strange = [judge.try_out(one, POLICIES, seeds[:1], step, advance) for one in strangers]
    took_s = time.perf_counter() - began
    ticks = sum(len(one.by_limit) + len(POLICIES) for one in strange) * 60_000
    ticks += sum((len(one.by_limit) + len(POLICIES)) * one.scenario.ticks * options.seeds for one in outcomes)
    table = report.table(outcomes)
    print(table)
    print(verdict(outcomes))
    if strange:
        print(f"{len(strange)} strangers: " + "; ".join(quantiles(strange)))
    print(f"{ticks / 1e6:.0f} million ticks in {took_s:.0f} s: {ticks / took_s / 1e6:.1f} million a second")
    if not options.scenario and not options.no_write:
        picture.draw(outcomes, DOCS / "controller.png")
        (DOCS / "controller.md").write_text(page(outcomes, strange, options.seeds, table))
    return 0


def page(outcomes: Sequence[Outcome], strange: Sequence[Outcome], seeds: int, table: str) -> str:
    """Return docs/controller.md."""
    return _TEXT.format(
        seeds=seeds,
        interval=judge.INTERVAL_S,
        settled=judge.SETTLED_S,
        verdict=verdict(outcomes),
        shares="\n".join(_shares(one) for one in outcomes),
        strangers=len(strange),
        strange="\n".join(f"| {line.replace(': ', ' | ').replace(', ', ' | ')} |" for line in quantiles(strange)),
        scenarios="\n".join(
            f"| {one.scenario.name} | {one.scenario.says} | {one.scenario.horizon_s:g} s, limit 1 to {one.scenario.highest} |"
            for one in outcomes
        ),
        table=table,
    )


def quantiles(strange: Sequence[Outcome]) -> Iterator[str]:
    """Yield lines about the shares of the policies and of the highest limit, over many worlds."""
    shares = np.array(
        [[*(_of(one, policy.name.lower()).share for policy in POLICIES), one.highest_share] for one in strange]
    )
    for name, quantile in (("median", 0.5), ("one world in ten is below", 0.1), ("worst", 0.0)):
        yield f"{name}: " + ", ".join(f"{share * 100:.0f} %" for share in np.quantile(shares, quantile, axis=0))
    yield "worlds with 90 % and more: " + ", ".join(f"{int(many)}" for many in (shares >= 0.9).sum(axis=0))


def verdict(outcomes: Sequence[Outcome]) -> str:
    """Return in words where `adaptive` reaches its goals, and everything in which it does not."""
    worst = min(outcomes, key=lambda one: _of(one, "adaptive").share)
    lines = [
        f"`adaptive` does at least {_of(worst, 'adaptive').share * 100:.0f} % of the best fixed limit in each of "
        f"{len(outcomes)} scenarios, least in {worst.scenario.name}.\nThe goals are {report.GOAL * 100:.0f} %, rest "
        f"within {judge.SETTLED_S:g} s, no swing above one task at rest, and never less than plan and watermark."
    ]
    missed = list(report.misses(outcomes))
    lines.append("It falls short of them here:" if missed else "It reaches all of them.")
    return "\n".join([*lines, *([""] if missed else []), *(f"- {one}" for one in missed)])


def _of(outcome: Outcome, policy: str) -> judge.Verdict:
    return next(one for one in outcome.verdicts if one.policy == policy)


def _shares(outcome: Outcome) -> str:
    ours = _of(outcome, "adaptive")
    shares = [f"{_of(outcome, policy.name.lower()).share * 100:.0f} %" for policy in POLICIES]
    at_rest = [report.number(value) for value in (ours.settling_s, ours.swing)]
    cells = [f"{outcome.best}", f"**{shares[0]}**", *shares[1:], f"{outcome.highest_share * 100:.0f} %"]
    return f"| {outcome.scenario.name} | {' | '.join([*cells, f'{ours.worst * 100:.0f} %', *at_rest, f'{ours.ooms:.0f}'])} |"


if __name__ == "__main__":
    raise SystemExit(main())
