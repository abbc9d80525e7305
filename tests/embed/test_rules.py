"""The rules that a client keeps: when a server is left alone, how much it gets, what is tried again, what is a vector."""

from __future__ import annotations

import base64

import numpy as np
import orjson
import pytest
from dspy_supervisor.config_embed import EMBED_SETTINGS, EmbedOptions
from dspy_supervisor.embedding.allowance import TOKENS, Allowance
from dspy_supervisor.embedding.breaker import LONGEST_S, Breaker
from dspy_supervisor.embedding.dialect import DIALECTS
from dspy_supervisor.embedding.limits import Limits
from dspy_supervisor.embedding.window import START, Window
from dspy_supervisor.errors import EmbeddingInvalid

from tests.conftest import ROOT


def test_a_breaker_opens_after_failures_in_a_row_and_lets_one_request_see_whether_all_is_well():
    breaker = Breaker(failures=3, pause_s=1.0)
    for _ in range(2):
        breaker.erred(0.0)
    breaker.succeeded()
    for _ in range(3):
        assert breaker.lets(0.0)
        breaker.erred(0.0)
    assert (breaker.state(0.5), breaker.lets(0.5)) == ("open", False)
    assert (breaker.state(1.0), breaker.lets(1.0)) == ("half_open", True)
    breaker.begun(1.0)
    assert not breaker.lets(1.0)
    breaker.abandoned()
    assert breaker.lets(1.0)
    breaker.begun(1.0)
    breaker.erred(1.0)
    assert breaker.until == 3.0  # twice as long
    breaker.begun(3.0)
    breaker.succeeded()
    assert (breaker.state(3.0), breaker.opened) == ("closed", 2)


def test_the_pauses_of_a_breaker_are_bounded():
    breaker, now = Breaker(failures=1, pause_s=1.0), 0.0
    for _ in range(20):
        breaker.erred(now)
        assert breaker.until - now <= LONGEST_S
        now = breaker.until


def test_retries_stop_when_half_of_the_tokens_are_gone_and_come_back_with_success():
    allowance = Allowance()
    allowed = [allowance.failed() for _ in range(int(TOKENS))]
    assert sum(allowed) == TOKENS / 2 and not allowed[-1]
    for _ in range(int(TOKENS / 2 * 10) + 20):
        allowance.succeeded()
    assert allowance.failed()


def test_a_window_grows_while_round_trips_stay_short_and_shrinks_when_they_do_not():
    window = Window(10)
    for _ in range(50):
        window.answered(0.1, 32, outstanding=window.most)
    assert window.most == 10
    for _ in range(50):
        window.answered(0.5, 32, outstanding=10)
        window.answered(0.1, 1, outstanding=10)  # a smaller batch is another matter
    assert window.most >= 5
    for _ in range(50):
        window.overloaded()
    assert window.most == 1
    idle = Window(100)
    for _ in range(50):
        idle.answered(0.1, 32, outstanding=1)
    assert idle.size == START


def test_limits_are_learned_from_what_was_too_large():
    limits = Limits(100, 1000_000, 1000)
    limits.learn(64, 2000)
    assert (limits.texts, limits.bytes) == (32, 1000_000)
    limits.learn(32, 900_000)
    assert (limits.texts, limits.bytes) == (32, 450_000)
    assert limits.lowest(Limits(5, 1 << 40, 10)) == Limits(5, 450_000, 10)


def packed(*numbers: float) -> str:
    return base64.b64encode(np.array(numbers, "<f4").tobytes()).decode()


BAD = [
    None,
    {},
    [],
    "text",
    [[1.0, 2.0]],
    [[1.0, 2.0], [1.0]],
    [[1.0, 2.0], []],
    [[1.0, 2.0], None],
    [[1.0, 2.0], ["1", "2"]],
    [[1.0, 2.0], [1.0, None]],
    [[1.0, 2.0], [1.0, [2.0]]],
    [[True, False], [True, False]],
    [[1.0, 2.0], [1.0, 1e300]],
    [1.0, 2.0],
]


