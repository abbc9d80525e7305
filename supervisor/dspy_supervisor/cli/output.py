"""What a command prints: one JSON document, or text for a person; a table is cut to a terminal, never in a pipe."""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from ..errors import SupervisorError

SCHEMA_VERSION = 1


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --json, given on as ``as_json``; with it an error is a document too, beside its line on standard error."""

    @functools.wraps(command)
    def wrapper(*args: Any, as_json: bool, **more: Any) -> Any:
        try:
            return command(*args, as_json=as_json, **more)
        except SupervisorError as error:
            if as_json:
                print_error(error, str(error), error.exit_code)
            raise

    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(wrapper)


def print_json(document: Mapping[str, Any]) -> None:
    """Print a document with its schema_version, indented for a terminal, else in one line."""
    whole = {"schema_version": SCHEMA_VERSION, **document}
    click.echo(json.dumps(whole, indent=2 if sys.stdout.isatty() else None, default=str))


def print_error(error: Exception, message: str, code: int) -> None:
    """Print the document of an error."""
    print_json({"error": {"type": type(error).__name__, "message": message, "exit_code": code}})


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under their heads: numbers to the right, the last column cut at the edge of a terminal."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(head), *cells]) for i in range(len(head))]
    right = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(head))]
    terminal = sys.stdout.isatty()
    width = os.get_terminal_size(sys.stdout.fileno()).columns if terminal else 0
    for number, line in enumerate([list(head), *cells]):
        padded = [cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, widths, right, strict=True)]
        text = "  ".join(padded).rstrip()
        if terminal and width > 20 and len(text) > width:
            text = text[: width - 1] + "…"
        click.echo(click.style(text, bold=True) if terminal and number == 0 else text)


def print_facts(facts: Mapping[str, object]) -> None:
    """Print names with their values, in two columns."""
    width = max((len(name) for name in facts), default=0)
    for name, value in facts.items():
        click.echo(f"{name.ljust(width)}  {printable(value)}".rstrip())


def printable(value: object) -> str:
    """Return text for a person in one line: a task's own words must not drive the terminal."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    text = value if isinstance(value, str) else str(value)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def moment(epoch_s: float | None) -> str:
    """Return a time as this place writes it, without its date where that is today's."""
    if epoch_s is None:
        return "-"
    then, now = time.localtime(epoch_s), time.localtime()
    return time.strftime("%H:%M:%S" if then[:3] == now[:3] else "%Y-%m-%d %H:%M:%S", then)


def duration(seconds: float | None) -> str:
    """Return a length of time in the two units that matter: 3.2 s, 4 min 10 s, 2 d 3 h."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, name, smaller, smaller_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // smaller} {smaller_name}"
    return f"{whole} s"
