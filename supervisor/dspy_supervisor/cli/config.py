"""`config`: the settings in force, and where each comes from."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import click

from ..config import MODES, Loaded, flat
from ..config_class import CLASS_SETTINGS, class_defaults
from ..config_sources import HIDDEN, nearest
from ..config_table import SETTINGS, row, variables_of
from ..control_client import ask
from ..setting import Setting
from .options import with_config, with_whole_config
from .output import json_option, print_json, print_table
from .service import supervisor_socket
from .words import settings


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
        from ..sandbox.view import refuse_missing

        sys.path.append(os.getcwd())  # where workers look last
        for handler in handlers:
            load(handler)
        for one in loaded.config.classes.values():
            if one.sandbox != "off":
                given = {"sandbox_read": one.sandbox_read, "sandbox_write": one.sandbox_write}
                refuse_missing(
                    (f"class.{one.name}.{name}", map(os.path.expanduser, paths)) for name, paths in given.items()
                )
    slips = {name: near for name in loaded.strangers if (near := nearest(name))}
    if as_json:
        print_json({"ok": True, "files": [str(path) for path in loaded.files], "handlers": handlers, "slips": slips})
    else:
        for name, near in slips.items():
            click.echo(f"{name} is no setting and changes nothing; is {near} meant?")
        read = ", ".join(map(str, loaded.files)) or "no file"
        click.echo(f"the configuration is good ({read}; mode {loaded.config.mode}; {len(handlers)} handlers imported)")


@config.command()
@json_option
@with_config
def reload(loaded: Loaded, as_json: bool) -> None:
    """Let the running supervisor read its settings anew, as HUP does; say what it applied, and what needs a restart."""
    from ..rehearsal import LONGEST_S

    answer = ask(supervisor_socket(loaded.config), {"do": "reload"}, LONGEST_S + 10)  # handlers are loaded first
    applied, restart = answer["applied"], answer["needs_restart"]
    if as_json:
        print_json({"applied": applied, "needs_restart": restart})
        return
    click.echo(f"applied: {', '.join(applied) or 'nothing, since nothing that can be applied has changed'}")
    if restart:
        click.echo(f"not applied before a restart: {', '.join(restart)}")


@config.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=settings)
@json_option
def describe(names: tuple[str, ...], as_json: bool) -> None:
    """Say of every setting, or of those named, what it does and takes, and how it is given.

    A setting of a class is named with or without its class: class.gpu.workers, or workers.
    """
    known = {name: row(name) for name in SETTINGS} | {
        f"class.CLASS.{name}": one for name, one in CLASS_SETTINGS.items()
    }
    asked = {re.sub(r"^class\.\w+\.", "", name): name for name in names}
    for inner, name in asked.items():
        if inner not in SETTINGS and inner not in CLASS_SETTINGS:
            near = difflib.get_close_matches(inner, [*SETTINGS, *CLASS_SETTINGS], 1, 0.5)
            raise click.BadParameter(f"{name!r} is no setting" + (f"; did you mean {near[0]!r}?" if near else ""))
    chosen = [name for name in known if not asked or name.removeprefix("class.CLASS.") in asked]
    facts = {name: facts_of(name, known[name]) for name in chosen}
    if as_json:
        print_json({"settings": facts})
        return
    for name, found in facts.items():
        click.echo(click.style(name, bold=True))
        for fact, value in found.items():
            click.echo(f"    {fact:<10}{_shown(value)}")


@config.command()
@click.argument("mode", type=click.Choice(MODES))
def env(mode: str) -> None:
    """Print the .env file of a mode, with all that it sets and why: a beginning for one of your own."""
    click.echo((Path(__file__).parents[1] / "modes" / f"{mode}.env").read_text(), nl=False)


def facts_of(name: str, setting: Setting) -> dict[str, object]:
    """Return what the table says of a setting, in words."""
    inner = name.removeprefix("class.CLASS.")
    is_general = name == inner
    written = (
        ", ".join(variables_of(name)) if is_general else f"DSPY_CLASS_{inner.upper()}, as DSPY_GPU_{inner.upper()}"
    )
    flag = setting.flag + ("" if is_general else " CLASS=VALUE") if setting.flag else f"--set {name}=VALUE"
    default = "said above" if setting.default is dataclasses.MISSING else _shown(setting.default) or "empty"
    other = (
        setting.modes if is_general else {klass: one[inner] for klass, one in class_defaults().items() if inner in one}
    )
    facts: dict[str, object] = {
        "does": setting.help,
        "takes": setting.kind.expected,
        "default": default + "".join(f"; {where}: {_shown(value)}" for where, value in other.items()),
        "given by": f"{written}; {flag}",
        "reload": "applies it" if setting.live else "does not apply it: it needs a restart",
    }
    return facts | (
        {"secret": "never shown; a file that holds it is given by the same name and _FILE"} if setting.secret else {}
    )


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