@pytest.mark.parametrize("rows", BAD, ids=str)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_is_no_vector_for_each_text_is_refused(dialect, rows):
    one = DIALECTS[dialect](EmbedOptions())
    answers = {
        "infermesh": [{"vectors": rows}, {"embeddings": rows}],
        "tei": [rows],
    }.get(dialect) or [{"data": [{"index": at, "embedding": row} for at, row in enumerate(rows or [])]}, {"data": rows}]
    for answer in answers:
        with pytest.raises(EmbeddingInvalid):
            one.vectors(orjson.dumps(answer), 2)


@pytest.mark.parametrize(
    "data",
    [
        [{"index": 0, "embedding": packed(1, 2)}, {"index": 0, "embedding": packed(1, 2)}],
        [{"index": 0, "embedding": packed(1, 2)}, {"index": 2, "embedding": packed(1, 2)}],
        [{"index": True, "embedding": packed(1, 2)}, {"index": 0, "embedding": packed(1, 2)}],
        [{"index": 0, "embedding": packed(1, 2)}, {"index": 1, "embedding": packed(1)}],
        [{"index": 0, "embedding": ""}, {"index": 1, "embedding": ""}],
        [{"index": 0, "embedding": "%"}, {"index": 1, "embedding": "%"}],
        [{"index": 0, "embedding": packed(1, 2)}, {"index": 1, "embedding": [1, 2]}],
        [{"index": 0, "embedding": packed(1, float("nan"))}, {"index": 1, "embedding": packed(1, 2)}],
    ],
)
def test_packed_vectors_are_checked_as_strictly(data):
    with pytest.raises(EmbeddingInvalid):
        DIALECTS["openai"](EmbedOptions()).vectors(orjson.dumps({"data": data}), 2)


def test_vectors_come_in_the_order_of_their_index():
    data = [{"index": 1, "embedding": packed(3, 4)}, {"index": 0, "embedding": packed(1, 2)}]
    assert DIALECTS["vllm"](EmbedOptions()).vectors(orjson.dumps({"data": data}), 2).tolist() == [[1, 2], [3, 4]]


def test_a_request_to_infermesh_says_what_its_settings_say():
    settings = EmbedOptions(
        embed_model="m",
        embed_routing_strategy="fast",
        embed_priority="high",
        embed_tenant="us",
        embed_cache_ttl_s=60,
        embed_cache_key="{text}",
        embed_options={"x": 1},
        embed_metadata={"y": 2},
        embed_cache_options={"z": 3},
        embed_hints={"h": 4},
    )
    assert orjson.loads(DIALECTS["infermesh"](settings).body(["a"], packed=True)) == {
        "model": "m",
        "inputs": ["a"],
        "options": {"x": 1, "routing_strategy": "fast", "priority": "high"},
        "metadata": {"y": 2, "tenant": "us"},
        "cache": {"z": 3, "ttl_seconds": 60, "key_template": "{text}"},
        "hints": {"h": 4},
    }
    plain = EmbedOptions(embed_model="m", embed_dimensions=4, embed_truncate=True)
    bodies = {name: orjson.loads(kind(plain).body(["a"], packed=False)) for name, kind in DIALECTS.items()}
    assert bodies == {
        "infermesh": {"model": "m", "inputs": ["a"]},
        "tei": {"inputs": ["a"], "normalize": True, "truncate": True},
        "openai": {"model": "m", "input": ["a"], "encoding_format": "float", "dimensions": 4},
        "vllm": {
            "model": "m",
            "input": ["a"],
            "encoding_format": "float",
            "dimensions": 4,
            "truncate_prompt_tokens": -1,
        },
    }


def test_the_documentation_names_every_older_variable_and_its_setting():
    text = (ROOT / "docs" / "embeddings.md").read_text()
    for name, row in EMBED_SETTINGS.items():
        assert all(f"`{variable}`" in text for variable in row.also), name
        assert not row.also or f"`{name}`" in text, name
