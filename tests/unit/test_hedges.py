"""Which tasks are run a second time; the runs themselves are those of tests/system/test_hedges.py."""

from dspy_supervisor.hedges import Hedges


class Someone:
    """A worker, of which only its name is asked."""

    def __init__(self, pid):
        self.pid = pid
        self.settings = self
        self.name = "cpu_short"


def patient():
    hedges = Hedges()
    for _ in range(20):
        hedges.learn(1.0)
    return hedges


def test_a_task_that_runs_twice_is_not_run_a_third_time_however_many_were_tried():
    hedges, first, second = patient(), Someone(1), Someone(2)
    hedges.begin("a.json", first, second)
    for number in range(10_001):
        hedges.refuse(f"{number}.json")
    assert hedges.late([(first, "a.json", 0.0)], 100.0) == []
    assert hedges.late([(first, "b.json", 0.0)], 100.0) == [(first, "b.json")]


def test_a_first_run_that_ends_after_all_counts_and_the_second_is_forgotten():
    hedges, first, second = patient(), Someone(1), Someone(2)
    hedges.begin("a.json", first, second)
    assert hedges.first("a.json") is first
    assert hedges.succeeded("a.json") is first
    assert hedges.won == {"a.json"}
    assert hedges.ended("a.json") is None  # its report was on its way
    assert hedges.won == set()
