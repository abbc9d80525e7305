"""What a shell completes beside commands and options: ids of tasks, classes, and names of settings.

It answers with nothing where there is no queue: a key press raises no error.
"""

from __future__ import annotations

import contextlib
from itertools import islice

import click

from ..errors import SupervisorError

MOST = 200  #: words that are offered; who needs one of more than that types its beginning


def task_ids(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return ids of tasks that begin so, of the queue that the command line names so far."""
    from ..config import load
    from ..lookup import files, name_of
    from ..task import State
    from .options import open_queue

    given = {name: context.params.get(f"setting_{name}") for name in ("queue_dir", "mode", "insecure")}
    named = {name: value for name, value in given.items() if value is not None}
    with contextlib.suppress(SupervisorError, OSError):
        loaded = load({**named, "config": context.params.get("config"), "env_file": context.params.get("env_file")})
        with open_queue(loaded) as layout:
            ids = (name_of(found).id for state in State for found in files(layout, state))
            return sorted(set(islice((one for one in ids if one.startswith(incomplete)), MOST)))
    return []


def classes(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """Return the classes that begin so."""
    from ..config_class import CLASSES

    return [name for name in CLASSES if name.startswith(incomplete)]


def assignments(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """Return the settings that begin so, ready for their value."""
    return [f"{name}=" for name in _settings() if name.startswith(incomplete)]


def settings(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """Return the settings that begin so."""
    return [name for name in _settings() if name.startswith(incomplete)]


def _settings() -> list[str]:
    from ..config_class import CLASS_SETTINGS, CLASSES
    from ..config_table import SETTINGS

    return [*SETTINGS, *(f"class.{klass}.{name}" for klass in CLASSES for name in CLASS_SETTINGS)]
