"""The code blocks of README.md and docs/: where each is, and how a test is to take it.

An HTML comment says what readers need not see. Before a block, ``<!-- test: file NAME -->`` names the file that it is, as
the first line ``# NAME.py`` (or .toml, .sh) of a block does; ``<!-- test: sh`` or ``<!-- test: python``, then lines, then ``-->``
is a block of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w{}]*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$"
    r"|^<!-- test: (?:file (?P<file>\S+)|(?P<hidden>sh|python)\n(?P<lines>.*?)) ?-->$",
    re.MULTILINE | re.DOTALL,
)
_NAMED = re.compile(r"# ([\w-]+\.(?:py|toml|sh))\b")


class Block(NamedTuple):
    """One block of a page."""

    page: str  #: file of the repository
    line: int
    language: str  #: "" where it says none
    text: str
    file: str  #: the file that it is; "" where it is none

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """Return every page that people read, as places in the repository; what is generated has no commands of its own."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [str(path.relative_to(ROOT)) for path in found if "reference" not in path.relative_to(ROOT).parts]


def blocks(page: str) -> Iterator[Block]:
    """Yield the blocks of a page, those of its comments included."""
    text, file = (ROOT / page).read_text(), ""
    for found in _BLOCK.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        if found["file"]:
            file = found["file"]
            continue
        inside = found["lines"] if found["hidden"] else _outdented(found["text"], found["indent"])
        named = _NAMED.match(inside)
        yield Block(page, line, found["hidden"] or found["language"], inside, file or (named[1] if named else ""))
        file = ""


def inline(page: str) -> Iterator[tuple[int, str]]:
    """Yield what stands in backticks within the sentences of a page, with its line."""
    text = _BLOCK.sub(lambda found: "\n" * found[0].count("\n"), (ROOT / page).read_text())
    for found in re.finditer(r"(?<!`)`([^`]+)`(?!`)", text):
        yield text.count("\n", 0, found.start()) + 1, " ".join(found[1].split())


def _outdented(text: str, indent: str) -> str:
    return re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) if indent else text
