"""Mutated envelopes, each judged by the plain twin and by orjson: ``python -m tests.fastpath.fuzz_envelope --help``.

For every input the compiled scanner must say what its twin says, down to the reason and the place of an error. What it
accepts orjson must accept with the same values, and what it calls bad JSON orjson must call bad JSON.
"""

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import orjson
from dspy_fastpath import envelope as compiled

from tests.fastpath.json_cases import CASES
from tests.reference import envelope as reference

NAMES = tuple(reference.Fields.__dataclass_fields__)

SEEDS = (
    b'{"id":"a1","class":"cpu_short","priority":-3,"payload":{"x":[1,2.5e3,true,false,null],"s":"h\\u00e9\\n\\ud83d'
    b'\\ude00 \xc3\xa9 \xf0\x9f\x98\x80"},"extra":{"a":[]},"kind":"call","timeout_s":1.5,"not_before":1e9,'
    b'"max_attempts":3,"resources":{"gpu":1},"traceparent":"00-a","idempotency_key":"k","affinity":"m\\t7b"}',
    b'{"ID":"a","env_id":"x","action":[1e308,-9223372036854775808,18446744073709551615],"\\u0069x":0.001}',
    b' {\n  "Payload" : "plain text that is longer than one word of eight bytes" ,\r\n\t"Class" : null }\n',
    *(b'{"id":"a1","payload":' + case + b"}" for case in CASES.values() if len(case) < 200),
)
TOKENS = (
    *(b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b" ", b"\n", b"\x00", b"\x1f", b"\x7f", b"\x80", b"\xff"),
    *(b"0", b"-", b"e", b".", b"+", b"1e309", b"1.7976931348623158e308", b"1.7976931348623159e308", b"9" * 20, b"-0"),
    *(b"18446744073709551616", b"-9223372036854775809", b"0.1e310", b"1" * 310, b"1" * 310 + b"e-5", b"1e-400"),
    *(b"null", b"true", b"false", b"NaN", b"-Infinity", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"\xc3\xa9"),
    *(b"\\ud800", b"\\udc00", b"\\ud83d\\ude00", b"\\u0041", b"\\u004", b"\\x", b"\\/", b"abcdefgh", b"\xe6\x97\xa5"),
    *(b'"id":1,', b'"\\u0069d":"z",', b'"payload":3,', b'"kind":"",', b'"priority":101,', b'"timeout_s":-0.0,'),
)

# What is good JSON, or good enough for orjson, and yet refused.
OURS = ("expected an object", "expected a string", "expected a whole number", "expected seconds", "nested deeper")
OURS += ("is there twice", "more than", "an integer beyond 64 bits")


def mutations(count: int, seed: int) -> Iterator[bytes]:
    """Yield count inputs, the same ones for the same seed."""
    chance = random.Random(seed)
    for _ in range(count):
        text = bytearray(chance.choice(SEEDS[:3] if chance.random() < 0.7 else SEEDS))
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            at = chance.randrange(len(text) + 1)
            what = chance.random()
            if what < 0.4:
                text[at:at] = chance.choice(TOKENS)
            elif what < 0.55:
                del text[at : at + chance.randrange(1, 6)]
            elif what < 0.7:
                text[at : at + 1] = bytes([chance.randrange(256)])
            elif what < 0.75:
                del text[at:]
            elif what < 0.88:
                other = chance.randrange(len(text) + 1)
                text[at:at] = text[other : other + chance.randrange(30)]
            else:
                token = chance.choice(TOKENS)
                text[at : at + len(token)] = token
        yield bytes(text)


def verdict(module: ModuleType, text: bytes) -> tuple[bool, tuple[Any, ...]]:
    """Return whether module accepts text, and all it says of it."""
    try:
        fields = module.scan(text)
    except module.EnvelopeError as error:
        return False, error.args
    return True, tuple(getattr(fields, name) for name in NAMES)


def judge(text: bytes) -> bool:
    """Return whether text is an envelope. AssertionError: the judges don't agree."""
    accepted, said = verdict(compiled, text)
    expected = verdict(reference, text)
    assert (accepted, said) == expected, f"{text!r}\n compiled  {said}\n reference {expected[1]}"
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        assert not accepted, f"{text!r}: orjson: {error}"
        return False
    if not accepted:
        assert any(reason in said[0] for reason in OURS), f"{text!r}: orjson takes it, but {said[0]}"
        return False
    found = dict(zip(NAMES, said, strict=True))
    start, end = found["payload"]
    payloads = [document[key] for key in ("payload", "Payload") if key in document] or [document]
    assert [orjson.loads(text[start:end])] == payloads, text
    assert (found["id"] or "") == (document.get("id", document.get("ID")) or ""), text
    assert (found["task_class"] or "") == (document.get("class", document.get("Class")) or ""), text
    if found["has_payload"]:
        assert found["priority"] == (document.get("priority") or 0), text
        extras = {key: orjson.loads(text[start:end]) for key, start, end in found["extras"]}
        assert extras == {key: document[key] for key in extras}, text
    return True


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Judge mutated envelopes until one is judged differently.")
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    started = time.monotonic()
    accepted = sum(judge(text) for text in mutations(options.count, options.seed))
    seconds = time.monotonic() - started
    print(f"{options.count} inputs of seed {options.seed}, {accepted} of them envelopes: all agree, {seconds:.0f} s")


if __name__ == "__main__":
    main()
