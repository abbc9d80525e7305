"""The units of systemd that start a supervisor at boot, and what of this machine goes beside them.

The units themselves are files (units/, in the repository deploy/systemd/); user, program and folders of one machine are a
drop-in, so that a unit can be replaced by a newer one and what `systemctl edit` wrote stays (systemd.unit(5)).
"""

from __future__ import annotations

import os
import re
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

MAIN = "main"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")


class Unit(NamedTuple):
    """Where the service of one queue has its files."""

    name: str  #: for systemctl
    source: str  #: of the shipped file
    file: Path
    drop_in: Path
    config: Path  #: its settings, TOML


def unit(name: str, *, user: bool, root: Path, config_home: Path) -> Unit:
    """Return the files of a queue's service. root: / but in tests. Raises ValueError for a name that can't be one."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r}: expected 1 to 32 letters, digits, _ or -")
    if user:
        if name != MAIN:
            raise ValueError(f"{name!r}: a user's service manager has one queue, {MAIN}")
        folder, base, shipped = config_home / "systemd" / "user", "dspy-supervisor.service", "user.service"
        config = config_home / "dspy-supervisor" / "config.toml"
        return Unit(base, shipped, folder / base, folder / f"{base}.d" / "10-install.conf", config)
    folder = root / "etc/systemd/system"
    settings = root / "etc/dspy-supervisor"
    if name == MAIN:
        base = "dspy-supervisor.service"
        return Unit(
            base, "system.service", folder / base, folder / f"{base}.d" / "10-install.conf", settings / "config.toml"
        )
    base = f"dspy-supervisor@{name}.service"
    return Unit(
        base,
        "instance.service",
        folder / "dspy-supervisor@.service",
        folder / f"{base}.d" / "10-install.conf",
        settings / f"{name}.toml",
    )


def shipped(one: Unit) -> str:
    """Return the unit's text as this version has it."""
    return (files("dspy_supervisor") / "units" / one.source).read_text()


def drop_in(
    one: Unit, program: str, *, run_as: str | None, writable: Path, work: Path, token_file: Path | None, stop_s: float
) -> str:
    """Return what of this machine goes beside the unit.

    program: the command's path. work: where handlers' modules are found. stop_s: longer than the drain may take.
    """
    lines = [
        "# Written by `dspy-supervisor service install`; `systemctl edit` makes a file of its own beside this one.",
        "[Service]",
        "ExecStart=",  # what the unit says is forgotten first: systemd would run both
        f"ExecStart={_quoted(program)} start --config {_quoted(str(one.config))}",
        f"WorkingDirectory={_escaped(str(work))}",
        f"TimeoutStopSec={stop_s:.0f}",
    ]
    if run_as is not None:
        lines += [f"User={run_as}", f"ReadWritePaths={_quoted(str(writable))}"]
    if token_file is not None:
        lines += [
            f"LoadCredential=http_token:{_escaped(str(token_file))}",
            "Environment=DSPY_HTTP_TOKEN_FILE=%d/http_token",
        ]
    return "\n".join(lines) + "\n"


def settings_text(name: str, queue_dir: Path, mode: str, *, user: bool) -> str:
    """Return the settings that a new service begins with."""
    lines = [
        f"# Settings of the queue {name!r}; `dspy-supervisor config describe` explains all there are.",
        f'mode = "{mode}"',
        f"queue_dir = {_toml(str(queue_dir))}",
    ]
    if not user:
        lines.append(f'runtime_dir = "/run/dspy-supervisor/{name}"')
    return "\n".join(lines) + "\n"


def write(path: Path, text: str, mode: int) -> bool:
    """Write a whole file under its name, or nothing of it; return whether that changed anything."""
    try:
        if path.read_text() == text:
            return False
    except FileNotFoundError:
        pass
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.chmod(mode)
    os.replace(new, path)
    return True


def _escaped(text: str) -> str:
    return text.replace("%", "%%")  # specifiers, systemd.unit(5)


def _quoted(text: str) -> str:
    safe = _escaped(text).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{safe}"' if re.search(r"[\s\"'\\$;]", safe) else safe


def _toml(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
