"""Twin of dspy_fastpath.envelope: tokens by regular expression, values by the standard library."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

SPACE = re.compile(rb"[ \t\n\r]*+")
ESCAPE = rb"""
    \\ (?: ["\\/bfnrt] | u (?: [0-9A-Ca-cE-Fe-f][0-9A-Fa-f]{3} | [Dd][0-7][0-9A-Fa-f]{2}
                             | [Dd][89ABab][0-9A-Fa-f]{2} \\u [Dd][C-Fc-f][0-9A-Fa-f]{2} ) )
"""
MULTIBYTE = rb"""
    [\xC2-\xDF][\x80-\xBF] | \xE0[\xA0-\xBF][\x80-\xBF] | [\xE1-\xEC\xEE\xEF][\x80-\xBF]{2} | \xED[\x80-\x9F][\x80-\xBF]
    | \xF0[\x90-\xBF][\x80-\xBF]{2} | [\xF1-\xF3][\x80-\xBF]{3} | \xF4[\x80-\x8F][\x80-\xBF]{2}
"""  # Unicode 15, table 3-7
PLAIN = rb"[\x20\x21\x23-\x5B\x5D-\x7F]++"
STRING = re.compile(b'" (?: %b | %b | %b )*+' % (PLAIN, ESCAPE, MULTIBYTE), re.VERBOSE)
SURROGATE = re.compile(rb"\\u[Dd][89A-Fa-f][0-9A-Fa-f]{2}")
NUMBER = re.compile(rb"[-+.eE0-9]+")
JSON_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
LITERAL = re.compile(rb"true|false|null")

KEYS = (
    "id", "class", "payload", "kind", "priority", "not_before", "timeout_s", "max_attempts", "idempotency_key",
    "affinity", "resources", "traceparent",
)  # fmt: skip
ALIASES = {"ID": "id", "Class": "class", "Payload": "payload"}
LONGEST_TIMEOUT = 366 * 86400

Span = tuple[int, int]


class EnvelopeError(ValueError):
    def __init__(self, reason: str, line: int, column: int, offset: int) -> None:
        super().__init__(reason, line, column, offset)
        self.reason, self.line, self.column, self.offset = reason, line, column, offset

    def __str__(self) -> str:
        return f"line {self.line} column {self.column} (byte {self.offset}): {self.reason}"


@dataclass(frozen=True, slots=True)
class Fields:
    payload: Span
    has_payload: bool
    id: str | None
    task_class: str | None
    kind: str | None = None
    priority: int = 0
    not_before: float | None = None
    timeout_s: float | None = None
    max_attempts: int | None = None
    idempotency_key: str | None = None
    affinity: str | None = None
    traceparent: str | None = None
    resources: Span | None = None
    extras: tuple[tuple[str, int, int], ...] = ()


class Scanner:
    """One pass over ``data``; each method takes a place and returns the place after what it read."""

    def __init__(self, data: bytes, max_depth: int, max_extras: int) -> None:
        self.data, self.max_depth, self.max_extras = data, max_depth, max_extras
        self.whole = (0, 0)
        self.known: dict[str, Span] = {}
        self.extras: list[tuple[str, int, int]] = []

    def refusal(self, at: int, reason: str) -> EnvelopeError:
        before = self.data[:at]
        last_line = before[before.rfind(b"\n") + 1 :]
        column = 1 + sum(byte & 0xC0 != 0x80 for byte in last_line)
        return EnvelopeError(reason, 1 + before.count(b"\n"), column, at)

    def expect(self, at: int, wanted: bytes, what: str) -> None:
        found = self.data[at : at + 1]
        if found and found in wanted:
            return
        if not found:
            shown = "the end of the file"
        else:
            shown = repr(chr(found[0])) if 0x20 < found[0] < 0x7F else f"byte 0x{found[0]:02X}"
        raise self.refusal(at, f"expected {what}, found {shown}")

    def space(self, at: int) -> int:
        match = SPACE.match(self.data, at)
        assert match is not None
        return match.end()

    def string(self, at: int) -> int:
        match = STRING.match(self.data, at)
        assert match is not None
        end = match.end()
        stop = self.data[end : end + 1]
        if stop == b'"':
            return end + 1
        if not stop:
            raise self.refusal(at, "a string without an end")
        if stop == b"\\":
            lone = SURROGATE.match(self.data, end)
            raise self.refusal(end, "half of a surrogate pair" if lone else "not an escape of JSON")
        raise self.refusal(end, "a control character in a string, not escaped" if stop < b" " else "not UTF-8")

    def number(self, at: int) -> int:
        match = NUMBER.match(self.data, at)
        assert match is not None
        parts = JSON_NUMBER.fullmatch(match[0])
        if parts is None:
            raise self.refusal(at, "not a number of JSON")
        if parts[1] is None and parts[2] is None:
            # More digits than int() takes by default are too many here as well.
            if len(match[0]) > 20 or not -(2**63) <= int(match[0]) < 2**64:
                raise self.refusal(at, "an integer beyond 64 bits")
        elif math.isinf(float(match[0])):
            raise self.refusal(at, "a number beyond the range of a double")
        return match.end()

    def literal(self, at: int) -> int:
        match = LITERAL.match(self.data, at)
        if match is not None:
            return match.end()
        if self.data[at : at + 1] in (b"N", b"I"):
            raise self.refusal(at, "NaN and Infinity are not JSON")
        self.expect(at, b"", "a value")
        raise AssertionError

    def key(self, at: int) -> tuple[int, int]:
        """Return the end of the key at ``at`` and the place of its value."""
        self.expect(at, b'"', "a key in double quotes")
        end = self.string(at)
        colon = self.space(end)
        self.expect(colon, b":", "':' after the key")
        return end, self.space(colon + 1)

    def value(self, at: int) -> int:
        closing: list[bytes] = []  # of the containers inside the envelope
        while True:
            opening = self.data[at : at + 1]
            if opening and opening in b"{[":
                if len(closing) + 1 >= self.max_depth:
                    raise self.refusal(at, f"nested deeper than {self.max_depth} levels")
                closing.append(b"}" if opening == b"{" else b"]")
                at = self.space(at + 1)
                if self.data[at : at + 1] != closing[-1]:
                    if opening == b"{":
                        _, at = self.key(at)
                    continue
            elif opening == b'"':
                at = self.string(at)
            elif opening and opening in b"-0123456789":
                at = self.number(at)
            else:
                at = self.literal(at)
            while closing:
                at = self.space(at)
                if self.data[at : at + 1] == closing[-1]:
                    closing.pop()
                    at += 1
                    continue
                self.expect(at, b",", f"',' or '{closing[-1].decode()}'")
                at = self.space(at + 1)
                if closing[-1] == b"}":
                    _, at = self.key(at)
                break
            else:
                return at

    def members(self, at: int) -> int:
        at = self.space(at + 1)
        if self.data[at : at + 1] == b"}":
            return at + 1
        while True:
            key_end, start = self.key(at)
            written = json.loads(self.data[at:key_end])
            key = ALIASES.get(written, written)
            if key in self.known:
                raise self.refusal(at, f"the key {key} is there twice")
            if key not in KEYS and len(self.extras) == self.max_extras:
                raise self.refusal(
                    at,
                    f"more than {self.max_extras} unknown keys: a payload of many keys belongs under the key payload",
                )
            end = self.value(start)
            if key in KEYS:
                self.known[key] = (start, end)
            else:
                self.extras.append((key, start, end))
            at = self.space(end)
            if self.data[at : at + 1] == b"}":
                return at + 1
            self.expect(at, b",", "',' or '}'")
            at = self.space(at + 1)

    def read(self) -> None:
        data = self.data
        if not data:
            raise self.refusal(0, "empty file")
        if data.startswith(b"\xef\xbb\xbf"):
            raise self.refusal(0, "byte order mark: write UTF-8 without one")
        if data[:2] in (b"\xff\xfe", b"\xfe\xff") or (len(data) > 1 and (data[0] == 0) != (data[1] == 0)):
            raise self.refusal(0, "UTF-16: write UTF-8")
        start = self.space(0)
        self.expect(start, b"{", "an object")
        self.whole = (start, self.members(start))
        end = self.space(self.whole[1])
        if end < len(data):
            self.expect(end, b"", "nothing after the object")

    # What the values may be, once the whole file is known to be JSON.

    def given(self, key: str) -> Iterator[Any]:
        """Yield the value of a key that is there and isn't null."""
        if key in self.known:
            start, end = self.known[key]
            value = json.loads(self.data[start:end])
            if value is not None:
                yield value

    def unfit(self, key: str, value: object, expected: str) -> EnvelopeError:
        start, end = self.known[key]
        if isinstance(value, dict):
            shown = "an object"
        elif isinstance(value, list):
            shown = "an array"
        else:
            shown = self.data[start : min(end, start + 40)].decode("ascii", "backslashreplace").replace("\x7f", "\\x7f")
            shown += "..." if end - start > 40 else ""
        return self.refusal(start, f"{key}={shown}: expected {expected}")

    def text(self, key: str, longest: int, *, may_be_empty: bool = False) -> str | None:
        least = 0 if may_be_empty else 1
        for value in self.given(key):
            if not isinstance(value, str) or not least <= len(value.encode()) <= longest:
                raise self.unfit(key, value, f"a string of {least} to {longest} bytes")
            return value or None
        return None

    def whole_number(self, key: str, least: int, most: int) -> int | None:
        for value in self.given(key):
            if type(value) is not int or not least <= value <= most:
                raise self.unfit(key, value, f"a whole number from {least} to {most}")
            return value
        return None

    def seconds(self, key: str, expected: str) -> float | None:
        for value in self.given(key):
            if type(value) not in (int, float) or not (
                value >= 0 if key == "not_before" else 0 < float(value) <= LONGEST_TIMEOUT
            ):
                raise self.unfit(key, value, expected)
            return float(value)
        return None

    def fields(self) -> Fields:
        task_id, task_class = self.text("id", 1024, may_be_empty=True), self.text("class", 100, may_be_empty=True)
        if "payload" not in self.known:
            return Fields(self.whole, False, task_id, task_class)
        fields = Fields(
            self.known["payload"],
            True,
            task_id,
            task_class,
            kind=self.text("kind", 100),
            priority=self.whole_number("priority", -100, 100) or 0,
            not_before=self.seconds("not_before", "seconds since 1970, 0 or more"),
            timeout_s=self.seconds("timeout_s", f"seconds, more than 0 and at most {LONGEST_TIMEOUT}"),
            max_attempts=self.whole_number("max_attempts", 1, 1000),
            idempotency_key=self.text("idempotency_key", 1024),
            affinity=self.text("affinity", 1024),
            traceparent=self.text("traceparent", 1024),
            resources=next((self.known["resources"] for _ in self.given("resources")), None),
            extras=tuple(self.extras),
        )
        for value in self.given("resources"):
            if not isinstance(value, dict):
                raise self.unfit("resources", value, "an object")
        return fields


def scan(data: bytes, max_depth: int = 128, max_extras: int = 256) -> Fields:
    scanner = Scanner(data, max_depth, max_extras)
    scanner.read()
    return scanner.fields()
