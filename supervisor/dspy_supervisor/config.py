"""Where the value of each setting comes from: first found wins, and its origin is kept.

::

    flags > environment > .env.MODE > .env > TOML > the mode's default > built-in

TOML is the file of --config or DSPY_CONFIG, else the first of ./dspy-supervisor.toml, $XDG_CONFIG_HOME/dspy-supervisor/
config.toml and /etc/dspy-supervisor/config.toml. The .env files lie beside it, or here where there is none; --env-file
names another instead of both. A file that was found and not named must belong to this user or root, since it chooses
what code runs. An empty variable is an absent one. No other file of this program reads the environment.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from .config_class import BUILT_IN, CLASS_SETTINGS, CLASSES, ClassConfig, class_defaults
from .config_table import (
    MODE_ALIASES,
    MODES,
    SETTINGS,
    Config,
    default_queue_dir,
    default_runtime_dir,
    differences,
    flat,
    variable,
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
    "notify_environment",
    "set_variable",
    "slurm_environment",
]

TOML_NAME = "dspy-supervisor.toml"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration with the origin of each value, by its full name, as in ``class.gpu.workers``."""

    config: Config
    origins: Mapping[str, str]
    files: tuple[Path, ...]  #: that were read, first the one that wins
    flags: Mapping[str, object]
    cwd: Path

    def reload(self) -> Loaded:
        """Read files and environment anew, under the same flags."""
        return load(self.flags, cwd=self.cwd)


class _Value(NamedTuple):
    raw: object
    written: str  # the name it was written under, for a refusal
    origin: str
    base: Path  # of a relative path


_Layer = Mapping[str, _Value]


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
    toml_path, named = _find_toml(flags.get("config") or environ.get("DSPY_CONFIG"), environ, cwd)
    toml = _toml_layer(toml_path, named) if toml_path else {}
    above = [_flag_layer(flags, cwd), _environment_layer(environ, cwd, "environment", "")]
    files = [toml_path] if toml_path else []
    if flags.get("env_file"):
        paths = [cwd / Path(str(flags["env_file"])).expanduser()]
        if not paths[0].is_file():
            raise ConfigError("--env-file", str(paths[0]), "a file of lines NAME=value")
    else:
        paths = [(toml_path.parent if toml_path else cwd) / ".env"]
    layers = [_env_file_layer(path, cwd, named=bool(flags.get("env_file"))) for path in paths if path.is_file()]
    files = [path for path in paths if path.is_file()] + files
    mode, origin = _resolve("mode", SETTINGS["mode"], [*above, *layers, toml], "laptop", "built-in")
    if not flags.get("env_file") and (more := paths[0].with_name(f".env.{mode}")).is_file():
        layers.insert(0, _env_file_layer(more, cwd, named=False))
        files.insert(0, more)
    layers = [*above, *layers, toml]

    values, origins = _top(mode, origin, layers, environ, cwd)
    _check_kinds(values, origins)
    classes = {name: _class(name, layers, values, origins) for name in CLASSES}
    config = Config(**values, classes=MappingProxyType(classes))
    return Loaded(config, MappingProxyType(origins), tuple(files), MappingProxyType(flags), cwd)


