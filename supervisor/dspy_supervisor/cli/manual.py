"""`man`: the manual page of all commands, in roff (man(7)), made from what --help says."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import NamedTuple

import click

from .. import __version__
from . import PROGRAM, root


class Entry(NamedTuple):
    """One command of the tree."""

    name: str  #: as it is called, without the program
    usage: str  #: what follows the name
    paragraphs: list[str]  #: what it says of itself; one that begins with a backspace keeps its lines
    options: list[tuple[str, str]]  #: as they are written, and what they do


@click.command("man")
def man() -> None:
    """Print the manual page.

    \b
    dspy-supervisor man | man -l -
    dspy-supervisor man > ~/.local/share/man/man1/dspy-supervisor.1
    """
    click.echo(page(), nl=False)


def entries() -> Iterator[Entry]:
    """Yield every command and group below the program, in the order in which --help lists them."""
    context = click.Context(root, info_name=PROGRAM, max_content_width=100)
    for name in root.list_commands(context):
        command = root.get_command(context, name)
        assert command is not None
        yield from _entries(command, click.Context(command, context, name))


def page() -> str:
    """Return the manual page."""
    return "\n".join(_page()) + "\n"


def _page() -> Iterator[str]:
    context = click.Context(root, info_name=PROGRAM)
    about, *more = _paragraphs(root)
    yield f'.TH {PROGRAM.upper()} 1 "" "{PROGRAM} {__version__}" "User Commands"'
    yield from (".SH NAME", f"{PROGRAM} \\- {_roff(about[0].lower() + about[1:].rstrip('.'))}")
    yield from (".SH SYNOPSIS", f".B {PROGRAM}", _roff(" ".join(root.collect_usage_pieces(context))))
    yield ".SH DESCRIPTION"
    yield from _roff_paragraphs(more)
    yield ".SH COMMANDS"
    for entry in entries():
        yield from (".SS " + _roff(f"{entry.name} {entry.usage}".strip()), *_roff_paragraphs(entry.paragraphs))
        for written, does in entry.options:
            yield from (".TP", f".B {_roff(written)}", _line(does))
    yield from (".SH ENVIRONMENT", "Every setting is a variable, too: see")
    yield from (f'.BR "{PROGRAM} config describe" .', ".SH SEE ALSO", ".BR sbatch (1),", ".BR systemd.service (5)")


def _entries(command: click.Command, context: click.Context) -> Iterator[Entry]:
    name = context.command_path.removeprefix(f"{PROGRAM} ")
    records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    shown = [record for record in records if record and not record[0].endswith("--help")]
    yield Entry(name, " ".join(command.collect_usage_pieces(context)), _paragraphs(command), shown)
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            assert found is not None
            yield from _entries(found, click.Context(found, context, inner))


def _paragraphs(command: click.Command) -> list[str]:
    parts = inspect.cleandoc(command.help or "").split("\n\n")
    return [part if part.startswith("\b") else " ".join(part.split()) for part in parts]


def _roff_paragraphs(paragraphs: list[str]) -> Iterator[str]:
    for part in paragraphs:
        yield ".PP"
        if part.startswith("\b"):
            yield from (".nf", *(_line(line) for line in part.splitlines()[1:]), ".fi")
        else:
            yield _line(part)


def _line(text: str) -> str:
    r"""Return a line of text: one that begins with . or ' would be a request, so it gets a \& before it."""
    text = _roff(text)
    return f"\\&{text}" if text.startswith((".", "'")) else text


def _roff(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\`").replace("~", "\\(ti").replace("^", "\\(ha")
