"""What tasks need of a GPU's memory is learned, and what is free is what others leave."""

import math

import pytest
from dspy_supervisor.vram import FADE_S, MOST_KINDS, SETTLE_S, Learned, Promise, really_free

GIB = 1 << 30


def test_a_kind_that_ran_out_needs_more_than_it_had():
    learned = Learned()
    assert learned.need("a") == 0
    assert learned.ran_out("a", 4 * GIB, 0, 24 * GIB) == 6 * GIB
    assert learned.ran_out("a", 6 * GIB, 0, 24 * GIB) == 9 * GIB
    assert learned.need("b") == 0


def test_what_the_message_tells_counts_more_than_a_guess():
    assert Learned().ran_out("a", 4 * GIB, 10 * GIB, 24 * GIB) == pytest.approx(11 * GIB, rel=0.01)


def test_a_kind_that_had_enough_and_still_ran_out_is_given_some_more_to_be_alone():
    assert Learned().ran_out("a", 20 * GIB, 8 * GIB, 24 * GIB) == pytest.approx(22 * GIB, rel=0.01)


def test_no_kind_needs_more_than_a_gpu_has():
    learned = Learned()
    for _ in range(20):
        need = learned.ran_out("a", max(GIB, learned.need("a")), 0, 20 * GIB)
    assert need == 20 * GIB


def test_a_measured_peak_is_taken_at_once_and_a_bad_minute_is_forgotten():
    learned = Learned()
    learned.measured("a", 10 * GIB)
    assert learned.need("a") == int(11 * GIB)
    for _ in range(20):
        learned.measured("a", GIB)
    assert learned.need("a") > 4 * GIB
    for _ in range(130):
        learned.measured("a", GIB)
    assert learned.need("a") < 1.2 * GIB


def test_where_nobody_measures_a_little_less_is_tried_but_what_a_message_told():
    learned = Learned()
    learned.measured("unknown", 0)
    assert learned.facts() == {}
    learned.ran_out("guessed", 10 * GIB, 0, 24 * GIB)
    learned.ran_out("told", 10 * GIB, 12 * GIB, 24 * GIB)
    learned.ran_out("told", 20 * GIB, 12 * GIB, 24 * GIB)  # and more for a while, since it was not alone
    for _ in range(100):
        learned.measured("guessed", 0)
        learned.measured("told", 0)
    assert learned.need("guessed") < 6 * GIB
    assert learned.need("told") == int(12 * GIB * 1.1)


def test_a_need_that_keeps_a_gpu_idle_fades_until_it_is_tried_again():
    learned = Learned()
    learned.ran_out("a", 10 * GIB, 0, 20 * GIB)
    learned.fade("a", 15 * GIB, 1000.0)
    learned.fade("a", 15 * GIB, 1000.0 + FADE_S - 1)
    assert learned.need("a") == 15 * GIB
    learned.fade("a", 15 * GIB, 1000.0 + FADE_S)
    assert learned.need("a") == 12 * GIB
    learned.fade("a", 12 * GIB, 1001.0 + FADE_S)  # the next minute begins
    assert learned.need("a") == 12 * GIB
    learned.fade("guessed", 10 * GIB, 0.0)
    learned.fade("guessed", 10 * GIB, FADE_S)
    assert learned.need("guessed") == 8 * GIB


def test_kinds_are_text_from_outside_and_do_not_fill_the_memory():
    learned = Learned()
    for number in range(3 * MOST_KINDS):
        learned.measured(f"kind {number}", GIB)
        learned.fade(f"other {number}", GIB, 0.0)
    assert len(learned.facts()) == MOST_KINDS and len(learned._waited) <= MOST_KINDS + 1


@pytest.mark.parametrize(
    ("promises", "free"),
    [
        ([], 10 * GIB),
        ([Promise(4 * GIB, 1 * GIB, 50.0)], 7 * GIB),  # it will take three more
        ([Promise(4 * GIB, 6 * GIB, 50.0)], 10 * GIB),  # it has more than it said: that is not free already
        ([Promise(4 * GIB, None, 100.0 - SETTLE_S)], 10 * GIB),  # nobody can tell, and it had its time
        ([Promise(4 * GIB, None, 101.0 - SETTLE_S)], 6 * GIB),
        ([Promise(4 * GIB, None, 0.0)], 6 * GIB),  # it has not begun
        ([Promise(8 * GIB, 0, 99.0)] * 2, -6 * GIB),
    ],
)
def test_what_is_promised_and_not_taken_yet_is_not_free(promises, free):
    assert really_free(10.0 * GIB, 100.0, promises) == free


def test_a_driver_that_does_not_say_what_is_free_keeps_nobody_away():
    assert really_free(math.nan, 100.0, [Promise(GIB, None, 100.0)]) == math.inf