def _top(
    mode: str, origin: str, layers: list[_Layer], environ: Mapping[str, str], cwd: Path
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


def _class(workload: str, layers: list[_Layer], values: Mapping[str, Any], origins: dict[str, str]) -> ClassConfig:
    """Return the settings of one class, and add their origins."""
    nature = class_defaults(values["max_concurrency"], values["enable_gpu"])[workload]
    found: dict[str, Any] = {}
    for name, setting in CLASS_SETTINGS.items():
        full = f"class.{workload}.{name}"
        default = nature.get(name, setting.default)
        origin = "built-in"
        if name == "workers" and (
            workload in ("cpu_short", "cpu_long") or (workload == "gpu" and values["enable_gpu"])
        ):
            origin = f"max_concurrency ({origins['max_concurrency']})"
        found[name], origins[full] = _resolve(full, setting, layers, default, origin)
    return ClassConfig(name=workload, **found)


def notify_environment() -> tuple[str, str]:
    """Take NOTIFY_SOCKET and WATCHDOG_USEC out of the environment, sd_notify(3); "" where a service manager set none.

    Taken out, since what this process starts must not speak for the service.
    """
    watched = os.environ.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    address, usec = os.environ.pop("NOTIFY_SOCKET", ""), os.environ.pop("WATCHDOG_USEC", "")
    return address, usec if watched else ""


def set_variable(name: str, value: str) -> None:
    """Set a variable of this process, for what it starts."""
    os.environ[name] = value


_SLURM_PREFIXES = ("SLURM_", "SBATCH_", "SRUN_", "SQUEUE_", "SACCT_", "SCANCEL_", "SALLOC_", "SINFO_", "SCONTROL_")


def slurm_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables that Slurm's commands are run with: none that changes what they do or print.

    Those of a job around us would reach into the jobs we submit; SQUEUE_STATES and its like silently empty listings.
    """
    environ = os.environ if environ is None else environ
    kept = {name: value for name, value in environ.items() if not name.startswith((*_SLURM_PREFIXES, "LC_"))}
    for name in ("LANGUAGE", "TZ", "DSPY_TASK_NODE"):
        kept.pop(name, None)
    if conf := environ.get("SLURM_CONF"):
        kept["SLURM_CONF"] = conf
    return kept | {"LC_ALL": "C.UTF-8", "SLURM_TIME_FORMAT": "%s"}


def check_names(names: Mapping[str, object], where: str) -> None:
    """Raise ConfigError for a name that is no setting, with the nearest one that is."""
    known = {*SETTINGS, *(f"class.{workload}.{name}" for workload in CLASSES for name in CLASS_SETTINGS)}
    for name, value in names.items():
        if name not in known:
            import difflib

            near = difflib.get_close_matches(name, sorted(known), 1, 0.5)
            expected = "a known setting" + (
                f"; did you mean {near[0]!r}?" if near else ": see 'dspy-supervisor config show'"
            )
            raise ConfigError(f"{where}{name}", value, expected)


def _resolve(name: str, setting: Setting, layers: list[_Layer], default: object, origin: str) -> tuple[Any, str]:
    for layer in layers:
        if (value := layer.get(name)) is not None:
            try:
                read = setting.kind.read(value.raw)
            except (ValueError, TypeError, OverflowError):
                raise ConfigError(value.written, value.raw, setting.kind.expected) from None
            return (value.base / read if isinstance(read, Path) else read), value.origin
    return default, origin


def _flag_layer(flags: Mapping[str, object], cwd: Path) -> _Layer:
    given = {name: value for name, value in flags.items() if name not in ("config", "env_file")}
    check_names(given, "--set ")
    layer = {}
    for name, value in given.items():
        table = CLASS_SETTINGS if name.startswith("class.") else SETTINGS
        flag = table[name.rpartition(".")[2]].flag or f"--set {name}"
        layer[name] = _Value(value, flag, f"flag {flag}", cwd)
    return layer


def _environment_layer(environ: Mapping[str, str | None], cwd: Path, origin: str, where: str) -> _Layer:
    layer = {}
    for name in [*SETTINGS, *(f"class.{workload}.{name}" for workload in CLASSES for name in CLASS_SETTINGS)]:
        written = variable(name)
        if value := environ.get(written):
            layer[name] = _Value(value, where + written, f"{origin} {written}", cwd)
    return layer


def _env_file_layer(path: Path, cwd: Path, *, named: bool) -> _Layer:
    from dotenv import dotenv_values
    from dotenv.parser import parse_stream

    _check_trusted(path, named)
    try:
        with path.open(encoding="utf-8") as file:
            for binding in parse_stream(file):
                if binding.error:
                    line = binding.original
                    raise ConfigError(f"{path}, line {line.line}", line.string.strip(), "a line NAME=value")
        # Without interpolation: python-dotenv would expand ${HOME} in single quotes too.
        values = dotenv_values(path, interpolate=False)
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), error.object[error.start : error.end], "text in UTF-8") from None
    return _environment_layer(values, cwd, str(path), f"{path}: ")


def _find_toml(named: object, environ: Mapping[str, str], cwd: Path) -> tuple[Path | None, bool]:
    if named:
        path = cwd / Path(str(named)).expanduser()
        if not path.is_file():
            raise ConfigError("--config", str(path), "a TOML file")
        return path, True
    home = environ.get("XDG_CONFIG_HOME") or (environ["HOME"] + "/.config" if environ.get("HOME") else "/nonexistent")
    own = Path(home) / "dspy-supervisor" / "config.toml"
    for path in (cwd / TOML_NAME, own, Path("/etc/dspy-supervisor/config.toml")):
        if path.is_file():
            return path, False
    return None, False


def _toml_layer(path: Path, named: bool) -> _Layer:
    import tomllib

    _check_trusted(path, named)
    written = path.read_bytes()
    try:
        document = tomllib.loads(written.decode())
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), error.object[error.start : error.end], "text in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(str(path), str(error), "valid TOML") from None
    names: dict[str, object] = {}
    for name, value in document.items():
        if name == "class" and isinstance(value, dict):
            for workload, table in value.items():
                if isinstance(table, dict):
                    names |= {f"class.{workload}.{key}": inner for key, inner in table.items()}
                else:
                    names[f"class.{workload}"] = table
        else:
            names[name] = value
    check_names(names, f"{path}: ")
    return {name: _Value(value, f"{path}: {name}", str(path), path.parent) for name, value in names.items()}


def _check_trusted(path: Path, named: bool) -> None:
    """Raise ConfigError for a file that was only found where a stranger could have put or changed it."""
    status = path.stat()
    if not named and (status.st_uid not in (os.geteuid(), 0) or status.st_mode & stat.S_IWOTH):
        facts = f"owner {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}"
        raise ConfigError(
            str(path), facts, "a file of yours that others can't write, or its name in --config or --env-file"
        )
