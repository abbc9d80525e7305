"""What a task in a sandbox sees of the filesystem."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..errors import ConfigError
from . import secrets

#: what programs are made of; the rest of the machine is not there, or can't be opened
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/nix/store", "/gnu/store")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
#: what a task of class gpu gets beside these; which GPU it uses is said by CUDA_VISIBLE_DEVICES, and held by nothing more
GPU_DEVICES = ("/dev/nvidia*", "/dev/nvidia-caps/*", "/dev/dri/renderD*", "/dev/kfd", "/dev/dxg")
#: in /etc, whatever its modes say
_PRIVATE = ("/etc/dspy-supervisor",)


@dataclass(frozen=True, slots=True)
class View:
    """Files and folders, by their real paths."""

    read: tuple[str, ...]  #: with all below
    write: tuple[str, ...]  #: with all below
    hidden: tuple[str, ...]  #: below one of those, and not to be seen all the same
    listed: tuple[str, ...]  #: though some of it is hidden: the names in it are no secret
    devices: tuple[str, ...]
    links: tuple[tuple[str, str], ...]  #: other names of some of these, and their real paths

    def shows(self, path: str) -> bool:
        """Whether a task may read there."""
        real = os.path.realpath(path)
        return any(is_below(real, one) for one in (*self.read, *self.write))


def refuse_missing(settings: Iterable[tuple[str, Iterable[str]]]) -> None:
    """Raise ConfigError for the first path of these settings that is not there: a task would be told so, and nobody else."""
    for setting, paths in settings:
        for path in paths:
            if not os.path.exists(path):
                raise ConfigError(setting, path, "files and folders that are there when a worker starts")


def look(
    *,
    code: Iterable[str],  # folders of Python's modules
    private: Sequence[str],  # what no task may see: the queue, the runtime folder
    home: str,  # of the user
    read: Sequence[str] = (),
    write: Sequence[str] = (),
    gpu: bool = False,
    network: bool = False,
) -> View:
    """Return what tasks see: the system, the code, and what they are given beside it.

    Raises ConfigError where something of read or write is not there, or where there is too much code to search it for secrets.
    """
    refuse_missing((("sandbox_read", read), ("sandbox_write", write)))
    system = [path for path in SYSTEM if os.path.lexists(path)]
    folders = [path for path in dict.fromkeys(map(os.path.abspath, code)) if os.path.exists(path)]
    folders = [path for path in folders if not _is_above(path, (home, "/tmp"))]
    modules = [path for path in folders if not any(is_below(path, one) for one in SYSTEM)]
    given = ["/etc/resolv.conf"] if network else []  # often a link to a place elsewhere
    devices = [*DEVICES, *(found for name in GPU_DEVICES for found in sorted(glob.glob(name)))] if gpu else [*DEVICES]
    named = [*system, *modules, *given, *read, *write]
    links = [(path, real) for path in dict.fromkeys(named) if (real := os.path.realpath(path)) != path]
    readable = _real([*system, *modules, *given, *read])
    readable = tuple(path for path in readable if not any(path != one and is_below(path, one) for one in readable))
    private = _real((*private, *_PRIVATE))
    searched = [path for path in _real(folders) if not any(is_below(path, one) for one in private)]
    secret = secrets.find(searched, {*private, *_real((*read, *write))})
    shown = (*readable, *_real(write))
    return View(
        read=readable,
        write=_real(write),
        hidden=tuple(
            path
            for path in _real((*private, *unreadable("/etc"), *secret))
            if any(is_below(path, one) for one in shown)
        ),
        listed=tuple(dict.fromkeys(_listed(secret, readable, private))),
        devices=tuple(devices),
        links=tuple(links),
    )


def _real(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(os.path.realpath, paths)))


def _listed(secret: Iterable[str], shown: Sequence[str], private: Sequence[str]) -> Iterator[str]:
    """Yield the highest folder around each secret that is shown and has nothing private in it."""
    for path in secret:
        folder = ""
        while any(is_below(above := os.path.dirname(folder or path), one) for one in shown):
            if above == folder or any(is_below(one, above) for one in private):
                break
            folder = above
        if folder:
            yield folder


def reaching(paths: Iterable[str], private: Iterable[str]) -> str:
    """Return the first of these paths that leads to something private, or lies in it; "" where none does."""
    wanted = [os.path.realpath(path) for path in private]
    for path in paths:
        real = os.path.realpath(path)
        if any(is_below(real, one) or is_below(one, real) for one in wanted):
            return path
    return ""


def is_below(path: str, folder: str) -> bool:
    """Whether path is folder, or lies in it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _is_above(path: str, others: Iterable[str]) -> bool:
    real = os.path.realpath(path)
    return any(is_below(os.path.realpath(one), real) for one in others)


def unreadable(folder: str) -> Iterator[str]:
    """Yield what of a folder this process may read, and not everybody: passwords and keys, where it is root."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        try:
            mode = entry.stat(follow_symlinks=False).st_mode
        except OSError:
            continue
        if stat.S_ISLNK(mode):
            continue
        wanted = stat.S_IROTH | (stat.S_IXOTH if stat.S_ISDIR(mode) else 0)
        if mode & wanted != wanted:
            if os.access(entry.path, os.R_OK):  # else the kernel refuses it already
                yield entry.path
        elif stat.S_ISDIR(mode):
            yield from unreadable(entry.path)


def without(path: str, hidden: Sequence[str]) -> Iterator[str]:
    """Yield what together is all of path but what is hidden, for a means that can't hide a part of a folder."""
    if not any(is_below(one, path) for one in hidden):
        yield path
        return
    if path in hidden:
        return
    try:
        entries = sorted(entry.path for entry in os.scandir(path))
    except OSError:
        return
    for entry in entries:
        yield from without(entry, hidden)
