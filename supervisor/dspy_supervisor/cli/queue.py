"""`queue`: the folder as a whole."""

from __future__ import annotations

import click

from ..config import CLASSES, Loaded
from ..control_client import ask
from ..errors import NotRunning
from .options import open_queue, with_config
from .output import json_option, moment, print_facts, print_json, print_table
from .service import supervisor_socket


@click.group()
def queue() -> None:
    """Count, check, clean, pause and resume a queue."""


@queue.command()
@click.option(
    "--limit", "limit_s", type=click.FloatRange(min=0), default=1.0, metavar="S", help="Read so long; default 1."
)
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


def _report(what: str, classes: list[str] | None, *, as_json: bool) -> None:
    if as_json:
        print_json({what: classes or list(CLASSES)})
    else:
        click.echo(f"{what}: {', '.join(classes) if classes else 'all classes'}")
