"""Words and tables as Markdown, so that nothing in them is taken for mark-up."""

import inspect
import re
from collections.abc import Iterable, Iterator, Sequence


def plain(text: str) -> str:
    """Return a text that reads as it is written; what stands in backticks stays code."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else re.sub(r"([\\*_<>\[\]{}|#$~])", r"\\\1", part) for part in parts)


def code(text: str) -> str:
    """Return a text as code in a cell of a table."""
    return f"`{text.replace('|', chr(92) + '|')}`" if text else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table, with an empty one behind it; its cells are Markdown already."""
    yield f"| {' | '.join(head)} |"
    yield "|" + " --- |" * len(head)
    for row in rows:
        yield f"| {' | '.join(cell or ' ' for cell in row)} |"
    yield ""


def comments(kind: type) -> dict[str, str]:
    """Return what ``#:`` says in the source behind each member of an enumeration."""
    found = re.findall(r"^    (\w+) = .*?(?:#: (.*))?$", inspect.getsource(kind), re.MULTILINE)
    return dict(found)
