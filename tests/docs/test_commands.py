"""Commands in sentences and tables, and those that no test runs, are commands of the program; links lead somewhere."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from importlib import import_module
from importlib.util import find_spec

import click
import pytest
from dspy_supervisor.cli import PROGRAM, root

from .blocks import ROOT, blocks, inline, pages
from .notrun import reason

_TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
_EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
_LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s#]*)(?:#([^)\s]*))?\)")


def commands(page: str):
    """Yield each command that stands in a sentence, or is not run, with its place."""
    for line, text in inline(page):
        yield f"{page}:{line}", text
    for block in blocks(page):
        if block.language in ("sh", "bash"):
            yield from ((str(block), line.strip()) for line in block.text.splitlines() if reason(line.strip()))


def wrong(text: str) -> str:
    """Return what is wrong with a command, or ""."""
    text = re.sub(r"^(sudo|eval \"\$\()\s*", "", text)
    if found := re.match(r"make ([\w-]+)$", text):
        return "" if found[1] in _TARGETS else "no such target"
    if found := re.match(r"(?:\S*/)?python -m ((?:bench|tests|dspy_supervisor)[\w.]*)", text):
        return "" if find_spec(found[1]) else "no such module"
    if found := re.match(r"pip install '?(?:\.|dspy-supervisor)\[([\w,]+)\]", text):
        return "" if set(found[1].split(",")) <= _EXTRAS else "no such extra"
    return _wrong_words(text.removeprefix(PROGRAM)) if text.startswith(f"{PROGRAM} ") else ""


def _wrong_words(text: str) -> str:
    command, context = root, click.Context(root, info_name=PROGRAM)
    for word in shlex.split(text.partition(" | ")[0].rstrip('&")'), comments=True):
        if isinstance(command, click.Group) and not word.startswith("-"):
            for name in re.split(r"[|,]", word):  # install|uninstall
                inner = command.get_command(context, name)
                if inner is None:
                    return "" if word.isupper() or word == "..." else f"no command {name}"
            command = inner
            continue
        flags = {flag for one in command.get_params(context) for flag in (*one.opts, *one.secondary_opts)}
        flag = word.partition("=")[0]
        if word.startswith("--") and flag not in flags | {"--version", "--help"}:
            return f"no option {flag}"
    return ""


@pytest.mark.parametrize("page", pages())
def test_commands_are_those_of_the_program(page):
    found = {f"{place}: {text}: {why}" for place, text in commands(page) if (why := wrong(text))}
    assert not found


@pytest.mark.parametrize("page", pages())
def test_what_python_imports_is_there(page):
    for block in (one for one in blocks(page) if one.language == "python"):
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dspy_supervisor"):
                module = import_module(node.module)
                assert all(
                    hasattr(module, alias.name) or find_spec(f"{node.module}.{alias.name}") for alias in node.names
                ), block


@pytest.mark.parametrize("page", [*pages(), "SECURITY.md", "CHANGELOG.md", "bench/README.md"])
def test_links_lead_to_what_is_there(page):
    folder = (ROOT / page).parent
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    for target, anchor in _LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path = (folder / target).resolve() if target else ROOT / page
        assert path.exists() or "reference" in path.parts, f"{page}: {target}"
        if anchor and path.suffix == ".md" and path.exists():
            assert anchor in anchors(path.read_text()), f"{page}: {target}#{anchor}"


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MyST make them."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize(
    "text",
    [
        "dspy-supervisor task explain ID",
        "dspy-supervisor start --nonsense",
        "make nonsense",
        "python -m bench.nonsense",
    ],
)
def test_a_wrong_command_is_found(text):
    assert wrong(text)
