"""The handlers that come with the program, a file each."""

from __future__ import annotations

from ..parts import Handler, load

BUILT_IN = ("echo",)


def make(name: str) -> Handler:
    """Return the handler that a built-in's short name or ``module:function`` stands for.

    Raises ConfigError for any other name.
    """
    if name == "echo":
        from . import echo

        return echo.make()
    return load(name)
