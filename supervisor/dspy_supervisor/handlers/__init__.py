"""The handlers that come with the program: echo, call, command, dspy, embed and environment, a file each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from ..config_class import BUILT_IN as BUILT_IN
from ..config_embed import EmbedSettings
from ..parts import Handler, load


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
