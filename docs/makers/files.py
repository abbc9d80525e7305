"""reference/files: the folders of a queue, the envelope, the record, and what their names and words mean."""

import inspect
import re
from collections.abc import Iterator

from dspy_supervisor import jobbook, layout, record, task
from dspy_supervisor.services.gateway.schemas import SCHEMAS

from .http import _shape
from .markdown import code, comments, plain, table


def page() -> str:
    """Return the page."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield from (
        "# Files of a queue",
        "",
        f"Format {layout.FORMAT}, from the modules that own it. Whatever can write JSON and rename a file can be a producer;",
        "what is not written by rename is safe on a local filesystem only.",
        "",
        "## Folders",
        "",
        *_block(layout),
        "## Envelope",
        "",
        plain(_paragraph(task, "Keys that mean something")),
        "",
    )
    envelope = SCHEMAS["Envelope"]["properties"]
    yield from table(
        ("key", "is", ""),
        [(code(key), _shape(one), plain(one.get("description", ""))) for key, one in envelope.items()],
    )
    yield from (
        "## Names",
        "",
        f"An id matches {code(task.ID_PATTERN)}.",
        "",
        plain(_paragraph(task, "An attempt that was charged")),
        "",
    )
    yield from ("## Record", "", *_block(record), plain(_paragraph(record, "The producer's")), "")
    for title, kind in (("Classes", task.WorkloadClass), ("Causes", task.Cause), ("Durability", layout.Durability)):
        said = comments(kind)
        yield from (f"## {title}", "")
        yield from table(("word", "means"), [(code(str(one)), plain(said.get(one.name, ""))) for one in kind])
    yield from ("## Slurm jobs", "", *_block(jobbook))


def _block(module: object) -> Iterator[str]:
    """Yield the literal block of a module's docstring."""
    found = re.search(r"::\n\n((?:    .*\n|\n)+)", inspect.getdoc(module) or "")
    if found:
        yield from ("```text", *inspect.cleandoc("\n" + found[1]).splitlines(), "```", "")


def _paragraph(module: object, begin: str) -> str:
    """Return the paragraph of a module's docstring that begins so, with literals as code."""
    parts = (inspect.getdoc(module) or "").split("\n\n")
    return next(part for part in parts if part.startswith(begin)).replace("``", "`")
