"""What in folders of code is likely to be secret, by its name: tasks may import what lies beside it, and not read it.

Looked through are folders of code with all below, as they are when a worker starts, and links aren't followed. Packages that are
installed and Python itself are published: of those only the first level, since a library's certificates below belong to it.
"""

from __future__ import annotations

import fnmatch
import os
import re
import sys
from collections.abc import Collection, Iterable

from ..errors import ConfigError

NAMES = (".env", ".env.*", ".git", "dspy-supervisor.toml", "*.pem", "*.key")
MOST_FILES = 200_000  #: that are looked at: about a second, and some more where the disk has to be asked
MOST_SECRETS = 2000  #: each costs a task a mount, or the rules for all that lies beside it

_SECRET = re.compile("|".join(map(fnmatch.translate, NAMES)))
_INSTALLED = frozenset(("site-packages", "dist-packages", "node_modules", "__pycache__"))


def find(folders: Iterable[str], passed: Collection[str]) -> list[str]:
    """Return the secrets in these folders, by their real paths; what is passed is neither named nor looked into.

    Raises ConfigError where there is too much to look at: what was not looked at must not be shown.
    """
    python = _python()
    found: list[str] = []
    seen: set[str] = set()
    looked = 0
    for top in dict.fromkeys(map(os.path.realpath, folders)):
        todo = [top]
        while todo:
            folder = todo.pop()
            if folder in seen:
                continue
            seen.add(folder)
            try:
                entries = list(os.scandir(folder))
            except OSError:  # no folder, or one that a task can't read either
                continue
            looked += len(entries)
            deeper = not _is_published(folder, entries, python)
            for entry in entries:
                if entry.path in passed:
                    continue
                if _SECRET.fullmatch(entry.name):
                    if not entry.is_symlink():
                        found.append(entry.path)
                elif deeper and entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
            if looked > MOST_FILES or len(found) > MOST_SECRETS:
                raise ConfigError(
                    "folder of code",
                    top,
                    f"no more than {MOST_FILES} files and {MOST_SECRETS} secrets by name; what sandbox_read and sandbox_write "
                    "name inside of it is not looked into, or start the supervisor in another folder",
                )
    return found


def _python() -> tuple[frozenset[str], str]:
    """Return the folders that Python was installed into, and that of its own modules."""
    prefixes = (sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix)
    return frozenset(map(os.path.realpath, prefixes)), os.path.dirname(os.path.realpath(os.__file__))


def _is_published(folder: str, entries: Iterable[os.DirEntry[str]], python: tuple[frozenset[str], str]) -> bool:
    prefixes, modules = python
    if not _INSTALLED.isdisjoint(folder.split("/")) or f"{folder}/".startswith(f"{modules}/"):
        return True
    names = {entry.name for entry in entries}
    # A virtual environment may be somebody's folder of code, too. One of conda's holds the certificates of the system.
    return "conda-meta" in names or (folder in prefixes and "pyvenv.cfg" not in names)
