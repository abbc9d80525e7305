"""Twin of dspy_fastpath.budgets, over the twin of the page."""

from .counters import Page

BUDGETS, VALUES = 64, 8


def place_of(page: Page, name: bytes, make: bool = True) -> int:
    if not name or b"\0" in name:
        raise ValueError(f"name={name!r}")
    with page._content(make) as content:
        known = [found["key"] for found in content["budgets"]]
        if name.hex() in known:
            return known.index(name.hex())
        if not make or len(known) == BUDGETS:
            return -1
        content["budgets"].append({"key": name.hex(), "values": [0] * VALUES})
        return len(known)


def names(page: Page) -> list[bytes]:
    with page._content(False) as content:
        return [bytes.fromhex(found["key"])[:55] for found in content["budgets"]]


def load(page: Page, place: int, number: int) -> int:
    with page._content(False) as content:
        return _values(content, place, number)[number]


def swap(page: Page, place: int, number: int, expected: int, desired: int) -> bool:
    with page._content(True) as content:
        values = _values(content, place, number)
        if values[number] != expected:
            return False
        values[number] = desired
        return True


def add(page: Page, place: int, number: int, n: int) -> int:
    with page._content(True) as content:
        values = _values(content, place, number)
        values[number] += n
        return values[number]


def _values(content, place: int, number: int) -> list[int]:
    if not (0 <= place < BUDGETS and 0 <= number < VALUES):
        raise IndexError(place, number)
    return content["budgets"][place]["values"]
