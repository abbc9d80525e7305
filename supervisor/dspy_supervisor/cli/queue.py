"""`queue`: the folder as a whole."""

from __future__ import annotations

import click

from ..config import CLASSES, Loaded
from ..control_client import ask
from ..errors import EXIT_FAILED, EXIT_OK, NotRunning
from .number import WAIT_S
from .options import open_queue, with_config
from .output import json_option, moment, print_facts, print_json, print_table, printable
from .service import supervisor_socket


@click.group()
def queue() -> None:
    """Count, check, clean, pause, resume and limit a queue."""


@queue.command()
@click.option("--limit", "limit_s", type=WAIT_S, default=1.0, metavar="S", help="Read so long; default 1.")
@json_option
@with_config
def stats(loaded: Loaded, limit_s: float, as_json: bool) -> None:
    """Count what lies in the folders, whether a supervisor runs or not."""
    from ..census import count
    from ..pause import Pause

    with open_queue(loaded) as layout:
        census = count(layout, limit_s)
        paused = Pause(layout).read()
        document = {
            "queue_dir": str(layout.path),
            "queue_id": layout.queue_id,
            "durability": str(layout.durability),
            "filesystem": layout.filesystem.name,
            "max_pending": layout.max_pending,
            "paused": None
            if paused is None
            else {"classes": sorted(paused.classes or CLASSES), "reason": paused.reason},
            "folders": census.folders,
            "classes": census.classes,
            "complete": census.complete,
        }
    if as_json:
        print_json(document)
        return
    facts: dict[str, object] = {
        "queue": layout.path,
        "id": layout.queue_id,
        "durability": f"{layout.durability} on {layout.filesystem.name}",
        "bound": f"{layout.max_pending} waiting tasks" if layout.max_pending else "none",
    }
    if paused is not None:
        names = ", ".join(sorted(paused.classes or ["all"]))
        facts["paused"] = f"{names} since {moment(paused.since)}" + (f": {paused.reason}" if paused.reason else "")
    print_facts(facts)
    click.echo()
    columns = ["pending", "delayed", "claimed", "done", "failed"]
    rows: list[list[object]] = [
        [name, *(found[column] for column in columns)] for name, found in census.classes.items()
    ]
    rows.append(["in all", *(census.folders[column] for column in columns)])
    print_table(["class", *columns], rows)
    if census.folders["quarantine"]:
        click.echo(f"\n{census.folders['quarantine']} refused files lie in quarantine/, each with its reason beside it")
    if not census.complete:
        click.echo("\nclasses: only what could be read in time; the last line is exact")


@queue.command()
@click.option("--repair", is_flag=True, help="Mend what can be mended; no supervisor of this host may run.")
@json_option
@with_config
def fsck(loaded: Loaded, repair: bool, as_json: bool) -> int:
    """Check that the queue is as it should be, and say what each fault means.

    Looking disturbs nobody. Nothing is deleted: what does not belong goes to quarantine/, with the reason.

    Exit codes: 0 nothing is wrong any more; 1 something is; 75 --repair, but a supervisor runs.
    """
    from ..fsck import examine

    problems = list(examine(loaded.config, repair=repair))
    left = sum(not problem.mended for problem in problems)
    if as_json:
        print_json({"problems": [problem._asdict() for problem in problems], "left": left})
        return EXIT_FAILED if left else EXIT_OK
    for problem in problems:
        click.echo(printable(f"{problem.place}: {problem.message}"))
        if problem.mended or problem.remedy:
            click.echo(f"  -> {'mended' if problem.mended else printable(problem.remedy)}")
    click.echo(f"{len(problems)} problems, {len(problems) - left} mended" if problems else "nothing is wrong")
    return EXIT_FAILED if left else EXIT_OK


