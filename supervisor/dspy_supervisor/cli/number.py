"""The numbers that options take. What click calls a float is also nan, 1e300 and inf, which no clock and no bound takes."""

from __future__ import annotations

import math
from typing import Any

import click

from ..task import MAX_TIMEOUT_S


class Number(click.FloatRange):
    """A finite number in a closed range, or with ``above`` in one that its lowest number is no part of."""

    def __init__(self, lowest: float, highest: float, unit: str = "a number", *, above: bool = False) -> None:
        super().__init__(lowest, highest, min_open=above)
        bounds = f"above {lowest:g} and up to {highest:.10g}" if above else f"from {lowest:g} to {highest:.10g}"
        self.expected = f"{unit} {bounds}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number. Raises BadParameter for another one, and for what is none."""
        try:
            number = float(value)
            above = self.min is not None and (number > self.min if self.min_open else number >= self.min)
            if not above or self.max is None or number > self.max or math.isnan(number):
                raise ValueError
        except ValueError:
            raise click.BadParameter(f"{value!r}: expected {self.expected}", ctx, param) from None
        return number


WAIT_S = Number(0, MAX_TIMEOUT_S, "seconds")  #: how long to wait for something
DELAY_S = Number(0, MAX_TIMEOUT_S, "seconds")  #: of a task, before it may start
ATTEMPT_S = Number(0, MAX_TIMEOUT_S, "seconds", above=True)  #: that an attempt may take
