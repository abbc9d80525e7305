"""The handlers that come with the program: echo, call and command, a file each."""

from __future__ import annotations

from ..parts import Handler, load

BUILT_IN = ("echo", "call", "command")


def make(
    name: str,
    *,
    call_allow: tuple[str, ...] = (),
    command_env: tuple[str, ...] = (),
    command_cwd: tuple[str, ...] = (),
    kill_grace_s: float = 3.0,
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
    return load(name)
