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
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspy_fastpath import budgets
from dspy_fastpath.counters import Page

from .config_llm import Rates, parse_rates
from .errors import SupervisorError, WaitTimeout
from .schedule import Budget, Reading

_PAUSE_S = 1.0  # after a 429 that says nothing
_WHOLE_NAME = 55  # bytes: a name that long in the page may be the beginning of another


class BudgetExhausted(WaitTimeout):
    """No turn came in the time that the caller had; it would come in ``retry_after_s`` seconds."""

    def __init__(self, model: str, retry_after_s: float, timeout_s: float) -> None:
        super().__init__(
            f"the budget of {model} is used up: the next turn is in {retry_after_s:.1f} s, not in {timeout_s:g} s"
        )
        self.retry_after_s = retry_after_s


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
_known: dict[str, Budget | None] = {}


def use(page: Page | None, patterns: Mapping[str, str]) -> None:
    """Share budgets by this page from now on, with the rates of ``llm_budgets``; None: with nobody."""
    global _page, _patterns  # one page a process: whoever sends something must not have to carry it there
    _page, _patterns = page, patterns
    _known.clear()


def is_shared() -> bool:
    """Whether this process shares budgets with others."""
    return _page is not None


def of(model: str) -> Budget | None:
    """Return the budget of a model: that of its name, of the first pattern that fits, or one of its own without a bound.

    None where nobody counts: outside of a worker, and for a model without a rate that the page has no room for any more.
    """
    if _page is None:
        return None
    if model not in _known:
        name = model
        if model not in _patterns:
            name = next((pattern for pattern in _patterns if fnmatch.fnmatchcase(model, pattern)), model)
        try:
            _known[model] = Budget(_page, name)
        except SupervisorError:
            if name in _patterns:
                raise
            _known[model] = None
    return _known[model]


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
        budget.pause(pause_s)


# -- of the supervisor --------------------------------------------------------------------------------------------------


def configure(page: Page, patterns: Mapping[str, str]) -> None:
    """Give the budgets of a page the rates of ``llm_budgets``; the others have none until a provider tells them.

    Raises SupervisorError where the page has no room for one of them, and then all rates are as they were.
    """
    wanted = {name: (Budget(page, name), parse_rates(written)) for name, written in patterns.items()}
    for place, name in enumerate(_names(page)):
        if name not in patterns:
            Budget.of_place(page, name, place).set_rates(Rates(0, 0))
    for budget, rates in wanted.values():
        budget.set_rates(rates)


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


def restore(page: Page, found: Mapping[str, list[int]], patterns: Iterable[str]) -> None:
    """Put the budgets of an earlier run into a new page, in which those of ``llm_budgets`` have their places first."""
    for name in patterns:
        Budget(page, name)
    for name, numbers in found.items():
        with suppress(SupervisorError):  # no room for a model that has no rate
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


def _lesser(own: int, told: int) -> int:
    return min(own, told) if own and told else own or told


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, list | tuple):
        return str(value[0]) if value else ""
    return str(value)
