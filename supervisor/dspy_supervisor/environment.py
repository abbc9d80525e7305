"""What this process finds in its environment beside its settings, and what it sets there for what it starts.

Settings are read from the environment in config; no other module looks into os.environ.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from .config_sources import config_home

_HANDED_OVER = "_SUPERVISOR_HANDED_OVER"


def notify_environment() -> tuple[str, str]:
    """Take NOTIFY_SOCKET and WATCHDOG_USEC out of the environment, sd_notify(3); "" where a service manager set none.

    Taken out, since what this process starts must not speak for the service.
    """
    watched = os.environ.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    address, usec = os.environ.pop("NOTIFY_SOCKET", ""), os.environ.pop("WATCHDOG_USEC", "")
    return address, usec if watched else ""


def journal_stream() -> str:
    """Return JOURNAL_STREAM, which names the standard error that systemd reads, systemd.exec(5); "" where it reads none."""
    return os.environ.get("JOURNAL_STREAM", "")


def handed_over() -> tuple[str, int] | None:
    """Take out of the environment what the program before this one in its process left there: a word, and a descriptor.

    None where this process began with this program.
    """
    word, _, descriptor = os.environ.pop(_HANDED_OVER, "").partition(":")
    return (word, int(descriptor)) if descriptor.isdecimal() else None


def successor_environment(word: str, descriptor: int, notify: tuple[str, str] = ("", "")) -> dict[str, str]:
    """Return the environment of a program that is to take this process over; ``notify``: of `notify_environment`."""
    address, usec = notify
    mine = {
        name: value for name, value in os.environ.items() if name != "DSPY_CHECKPOINT"
    }  # of this supervisor's making
    told = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": usec}
    return mine | {name: value for name, value in told.items() if value} | {_HANDED_OVER: f"{word}:{descriptor}"}


def trace_context() -> str | None:
    """Return TRACEPARENT, by which what started this process hands its trace on, or None."""
    return os.environ.get("TRACEPARENT") or None


def set_variable(name: str, value: str, *, keep: bool = False) -> None:
    """Set a variable of this process, for what it starts; ``keep``: only where it has none."""
    if not keep or name not in os.environ:
        os.environ[name] = value


def user_environment() -> tuple[Path, str]:
    """Return the folder of the user's own settings (XDG base directory specification), and who called sudo, if any."""
    return config_home(os.environ), os.environ.get("SUDO_USER", "")


def delegated_group() -> str:
    """Return the name of the control group that the unit says is ours, "" where it says nothing."""
    return os.environ.get("SUPERVISOR_DELEGATED", "")


def gpu_environment() -> dict[str, str]:
    """Return the variables that bound this process to some of the host's GPUs: its own set, or Slurm's."""
    names = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS")
    return {name: os.environ[name] for name in names if name in os.environ}


def numba_cache_folder(runtime_dir: Path, environ: Mapping[str, str] | None = None) -> Path | None:
    """Return a folder of ours for compiled code, which is there and can be written now, or None.

    systemd's cache directory where there is one, else the user's by the XDG specification, else one beside the socket.
    """
    return _own_folder([place / "numba" for place in (*_cache_places(environ), runtime_dir)])


def dspy_cache_folder(environ: Mapping[str, str] | None = None) -> Path | None:
    """Return the folder below which each worker has a cache of DSPy's, which is there and can be written now, or None.

    DSPY_CACHEDIR where it is set, else a folder of ours: systemd's cache directory, or the user's by the XDG specification.
    """
    environ = os.environ if environ is None else environ
    chosen = [Path(environ["DSPY_CACHEDIR"])] if environ.get("DSPY_CACHEDIR") else []
    return _own_folder([*chosen, *(place / "dspy" for place in _cache_places(environ))])


def _cache_places(environ: Mapping[str, str] | None) -> list[Path]:
    environ = os.environ if environ is None else environ
    places = [Path(place) for place in environ.get("CACHE_DIRECTORY", "").split(":") if place.startswith("/")]
    if (cache := environ.get("XDG_CACHE_HOME", "")).startswith("/"):
        places.append(Path(cache) / "dspy-supervisor")
    elif environ.get("HOME", "").startswith("/"):
        places.append(Path(environ["HOME"]) / ".cache" / "dspy-supervisor")
    return places


def _own_folder(places: Sequence[Path]) -> Path | None:
    """Return the first of these folders that is ours alone and can be written, made where it is missing, or None."""
    for folder in places:
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = folder.stat()
            # Who may write there decides what code we run.
            if found.st_uid == os.geteuid() and not found.st_mode & 0o022:
                probe = folder / f".{os.getpid()}"
                os.close(os.open(probe, os.O_CREAT | os.O_WRONLY))
                probe.unlink()
                return folder
    return None


def user_home() -> str:
    """Return the home folder of this process's user."""
    return os.path.expanduser("~")


_FOR_JOBS = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TMPDIR", "SLURM_CONF", "LD_LIBRARY_PATH", "LD_PRELOAD"),
        *("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX", "MODULEPATH", "LMOD_CMD", "LMOD_DIR"),
    }
)


def slurm_environment(allowed: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables that Slurm's commands are run with, and that jobs inherit.

    A few that programs need, and those ``allowed`` by name or as NAME*. No other: secrets would reach every node and the
    accounting, the variables of a job around us the jobs we submit, and SQUEUE_STATES and its like silently empty listings.
    """
    environ = os.environ if environ is None else environ
    heads = tuple(name.removesuffix("*") for name in allowed if name.endswith("*"))
    names = _FOR_JOBS | set(allowed)
    kept = {name: value for name, value in environ.items() if name in names or (heads and name.startswith(heads))}
    return kept | {"LC_ALL": "C.UTF-8"}


def job_variables() -> dict[str, str]:
    """Return what Slurm tells the job that this process runs in; nothing outside of a job."""
    return {name: value for name, value in os.environ.items() if name.startswith(("SLURM_", "SLURMD_"))}


def checkpoint_file() -> str:
    """Return the file in which a job's runner tells what it runs that its time is up; "" where there is none."""
    return os.environ.get("DSPY_CHECKPOINT", "")


def replace_variables(variables: Mapping[str, str], drop: Sequence[str] = ()) -> None:
    """Set variables of this process, and forget others."""
    for name in drop:
        os.environ.pop(name, None)
    os.environ.update(variables)


def chosen_variables(allowed: Sequence[str]) -> dict[str, str]:
    """Return the variables of this process that are allowed, by name or as NAME*."""
    heads = tuple(name.removesuffix("*") for name in allowed if name.endswith("*"))
    return {name: value for name, value in os.environ.items() if name in allowed or (heads and name.startswith(heads))}
