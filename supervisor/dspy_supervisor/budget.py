"""What all workers of a host together may send to a language model: requests and tokens a minute.

::

    from dspy_supervisor import budget

    grant = budget.acquire("openai/gpt-4o-mini", tokens=1200)      # waits for its turn
    answer = client.post(...)
    budget.report("openai/gpt-4o-mini", answer.status_code, answer.headers)
    grant.settle(answer.json()["usage"]["total_tokens"])

The rates are those of ``llm_budgets``, less where the provider's headers tell less. Each budget is a schedule: a
request takes the next free moment of it (the generic cell rate algorithm, ITU-T I.371, without a burst), by a
compare-and-swap in the page that all workers share, and sleeps until then. So requests leave evenly, in the order in which
they asked, whoever asks. A 429 moves the whole schedule behind Retry-After, also for those that are asleep, and lowers
the pace by a tenth, which comes back in ten seconds.

Outside of a worker there is nobody to share with, and nothing waits.
"""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Self

from dspy_fastpath import budgets
from dspy_fastpath.counters import Page

from .config_llm import Rates, parse_rates
from .errors import SupervisorError, WaitTimeout

SHARE = 0.98  #: of the rate is used: clocks and networks are not exact, and what comes too early is refused
_CUT, _CUT_EVERY_S, _LEAST_PACE = 0.9, 10.0, 0.1
_RECOVERY = 0.01  # of the pace, a second
_PAUSE_S = 1.0  # after a 429 that says nothing
_LONGEST_PAUSE_S = 3600.0  # a provider that says more is asked again then
_S = 1_000_000_000
_MILLION = 1_000_000
_WHOLE_NAME = 55  # bytes: a name that long in the page may be the beginning of another


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


class BudgetExhausted(WaitTimeout):
    """No turn came in the time that the caller had; it would come in ``retry_after_s`` seconds."""

    def __init__(self, model: str, retry_after_s: float, timeout_s: float) -> None:
        super().__init__(
            f"the budget of {model} is used up: the next turn is in {retry_after_s:.1f} s, not in {timeout_s:g} s"
        )
        self.retry_after_s = retry_after_s


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
        """Let nothing leave for so long, counted from now, and move the schedule behind that."""
        while True:
            now, before, shift = time.monotonic_ns(), self._get(Place.PAUSED_UNTIL), self._get(Place.SHIFT)
            until, start = now + int(seconds * _S), max(now, before)
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
        self.pause(min(pause_s, _LONGEST_PAUSE_S))
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


@dataclass(slots=True)
class Grant:
    """The right to send one request now."""

    budget: Budget | None  #: None: nobody counts
    tokens: int  #: that were taken for it

    def settle(self, tokens: int) -> None:
        """Say how many tokens it took in the end, where that is known."""
        if self.budget is not None and tokens != self.tokens:
            self.budget.charge(tokens - self.tokens)
            self.tokens = tokens


# -- of this process ----------------------------------------------------------------------------------------------------

_page: Page | None = None
_patterns: Mapping[str, str] = {}
_known: dict[str, Budget] = {}


def use(page: Page | None, patterns: Mapping[str, str]) -> None:
    """Share budgets by this page from now on, with the rates of ``llm_budgets``; None: with nobody."""
    global _page, _patterns  # one page a process: whoever sends something must not have to carry it there
    _page, _patterns = page, patterns
    _known.clear()


def is_shared() -> bool:
    """Whether this process shares budgets with others."""
    return _page is not None


def of(model: str) -> Budget | None:
    """Return the budget of a model: that of its name, of the first pattern that fits, or one of its own without a bound."""
    if _page is None:
        return None
    budget = _known.get(model)
    if budget is None:
        name = model
        if model not in _patterns:
            name = next((pattern for pattern in _patterns if fnmatch.fnmatchcase(model, pattern)), model)
        budget = _known[model] = Budget(_page, name)
    return budget


