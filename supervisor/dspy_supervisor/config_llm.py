"""The settings of language models: how much of each provider's rate this host may use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from .setting import Kind, pairs, setting

_PART = r"(\d{1,7}(?:\.\d{1,3})?)\s*([km]?)\s*(rpm|tpm)"
_MODEL = r"[^\s,=\0]{1,200}"
_FACTOR = {"": 1, "k": 1000, "m": 1_000_000}
_MOST = 2**32 - 1
_MOST_MODELS = 48  # of the 64 that a page has room for: others show up by themselves


class Rates(NamedTuple):
    """What may be sent in a minute; 0: no bound."""

    requests: int
    tokens: int


def parse_rates(written: str) -> Rates:
    """Return what ``500rpm/200ktpm`` says. Raises ValueError."""
    found: dict[str, int] = {}
    for part in re.split(r"[/\s]+(?=\d)", written.strip().lower()):
        match = re.fullmatch(_PART, part)
        if match is None or match[3] in found:
            raise ValueError(written)
        found[match[3]] = round(float(match[1]) * _FACTOR[match[2]])
        if not 1 <= found[match[3]] <= _MOST:
            raise ValueError(written)
    return Rates(found.get("rpm", 0), found.get("tpm", 0))


def rates_by_model() -> Kind:
    """Budgets by the name of a model, or a pattern of names."""
    inner = pairs(_MODEL, r"[^\0]*", "MODEL=500rpm/200ktpm, the model by its name or a pattern as openai/*")

    def read(given: object) -> object:
        table = inner.read(given)
        assert isinstance(table, Mapping)
        if len(table) > _MOST_MODELS:
            raise ValueError
        for written in table.values():
            parse_rates(written)
        return table

    return inner._replace(read=read)


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)  # Config has these
class LlmSettings:
    """The part of Config that is about language models."""

    llm_budgets: Mapping[str, str] = setting(
        rates_by_model(),
        "requests and tokens a minute that the workers of this supervisor may send to a model together; models of one "
        "pattern share its budget",
        MappingProxyType({}),
        live=True,
    )
