"""`cloud`: what rented machines would cost, which there are, and what was spent; and the part of a machine in it."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from ..config import Config, Loaded
from ..control_client import ask
from ..errors import AlreadyRunning, ConfigError, NotRunning, ServiceUnavailable, SupervisorError
from .number import Number
from .options import open_queue, with_config, with_whole_config
from .output import duration, json_option, moment, print_facts, print_json, print_table
from .service import supervisor_socket

if TYPE_CHECKING:
    from ..services.cloud.book import Book
    from ..services.cloud.provider import Provider

_SHOWN = 10
_UP_S = 8 * 3600.0


@click.group()
def cloud() -> None:
    """Say what rented machines would cost, rent them, look at them, and delete them."""


@cloud.command()
@json_option
@with_config
def plan(loaded: Loaded, as_json: bool) -> int:
    """Print what would be rented, and what it would cost. Nothing is rented.

    Ends with 69 where nothing can be had.
    """
    config = loaded.config
    with _provider(config) as provider:
        offers = provider.offers()
    spent = 0.0
    with contextlib.suppress(SupervisorError), _book(loaded) as book:
        spent = book.spent()
    left = config.cloud_spend_cap - spent if config.cloud_spend_cap else None
    first = offers[0] if offers else None
    rate = first.price_hr * config.cloud_pods if first else 0.0
    document: dict[str, Any] = {
        "provider": config.cloud_provider,
        "offers": [
            {"where": one.where, "gpu": one.gpu, "gpus": one.gpus, "price_hr": one.price_hr, "stock": one.stock}
            for one in offers
        ],
        "machines": config.cloud_pods,
        "rate_hr": round(rate, 4),
        "max_rate_hr": round(config.cloud_max_price * config.cloud_pods, 4),
        "spent": round(spent, 4),
        "cap": config.cloud_spend_cap or None,
        "left": round(left, 4) if left is not None else None,
        "hours_left": round(max(0.0, left) / rate, 2) if left is not None and rate else None,
    }
    if as_json:
        print_json(document)
    else:
        rows = [[one.where, f"{one.gpus} x {one.gpu}", _money(one.price_hr), one.stock] for one in offers[:_SHOWN]]
        print_table(["WHERE", "GPUS", "$/H", "STOCK"], rows)
        if first is None:
            click.echo(f"nothing is to be had for {_money(config.cloud_max_price)} $/h or less")
        else:
            click.echo()
            print_facts(_costs(config, document, first.price_hr))
        click.echo("\nNothing was rented.")
    return 0 if offers else ServiceUnavailable.exit_code


def _costs(config: Config, document: dict[str, Any], price: float) -> dict[str, object]:
    machines, rate = config.cloud_pods, document["rate_hr"]
    left, hours = document["left"], document["hours_left"]
    idle = price * config.cloud_idle_s / 3600
    return {
        "one machine": f"{_money(price)} $/h; no order goes above {_money(config.cloud_max_price)} $/h",
        f"{machines} at once": f"{_money(rate)} $/h, {_money(rate * 24)} $ a day",
        "idle at the end": f"{_money(idle)} $ each, for {duration(config.cloud_idle_s)} before it is deleted",
        "spent": f"{_money(document['spent'])} $ by this queue so far",
        "left": "no cap" if left is None else f"{_money(left)} $ of {_money(config.cloud_spend_cap)} $"
        + (f", {hours:.1f} h of {machines} machines" if hours is not None and math.isfinite(hours) else ""),
    }  # fmt: skip


@cloud.command()
@click.argument("machines", type=click.IntRange(1, 64), default=1)
@click.option("--hours", type=Number(0.01, 1000, "hours"), default=_UP_S / 3600, help="Keep them so long, at most.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@with_config
def up(loaded: Loaded, machines: int, hours: float, yes: bool) -> None:
    """Rent machines now, and keep them although nothing waits. A running supervisor does it."""
    config = loaded.config
    _serving(config)
    if machines > config.cloud_pods:
        raise ConfigError("machines", machines, f"no more than cloud_pods={config.cloud_pods}")
    if not yes:
        with _provider(config) as provider:
            offers = provider.offers()
        price = offers[0].price_hr if offers else config.cloud_max_price
        cost = price * machines * hours
        click.confirm(f"{machines} machines at {_money(price)} $/h, up to {_money(cost)} $ in {hours:g} h?", abort=True)
    with _book(loaded) as book:
        book.note_wish(machines, until=time.time() + hours * 3600)
    click.echo(
        f"{machines} machines are wanted until {moment(time.time() + hours * 3600)}: see 'dspy-supervisor cloud status'"
    )


@cloud.command()
@with_config
def down(loaded: Loaded) -> int:
    """Bring what runs to its end, delete all machines, and rent none until `up`."""
    with _book(loaded) as book:
        book.note_wish(0, held="'cloud down' was said: 'dspy-supervisor cloud up' rents again")
        try:
            _serving(loaded.config)
        except NotRunning:
            return _delete_all(loaded.config, book, "cloud down")
    click.echo("machines are deleted when their tasks have ended: see 'dspy-supervisor cloud status'")
    return 0


@cloud.command()
@json_option
@with_config
def status(loaded: Loaded, as_json: bool) -> None:
    """Show the machines of this queue, and what was spent."""
    live: dict[str, Any] = {}
    with contextlib.suppress(NotRunning):
        live = ask(supervisor_socket(loaded.config), {"do": "status"}).get("services", {}).get("cloud", {})
    states = {one["name"]: one for one in live.get("machines", ())}
    now = time.time()
    with _book(loaded) as book:
        entries, wish = book.entries(), book.wish()
    machines = [
        {
            "name": entry.name,
            "state": states.get(entry.name, {}).get("state", "unknown") if entry.is_open else "deleted",
            "where": entry.where or entry.host,
            "id": entry.machine_id,
            "tasks": states.get(entry.name, {}).get("tasks"),
            "price_hr": entry.price_hr,
            "cost": round(entry.cost(now), 4),
            "ordered_at": entry.ordered_at,
            "ended_at": entry.ended_at,
            "why": entry.why or states.get(entry.name, {}).get("problem"),
        }
        for entry in entries
    ]
    spent = sum(entry.cost(now) for entry in entries)
    document = {
        "running": bool(live),
        "problem": live.get("problem"),
        "machines": machines,
        "spent": round(spent, 4),
        "cap": loaded.config.cloud_spend_cap or None,
        "wished": wish[0],
        "held": wish[1] or None,
    }
    if as_json:
        print_json(document)
        return
    head = ["NAME", "STATE", "WHERE", "TASKS", "$/H", "COST", "SINCE", "WHY"]
    keys = ("name", "state", "where", "tasks")
    print_table(
        head,
        [
            [
                *(one[key] for key in keys),
                _money(one["price_hr"]),
                _money(one["cost"]),
                moment(one["ordered_at"]),
                one["why"],
            ]
            for one in machines[-_SHOWN:]
        ],
    )
    cap = loaded.config.cloud_spend_cap
    click.echo(f"\nspent {_money(spent)} $" + (f" of {_money(cap)} $" if cap else ""))
    if document["problem"] or document["held"]:
        click.echo(str(document["held"] or document["problem"]))


@cloud.command()
@click.option("--all-queues", is_flag=True, help="Machines of every queue: for one whose folder is lost.")
@click.option("--yes", is_flag=True, help="Delete them; without it they are only listed.")
@json_option
@with_config
def gc(loaded: Loaded, all_queues: bool, yes: bool, as_json: bool) -> int:
    """Find machines that we ordered and nobody looks after, by their names, and delete them."""
    from ..services.cloud.book import is_ours

    config = loaded.config
    with _provider(config) as provider, _book(loaded) as book:
        cared: set[str] = set()
        try:
            book.take_lock()
        except AlreadyRunning:
            cared = {entry.name for entry in book.open()}
        prefix = "dspy-" if all_queues else book.prefix
        strays = [one for one in provider.machines() if is_ours(one.name, prefix) and one.name not in cared]
        strays = [one for one in strays if one.stage != "gone"]
        if yes:
            entries = {entry.name: entry for entry in book.open()}
            for one in strays:
                provider.delete(one.id)
                if one.name in entries and not cared:
                    book.write(entries[one.name], machine_id=one.id, ended_at=time.time(), why="cloud gc")
    document = {"deleted": yes, "machines": [{"name": one.name, "id": one.id} for one in strays]}
    if as_json:
        print_json(document)
    else:
        print_table(["NAME", "ID"], [[one.name, one.id] for one in strays])
        click.echo(f"\n{len(strays)} machines" + (" were deleted" if yes else "; --yes deletes them" if strays else ""))
    return 0


@cloud.command(hidden=True)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@with_whole_config
def pod(loaded: Loaded, options: tuple[str, ...]) -> int:
    """Serve a queue on a rented machine; what rents it calls this."""
    from ..services.cloud.agent import Agent

    return Agent(loaded.config, options).run()


@contextlib.contextmanager
def _provider(config: Config) -> Iterator[Provider]:
    from ..services.cloud.provider import provider_of

    if config.cloud_provider is None:
        raise ConfigError(
            "cloud_provider",
            None,
            "prime, with cloud_api_key, cloud_max_price and cloud_spend_cap, or ssh, with cloud_hosts; "
            "'dspy-supervisor config describe' explains them",
        )
    with contextlib.closing(provider_of(config)) as provider:
        yield provider


@contextlib.contextmanager
def _book(loaded: Loaded) -> Iterator[Book]:
    from ..services.cloud.book import Book

    with open_queue(loaded) as layout, contextlib.closing(Book(layout)) as book:
        yield book


def _serving(config: Config) -> None:
    """Raise NotRunning where no supervisor of this host looks after machines."""
    if "cloud" not in ask(supervisor_socket(config), {"do": "status"}).get("services", {}):
        raise NotRunning("the supervisor that serves this queue has no cloud_provider: start it with one")


def _delete_all(config: Config, book: Book, why: str) -> int:
    from ..services.cloud.warden import delete_all

    number = len(book.open())
    book.take_lock()
    left = delete_all(config, book, why)
    click.echo(f"{number - left} machines were deleted" + (f"; {left} could not be: say it again" if left else ""))
    return 1 if left else 0


def _money(dollars: float) -> str:
    return f"{dollars:.2f}" if dollars >= 0.1 or dollars == 0 else f"{dollars:.4f}"