@queue.command()
@click.option("--older-than", metavar="AGE", help="Forget what ended so long ago: 7d, 12h, 30m, 45s.")
@click.option("--keep", type=click.IntRange(min=0), metavar="N", help="Forget all but the newest N of each state.")
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(["done", "failed", "quarantine"]),
    help="Only these; repeatable; default: done and failed.",
)
@click.option("--dry-run", is_flag=True, help="Only count.")
@json_option
@with_config
def gc(
    loaded: Loaded,
    older_than: str | None,
    keep: int | None,
    states: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Forget ended tasks, with their output: by age, by count, or by either.

    What waits or runs is never touched. A task that was forgotten would run again if it were submitted again.
    """
    if older_than is None and keep is None:
        raise click.UsageError("say what to forget: --older-than AGE, or --keep N, or both")
    from ..gc import forget

    age_s = _age(older_than) if older_than is not None else None
    with open_queue(loaded) as layout:
        result = forget(layout, states or ("done", "failed"), older_than_s=age_s, keep=keep, dry_run=dry_run)
    counts = {name: getattr(result, name) for name in ("done", "failed", "quarantine", "outputs", "temporary")}
    if as_json:
        print_json({"dry_run": dry_run, "forgotten": counts})
    else:
        told = ", ".join(f"{number} {name}" for name, number in counts.items() if number) or "nothing"
        click.echo(f"{'would forget' if dry_run else 'forgot'}: {told}")


def _age(written: str) -> float:
    """Return seconds of an age as 7d, 12h, 30m or 45s."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    try:
        seconds = float(written[:-1]) * units[written[-1:]]
    except (ValueError, KeyError):
        seconds = -1.0
    if not 0 <= seconds < 1e11:
        raise click.BadParameter(f"{written!r} is no age: 7d, 12h, 30m, 45s", param_hint="--older-than")
    return seconds


_CLASSES = click.option(
    "--class",
    "classes",
    multiple=True,
    type=click.Choice(CLASSES, case_sensitive=False),
    help="Only this class; repeatable.",
)


@queue.command()
@_CLASSES
@click.option("--reason", default="", metavar="TEXT", help="Shown by status and explain.")
@json_option
@with_config
def pause(loaded: Loaded, classes: tuple[str, ...], reason: str, as_json: bool) -> None:
    """Start nothing new until `resume`; what runs goes on, and tasks are accepted.

    It holds across restarts, for every supervisor of the queue.
    """
    named = list(classes) or None
    try:
        ask(supervisor_socket(loaded.config), {"do": "pause", "classes": named, "reason": reason})
    except NotRunning:
        from ..pause import Pause

        with open_queue(loaded) as layout:
            Pause(layout).pause(named, reason)
    _report("paused", named, as_json=as_json)


@queue.command()
@_CLASSES
@json_option
@with_config
def resume(loaded: Loaded, classes: tuple[str, ...], as_json: bool) -> None:
    """Start tasks again, and give a class that was failed another chance."""
    named = list(classes) or None
    try:
        ask(supervisor_socket(loaded.config), {"do": "resume", "classes": named})
    except NotRunning:
        from ..pause import Pause

        with open_queue(loaded) as layout:
            Pause(layout).resume(named, CLASSES)
    _report("resumed", named, as_json=as_json)


@queue.command()
@click.argument("workload", metavar="CLASS", type=click.Choice(CLASSES, case_sensitive=False))
@click.argument("tasks", metavar="N", type=click.IntRange(0, 1024))
@json_option
@with_config
def limit(loaded: Loaded, workload: str, tasks: int, as_json: bool) -> None:
    """Let N tasks of a class run at once, in N workers; no policy changes that until a reload."""
    ask(supervisor_socket(loaded.config), {"do": "limit", "class": workload, "limit": tasks})
    if as_json:
        print_json({"class": workload, "limit": tasks})
    else:
        click.echo(f"{workload}: limit {tasks}, until a reload")


def _report(what: str, classes: list[str] | None, *, as_json: bool) -> None:
    if as_json:
        print_json({what: classes or list(CLASSES)})
    else:
        click.echo(f"{what}: {', '.join(classes) if classes else 'all classes'}")
