"""reference/cli: the tree of commands, and their exit codes."""

from collections.abc import Iterator

from dspy_supervisor import errors
from dspy_supervisor.cli import PROGRAM
from dspy_supervisor.cli.manual import Entry, entries

from .markdown import code, plain, table

_CODES = {
    errors.EXIT_OK: "done",
    errors.EXIT_USAGE: "wrong usage, or a task that can't be accepted as it is",
    errors.EXIT_INTERRUPTED: "interrupted by Ctrl-C",
    141: "what read the output went away",
}


def page() -> str:
    """Return the page."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield from (
        "# Commands",
        "",
        "What `--help` says, in one page; `dspy-supervisor man` prints it for man(1), and",
        "`dspy-supervisor completion SHELL` the script that completes all of it, task ids included.",
        "",
    )
    found = list(entries())
    shared = set.intersection(*(set(one.options) for one in found if one.name in ("status", "queue stats", "explain")))
    yield from ("## Of all commands that ask for a queue", "")
    yield from table(("option", ""), [_option(*option) for option in found[1].options if option in shared])
    yield from ("## Exit codes", "")
    yield from table(("code", "means"), [(str(number), plain(text)) for number, text in sorted(_exit_codes().items())])
    for entry in found:
        yield from _one(entry, shared)


def _one(entry: Entry, shared: set[tuple[str, str]]) -> Iterator[str]:
    yield from (f"{'##' if ' ' not in entry.name else '###'} {entry.name}", "")
    yield from ("```text", f"{PROGRAM} {entry.name} {entry.usage}".rstrip(), "```", "")
    for part in entry.paragraphs:
        yield from (("```text", *part.splitlines()[1:], "```", "") if part.startswith("\b") else (plain(part), ""))
    own = [option for option in entry.options if option not in shared]
    if own:
        yield from table(("option", ""), [_option(*option) for option in own])
    if shared <= set(entry.options):
        yield from ("and those [of all commands that ask for a queue](#of-all-commands-that-ask-for-a-queue).", "")


def _option(written: str, does: str) -> tuple[str, str]:
    return code(written), plain(does)


def _exit_codes() -> dict[int, str]:
    found = dict(_CODES)
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.SupervisorError)
    ]
    for kind in kinds:
        text = f"`{kind.__name__}`: {(kind.__doc__ or '').splitlines()[0].rstrip('.:')}"
        found[kind.exit_code] = f"{found[kind.exit_code]}; {text}" if kind.exit_code in found else text
    return found
