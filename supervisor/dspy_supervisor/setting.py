"""A setting: its kind, its names in the environment and on the command line, its defaults, and its help.

A kind reads a value as it is written (text of a variable or a flag, or a value of TOML) and says in words what it
expects, so that one refusal reads the same wherever the value came from.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

_SIZE = r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(i?b)?"
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_TRUTH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


class Kind(NamedTuple):
    """How a value is read: ``read`` raises ValueError or TypeError for what it does not take."""

    expected: str
    read: Callable[[object], object]


class Setting(NamedTuple):
    """What the table says of one setting; its name is the field's, in Config, TOML and `config show` alike."""

    kind: Kind
    help: str
    default: Any = dataclasses.MISSING  #: built-in
    variable: str | None = None  #: None: DSPY_NAME
    flag: str = ""  #: "" where only --set NAME=VALUE gives it on the command line
    modes: Mapping[str, object] = {}  #: defaults that differ by mode
    live: bool = False  #: whether a reload applies it, or only a restart
    also: tuple[str, ...] = ()  #: older variables that mean it too; its own wins
    secret: bool = False  #: its value is never shown, and may lie in a file that NAME_FILE names


def setting(kind: Kind, help: str, default: object = dataclasses.MISSING, **more: Any) -> Any:
    """Return the dataclass field of one setting; ``more`` are the other facts of Setting."""
    row = Setting(kind, help, default, **more)
    facts, shown = {"setting": row}, not row.secret
    if isinstance(default, Mapping):  # read-only, but dataclasses tells that by its hash
        return dataclasses.field(default_factory=lambda: default, metadata=facts, repr=shown)
    return dataclasses.field(default=default, metadata=facts, repr=shown)


def settings(table: type[Any]) -> dict[str, Setting]:
    """Return the settings of a dataclass by name, in the order they are written, its own before those of its bases."""
    fields = {f.name: f for f in dataclasses.fields(table) if "setting" in f.metadata}
    names = (name for owner in table.__mro__ for name in inspect.get_annotations(owner))
    return {name: fields[name].metadata["setting"] for name in names if name in fields}


def text(pattern: str, expected: str, *, digits: bool = False) -> Kind:
    """Text that matches the whole pattern; with ``digits`` a whole number is taken for its digits."""

    def read(value: object) -> str:
        if digits and isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        # Compiled when it is first used: all patterns of the table together would cost each command 20 ms.
        if not isinstance(value, str) or re.fullmatch(pattern, value) is None:
            raise ValueError
        return value

    return Kind(expected, read)


def choice(*names: str, aliases: Mapping[str, str] | None = None) -> Kind:
    """One of the names in any case, or an alias of one."""
    known = {name: name for name in names} | dict(aliases or {})

    def read(value: object) -> str:
        if not isinstance(value, str):
            raise TypeError
        try:
            return known[value.strip().lower()]
        except KeyError:
            raise ValueError from None

    return Kind("one of " + ", ".join(known), read)


def whole(lowest: int, highest: int, zero: str = "") -> Kind:
    """A whole number in a closed range; ``zero`` says what 0 means."""

    def read(value: object) -> int:
        if isinstance(value, str):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
            raise ValueError
        return value

    return Kind(f"a whole number from {lowest} to {highest}" + (f" (0: {zero})" if zero else ""), read)


def seconds(lowest: float, highest: float, zero: str = "") -> Kind:
    """A time in seconds, as float. With ``zero`` said, 0 is taken too, below the lowest."""

    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise TypeError
        number = float(value)
        if not (lowest <= number <= highest or (zero and number == 0)) or math.isnan(number):
            raise ValueError
        return number

    return Kind(f"seconds from {lowest:g} to {highest:.10g}" + (f" (0: {zero})" if zero else ""), read)


def number(lowest: float, highest: float) -> Kind:
    """A number without a unit."""
    return seconds(lowest, highest)._replace(expected=f"a number from {lowest:g} to {highest:.10g}")


def optional_seconds(highest: float) -> Kind:
    """A time in seconds, or None, written as 0 or none."""
    inner = seconds(0.001, highest, "none")

    def read(value: object) -> object:
        if isinstance(value, str) and value.strip().lower() == "none":
            return None
        return inner.read(value) or None

    return Kind(inner.expected, read)


