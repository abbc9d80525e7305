"""The sources of settings, each read into one layer: flags, variables, .env files, TOML, and files that hold a secret.

A layer holds values as they were written, by the setting's full name, each with the place it came from. What a name
stands for, and which layer wins, is decided elsewhere.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from .config_table import NAMES, SECRETS, row, variables_of
from .errors import ConfigError

TOML_NAME = "dspy-supervisor.toml"
HIDDEN = "(secret)"  #: what is shown in place of a secret
_OUR_PREFIXES = ("DSPY_", "ENV_", "INFERMESH_")  # of variables that nobody else means something by
#: variables of ours that are no settings, and those of older tools that nothing here has to heed
_OTHERS = {"DSPY_CONFIG", "DSPY_ENABLE_DEMO", "DSPY_CACHEDIR"}


class Value(NamedTuple):
    """One value as it was written."""

    raw: object
    written: str  #: the name it was written under, for a refusal
    origin: str
    base: Path  #: of a relative path
    common: bool = False  #: other programs know this name too: what can't be read is theirs, and no mistake


Layer = Mapping[str, Value]


def flag_layer(flags: Mapping[str, object], cwd: Path) -> Layer:
    """Return what flags say, by the full names of settings."""
    given = {name: value for name, value in flags.items() if name not in ("config", "env_file")}
    check_names(given, "--set ")
    layer = {}
    for name, value in given.items():
        flag = (row(name).flag if name in NAMES else "") or f"--set {name}"
        layer[name] = Value(value, flag, f"flag {flag}", cwd)
    return layer


def environment_layer(environ: Mapping[str, str | None], cwd: Path, origin: str, where: str) -> Layer:
    """Return what variables say; ``where`` goes before their names in a refusal."""
    layer = {}
    written = {name: variables_of(name) for name in NAMES}
    written |= {f"{name}_file": tuple(f"{known}_FILE" for known in written[name]) for name in SECRETS}
    for name, variables in written.items():
        for known in variables:
            if value := environ.get(known):
                common = not known.startswith(_OUR_PREFIXES)
                layer[name] = Value(value, where + known, f"{origin} {known}", cwd, common)
                break
    return layer


def read_env_file(path: Path, *, named: bool) -> dict[str, str | None]:
    """Return the variables of a .env file. Raises ConfigError for a line that means nothing, and what was only found."""
    from dotenv import dotenv_values
    from dotenv.parser import parse_stream

    _check_trusted(path, named)
    try:
        with path.open(encoding="utf-8") as file:
            for binding in parse_stream(file):
                if binding.error:
                    name, equals, _ = binding.original.string.strip().partition("=")
                    shown = f"{name}=..." if equals else name  # what follows may be a secret
                    raise ConfigError(f"{path}, line {binding.original.line}", shown, "a line NAME=value")
        # Without interpolation: python-dotenv would expand ${HOME} in single quotes too.
        return dotenv_values(path, interpolate=False)
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), error.object[error.start : error.end], "text in UTF-8") from None
    except OSError as error:
        name = "--env-file" if named else "settings"
        raise ConfigError(name, str(path), f"a file that can be read ({error.strerror})") from None


def find_toml(named: object, environ: Mapping[str, str], cwd: Path) -> tuple[Path | None, bool]:
    """Return the TOML file to read, and whether it was named. Raises ConfigError where the named one is missing.

    /dev/null is a file without settings: none of those that are looked for is read then.
    """
    if named:
        path = cwd / Path(str(named)).expanduser()
        if not path.is_file() and str(path) != os.devnull:
            why = "that is none" if path.exists() else "there is nothing of this name"
            raise ConfigError("--config", str(path), f"a TOML file, and {why}")
        return path, True
    own = config_home(environ) / "dspy-supervisor" / "config.toml"
    for path in (cwd / TOML_NAME, own, Path("/etc/dspy-supervisor/config.toml")):
        if path.is_file():
            return path, False
    return None, False


def config_home(environ: Mapping[str, str]) -> Path:
    """Return where this user keeps settings, by the XDG base directory specification."""
    home = environ.get("XDG_CONFIG_HOME") or (environ["HOME"] + "/.config" if environ.get("HOME") else "/nonexistent")
    return Path(home)


def toml_layer(path: Path, *, named: bool) -> Layer:
    """Return what a TOML file says. Raises ConfigError for a name that is no setting, and what was only found."""
    import tomllib

    _check_trusted(path, named)
    try:
        written = path.read_bytes()
    except OSError as error:
        name = "--config" if named else "settings"
        raise ConfigError(name, str(path), f"a file that can be read ({error.strerror})") from None
    try:
        document = tomllib.loads(written.decode())
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), error.object[error.start : error.end], "text in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(str(path), str(error), "valid TOML") from None
    names: dict[str, object] = {}
    for name, value in document.items():
        if name == "class" and isinstance(value, dict):
            for workload, table in value.items():
                if isinstance(table, dict):
                    names |= {f"class.{workload}.{key}": inner for key, inner in table.items()}
                else:
                    names[f"class.{workload}"] = table
        else:
            names[name] = value
    check_names(names, f"{path}: ")
    return {name: Value(value, f"{path}: {name}", str(path), path.parent) for name, value in names.items()}


def read_secret(place: Value) -> Value:
    """Return what lies in the file that a setting's value names."""
    try:
        path = place.base / Path(str(place.raw)).expanduser()
        return place._replace(raw=path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        raise ConfigError(place.written, place.raw, f"a file of text that can be read ({why})") from None


def check_names(names: Mapping[str, object], where: str) -> None:
    """Raise ConfigError for a name that is no setting, with the nearest one that is."""
    known = {*NAMES, *(f"{name}_file" for name in SECRETS)}
    for name, value in names.items():
        if name not in known:
            import difflib

            near = difflib.get_close_matches(name, sorted(known), 1, 0.5)
            expected = "a known setting" + (
                f"; did you mean {near[0]!r}?" if near else ": see 'dspy-supervisor config show'"
            )
            raise ConfigError(f"{where}{name}", HIDDEN if near and near[0] in SECRETS else value, expected)


def strangers(names: Iterable[str]) -> list[str]:
    """Return which variables are named like ours and are none: a slip of the pen, perhaps."""
    return sorted(name for name in set(names) - _known() if name.startswith("DSPY_"))


def nearest(stranger: str) -> str:
    """Return the variable that another one nearly is, or "" where there is none."""
    import difflib

    return next(iter(difflib.get_close_matches(stranger, sorted(_known()), 1, 0.8)), "")


def _known() -> set[str]:
    known = {one for name in NAMES for one in variables_of(name)}
    return known | {f"{one}_FILE" for name in SECRETS for one in variables_of(name)} | _OTHERS


def _check_trusted(path: Path, named: bool) -> None:
    """Raise ConfigError for a file that was only found where a stranger could have put or changed it."""
    status = path.stat()
    if not named and (status.st_uid not in (os.geteuid(), 0) or status.st_mode & stat.S_IWOTH):
        facts = f"owner {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}"
        raise ConfigError(
            str(path), facts, "a file of yours that others can't write, or its name in --config or --env-file"
        )