def acquire(model: str, tokens: int = 0, timeout_s: float | None = None) -> Grant:
    """Wait until a request of so many tokens may be sent to a model.

    tokens: what the request is expected to take, of prompt and answer together. Raises BudgetExhausted where its turn is
    more than timeout_s seconds away; then nothing was taken.
    """
    budget = of(model)
    if budget is None:
        return Grant(None, tokens)
    begin = _turn(budget, model, tokens, timeout_s)
    while (left := budget.wait_s(begin)) > 0:  # again: a pause may have moved it
        time.sleep(left)
    return Grant(budget, tokens)


async def acquire_async(model: str, tokens: int = 0, timeout_s: float | None = None) -> Grant:
    """Do as `acquire` does, without blocking the event loop."""
    import asyncio  # the supervisor imports this file, and does without it

    budget = of(model)
    if budget is None:
        return Grant(None, tokens)
    begin = _turn(budget, model, tokens, timeout_s)
    while (left := budget.wait_s(begin)) > 0:
        await asyncio.sleep(left)
    return Grant(budget, tokens)


def report(
    model: str, status: int = 200, headers: Mapping[str, Any] | None = None, retry_after_s: float | None = None
) -> None:
    """Say what a provider answered: its status and headers, or what it said of when to try again."""
    from .limit_headers import pause_told, rates_told  # of a worker that sends something

    budget = of(model)
    if budget is None:
        return
    told = {str(name).lower(): _text(value) for name, value in (headers or {}).items()}
    limits = rates_told(told)
    if any(limits):
        own = parse_rates(_patterns[budget.name]) if budget.name in _patterns else Rates(0, 0)
        budget.set_rates(Rates(_lesser(own.requests, limits.requests), _lesser(own.tokens, limits.tokens)))
    pause_s = retry_after_s if retry_after_s is not None else pause_told(told, refused=status == 429)
    if status == 429:
        budget.refuse(_PAUSE_S if pause_s is None else pause_s)
    elif pause_s:
        budget.pause(min(pause_s, _LONGEST_PAUSE_S))


# -- of the supervisor --------------------------------------------------------------------------------------------------


def configure(page: Page, patterns: Mapping[str, str]) -> None:
    """Give the budgets of a page the rates of ``llm_budgets``; the others have none until a provider tells them."""
    for place, name in enumerate(_names(page)):
        if name not in patterns:
            Budget.of_place(page, name, place).set_rates(Rates(0, 0))
    for name, written in patterns.items():
        Budget(page, name).set_rates(parse_rates(written))


def saved(path: Path) -> dict[str, list[int]]:
    """Return the budgets in the page of an earlier run, none where there is none of this boot."""
    try:
        with Page.attach(path) as page:
            if page.started_at < time.time() - time.monotonic():
                return {}  # before the machine was started: its clock was another
            return {
                name: Budget.of_place(page, name, place).numbers()
                for place, name in enumerate(_names(page))
                if 0 < len(name.encode()) < _WHOLE_NAME
            }
    except (OSError, ValueError):  # none, or of another layout
        return {}


def restore(page: Page, found: Mapping[str, list[int]]) -> None:
    """Put the budgets of an earlier run into a new page."""
    for name, numbers in found.items():
        Budget(page, name).restore(numbers)


def readings(page: Page) -> list[Reading]:
    """Return all budgets of a page, which may be attached for reading only."""
    return [Budget.of_place(page, name, place).read() for place, name in enumerate(_names(page))]


def _names(page: Page) -> list[str]:
    return [name.decode(errors="replace") for name in budgets.names(page)]


def _turn(budget: Budget, model: str, tokens: int, timeout_s: float | None) -> int:
    begin, cost = budget.take(tokens)
    if timeout_s is not None and (left := budget.wait_s(begin)) > timeout_s:
        budget.give_back(cost)
        raise BudgetExhausted(model, left, timeout_s)
    return begin


def _cost(number: int, rate: int, pace: float) -> int:
    """Return how long so many of a rate a minute take, in ns."""
    return round(number * 60 * _S / (rate * SHARE * pace))


def _lesser(own: int, told: int) -> int:
    return min(own, told) if own and told else own or told


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, list | tuple):
        return str(value[0]) if value else ""
    return str(value)
