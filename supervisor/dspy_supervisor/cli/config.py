"""`config`: the settings in force, and where each comes from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from ..config import MODES, Loaded, flat
from ..config_sources import HIDDEN, nearest
from ..config_table import row
from .options import with_whole_config
from .output import json_option, print_json, print_table


@click.group()
def config() -> None:
    """Show and check the settings, and where each comes from."""


@config.command()
@click.option("--origin", is_flag=True, help="Show where each value comes from.")
@json_option
@with_whole_config
def show(loaded: Loaded, origin: bool, as_json: bool) -> None:
    """Show every setting that is in force."""
    values = {name: HIDDEN if value and row(name).secret else value for name, value in flat(loaded.config).items()}
    if as_json:
        document: dict[str, object] = {"settings": {name: _plain(value) for name, value in values.items()}}
        if origin:
            document |= {"origins": dict(loaded.origins), "files": [str(path) for path in loaded.files]}
        print_json(document)
    elif origin:
        print_table(
            ["setting", "value", "origin"],
            [(name, _shown(value), loaded.origins[name]) for name, value in values.items()],
        )
    else:
        print_table(["setting", "value"], [(name, _shown(value)) for name, value in values.items()])


@config.command()
@click.option("--import/--no-import", "imports", default=True, help="Import the handlers too, as `start` would.")
@json_option
@with_whole_config
def check(loaded: Loaded, imports: bool, as_json: bool) -> None:
    """Refuse unknown settings and bad values, with 78 and what was expected."""
    named = {one.handler for one in loaded.config.classes.values() if one.handler} | {
        *loaded.config.kind_handlers.values()
    }
    handlers = sorted(name for name in named if ":" in name)
    if imports:
        from ..parts import load

        for handler in handlers:
            load(handler)
    slips = {name: near for name in loaded.strangers if (near := nearest(name))}
    if as_json:
        print_json({"ok": True, "files": [str(path) for path in loaded.files], "handlers": handlers, "slips": slips})
    else:
        for name, near in slips.items():
            click.echo(f"{name} is no setting and changes nothing; is {near} meant?")
        read = ", ".join(map(str, loaded.files)) or "no file"
        click.echo(f"the configuration is good ({read}; mode {loaded.config.mode}; {len(handlers)} handlers imported)")


@config.command()
@click.argument("mode", type=click.Choice(MODES))
def env(mode: str) -> None:
    """Print the .env file of a mode, with all that it sets and why: a beginning for one of your own."""
    click.echo((Path(__file__).parents[1] / "modes" / f"{mode}.env").read_text(), nl=False)


def _plain(value: object) -> object:
    """Return a value as JSON has it."""
    if isinstance(value, tuple):
        return list(value)
    if value is None or isinstance(value, bool | int | float | str | list):
        return value
    return dict(value) if isinstance(value, Mapping) else str(value)


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, Mapping):
        return ",".join(f"{name}={inner}" for name, inner in value.items())
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)
