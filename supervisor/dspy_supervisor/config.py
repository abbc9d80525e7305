"""Where the value of each setting comes from: first found wins, and its origin is kept.

::

    flags > environment > .env.MODE > .env > TOML > the mode's default > built-in

TOML is the file of --config or DSPY_CONFIG, else the first of ./dspy-supervisor.toml, $XDG_CONFIG_HOME/dspy-supervisor/
config.toml and /etc/dspy-supervisor/config.toml. The .env files lie beside it, or here where there is none; --env-file
names another instead of both. A file that was found and not named must belong to this user or root, since it chooses
what code runs. An empty variable is an absent one. Of this program only environment.py reads the environment, too.

A secret NAME may lie in a file of its own, which NAME_FILE names wherever NAME could stand (``name_file`` in TOML); no
secret is shown by any command, in any refusal or log.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .config_class import BUILT_IN, CLASS_SETTINGS, CLASSES, ClassConfig, class_defaults
from .config_cloud import lacking
from .config_gpu import workstation_limit
from .config_http import is_open
from .config_sources import (
    HIDDEN,
    Layer,
    environment_layer,
    find_toml,
    flag_layer,
    read_env_file,
    read_secret,
    strangers,
    toml_layer,
)
from .config_table import (
    MODE_ALIASES,
    MODES,
    SETTINGS,
    Config,
    default_queue_dir,
    default_runtime_dir,
    differences,
    flat,
)
from .errors import ConfigError
from .setting import Setting

__all__ = [
    "CLASSES",
    "MODES",
    "MODE_ALIASES",
    "ClassConfig",
    "Config",
    "Loaded",
    "differences",
    "flat",
    "load",
]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration with the origin of each value, by its full name, as in ``class.gpu.workers``."""

    config: Config
    origins: Mapping[str, str]
    files: tuple[Path, ...]  #: that were read, first the one that wins
    flags: Mapping[str, object]
    cwd: Path
    strangers: tuple[str, ...]  #: variables that are named like settings and are none
    gpu_memory: tuple[int, ...] = ()  #: bytes of each GPU of this host, once they are known

    def reload(self) -> Loaded:
        """Read files and environment anew, under the same flags."""
        return load(self.flags, cwd=self.cwd).fitted(self.gpu_memory)

    def fitted(self, gpu_memory: tuple[int, ...]) -> Loaded:
        """Return this for a host with these GPUs: a workstation's limit follows from them where nobody says another."""
        if not gpu_memory or not self.origins["max_concurrency"].startswith("mode workstation"):
            return self
        limit = workstation_limit(gpu_memory)
        origin = f"mode workstation with {sum(gpu_memory) / 1e9:.0f} GB of GPU memory"
        followers = [name for name in CLASSES if self.origins[f"class.{name}.workers"].startswith("max_concurrency ")]
        classes = {
            name: replace(one, workers=limit) if name in followers else one for name, one in self.config.classes.items()
        }
        origins = {f"class.{name}.workers": f"max_concurrency ({origin})" for name in followers}
        return replace(
            self,
            config=replace(self.config, max_concurrency=limit, classes=MappingProxyType(classes)),
            origins=MappingProxyType({**self.origins, **origins, "max_concurrency": origin}),
            gpu_memory=gpu_memory,
        )


