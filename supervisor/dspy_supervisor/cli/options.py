"""The options that settings have: each command takes those of the queue, `start` those of the whole table."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..config import CLASSES, Loaded, load
from ..config_table import SETTINGS, variable
from ..errors import SupervisorError
from .refused import told
from .words import assignments

if TYPE_CHECKING:
    from ..layout import Layout

_QUEUE = ("queue_dir", "mode", "instance", "runtime_dir", "insecure")


def with_config(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that tell which queue is meant; the command gets ``loaded``."""
    return _with(command, _QUEUE, classes=False)


def with_whole_config(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of every setting that has a flag, and of the classes; the command gets ``loaded``."""
    return _with(command, tuple(name for name, row in SETTINGS.items() if row.flag), classes=True)


def open_queue(loaded: Loaded) -> Layout:
    """Open the configured queue. Raises QueueMissing, QueueUnsafe."""
    from ..layout import Layout  # it brings the compiled parts, which `config` and a refusal do without

    return Layout.open(loaded.config.queue_dir, insecure=loaded.config.insecure)


def _with(command: Callable[..., Any], names: tuple[str, ...], *, classes: bool) -> Callable[..., Any]:
    @functools.wraps(command)
    def wrapper(
        *args: Any,
        config: str | None,
        env_file: str | None,
        assignments: tuple[str, ...],
        handlers: tuple[str, ...] = (),
        workers: tuple[str, ...] = (),
        **more: Any,
    ) -> Any:
        flags: dict[str, object] = {"config": config, "env_file": env_file}
        for assignment in assignments:
            name, value = _split(assignment, "--set", "NAME")
            flags[name] = value
        flags |= {name: value for name in names if (value := more.pop(f"setting_{name}")) is not None}
        kinds = dict(_handlers(handlers, flags))
        for one in workers:
            workload, number = _split(one, "--workers", "CLASS")
            flags[f"class.{_workload(workload, '--workers')}.workers"] = number
        loaded = _loaded(flags)
        if kinds:  # beside those of the other sources
            loaded = load({**flags, "kind_handlers": {**loaded.config.kind_handlers, **kinds}})
        try:
            return command(*args, loaded=loaded, **more)
        except BrokenPipeError:
            raise
        except OSError as error:
            if (refusal := told(error, loaded)) is None:
                raise
            raise refusal from error

    decorators = [_option(name) for name in names]
    if classes:
        decorators += [
            click.option(
                "--handler",
                "handlers",
                multiple=True,
                metavar="CLASS=HANDLER",
                help="What runs the tasks of a class, or of a kind of your own: module:function or a built-in's name.",
            ),
            click.option("--workers", "workers", multiple=True, metavar="CLASS=N", help="Worker processes of a class."),
        ]
    decorators += [
        click.option("--config", metavar="FILE", help="Settings in TOML, in place of the files that are looked for."),
        click.option("--env-file", metavar="FILE", help="Variables, in place of .env and .env.MODE."),
        click.option(
            "--set",
            "assignments",
            multiple=True,
            metavar="NAME=VALUE",
            shell_complete=assignments,
            help="Any setting, as `config show` names it.",
        ),
    ]
    for decorator in reversed(decorators):
        wrapper = decorator(wrapper)
    return wrapper


def _loaded(flags: dict[str, object]) -> Loaded:
    try:
        return load(flags)
    except FileNotFoundError as error:
        if error.filename is not None:
            raise
        raise SupervisorError("the folder you stand in was removed: 'cd' to one that is there") from None


def _option(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    row = SETTINGS[name]
    help_text = f"{row.help[0].upper()}{row.help[1:]}. [{variable(name)}]"
    if row.kind.expected == "true or false":
        return click.option(row.flag, f"setting_{name}", is_flag=True, default=None, help=help_text)
    metavar = {"queue_dir": "DIR", "runtime_dir": "DIR", "log_file": "FILE", "kinds": "KIND,..."}.get(
        name, name.upper()
    )
    completed = click.Path() if metavar in ("DIR", "FILE") else None
    return click.option(
        row.flag, f"setting_{name}", type=completed, metavar=metavar.replace("LOG_", ""), help=help_text
    )


def _handlers(written: tuple[str, ...], flags: dict[str, object]) -> Iterator[tuple[str, str]]:
    """Put the handlers of classes among the flags, and yield those of kinds."""
    for one in written:
        name, handler = _split(one, "--handler", "CLASS")
        if name.lower() in CLASSES:
            flags[f"class.{name.lower()}.handler"] = handler
        else:
            yield name, handler


def _workload(name: str, flag: str) -> str:
    if name.lower() not in CLASSES:
        raise click.BadParameter(f"{name!r} is no class; the classes are {', '.join(CLASSES)}", param_hint=flag)
    return name.lower()


def _split(assignment: str, flag: str, name: str) -> tuple[str, str]:
    left, equals, right = assignment.partition("=")
    if not equals or not left:
        raise click.BadParameter(f"{assignment!r} is not {name}=VALUE", param_hint=flag)
    return left, right


def read_input(source: str) -> bytes:
    """Return the bytes of standard input for -, of a file for @FILE, else of the text itself."""
    if source == "-":
        return sys.stdin.buffer.read()
    if source.startswith("@"):
        try:
            return Path(source[1:]).read_bytes()
        except OSError as error:
            raise click.BadParameter(f"{source[1:]}: {error.strerror}") from None
    return source.encode("utf-8", "surrogateescape")
