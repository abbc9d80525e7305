"""The handlers that come with the program: echo, call, command, dspy, embed and environment, a file each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..config_class import BUILT_IN as BUILT_IN
from ..config_embed import EmbedSettings
from ..parts import Handler, load

if TYPE_CHECKING:
    from ..config import ClassConfig, Config


def chosen_by(settings: ClassConfig, config: Config) -> tuple[list[tuple[str | None, str]], dict[str, Any]]:
    """Return what a worker of this class makes: (kind, or None for the class's own; name) of each, and the options for all."""
    named = [(None, settings.handler), *((kind, kind) for kind in config.kinds), *config.kind_handlers.items()]
    options = {
        "call_allow": config.call_allow,
        "command_env": (*config.command_env, *settings.environment, *settings.sandbox_env),
        "command_cwd": config.command_cwd,
        "kill_grace_s": config.kill_grace_s,
        "environments": dict(config.environments),
    }
    return [(kind, name) for kind, name in named if name is not None], options


def make(
    name: str,
    *,
    call_allow: tuple[str, ...] = (),
    command_env: tuple[str, ...] = (),
    command_cwd: tuple[str, ...] = (),
    kill_grace_s: float = 3.0,
    embed: EmbedSettings | None = None,
    embed_socket: Path | None = None,
    environments: Mapping[str, str] = MappingProxyType({}),
) -> Handler:
    """Return the handler that a built-in's short name or ``module:function`` stands for, with its settings.

    Raises ConfigError for any other name, and what the settings of that handler can be wrong in.
    """
    if name == "echo":
        from . import echo

        return echo.make()
    if name == "call":
        from . import call

        return call.make(call_allow=call_allow)
    if name == "command":
        from . import command

        return command.make(command_env=command_env, command_cwd=command_cwd, kill_grace_s=kill_grace_s)
    if name == "dspy":
        from . import dspy

        return dspy.make(call_allow=call_allow)
    if name == "embed":
        from . import embed as embedding

        return embedding.make(embed, embed_socket)
    if name == "environment":
        from . import environment

        return environment.make(environments=environments)
    return load(name)
