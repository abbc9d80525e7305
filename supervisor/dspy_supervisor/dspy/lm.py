"""A dspy.LM that keeps to what all workers of a host together may send (see dspy_supervisor.budget).

An answer from DSPy's cache costs nothing: only what is sent takes its turn, each try of a request anew. In workers the handler
of kind dspy does this by itself.
"""

from __future__ import annotations

from typing import Any

import dspy
from dspy.clients.backend_selection import CLIENT_KEYS

from .. import budget

_BYTES_A_TOKEN = 4  # of English text, about; what a request took in the end is charged when that is known
_ANSWER = 256  # tokens, where the LM has no bound


def budgeted(lm: Any) -> Any:
    """Return an LM that waits for its turn before it sends, and tells the budget what comes back.

    An LM with an engine of its own, as DummyLM, is returned as it is: nobody knows what it sends.
    """
    if type(lm) is not dspy.LM or not isinstance(lm.engine, str):
        return lm
    sender = lm.copy(num_retries=0, cache=False)
    sender.callbacks = []
    # Address and key stay with the one that sends: beside an engine, an LM refuses them.
    elsewhere = {name: None for name in CLIENT_KEYS if name in lm.kwargs}
    return lm.copy(engine=BudgetedEngine(sender), async_engine=AsyncBudgetedEngine(sender), **elsewhere)


class BudgetedEngine:
    """One try of a request, by another LM, when it is its turn."""

    def __init__(self, lm: Any) -> None:
        self._lm = lm

    def complete(self, request: Any) -> Any:
        """Return the answer. Raises what the other LM raises."""
        grant = budget.acquire(self._lm.model, estimate(request))
        try:
            with _quiet():
                answer = self._lm(request)
        except Exception as error:
            _refused(self._lm.model, error)
            raise
        _settle(grant, answer)
        return answer

    def close(self) -> None:
        """Close the other LM."""
        self._lm.close()


class AsyncBudgetedEngine:
    """The same for an event loop."""

    def __init__(self, lm: Any) -> None:
        self._lm = lm

    async def complete(self, request: Any) -> Any:
        """Return the answer. Raises what the other LM raises."""
        grant = await budget.acquire_async(self._lm.model, estimate(request))
        try:
            with _quiet():
                answer = await self._lm.acall(request)
        except Exception as error:
            _refused(self._lm.model, error)
            raise
        _settle(grant, answer)
        return answer

    async def aclose(self) -> None:
        """Close the other LM."""
        await self._lm.aclose()


def estimate(request: Any) -> int:
    """Return how many tokens a request may take: its text, and the longest answer that it allows."""
    text = sum(len(message.text or "") for message in request.messages)
    if isinstance(request.system, str):
        text += len(request.system)
    return text // _BYTES_A_TOKEN + (request.config.max_tokens or _ANSWER)


def _quiet() -> Any:
    """Leave history, usage and callbacks to the LM that was called: each would have the call twice."""
    return dspy.context(disable_history=True, usage_tracker=None, callbacks=[])


def _refused(model: str, error: Exception) -> None:
    status = getattr(error, "status", None)
    if status == 429 or isinstance(error, dspy.LMRateLimitError):
        budget.report(
            model, 429, getattr(error, "rate_limit_headers", None), retry_after_s=getattr(error, "retry_after", None)
        )


def _settle(grant: budget.Grant, answer: Any) -> None:
    usage = getattr(answer, "usage", None)
    total = getattr(usage, "total_tokens", None)
    if total:
        grant.settle(int(total))
