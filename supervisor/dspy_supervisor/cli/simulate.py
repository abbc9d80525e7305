"""`simulate`: policies in simulated worlds, beside the best fixed limit."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .output import json_option, print_json, print_table

if TYPE_CHECKING:
    from ..simulate.scenario import Scenario

_POLICIES = ("plan", "watermark", "gradient", "adaptive")


@click.command()
@click.option("--scenario", "scenarios", multiple=True, metavar="NAME", help="One world; may be repeated. [all]")
@click.option(
    "--policy", "policies", multiple=True, type=click.Choice(_POLICIES), help="One policy; may be repeated. [all]"
)
@click.option(
    "--seeds", default=1, type=click.IntRange(1, 100), help="Runs of each, with other tasks.", show_default=True
)
@click.option("--list", "listing", is_flag=True, help="Say what the worlds stand for.")
@click.option(
    "--replay",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Tell what policies say to windows that a supervisor recorded, with the setting record_windows, or to the "
    "history in a queue's folder.",
)
@click.option("--png", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path), help="Draw what happens.")
@json_option
def simulate(
    scenarios: tuple[str, ...],
    policies: tuple[str, ...],
    seeds: int,
    listing: bool,
    replay: Path | None,
    png: Path | None,
    as_json: bool,
) -> None:
    """Judge policies in simulated worlds, beside the best fixed limit.

    For each world all fixed limits are tried, then each policy runs in it. The table tells how much a policy gets done
    of what the best fixed limit does, how long it takes to come to rest, how far it swings at rest, in tasks, how far
    beyond that it went before, and how many tasks it killed for GPU memory.
    """
    if replay and (scenarios or listing):
        raise click.UsageError("--replay takes its windows from a file: --scenario and --list don't go with it")
    cached = _let_compiled_code_be_kept()
    if png:
        from ..simulate.picture import need_matplotlib

        need_matplotlib()
    if replay:
        _replay(replay, policies or _POLICIES, png, as_json)
        return
    from ..simulate.scenarios import SCENARIOS

    for name in scenarios:
        if name not in SCENARIOS:
            raise click.BadParameter(f"{name!r} is none of {', '.join(SCENARIOS)}", param_hint="--scenario")
    chosen = [SCENARIOS[name] for name in scenarios or SCENARIOS]
    if not listing:
        _simulate(chosen, policies or _POLICIES, seeds, png, as_json, cached)
    elif as_json:
        print_json({"scenarios": {one.name: one.says for one in chosen}})
    else:
        print_table(["scenario", "what it stands for"], [(one.name, one.says) for one in chosen])


def _simulate(
    chosen: list[Scenario], policies: tuple[str, ...], seeds: int, png: Path | None, as_json: bool, cached: bool
) -> None:
    from ..limit import Policy, compile_step
    from ..simulate import judge, picture, plant, report

    step, advance = compile_step(cache=cached), plant.compiled()
    advance(chosen[0].run(0), 1, 1)  # compiled here, so that the rate below is that of ticks
    wanted = [Policy[name.upper()] for name in policies]
    began = time.perf_counter()
    outcomes = [judge.try_out(one, wanted, range(1, seeds + 1), step, advance) for one in chosen]
    took_s = time.perf_counter() - began
    ticks = sum(one.ticks * seeds * (one.highest + len(wanted)) for one in chosen)
    if png:
        picture.draw(outcomes, png)
    if as_json:
        print_json({**report.document(outcomes), "ticks": ticks, "ticks_per_s": ticks / took_s})
        return
    click.echo(report.table(outcomes))
    for miss in report.misses(outcomes):
        click.echo(f"short of its goal: {miss}")
    click.echo(f"{ticks / 1e6:.1f} million ticks in {took_s:.1f} s: {ticks / took_s / 1e6:.1f} million a second")


def _let_compiled_code_be_kept() -> bool:
    """Name Numba a folder for what it compiles, before it is imported; False where there is none."""
    from ..config import load
    from ..environment import numba_cache_folder, set_variable
    from ..limit import digest

    folder = numba_cache_folder(load({}).config.runtime_dir)
    if folder is not None:
        set_variable("NUMBA_CACHE_DIR", str(folder / digest()))
    return folder is not None


def _replay(path: Path, policies: tuple[str, ...], png: Path | None, as_json: bool) -> None:
    from ..limit import Policy, Reason, step
    from ..simulate import picture, replay

    replays = [
        (recording, [replay.answer(recording, Policy[name.upper()], step) for name in policies])
        for recording in replay.read(path)
    ]
    if png:
        picture.draw_replay(replays, png)
    if as_json:
        classes = {
            recording.workload: {
                "windows": len(recording.at_s),
                "policies": {
                    one.policy: {
                        "limits": one.limits.tolist(),
                        "reasons": [Reason(reason).name.lower() for reason in one.reasons],
                    }
                    for one in answers
                },
            }
            for recording, answers in replays
        }
        print_json({"classes": classes})
        return
    print_table(replay.HEAD, [row for recording, answers in replays for row in replay.rows(recording, answers)])
