"""Machines come and go as they should, whatever the provider does: no order twice, none forgotten, none dearer than allowed."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import replace

import pytest
import stamina
from dspy_supervisor.config import load
from dspy_supervisor.layout import Layout
from dspy_supervisor.services.cloud import fleet as module
from dspy_supervisor.services.cloud.book import Book
from dspy_supervisor.services.cloud.fleet import Fleet, Need, wanted
from dspy_supervisor.services.cloud.prime import Prime
from dspy_supervisor.services.cloud.warden import delete_all

from tests.cloud.prime import KEY
from tests.conftest import until

WAITING, NOTHING = Need(1, 1, 1, 0), Need(0, 1, 1, 0)


class Owner:
    """A fleet, and what a bridge does for it; it may die and come again."""

    def __init__(self, account, folder, **settings):
        flags = {"cloud_provider": "prime", "cloud_api": account.url, "cloud_api_key": KEY, "queue_dir": str(folder)}
        flags |= {"cloud_max_price": 1.0, "cloud_spend_cap": 5.0, "drain_s": 1, **settings}
        self.config = load(flags, environ={}, cwd=folder.parent).config
        self.lost = []
        self._stack = contextlib.ExitStack()
        layout = self._stack.enter_context(Layout.open(folder, create=True))
        self.book = self._stack.enter_context(contextlib.closing(Book(layout)))
        self.book.take_lock()
        self.provider = self._stack.enter_context(contextlib.closing(Prime(self.config)))
        self.fleet = Fleet(self.config, self.book, self.provider, lose=lambda pod, why: self.lost.append(why))

    def until(self, look, what, need=WAITING):
        def turned():
            self.fleet.turn(time.monotonic(), need)
            return look()

        return until(turned, f"{what}; {self.fleet.problem}")

    def die(self):
        self.fleet.close()
        self._stack.close()


@pytest.fixture
def owner(account, tmp_path, monkeypatch):
    stamina.set_testing(True, attempts=2)
    for name in ("_FIRST_LOOK_S", "_LOOK_S", "_SOON_S", "_STRAY_S", "_UNSEEN_S"):
        monkeypatch.setattr(module, name, 0.02)
    owners = []

    def make(**settings):
        owners.append(Owner(account, tmp_path / "queue", **settings))
        return owners[-1]

    yield make
    stamina.set_testing(False)
    for one in owners:
        one.die()


def test_how_many_machines_there_should_be():
    assert [wanted(Need(tasks, 4, 3, 0)) for tasks in (0, 1, 4, 5, 100)] == [0, 1, 1, 2, 3]
    assert wanted(Need(0, 4, 3, 2)) == 2 and wanted(Need(0, 4, 3, 9)) == 3


def test_one_waiting_task_rents_one_machine_which_goes_when_nothing_waits(account, owner):
    one = owner(cloud_idle_s=0)
    one.until(lambda: account.live, "a machine is there")
    one.until(lambda: not account.live, "it is gone", NOTHING)
    assert len(account.orders) == 1
    one.until(lambda: not one.fleet.pods, "the book knows it", NOTHING)
    assert [entry.is_open for entry in one.book.entries()] == [False]


@pytest.mark.parametrize("status", [402, 422, 429])
def test_a_refused_order_leaves_nothing_open_and_its_reason(account, owner, status):
    account.fail("POST", "/api/v1/pods", status, times=99)
    one = owner()
    one.until(lambda: str(status) in one.fleet.problem, "the reason is known")
    assert not account.pods and not one.book.open() and one.book.spent() == 0


def test_no_stock_is_said_and_asked_for_again(account, owner, monkeypatch):
    monkeypatch.setattr(module, "_NO_STOCK_S", 0.0)
    offers, account.offers = account.offers, []
    one = owner()
    one.until(lambda: "nothing in stock" in one.fleet.problem, "it is said")
    account.offers = offers
    one.until(lambda: account.live, "a machine is there")


def test_an_order_that_was_carried_out_and_not_answered_is_found_and_no_second_is_sent(account, owner):
    account.lose_answers = 1
    one = owner()
    one.until(lambda: any(pod.entry.machine_id for pod in one.fleet.pods.values()), "it is found by its name")
    assert len(account.orders) == 1


def test_an_order_that_never_arrived_is_closed_and_another_sent(account, owner):
    account.lose_orders = 1
    one = owner()
    one.until(lambda: account.live, "a second order was sent")
    closed = [entry for entry in one.book.entries() if not entry.is_open]
    assert len(account.orders) == 2 and closed[0].cost(time.time()) == 0


def test_who_dies_between_order_and_answer_leaves_a_machine_that_the_next_finds_and_deletes(account, owner):
    account.lose_answers = 1
    first = owner()
    first.until(lambda: account.live, "the order was carried out")
    assert [entry.machine_id for entry in first.book.open()] == [""]
    first.die()
    second = owner(cloud_idle_s=0)
    second.until(lambda: not account.live and not second.fleet.pods, "it is deleted", NOTHING)
    assert len(account.orders) == 1


@pytest.mark.parametrize("how", ["ended", "failed", "unknown"])
def test_a_machine_that_dies_is_closed_and_its_tasks_are_given_back(account, owner, how):
    one = owner()
    one.until(lambda: account.live and one.fleet.pods, "a machine is there")
    machine = account.live[0]
    if how == "ended":
        account.die()
    elif how == "failed":
        machine |= {"status": "ERROR", "installationFailure": "no such driver"}
    else:
        account.pods.clear()
    one.until(lambda: one.lost and not one.fleet.pods, "it is closed", NOTHING)
    assert not account.live


def test_a_deletion_that_fails_is_tried_until_it_succeeds(account, owner):
    one = owner(cloud_idle_s=0)
    one.until(lambda: account.live, "a machine is there")
    account.fail("DELETE", "/api/v1/pods", 500, times=5)
    one.until(lambda: not account.live and not one.fleet.pods, "it is gone", NOTHING)


def test_a_machine_of_ours_that_nobody_knows_is_deleted_and_no_other(account, owner):
    one = owner()
    one.until(lambda: account.live, "a machine is there")
    ours, theirs = dict(account.live[0]), dict(account.live[0])
    ours |= {"id": "lost", "name": one.book.new_name()}
    theirs |= {"id": "theirs", "name": "dspy-00000000-123456789abc"}
    account.pods |= {"lost": ours, "theirs": theirs}
    one.until(lambda: account.pods["lost"]["status"] == "TERMINATED", "the stray is deleted")
    looks = account.requests.count(("GET", "/api/v1/pods"))
    one.until(lambda: account.requests.count(("GET", "/api/v1/pods")) >= looks + 3, "more looks")
    assert ("DELETE", "/api/v1/pods/theirs") not in account.requests


def test_the_spend_cap_ends_all_and_survives_a_restart(account, owner):
    account.price = 0.9
    one = owner(cloud_spend_cap=2.0)
    one.until(lambda: any(pod.entry.machine_id for pod in one.fleet.pods.values()), "a machine is there")
    pod = next(iter(one.fleet.pods.values()))
    pod.entry = one.book.write(pod.entry, ordered_at=time.time() - 2.0 / 0.9 * 3600, ready_at=time.time())
    one.until(lambda: not account.live and not one.fleet.pods, "it is deleted although tasks wait")
    spent = one.book.spent()
    assert spent == pytest.approx(2.0, abs=0.02)
    one.die()
    again = owner(cloud_spend_cap=2.0)
    again.until(lambda: "spend cap is reached" in again.fleet.problem, "the next start knows it")
    assert len(account.orders) == 1 and again.book.spent() == spent


def test_a_machine_that_turns_out_dearer_than_allowed_is_deleted_at_once(account, owner):
    account.price = 1.5
    one = owner()
    one.until(lambda: account.pods and not account.live, "it is gone")


def test_one_that_never_takes_tasks_is_given_up(account, owner):
    one = owner(cloud_boot_s=1)
    one.until(lambda: one.fleet.pods, "it is ordered")
    pod = next(iter(one.fleet.pods.values()))
    one.until(lambda: pod.entry.machine_id, "it is there")
    pod.entry = replace(pod.entry, ordered_at=time.time() - 2)
    one.until(lambda: not account.live, "it is deleted")
    assert "took no task" in one.lost[0]


def test_the_warden_deletes_what_the_book_has_and_an_unreachable_provider_leaves_it(account, owner):
    one = owner()
    one.until(lambda: any(pod.entry.machine_id for pod in one.fleet.pods.values()), "a machine is there")
    account.fail("DELETE", "/api/v1/pods", 503, times=99)
    assert delete_all(one.config, one.book, "killed") == 1 and account.live
    account.faults.clear()
    account.fail("GET", "/api/v1/pods", 503, times=99)  # the ids are in the book
    assert delete_all(one.config, one.book, "killed") == 0 and not account.live
    assert not one.book.open() and math.isfinite(one.book.spent())
