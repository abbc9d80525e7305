"""The order of tasks that share a key, and where they run."""

from __future__ import annotations

import math
import random
import socket

from dspy_supervisor.backlog import Backlog
from dspy_supervisor.config import ClassConfig
from dspy_supervisor.hosts import Hosts
from dspy_supervisor.lanes import CLOSING, Lanes
from dspy_supervisor.pool_worker import Worker
from hypothesis import given, settings
from hypothesis import strategies as st


def known(*tasks: tuple[str, str, float]) -> Backlog:
    """Return a backlog of tasks: file, key, arrival; all of it was read."""
    backlog = Backlog(30.0)
    for file, key, arrived in tasks:
        backlog.add_keyed(file, arrived, 0, key, is_new="~" not in file)
    backlog.lanes.complete = True
    return backlog


def test_of_one_key_one_task_is_out_at_a_time_by_arrival_and_then_by_name():
    backlog = known(("c.json", "k", 1.0), ("b.json", "k", 1.0), ("a.json", "k", 2.0))
    order = []
    while (file := backlog.take_keyed(None, "w1", 0.0) or backlog.take_keyed("w1", "w1", 0.0)) is not None:
        assert backlog.take_keyed("w1", "w1", 0.0) is None and backlog.take_keyed(None, "w2", 0.0) is None
        order.append(file)
        backlog.lanes.ended(file, 0.0)
    assert order == ["b.json", "c.json", "a.json"]
    assert not backlog and not backlog.lanes


def test_a_key_stays_with_its_worker_and_no_other_gets_its_tasks():
    backlog = known(("a.json", "k", 1.0), ("b.json", "k", 2.0))
    assert backlog.take_keyed(None, "w1", 0.0) == "a.json"
    backlog.lanes.ended("a.json", 0.0)
    assert backlog.take_keyed(None, "w2", 0.0) is None and backlog.take_keyed("w2", "w2", 0.0) is None
    assert backlog.take_keyed("w1", "w1", 0.0) == "b.json"


def test_a_retry_holds_its_key_back_and_comes_before_what_arrived_earlier():
    backlog = known(("b.json", "k", 2.0), ("c.json", "k", 3.0))
    assert backlog.take_keyed(None, "w1", 0.0) == "b.json"
    backlog.lanes.ended("b.json", 0.0, returns=True)
    assert backlog.take_keyed("w1", "w1", 0.0) is None
    backlog.add_keyed("a.json", 1.0, 0, "k", is_new=True)
    assert backlog.take_keyed("w1", "w1", 0.0) is None
    backlog.add_keyed("b~1x0.json", 2.0, 0, "k", is_new=False)
    assert backlog.take_keyed("w1", "w1", 0.0) == "b~1x0.json"
    backlog.lanes.ended("b~1x0.json", 0.0)
    assert backlog.take_keyed("w1", "w1", 0.0) == "a.json"


def test_a_key_waits_no_more_for_a_retry_that_was_cancelled_or_vanished():
    backlog = known(("a.json", "k", 1.0), ("b.json", "k", 2.0), ("c.json", "l", 1.0), ("d.json", "l", 2.0))
    for file in ("a.json", "c.json"):
        assert backlog.take_keyed(None, "w1", 0.0) == file
        backlog.lanes.ended(file, 100.0, returns=True)
    backlog.lanes.dismiss("a")
    assert backlog.take_keyed("w1", "w1", 0.0) == "b.json"
    backlog.lanes.trust({"c"}, 200.0)
    assert backlog.take_keyed("w1", "w1", 0.0) is None
    backlog.lanes.trust(set(), 100.1)  # it may just be on its way
    assert backlog.take_keyed("w1", "w1", 0.0) is None
    backlog.lanes.trust(set(), 200.0)
    assert backlog.take_keyed("w1", "w1", 0.0) == "d.json"


def test_nothing_of_a_key_is_handed_out_before_all_was_read():
    backlog = known(("b.json", "k", 2.0))
    backlog.lanes.complete = False
    assert not backlog.lanes and len(backlog) == 1 and backlog.ready == 0
    backlog.add_keyed("a.json", 1.0, 0, "k", is_new=True)
    backlog.lanes.complete = True
    assert backlog.lanes and backlog.take_keyed(None, "w1", 0.0) == "a.json"


def test_what_a_lost_worker_kept_is_told_and_its_other_keys_go_elsewhere():
    backlog = known(("a.json", "k", 1.0), ("b.json", "l", 2.0), ("c.json", "k", 3.0), ("d.json", "l", 4.0))
    lanes = backlog.lanes
    for _ in range(2):
        lanes.ended(backlog.take_keyed(None, "w1", 0.0), 0.0)
    lanes.keep("k", "w1", 0.0)
    lanes.keep("idle", "w1", 0.0)
    assert lanes.kept("w1") == ["idle", "k"] and lanes.count("w1") == 3
    assert lanes.lose("w1") == ["idle", "k"] or sorted(lanes.lose("w1")) == []
    assert [backlog.take_keyed(None, "w2", 0.0) for _ in range(2)] == ["c.json", "d.json"]
    assert not lanes.knows("idle") and lanes.count("w1") == 0


def test_a_worker_that_leaves_keeps_the_keys_that_it_keeps_something_under():
    backlog = known(("a.json", "k", 1.0), ("b.json", "l", 2.0), ("c.json", "k", 3.0), ("d.json", "l", 4.0))
    lanes = backlog.lanes
    for _ in range(2):
        lanes.ended(backlog.take_keyed(None, "w1", 0.0), 0.0)
    lanes.keep("k", "w1", 0.0)
    lanes.leave("w1")
    assert lanes.kept("w1") == ["k"]
    assert backlog.take_keyed(None, "w2", 0.0) == "d.json" and backlog.take_keyed("w1", "w1", 0.0) == "c.json"


