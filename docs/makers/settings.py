"""reference/settings: the tables of the configuration."""

import inspect
import re
from collections.abc import Iterator

from dspy_supervisor.cli.config import facts_of
from dspy_supervisor.config_class import CLASS_SETTINGS
from dspy_supervisor.config_table import SETTINGS, Config
from dspy_supervisor.setting import Setting

from .markdown import plain

_LABELS = {"takes": "Takes", "default": "Default", "given by": "Given by", "reload": "A reload", "secret": "Secret"}


def page() -> str:
    """Return the page."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield from (
        "# Settings",
        "",
        "Every setting, from the tables that the program reads. `dspy-supervisor config describe NAME` says the same, and",
        "[configuration](../configuration.md) where a value may come from.",
        "",
    )
    for owner in Config.__mro__[:-1]:
        yield from (f"## {_title(owner)}", "")
        for name in inspect.get_annotations(owner):
            if name in SETTINGS:
                yield from _one(name, SETTINGS[name])
    yield from ("## Of each class", "", "Written `class.CLASS.NAME`, in TOML below `[class.CLASS]`.", "")
    for name, row in CLASS_SETTINGS.items():
        yield from _one(f"class.CLASS.{name}", row)


def _title(owner: type) -> str:
    """Return what a part of the table is about, as its docstring says it."""
    said = re.match(r"The part of Config that is (.*?)\.(?:\s|$)", owner.__doc__ or "")
    return said[1][:1].upper() + said[1][1:] if said else "General"


def _one(name: str, row: Setting) -> Iterator[str]:
    said = facts_of(name, row)
    yield from (f"### `{name}`", "", plain(str(said["does"])[:1].upper() + str(said["does"])[1:]) + ".", "")
    for word, label in _LABELS.items():
        if word in said:
            yield f"- {label}: {plain(str(said[word]))}"
    yield ""
