"""`service`: a supervisor that systemd starts at boot, watches and stops."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from .. import unitfile
from ..config import load
from ..config_table import MODES
from ..environment import user_environment, user_home
from ..errors import ConfigError, NotInstalled, ServiceUnavailable
from ..unitfile import MAIN, Unit
from .output import json_option, print_facts, print_json

_MARGIN_S = 30.0  # beyond the drain and the grace: the last results are written
_SHOWN = ("LoadState", "ActiveState", "SubState", "UnitFileState", "MainPID", "StatusText", "NRestarts", "Result")

_name = click.argument("name", default=MAIN)
_user = click.option("--user", is_flag=True, help="Of your own service manager, without root.")


@click.group()
def service() -> None:
    """Let systemd start a queue's supervisor at boot, watch it, and stop it in order."""


@service.command()
@_name
@_user
@click.option("--queue-dir", type=click.Path(path_type=Path), metavar="DIR", help="The queue, for new settings.")
@click.option(
    "--mode", type=click.Choice(MODES), help="The mode, for new settings; workstation, or laptop with --user."
)
@click.option("--run-as", metavar="USER", help="Who runs it and owns the queue; by default who called sudo.")
@click.option(
    "--http-token-file", type=click.Path(path_type=Path, dir_okay=False, exists=True), metavar="FILE",
    help="The HTTP API's token; only the service gets to see it.",
)  # fmt: skip
@click.option("--no-start", is_flag=True, help="Only write the files.")
def install(
    name: str,
    user: bool,
    queue_dir: Path | None,
    mode: str | None,
    run_as: str | None,
    http_token_file: Path | None,
    no_start: bool,
) -> None:
    """Write unit and settings of queue NAME, enable it for the boot, and start it.

    Settings that exist are kept: a second call brings the unit of a newer version.
    """
    one = _unit(name, user)
    owner = None if user else _owner(run_as)
    folder = (queue_dir or _default_queue(name, owner)).absolute()
    if not one.config.exists():
        text = unitfile.settings_text(name, folder, mode or ("laptop" if user else "workstation"), user=user)
        unitfile.write(one.config, text, 0o644)
        click.echo(f"wrote {one.config}")
    elif queue_dir is not None or mode is not None:
        raise click.UsageError(
            f"--queue-dir and --mode are for new settings: change {one.config}, which is there already"
        )
    config = load({"config": str(one.config)}, {"HOME": user_home()}).config  # no variable of ours is the service's
    if not user and str(config.runtime_dir) != (wanted := f"/run/dspy-supervisor/{name}"):
        raise ConfigError(
            "runtime_dir", str(config.runtime_dir), f"{wanted} in {one.config}: systemd makes that folder"
        )
    _make_queue(config.queue_dir, owner)
    text = unitfile.drop_in(
        one, _program(), run_as=owner.pw_name if owner else None, writable=config.queue_dir, work=one.config.parent,
        token_file=http_token_file and http_token_file.absolute(), stop_s=config.drain_s + config.kill_grace_s + _MARGIN_S,
    )  # fmt: skip
    for path, content in ((one.file, unitfile.shipped(one)), (one.drop_in, text)):
        if unitfile.write(path, content, 0o644):
            click.echo(f"wrote {path}")
    start = f"systemctl {'--user ' if user else ''}enable --now {one.name}"
    if no_start:
        click.echo(f"start it with: {start}")
        return
    try:
        _systemctl(user, "daemon-reload")
        _systemctl(user, "enable", one.name)
        _systemctl(user, "restart", one.name)
    except ServiceUnavailable as error:
        undo = f"dspy-supervisor service uninstall {'--user' if user else name}"
        raise ServiceUnavailable(
            f"{error}; its files are written: '{start}' starts it once that is mended, '{undo}' removes them"
        ) from None
    click.echo(f"{one.name} serves {config.queue_dir}")