def test_what_is_unused_is_closed_where_something_is_kept_and_else_forgotten():
    backlog = known(("a.json", "k", 1.0), ("b.json", "l", 2.0))
    lanes = backlog.lanes
    for _ in range(2):
        lanes.ended(backlog.take_keyed(None, "w1", 0.0), 10.0)
    lanes.keep("k", "w1", 0.0)
    assert lanes.expire(15.0, 10.0) == [] and len(lanes) == 2
    assert lanes.expire(25.0, 10.0) == [("w1", "k")] and len(lanes) == 1
    backlog.add_keyed("c.json", 3.0, 0, "k", is_new=True)
    assert next(iter(lanes)).busy == CLOSING and backlog.take_keyed("w1", "w1", 0.0) is None
    lanes.free("k", "w1")
    assert backlog.take_keyed(None, "w2", 0.0) == "c.json"


def test_what_waits_under_a_key_goes_to_the_worker_that_begins_to_keep_something_there():
    backlog = known(("a.json", "k", 1.0))
    backlog.lanes.keep("k", "w1", 1000.0)  # for a task of another key, or of none
    assert backlog.take_keyed(None, "w2", 1000.0) is None and backlog.take_keyed("w1", "w1", 1000.0) == "a.json"


def test_what_is_kept_is_used_when_it_begins_to_be_kept():
    lanes = Lanes()
    lanes.keep("k", "w1", 1000.0)
    assert lanes.expire(1005.0, 10.0) == [] and lanes.expire(1015.0, 10.0) == [("w1", "k")]


def test_a_worker_that_takes_no_more_orders_is_told_later_to_close_the_rest():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with ours, theirs:
        worker = Worker(1, -1, 0, 1, "n.1.0", ours, -1, 0.0, ClassConfig(name="cpu_short"), 0)
        hosts = Hosts(Lanes())
        for number in range(1000):
            hosts.lanes.keep(f"k{number}", worker, 0.0)
        hosts.expire(20.0, 10.0)
        told = len(worker.fed)
        assert 0 < told < 1000 and sum(lane.busy == CLOSING for lane in hosts.lanes) == told
        for _ in range(told):
            theirs.recv(1024)
        hosts.expire(20.0, 10.0)
        assert len(worker.fed) > told


def test_tasks_with_a_key_take_their_turn_among_those_without():
    backlog = known(("b.json", "k", 2.0))
    assert backlog.next_turn == math.inf
    backlog.add("a.json", 1.0, 0)
    backlog.add("c.json", 3.0, 0)
    assert backlog.next_turn < backlog.lanes.first(None) and backlog.ready == 2 and len(backlog) == 3
    assert backlog.pop() == "a.json"
    assert backlog.next_turn > backlog.lanes.first(None)
    backlog.discard("b.json")
    assert backlog.lanes.first(None) == math.inf and len(backlog) == 1


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 3))
def test_whatever_happens_each_key_runs_in_order_on_one_worker_at_a_time(seed, keys, workers):
    """Arrivals, ends, retries, deaths and cancellations in any order: nothing is lost, and the order of a key holds."""
    chance = random.Random(seed)
    backlog = known()
    lanes = backlog.lanes
    out: dict[str, tuple[str, str]] = {}  # file to worker and key
    delayed: list[tuple[str, str, float]] = []
    number, ended, arrived = 0, [], {}

    def hand_out() -> None:
        for place in range(workers):
            worker = f"w{place}"
            for source in (worker, None):
                if (file := backlog.take_keyed(source, worker, 0.0)) is not None:
                    key = file.partition("-")[0]
                    assert key not in {key for _, key in out.values()}, "two tasks of one key at once"
                    out[file] = (worker, key)

    def come_back(file: str, when: float) -> None:
        name, _, attempt = file.removesuffix(".json").partition("~")
        charged = f"{name}~{int((attempt or '0x0').partition('x')[0]) + 1}x0.json"
        delayed.append((charged, name.partition("-")[0], when))

    for _ in range(120):
        what = chance.choice("aaahhheerpd")
        if what == "a":
            key = f"k{chance.randrange(keys)}"
            file = f"{key}-{number:04d}.json"
            arrived[file.removesuffix(".json")] = float(number)
            backlog.add_keyed(file, float(number), chance.randint(-3, 3), key, is_new=True)
            number += 1
        elif what == "h":
            hand_out()
        elif what == "p" and delayed:
            file, key, when = delayed.pop(chance.randrange(len(delayed)))
            backlog.add_keyed(file, when, 0, key, is_new=False)
        elif what == "d" and out:
            worker = chance.choice([worker for worker, _ in out.values()])
            lanes.lose(worker)
            for file in [file for file, (host, _) in out.items() if host == worker]:
                del out[file]
                lanes.ended(file, 0.0, returns=True)
                come_back(file, arrived[file.removesuffix(".json").partition("~")[0]])
        elif what in "er" and out:
            file = chance.choice(list(out))
            del out[file]
            lanes.ended(file, 0.0, returns=what == "r")
            if what == "r":
                come_back(file, arrived[file.removesuffix(".json").partition("~")[0]])
            else:
                ended.append(file)
    while out or delayed or backlog:
        for file in list(out):
            del out[file]
            lanes.ended(file, 0.0)
            ended.append(file)
        for file, key, when in delayed:
            backlog.add_keyed(file, when, 0, key, is_new=False)
        delayed.clear()
        hand_out()
    names = [file.removesuffix(".json").partition("~")[0] for file in ended]
    assert sorted(names) == sorted(arrived)
    for place in range(keys):
        mine = [name for name in names if name.startswith(f"k{place}-")]
        assert mine == sorted(mine)
