"""The settings of environments: which there are, and how long an unused one is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from .setting import pairs, seconds, setting, truth

_NAME = r"[A-Za-z0-9][\w.-]{0,99}"
_FACTORY = r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*"
_YEAR = 366 * 86400.0


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)  # Config has these
class EnvironmentSettings:
    """The part of Config that is about environments and keys."""

    environments: Mapping[str, str] = setting(
        pairs(_NAME, _FACTORY, "NAME=module:Class"),
        "environments that the handler environment makes, by the name a task gives; what is called returns an object with "
        "reset, step and close",
        MappingProxyType({}),
        live=True,
    )
    env_idle_s: float = setting(
        seconds(0.1, _YEAR),
        "time after the last task of a key in which its worker is kept for it; an environment is closed then",
        600.0,
        live=True,
    )
    env_result_files: bool = setting(
        truth(),
        "write done/ENV_ID_ACTION_result.json beside the record of each task of an environment, as RL clients of the earlier "
        "runner expect; who reads one removes it",
        False,
        live=True,
    )
