"""Budgets in the page: one place for a name, whoever asks first, and numbers that no process changes unseen."""

import os

import pytest
from dspy_fastpath import budgets as compiled
from dspy_fastpath.counters import Page

from tests.reference import budgets as reference
from tests.reference.counters import Page as ReferencePage

PROCESSES = 6


@pytest.fixture(params=[(compiled, Page), (reference, ReferencePage)], ids=["compiled", "reference"])
def both(request, tmp_path):
    budgets, kind = request.param
    with kind.create(tmp_path / "one.page", "q-1", ("cpu_short",), 1) as page:
        yield budgets, page, kind, tmp_path / "one.page"


def together(work):
    """Run work(number) in processes that begin at once, and return how they ended."""
    gate, key = os.pipe()
    pids = []
    for number in range(PROCESSES):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(key)
                os.read(gate, 1)
                work(number)
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    os.close(gate)
    os.close(key)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * PROCESSES


def test_a_name_has_one_place_and_a_new_one_the_next(both):
    budgets, page, _, _ = both
    assert [budgets.place_of(page, name) for name in (b"a", b"b", b"a", b"c")] == [0, 1, 0, 2]
    assert budgets.names(page) == [b"a", b"b", b"c"]
    assert budgets.place_of(page, b"d", False) == -1
    assert budgets.place_of(page, b"c", False) == 2


def test_processes_that_ask_for_the_same_names_at_once_get_the_same_places(both):
    budgets, page, kind, path = both

    def ask(number):
        with kind.attach(path, writable=True) as own:
            for turn in range(30):
                name = b"model-%d" % ((turn + number) % 30)
                budgets.add(own, budgets.place_of(own, name), 3, 1)

    together(ask)
    assert sorted(budgets.names(page)) == sorted(b"model-%d" % turn for turn in range(30))
    assert [budgets.load(page, place, 3) for place in range(30)] == [PROCESSES] * 30


def test_no_swap_of_any_process_is_lost(both):
    budgets, page, _, _ = both
    place, rounds = budgets.place_of(page, b"m"), 2000 if budgets is compiled else 40

    def count(_):
        for _ in range(rounds):
            while not budgets.swap(page, place, 0, now := budgets.load(page, place, 0), now + 1):
                pass

    together(count)
    assert budgets.load(page, place, 0) == PROCESSES * rounds


def test_numbers_are_64_bits_with_a_sign(both):
    budgets, page, _, _ = both
    place = budgets.place_of(page, b"m")
    assert budgets.add(page, place, 7, -(2**63)) == -(2**63)
    assert budgets.swap(page, place, 7, -(2**63), 2**63 - 1)
    assert not budgets.swap(page, place, 7, 0, 1)
    assert budgets.load(page, place, 7) == 2**63 - 1


def test_a_full_page_has_no_place_and_a_long_name_is_told_by_its_hash(both):
    budgets, page, _, _ = both
    long = [b"x" * 60 + b"%d" % number for number in range(64)]
    assert [budgets.place_of(page, name) for name in long] == list(range(64))
    assert budgets.place_of(page, b"one more") == -1
    assert budgets.place_of(page, long[7]) == 7
    assert budgets.names(page) == [b"x" * 55] * 64


def test_what_can_be_no_budget_is_refused(both):
    budgets, page, kind, path = both
    for name in (b"", b"a\0b"):
        with pytest.raises(ValueError, match="name="):
            budgets.place_of(page, name)
    budgets.place_of(page, b"m")
    for place, number in ((-1, 0), (64, 0), (0, -1), (0, 8)):
        with pytest.raises(IndexError):
            budgets.load(page, place, number)
    with kind.attach(path) as readable:
        assert budgets.names(readable) == [b"m"]
        with pytest.raises(ValueError, match="for reading only"):
            budgets.add(readable, 0, 0, 1)