@service.command()
@_name
@_user
def uninstall(name: str, user: bool) -> None:
    """Stop the supervisor of queue NAME after its running tasks, and remove its unit; queue and settings stay."""
    one = _unit(name, user)
    if not one.drop_in.exists():
        raise NotInstalled(one.name, f"{one.drop_in} is not there")
    managed = _is_managed(user)
    if managed:
        _systemctl(user, "disable", "--now", one.name)
    else:  # an image that is built, a chroot: what `enable` made there is links
        for link in one.file.parent.glob(f"*.wants/{one.name}"):
            link.unlink()
    one.drop_in.unlink()
    if not any(one.drop_in.parent.iterdir()):
        one.drop_in.parent.rmdir()
    others = name != MAIN and any(one.file.parent.glob("dspy-supervisor@*.service.d/10-install.conf"))
    if not others:  # the file of all instances
        one.file.unlink(missing_ok=True)
    if managed:
        _systemctl(user, "daemon-reload")
    click.echo(f"{one.name} is removed; {one.config} and the queue stay")


@service.command()
@_name
@_user
@json_option
def status(name: str, user: bool, as_json: bool) -> int:
    """Show what systemd says of the supervisor of queue NAME. Exit codes: 0 it runs; 3 it does not; 4 not installed."""
    one = _unit(name, user)
    said = _systemctl(user, "show", one.name, "--property=" + ",".join(_SHOWN))
    found: dict[str, Any] = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    if found.get("LoadState") == "not-found":
        raise NotInstalled(one.name, "'dspy-supervisor service install' does that")
    if as_json:
        print_json({"unit": one.name, "settings": str(one.config), **found})
    else:
        print_facts({
            "unit": f"{one.name}, {found.get('UnitFileState')}",
            "state": f"{found.get('ActiveState')} ({found.get('SubState')})",
            "process": found.get("MainPID"),
            "says": found.get("StatusText") or "nothing",
            "restarts": f"{found.get('NRestarts')}, last result {found.get('Result')}",
            "settings": one.config,
        })  # fmt: skip
    return 0 if found.get("ActiveState") in ("active", "reloading") else 3


def _unit(name: str, user: bool) -> Unit:
    try:
        return unitfile.unit(name, user=user, root=Path("/"), config_home=user_environment()[0])
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="NAME") from None


def _owner(run_as: str | None) -> pwd.struct_passwd:
    if os.geteuid() != 0:
        raise click.UsageError(
            "a service of the machine is written by root: call it by sudo, or use --user for your own"
        )
    name = run_as or user_environment()[1]
    if not name:
        raise click.UsageError("--run-as USER: who runs the tasks; not root, since tasks are programs")
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise click.BadParameter(
            f"{name!r} is no user of this machine ('useradd --system {name}' makes one)", param_hint="--run-as"
        ) from None


def _default_queue(name: str, owner: pwd.struct_passwd | None) -> Path:
    """Return where a new queue lies: below the service's own folder, or where `start` has it for a user."""
    if owner is None:
        return load({"mode": "laptop", "config": os.devnull}).config.queue_dir
    return Path("/var/lib/dspy-supervisor") / ("queue" if name == MAIN else name)


def _make_queue(folder: Path, owner: pwd.struct_passwd | None) -> None:
    """Make the queue's folder, private and its owner's: a unit whose folder is missing does not start."""
    if folder.is_dir():
        return
    folder.mkdir(mode=0o700, parents=True)
    if owner is not None:
        os.chown(folder, owner.pw_uid, owner.pw_gid)


def _program() -> str:
    beside = Path(sys.executable).with_name("dspy-supervisor")
    found = str(beside) if beside.exists() else shutil.which("dspy-supervisor")
    if not found:
        raise ServiceUnavailable(
            f"no program dspy-supervisor beside {sys.executable}, nor on PATH: install the package"
        )
    return found


def _is_managed(user: bool) -> bool:
    """Whether systemd runs here, or this user's, so that something may be running; see sd_booted(3)."""
    return Path(f"/run/user/{os.geteuid()}/systemd" if user else "/run/systemd/system").is_dir()


def _systemctl(user: bool, *arguments: str) -> str:
    """Return what systemctl prints. Raises ServiceUnavailable with what it complains of."""
    command = ["systemctl", *(["--user"] if user else []), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    except FileNotFoundError:
        raise ServiceUnavailable("there is no systemctl here: this machine is not run by systemd") from None
    if done.returncode:
        raise ServiceUnavailable(f"{' '.join(command)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout
