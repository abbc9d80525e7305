"""The order of what waits: nothing starves, nothing is lost, nothing comes twice."""

from collections import Counter

from dspy_supervisor.backlog import Backlog, Shares, Shelf
from hypothesis import given, settings
from hypothesis import strategies as st


def drained(backlog):
    files = []
    while (file := backlog.pop()) is not None:
        files.append(file)
    return files


def test_priority_is_a_head_start_and_age_wins_in_the_end():
    backlog = Backlog(ageing_s=30.0)
    backlog.add("old", 0.0, 0)
    backlog.add("urgent", 29.0, 1)
    backlog.add("urgent-but-late", 31.0, 1)
    backlog.add("lazy", 0.0, -1)
    assert drained(backlog) == ["urgent", "old", "urgent-but-late", "lazy"]


def test_tasks_of_one_moment_come_in_the_order_of_their_names():
    backlog = Backlog(30.0)
    for name in "cab":
        backlog.add(name, 5.0, 0)
    assert backlog.position("b") == 1 and backlog.position("absent") == 3
    assert drained(backlog) == ["a", "b", "c"]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "discard", "pop"]), st.integers(0, 9), st.floats(0, 1e6), st.integers(-100, 100)
        )
    )
)
def test_7_what_was_added_comes_out_once_or_is_known_to_wait(steps):
    """Defect 7: a full prefetch queue dropped the rest."""
    backlog, known = Backlog(30.0), set()
    for action, number, arrived, priority in steps:
        file = str(number)
        if action == "add":
            assert backlog.add(file, arrived, priority) is (file not in known)
            known.add(file)
        elif action == "discard":
            assert backlog.discard(file) is (file in known)
            known.discard(file)
        else:
            popped = backlog.pop()
            assert popped in known if known else popped is None
            known.discard(popped)
        assert len(backlog) == len(known) and set(backlog) == known and all(file in backlog for file in known)
    assert sorted(drained(backlog)) == sorted(known)


def test_what_is_discarded_does_not_pile_up():
    backlog = Backlog(30.0)
    for round_number in range(100):
        for number in range(100):
            backlog.add(str(number), float(round_number), 0)
        for number in range(99):
            backlog.discard(str(number))
    assert len(backlog._heap) < 500
    backlog.clear()
    assert backlog.pop() is None and len(backlog) == 0


@given(st.lists(st.integers(-100, 100), min_size=1, max_size=20))
def test_no_priority_starves(priorities):
    """However many urgent tasks arrive, one each second, the oldest runs before more than its head start of them."""
    backlog = Backlog(ageing_s=1.0)
    for number, priority in enumerate(priorities):
        backlog.add(f"a{number}", 0.0, priority)
    for second in range(1, 400):
        backlog.add(f"z{second}", float(second), 100)
    order = drained(backlog)
    assert all(
        order.index(f"a{number}") <= 100 - priority + len(priorities) for number, priority in enumerate(priorities)
    )


@given(
    st.lists(st.tuples(st.sampled_from("adp"), st.integers(0, 9), st.integers(0, 5), st.integers(-3, 3)), max_size=80)
)
def test_the_oldest_is_the_oldest_whatever_its_priority(steps):
    for backlog in (Backlog(1.0), Shelf(1.0)):
        waiting = {}
        for number, (step, _, arrived, priority) in enumerate(steps):
            if step == "a":
                backlog.add(f"t{number}", float(arrived), priority)
                waiting[f"t{number}"] = float(arrived)
            elif step == "d":
                gone = next(iter(waiting), "none")
                backlog.discard(gone)
                waiting.pop(gone, None)
            elif (file := backlog.pop()) is not None:
                del waiting[file]
            assert backlog.oldest == min(waiting.values(), default=None)


def test_looking_for_the_oldest_leaves_nothing_behind():
    backlog = Backlog(1e6)
    for number in range(10_000):
        backlog.add(str(number), float(number), number % 3)
        backlog.add("first", 0.0, -99)
        assert backlog.pop() is not None and backlog.oldest == 0.0
    assert len(backlog._arrivals) < 500


def test_classes_share_by_weight():
    shares = Shares({"a": 3.0, "b": 1.0})
    assert Counter(shares.next(["a", "b"]) for _ in range(400)) == {"a": 300, "b": 100}
    assert shares.next([]) is None


def test_a_class_that_was_away_claims_nothing_back():
    shares = Shares({"a": 1.0, "b": 1.0})
    for _ in range(1000):
        shares.next(["a"])
    assert Counter(shares.next(["a", "b"]) for _ in range(20))["b"] <= 11


def test_a_task_that_went_and_came_again_has_one_place():
    for backlog in (Backlog(1.0), Shelf(1.0)):
        backlog.add("late", 1.0, 0)
        for _ in range(3):
            backlog.add("early", 0.0, 0)
            backlog.discard("early")
        backlog.add("early", 0.0, 0)
        assert (backlog.position("early"), backlog.position("late")) == (0, 1)


# -- a backlog whose next is chosen -----------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.sampled_from("adpfc"), st.integers(0, 9), st.floats(0, 100), st.integers(-3, 3)), max_size=60)
)
def test_a_shelf_is_a_backlog_that_can_be_looked_at(steps):
    """Whatever is done, it holds what a plain one would, and pops in the same order what nobody chose."""
    shelf, plain = Shelf(1.0), Backlog(1.0)
    for step, number, arrived, priority in steps:
        file = f"t{number}"
        if step == "a":
            assert shelf.add(file, arrived, priority) == plain.add(file, arrived, priority)
        elif step == "d":
            assert shelf.discard(file) == plain.discard(file)
        elif step == "p":
            assert shelf.pop() == plain.pop()
        elif step == "c" and file in plain:
            shelf.choose(file)
            assert shelf.pop() == file
            plain.discard(file)
        else:
            shelf.first(number)
        assert set(shelf) == set(plain) and len(shelf) == len(plain)
    places = {file: shelf.position(file) for file in plain}
    assert sorted(places.values()) == list(range(len(places)))
    assert shelf.first(100) == sorted(places, key=lambda file: places[file])
    while (file := plain.pop()) is not None:
        assert shelf.pop() == file
    assert shelf.pop() is None


def test_what_was_chosen_and_then_taken_away_is_not_popped():
    shelf = Shelf(1.0)
    for file in ("a", "b"):
        shelf.add(file, 0.0, 0)
    shelf.choose("b")
    shelf.discard("b")
    assert shelf.pop() == "a" and shelf.pop() is None
    shelf.add("c", 0.0, 0)
    shelf.first(5)
    shelf.clear()
    assert not shelf and shelf.first(5) == []