def size(lowest: int, highest: int, zero: str = "") -> Kind:
    """A number of bytes: 1048576, 64M, 20GiB; the letters are powers of 1024."""

    def read(value: object) -> int:
        if isinstance(value, str):
            match = re.fullmatch(_SIZE, value.strip(), re.IGNORECASE)
            if match is None:
                raise ValueError
            value = round(float(match[1]) * 1024 ** _POWER[match[2].lower()])
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError
        if not (lowest <= value <= highest or (zero and value == 0)):
            raise ValueError
        return value

    return Kind(f"bytes from {lowest} to {highest}, as 1048576 or 64M" + (f" (0: {zero})" if zero else ""), read)


def truth() -> Kind:
    """True or false, in the usual spellings."""

    def read(value: object) -> bool:
        if isinstance(value, str):
            try:
                return _TRUTH[value.strip().lower()]
            except KeyError:
                raise ValueError from None
        if not isinstance(value, bool):
            raise TypeError
        return value

    return Kind("true or false", read)


def path() -> Kind:
    """A path; ~ is the home folder. A relative one is made absolute by the one who loads it."""

    def read(value: object) -> Path:
        if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
            raise ValueError
        try:
            return Path(value).expanduser()
        except RuntimeError as error:  # no home folder is known
            raise ValueError from error

    return Kind("a path", read)


def optional(kind: Kind) -> Kind:
    """What another kind takes, or None, written as none."""

    def read(value: object) -> object:
        return None if isinstance(value, str) and value.strip().lower() == "none" else kind.read(value)

    return Kind(f"{kind.expected}, or none", read)


def words(pattern: str, expected: str) -> Kind:
    """Names: a list in TOML, with commas between them elsewhere; an empty text is an empty list."""

    def read(value: object) -> tuple[str, ...]:
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        if not isinstance(value, list | tuple):
            raise TypeError
        for part in value:
            if not isinstance(part, str) or re.fullmatch(pattern, part) is None:
                raise ValueError
        return tuple(value)

    return Kind(f"{expected}, with commas between them", read)


def pairs(name: str, value: str, expected: str) -> Kind:
    """Names with a value each: a table in TOML, NAME=VALUE with commas between them elsewhere."""

    def read(given: object) -> Mapping[str, str]:
        table = _table(given)
        for key, inner in table.items():
            if re.fullmatch(name, key) is None or not isinstance(inner, str) or re.fullmatch(value, inner) is None:
                raise ValueError
        return MappingProxyType({key: str(inner) for key, inner in table.items()})

    return Kind(f"{expected}, with commas between them", read)


def table(kinds: Mapping[str, Kind]) -> Kind:
    """Values by name, each as its kind reads it: a table in TOML, NAME=VALUE with commas between them elsewhere."""

    def read(given: object) -> Mapping[str, object]:
        values = _table(given)
        if not values.keys() <= kinds.keys():
            raise ValueError
        return MappingProxyType({name: kinds[name].read(value) for name, value in values.items()})

    return Kind(f"NAME=VALUE with commas between them, the names among {', '.join(kinds)}", read)


def variables() -> Kind:
    """Environment variables: a table in TOML, elsewhere NAME=VALUE, each on a line of its own or with commas between."""
    inner = pairs(r"[A-Za-z_]\w*", r"[^\0]*", "NAME=VALUE")

    def read(given: object) -> object:
        if isinstance(given, str) and "\n" in given:
            lines = (line.strip() for line in given.splitlines())
            given = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
        table = _table(given)
        numbers = {name: str(value) for name, value in table.items() if type(value) in (int, float)}  # no bool
        return inner.read({**table, **numbers})

    return Kind("variables as NAME=VALUE, on lines or with commas between them", read)


def cpu_numbers(written: str) -> set[int]:
    """Return the CPUs of a list as the kernel has it: 0-3,8. Raises ValueError."""
    found: set[int] = set()
    for part in written.split(","):
        first, _, last = part.partition("-")
        numbers = range(int(first), int(last or first) + 1)
        if not numbers:
            raise ValueError(part)
        found.update(numbers)
    return found


def cpus() -> Kind:
    """A list of CPUs, kept as it is written."""
    inner = text(r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*", "CPUs by their numbers, as 0-3,8", digits=True)

    def read(value: object) -> object:
        written = inner.read(value)
        cpu_numbers(str(written))
        return written

    return inner._replace(read=read)


def _table(given: object) -> Mapping[str, object]:
    if isinstance(given, str):
        return dict(part.strip().split("=", 1) for part in given.split(",") if part.strip())
    if not isinstance(given, Mapping):
        raise TypeError
    return given
