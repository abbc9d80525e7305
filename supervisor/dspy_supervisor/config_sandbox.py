"""The settings of sandboxes, of each class and of all: whether tasks run in one, and what is let through."""

from __future__ import annotations

from dataclasses import dataclass

from .setting import choice, setting, settings, size, truth, words

MECHANISMS = ("namespaces", "landlock")  #: in the order in which they are tried
_PATHS = r"[/~][^,\0\n]*"


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)  # Config and ClassConfig have these
class SandboxSettings:
    """The part of a configuration that is about sandboxes."""

    sandbox: str = setting(
        choice("off", "on", *MECHANISMS),
        "run each task in a sandbox: no network, no files but the system's and its own folder, nothing of other processes; on "
        "takes the first mechanism that is proved to work here, a name that one. Where none works, the class runs nothing",
        "off",
        live=True,
    )
    sandbox_network: bool = setting(
        truth(),
        "tasks in a sandbox reach the network by TCP and UDP, this host's own services among it",
        False,
        live=True,
    )
    sandbox_read: tuple[str, ...] = setting(
        words(_PATHS, "absolute paths"),
        "further files and folders that tasks in a sandbox may read",
        (),
        live=True,
    )
    sandbox_write: tuple[str, ...] = setting(
        words(_PATHS, "absolute paths"),
        "further files and folders that tasks in a sandbox may write, and so share",
        (),
        live=True,
    )
    sandbox_env: tuple[str, ...] = setting(
        words(r"[A-Za-z_][A-Za-z0-9_]*\*?", "names of variables, NAME or NAME*"),
        "the supervisor's variables that tasks in a sandbox see, beside PATH, locale, time zone and those of GPUs",
        (),
        live=True,
    )
    sandbox_tmp_bytes: int = setting(
        size(1 << 16, 1 << 40),
        "most bytes in the private /tmp of a task in a sandbox of namespaces",
        1 << 30,
        live=True,
    )


NAMES = tuple(settings(SandboxSettings))
