"""A supervisor with a planted leak, named by SOAK_LEAK: a little of something is kept for each task that ends."""

import itertools
import os
import sys
from pathlib import Path
from typing import Any

from dspy_supervisor.__main__ import main
from dspy_supervisor.pool import Pool

_KEPT: list[Any] = []
_NUMBER = itertools.count()


def _memory() -> None:
    _KEPT.append(os.urandom(16384))


def _fd() -> None:
    if next(_NUMBER) % 20 == 0:  # else it would run into its limit, and be found by that
        os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)


def _files() -> None:
    folder = Path(os.environ["SOAK_LEFT"])
    folder.mkdir(exist_ok=True)
    (folder / f"left.{next(_NUMBER)}").touch()


LEAKS = {"memory": _memory, "fd": _fd, "files": _files}

if __name__ == "__main__":
    leak, heard = LEAKS[os.environ["SOAK_LEAK"]], Pool._heard

    def leaking(self: Pool, *arguments: Any) -> None:
        leak()
        heard(self, *arguments)

    Pool._heard = leaking  # type: ignore[method-assign]
    sys.exit(main())
