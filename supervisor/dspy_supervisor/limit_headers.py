"""What a provider's headers say of its limits: OpenAI's x-ratelimit-*, Anthropic's anthropic-ratelimit-*, Retry-After.

https://platform.openai.com/docs/guides/rate-limits, https://docs.anthropic.com/en/api/rate-limits, RFC 9110 10.2.3
"""

from __future__ import annotations

import email.utils
import math
import re
import time
from collections.abc import Mapping
from datetime import datetime

from .config_llm import Rates

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_FAMILIES = (("x-ratelimit-", "{field}-{unit}"), ("anthropic-ratelimit-", "{unit}-{field}"))
_MOST = 2**32 - 1


def rates_told(headers: Mapping[str, str]) -> Rates:
    """Return the limits a minute that headers (names in lower case) tell, 0 for what they don't."""
    return Rates(*(_limit(headers, unit) for unit in ("requests", "tokens")))


def pause_told(headers: Mapping[str, str], *, refused: bool) -> float | None:
    """Return for how many seconds nothing more should be sent, None where nothing is said of it.

    Where an answer that was not ``refused`` used up the limit, that is the time in which one more request becomes free, for
    tokens a second: what the provider tells is when the whole limit is there again.
    """
    after = _retry_after(headers)
    if after is not None:
        return after
    waits = []
    for unit in ("requests", "tokens"):
        remaining, reset = _field(headers, unit, "remaining"), _field(headers, unit, "reset")
        if remaining is not None and reset is not None and _number(remaining) == 0:
            seconds = _seconds(reset)
            limit = _limit(headers, unit)
            if seconds is not None:
                waits.append(seconds if refused else min(seconds, 60 / limit if limit and unit == "requests" else 1.0))
    return max(waits) if waits else None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    if (ms := _number(headers.get("retry-after-ms"))) is not None:
        return ms / 1000
    written = headers.get("retry-after")
    if written is None:
        return None
    if (seconds := _number(written)) is not None:
        return seconds
    try:
        return max(0.0, email.utils.parsedate_to_datetime(written).timestamp() - time.time())
    except ValueError:
        return None


def _limit(headers: Mapping[str, str], unit: str) -> int:
    found = _number(_field(headers, unit, "limit"))
    return int(found) if found is not None and 1 <= found <= _MOST else 0


def _field(headers: Mapping[str, str], unit: str, field: str) -> str | None:
    for prefix, form in _FAMILIES:
        if (value := headers.get(prefix + form.format(unit=unit, field=field))) is not None:
            return value
    return None


def _number(written: str | None) -> float | None:
    try:
        found = float(written) if written is not None else math.nan
    except ValueError:
        return None
    return found if math.isfinite(found) and found >= 0 else None


def _seconds(written: str) -> float | None:
    """Return a time as ``6m0.5s``, ``20ms``, seconds, or the date at which it ends (RFC 3339)."""
    if (plain := _number(written)) is not None:
        return plain
    parts = _DURATION.findall(written)
    if parts and "".join(number + unit for number, unit in parts) == written:
        return sum(float(number) * _UNITS[unit] for number, unit in parts)
    try:
        return max(0.0, datetime.fromisoformat(written).timestamp() - time.time())
    except ValueError:
        return None
