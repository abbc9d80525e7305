"""One budget as a schedule in the shared page: the time from which the next request to a model may leave.

The generic cell rate algorithm (ITU-T I.371) without a burst, by compare-and-swap: who asks moves that time on by what a request
takes of a minute, and has the time that it was until then.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

from dspy_fastpath import budgets
from dspy_fastpath.counters import Page

from .config_llm import Rates
from .errors import SupervisorError

SHARE = 0.98  #: of the rate is used: clocks and networks are not exact, and what comes too early is refused
_CUT, _CUT_EVERY_S, _LEAST_PACE = 0.9, 10.0, 0.1
_RECOVERY = 0.01  # of the pace, a second
_S = 1_000_000_000
_MILLION = 1_000_000
_LONGEST_PAUSE_S = 3600.0  # a provider that says more is asked again then


class Place(IntEnum):
    """What the numbers of a budget in the page are; times are CLOCK_MONOTONIC in ns.

    The schedule runs on a clock that stands still in pauses: it is behind the real one by SHIFT.
    """

    REQUESTS_AT = 0  #: on the schedule's clock, when the next request may leave
    TOKENS_AT = 1  #: the same for its tokens
    RATES = 2  #: requests a minute << 32 | tokens a minute; 0: no bound
    PACE = 3  #: of the last cut: ms << 20 | the pace in millionths of the rate; 0: none yet
    SHIFT = 4
    PAUSED_UNTIL = 5
    SENT = 6  #: requests since the page was made
    REFUSED = 7  #: of them, answered with 429


@dataclass(frozen=True, slots=True)
class Reading:
    """One budget as it is now."""

    name: str
    rates: Rates
    pace: float  #: 0 to 1
    sent: int
    refused: int
    wait_s: float  #: of a request that asked now


class Budget:
    """One budget in the page."""

    def __init__(self, page: Page, name: str) -> None:
        """Open it, or make it. Raises SupervisorError where the page has no room for another."""
        self.name, self._page = name, page
        self._place = budgets.place_of(page, name.encode())
        if self._place < 0:
            raise SupervisorError(
                f"no room for a budget of {name}: one supervisor has 64; let models share one by a pattern"
            )

    @classmethod
    def of_place(cls, page: Page, name: str, place: int) -> Self:
        """Return the budget at a place, which is taken."""
        found = object.__new__(cls)
        found.name, found._page, found._place = name, page, place
        return found

    @property
    def rates(self) -> Rates:
        """What may be sent in a minute."""
        packed = self._get(Place.RATES)
        return Rates(packed >> 32 & 0xFFFFFFFF, packed & 0xFFFFFFFF)

    def set_rates(self, rates: Rates) -> None:
        """Say what may be sent in a minute from now on."""
        tokens = rates.tokens & 0xFFFFFFFF
        wanted = (rates.requests << 32) | tokens
        wanted -= (wanted >> 63) << 64  # as the page holds it, with a sign
        while (now := self._get(Place.RATES)) != wanted and not self._swap(Place.RATES, now, wanted):
            pass

    def take(self, tokens: int = 0) -> tuple[int, int]:
        """Take the next free moment; return when that is on the schedule's clock, and what the tokens cost, in ns."""
        rates, pace = self.rates, self.pace()
        begin = now = time.monotonic_ns() - self._get(Place.SHIFT)
        cost = 0
        if rates.requests:
            begin = max(begin, self._advance(Place.REQUESTS_AT, now, _cost(1, rates.requests, pace)))
        if rates.tokens and tokens:
            cost = _cost(tokens, rates.tokens, pace)
            begin = max(begin, self._advance(Place.TOKENS_AT, now, cost))
        budgets.add(self._page, self._place, Place.SENT, 1)
        return begin, cost

    def give_back(self, tokens_cost: int) -> None:
        """Give a moment back that was not used: those behind it keep theirs, later ones come sooner."""
        rates = self.rates
        if rates.requests:
            budgets.add(self._page, self._place, Place.REQUESTS_AT, -_cost(1, rates.requests, self.pace()))
        if tokens_cost:
            budgets.add(self._page, self._place, Place.TOKENS_AT, -tokens_cost)
        budgets.add(self._page, self._place, Place.SENT, -1)

    def charge(self, tokens: int) -> None:
        """Charge tokens beyond those that were taken; fewer than none for those that were not used."""
        if rate := self.rates.tokens:
            budgets.add(self._page, self._place, Place.TOKENS_AT, _cost(tokens, rate, self.pace()))

    def wait_s(self, begin: int) -> float:
        """Return how long it is now until a moment of the schedule's clock."""
        now = time.monotonic_ns()
        # A pause holds up also what has no rate, and so no schedule that the pause could have moved.
        return max(begin + self._get(Place.SHIFT) - now, self._get(Place.PAUSED_UNTIL) - now, 0) / _S

    def pause(self, seconds: float) -> None:
        """Let nothing leave for so long, an hour at most, counted from now, and move the schedule behind that."""
        while True:
            now, before, shift = time.monotonic_ns(), self._get(Place.PAUSED_UNTIL), self._get(Place.SHIFT)
            until, start = now + int(min(seconds, _LONGEST_PAUSE_S) * _S), max(now, before)
            if until <= before:
                return
            if self._swap(Place.PAUSED_UNTIL, before, until):
                break
        for number in (Place.REQUESTS_AT, Place.TOKENS_AT):  # what the clock passed unused before is not saved up
            self._advance(number, start - shift, 0)
        budgets.add(self._page, self._place, Place.SHIFT, until - start)

    def refuse(self, pause_s: float) -> None:
        """Take note of a 429: pause, and go on more slowly."""
        budgets.add(self._page, self._place, Place.REFUSED, 1)
        self.pause(pause_s)
        packed, now_ms = self._get(Place.PACE), time.monotonic_ns() // _MILLION
        if not packed or now_ms - (packed >> 20) > _CUT_EVERY_S * 1000:
            pace = max(_LEAST_PACE, self.pace() * _CUT)
            self._swap(Place.PACE, packed, now_ms << 20 | round(pace * _MILLION))

    def pace(self) -> float:
        """Return what part of the rate is used: 1, and less for some time after a 429."""
        packed = self._get(Place.PACE)
        if not packed:
            return 1.0
        since_s = (time.monotonic_ns() // _MILLION - (packed >> 20)) / 1000
        return min(1.0, (packed & 0xFFFFF) / _MILLION + max(0.0, since_s) * _RECOVERY)

    def read(self) -> Reading:
        """Return it as it is now."""
        ahead = max(self._get(Place.REQUESTS_AT), self._get(Place.TOKENS_AT)) if any(self.rates) else 0
        return Reading(
            self.name, self.rates, self.pace(), self._get(Place.SENT), self._get(Place.REFUSED), self.wait_s(ahead)
        )

    def numbers(self) -> list[int]:
        """Return the numbers as the page has them."""
        return [self._get(number) for number in Place]

    def restore(self, numbers: list[int]) -> None:
        """Take the numbers of an earlier page of this boot."""
        for number, value in zip(Place, numbers, strict=True):
            self._swap(number, 0, value)

    def _advance(self, number: Place, now: int, cost: int) -> int:
        """Put a schedule's next moment behind ``now`` and ``cost`` after what it was; return what it was, but not before now."""
        while True:
            at = self._get(number)
            begin = max(at, now)
            if self._swap(number, at, begin + cost):
                return begin

    def _get(self, number: Place) -> int:
        return budgets.load(self._page, self._place, number)

    def _swap(self, number: Place, expected: int, desired: int) -> bool:
        return budgets.swap(self._page, self._place, number, expected, desired)


def _cost(number: int, rate: int, pace: float) -> int:
    """Return how long so many of a rate a minute take, in ns."""
    return round(number * 60 * _S / (rate * SHARE * pace))