def load(
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Loaded:
    """Return the configuration that these sources give. Raises ConfigError for what cannot work.

    ``flags`` are by the setting's full name, None meaning absent; beside them ``config`` and ``env_file`` name files.
    """
    flags = {name: value for name, value in (flags or {}).items() if value is not None}
    environ = os.environ if environ is None else environ
    cwd = Path.cwd() if cwd is None else cwd
    toml_path, named = find_toml(flags.get("config") or environ.get("DSPY_CONFIG"), environ, cwd)
    toml = toml_layer(toml_path, named=named) if toml_path else {}
    above = [flag_layer(flags, cwd), environment_layer(environ, cwd, "environment", "")]
    files = [toml_path] if toml_path else []
    names = set(environ)

    def read(path: Path, *, named: bool = False) -> Layer:
        variables = read_env_file(path, named=named)
        files.insert(0, path)
        names.update(variables)
        return environment_layer(variables, cwd, str(path), f"{path}: ")

    if flags.get("env_file"):
        path = cwd / Path(str(flags["env_file"])).expanduser()
        if not path.is_file():
            raise ConfigError("--env-file", str(path), "a file of lines NAME=value")
    else:
        path = (toml_path.parent if toml_path else cwd) / ".env"
    layers = [read(path, named=bool(flags.get("env_file")))] if path.is_file() else []
    mode, origin = _resolve("mode", SETTINGS["mode"], [*above, *layers, toml], "laptop", "built-in")
    if not flags.get("env_file") and (more := path.with_name(f".env.{mode}")).is_file():
        layers.insert(0, read(more))
    layers = [*above, *layers, toml]

    values, origins = _top(mode, origin, layers, environ, cwd)
    _check_kinds(values, origins)
    if values["slurm_pilots_max"] < values["slurm_pilots_min"]:
        where = f"slurm_pilots_max ({origins['slurm_pilots_max']})"
        raise ConfigError(
            where, values["slurm_pilots_max"], f"no less than slurm_pilots_min={values['slurm_pilots_min']}"
        )
    listens = (values["http"] and values["http_port"] is not None) or values["metrics_port"] is not None
    if listens and not values["http_token"] and values["http_host"] != "127.0.0.1" and is_open(values["http_host"]):
        expected = "127.0.0.1 or localhost where there is no http_token, since whoever puts a task runs a program"
        raise ConfigError(f"http_host ({origins['http_host']})", values["http_host"], expected)
    if lack := lacking(values):
        name, expected = lack
        raise ConfigError(
            f"{name} ({origins[name]})", HIDDEN if SETTINGS[name].secret and values[name] else values[name], expected
        )
    classes = {name: _class(name, layers, values, origins) for name in CLASSES}
    config = Config(**values, classes=MappingProxyType(classes))
    return Loaded(
        config, MappingProxyType(origins), tuple(files), MappingProxyType(flags), cwd, tuple(strangers(names))
    )


def _top(
    mode: str, origin: str, layers: list[Layer], environ: Mapping[str, str], cwd: Path
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the values and origins of all settings that belong to no class."""
    values: dict[str, Any] = {"mode": mode}
    origins = {"mode": origin}
    computed = {"queue_dir": default_queue_dir, "runtime_dir": default_runtime_dir}
    for name, setting in SETTINGS.items():
        if name == "mode":
            continue
        if mode in setting.modes:
            default, default_origin = setting.modes[mode], f"mode {mode}"
            default = cwd / str(default) if name == "queue_dir" else default
        elif name in computed:
            default, default_origin = computed[name](environ), "built-in"
        else:
            default, default_origin = setting.default, "built-in"
        values[name], origins[name] = _resolve(name, setting, layers, default, default_origin)
    return values, origins


def _check_kinds(values: dict[str, Any], origins: Mapping[str, str]) -> None:
    """Leave in kinds what is built in, since kind_handlers has the others. Raises ConfigError for what neither has."""
    values["kinds"] = tuple(name for name in dict.fromkeys(values["kinds"]) if name not in values["kind_handlers"])
    for name in values["kinds"]:
        if name not in BUILT_IN:
            expected = f"kinds among {', '.join(BUILT_IN)}; one of your own is named with its handler, in kind_handlers"
            raise ConfigError(f"kinds ({origins['kinds']})", name, expected)


def _class(workload: str, layers: list[Layer], values: Mapping[str, Any], origins: dict[str, str]) -> ClassConfig:
    """Return the settings of one class, and add their origins."""
    nature = class_defaults(values["max_concurrency"], values["enable_gpu"])[workload]
    nature |= {name: values[name] for name in CLASS_SETTINGS.keys() & values.keys()}  # those that all classes share
    leaves = values["cloud_provider"] is not None and workload == values["cloud_class"]
    if leaves:
        nature["workers"] = 0
    found: dict[str, Any] = {}
    for name, setting in CLASS_SETTINGS.items():
        full = f"class.{workload}.{name}"
        default = nature.get(name, setting.default)
        origin = f"{name} ({origins[name]})" if name in values else "built-in"
        if name == "workers" and (
            workload in ("cpu_short", "cpu_long") or (workload == "gpu" and values["enable_gpu"])
        ):
            origin = f"max_concurrency ({origins['max_concurrency']})"
        if name == "workers" and leaves:
            origin = f"cloud_class ({origins['cloud_class']})"
        found[name], origins[full] = _resolve(full, setting, layers, default, origin)
    if 0 < found["limit_max"] < found["limit_min"]:
        where = f"class.{workload}.limit_max ({origins[f'class.{workload}.limit_max']})"
        raise ConfigError(where, found["limit_max"], f"no less than limit_min={found['limit_min']}")
    if workload == "gpu_slurm" and found["sandbox"] != "off" and values["enable_slurm"]:
        where = f"class.gpu_slurm.sandbox ({origins['class.gpu_slurm.sandbox']})"
        raise ConfigError(where, found["sandbox"], "off: jobs of a cluster run without one, and must be said to")
    return ClassConfig(name=workload, **found)


def _resolve(name: str, setting: Setting, layers: list[Layer], default: object, origin: str) -> tuple[Any, str]:
    for layer in layers:
        value = layer.get(name)
        if setting.secret and (place := layer.get(f"{name}_file")) is not None:
            if value is not None:
                raise ConfigError(place.written, place.raw, f"one of {value.written} and {place.written}, not both")
            value = read_secret(place)
        if value is not None:
            try:
                read = setting.kind.read(value.raw)
            except (ValueError, TypeError, OverflowError):
                if value.common:
                    continue
                shown = HIDDEN if setting.secret else value.raw
                raise ConfigError(value.written, shown, setting.kind.expected) from None
            return (value.base / read if isinstance(read, Path) else read), value.origin
    return default, origin
