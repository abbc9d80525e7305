"""The W3C trace context: what is taken for one, and the spans that follow from a task."""

import pytest
from dspy_fastpath.envelope import scan
from dspy_supervisor import current
from dspy_supervisor.client.envelopes import prepare
from dspy_supervisor.parts import Task
from dspy_supervisor.record import same_task
from dspy_supervisor.traceparent import Traceparent, of_task, run_span

GIVEN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def task(traceparent, **more):
    raw = b'{"traceparent": "%b", "payload": 0}' % traceparent.encode()
    return Task("a1", "cpu_short", None, 0, 0, None, b"0", scan(raw), raw, "/nonexistent", None, **more)


@pytest.mark.parametrize(
    "written",
    [
        *("x", "00", GIVEN[:-1], GIVEN + "-more", GIVEN.upper(), GIVEN.replace("00-", "ff-", 1)),
        *("00-" + "0" * 32 + "-b7ad6b7169203331-01", "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01"),
    ],
)
def test_what_says_nothing_is_ignored(written):
    assert Traceparent.parse(written) is None
    assert task(written).traceparent is None


def test_a_later_version_is_read_as_far_as_it_is_known():
    later = Traceparent.parse("cc" + GIVEN[2:] + "-more")
    assert str(later) == GIVEN


def test_the_flag_tells_whether_it_is_recorded():
    assert Traceparent.parse(GIVEN).sampled
    assert not Traceparent.parse(GIVEN[:-2] + "02").sampled


def test_a_task_hands_its_own_span_on_where_it_is_traced_and_its_producers_where_not():
    own = str(run_span(Traceparent.parse(GIVEN), "a1", 0))
    assert own.split("-")[1] == GIVEN.split("-")[1] and own != GIVEN
    assert task(GIVEN).traceparent == GIVEN
    assert task(GIVEN, trace=lambda: own).traceparent == own


def test_spans_follow_from_the_task_and_no_two_are_the_same():
    first, given = of_task(None, "queue", "a1", 1.5)
    assert not given and first.sampled and of_task(None, "queue", "a1", 1.5) == (first, False)
    others = [of_task(None, "queue", "a2", 1.5), of_task(None, "queue", "a1", 2.5), of_task(None, "other", "a1", 1.5)]
    assert len({first.trace_id, *(other.trace_id for other, _ in others)}) == 4
    assert of_task(GIVEN, "queue", "a1", 1.5) == (Traceparent.parse(GIVEN), True)
    assert run_span(first, "a1", 0) != run_span(first, "a1", 1)


@pytest.mark.parametrize(("share", "recorded"), [(0.0, range(1)), (0.5, range(20, 80)), (1.0, range(100, 101))])
def test_a_share_of_the_traces_that_begin_here_is_recorded_and_all_that_were_begun_elsewhere(share, recorded):
    found = [of_task(None, "queue", f"a{number}", 1.5, share)[0].sampled for number in range(100)]
    assert sum(found) in recorded
    assert of_task(GIVEN, "queue", "a1", 1.5, share)[0].sampled


def test_a_task_that_is_put_by_another_belongs_to_its_trace():
    assert scan(prepare({}).document).traceparent is None
    current.begin(task(GIVEN))
    try:
        assert scan(prepare({}).document).traceparent == GIVEN
        other = GIVEN.replace("b7", "c8")
        assert scan(prepare({}, traceparent=other).document).traceparent == other
    finally:
        current.end()


def test_the_same_task_put_from_another_span_is_the_same_task():
    """A second attempt of what puts it repeats itself, under a span of its own."""
    one, two = (prepare({}, id="a1", traceparent=text).document for text in (GIVEN, GIVEN.replace("b7", "c8")))
    assert same_task(one, scan(one), two, scan(two))
