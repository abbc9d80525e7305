"""A supervisor that rents machines and has a bug that tests/cloud/life.py must find: ``$PLANT`` names it."""

from __future__ import annotations

import math
import os
import sys
from typing import Any

from dspy_supervisor.__main__ import main
from dspy_supervisor.services.cloud import bridge, fleet, settle, warden
from dspy_supervisor.services.cloud.book import Book
from dspy_supervisor.task import Cause


def _nothing(*_given: Any) -> None:
    """Leave out what should be done."""


def orphans() -> None:
    """Nobody deletes the machines of a supervisor that was killed."""
    warden.begin = _nothing


def leaves() -> None:
    """A supervisor that stops leaves its machines to themselves."""
    bridge.Bridge._end = _nothing  # type: ignore[method-assign, assignment]


def forgets() -> None:
    """A service that is started again does not look up what the one before ordered."""
    Book.open = lambda _: []  # type: ignore[method-assign]


def overspends() -> None:
    """The spend cap is not looked at."""
    fleet.Fleet.left = lambda _: math.inf  # type: ignore[method-assign]


def hoards() -> None:
    """Machines without work are kept."""
    fleet.Fleet._shrink = _nothing  # type: ignore[method-assign, assignment]


def trusts() -> None:
    """A machine is there as long as its provider says so."""
    fleet.Fleet._judge_time = _nothing  # type: ignore[method-assign, assignment]


def charges() -> None:
    """A machine that dies is taken for a fault of its task."""

    def lose(self: settle.Settler, file: str, machine: str, why: str) -> settle.Told:
        held = self._read(file)
        assert not isinstance(held, settle.Told)
        error = {"cause": Cause.EXIT, "message": why}
        return self._fail(held, error, Cause.EXIT, settle.Run(None, 0.0, 0.0, 0, machine), [])

    settle.Settler.lose = lose  # type: ignore[method-assign]


PLANTS = {plant.__name__: plant for plant in (orphans, leaves, forgets, overspends, hoards, trusts, charges)}

if __name__ == "__main__":
    PLANTS[os.environ["PLANT"]]()
    sys.exit(main())
