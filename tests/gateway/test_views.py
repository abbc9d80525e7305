"""Lists of tasks and groups of failures, from folders of any size and with anything in them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from dspy_supervisor.services.gateway import failures, views
from dspy_supervisor.services.gateway.failures import Failures
from dspy_supervisor.services.gateway.overview import quantile
from dspy_supervisor.task import State

from tests.queues import Rig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "queue")
    yield made
    made.close()


def _pages(rig: Rig, **options: object) -> list[str]:
    found: list[str] = []
    cursor = None
    while True:
        page = views.listed(rig.layout, cursor=cursor, **options)  # type: ignore[arg-type]
        found += [row["id"] for row in page.tasks]
        if page.next is None:
            return found
        cursor = page.next


def _spread(rig: Rig) -> list[str]:
    """Put tasks into every folder, each a second older than the one before, and return them newest first."""
    for number in range(12):
        rig.put(f"t{number:02}", number, due=9e9 if number % 4 == 1 else None)
    rig.claim("t02.json")
    rig.finish(rig.claim("t00.json"))
    rig.fail(rig.claim("t04.json"))
    paths = {path.name.split(".")[-2]: path for path in rig.path.rglob("*.json") if ".t" in f".{path.name}"}
    for number in range(12):
        os.utime(paths[f"t{number:02}"], ns=(0, (2000 - number) * 10**9))
    return [f"t{number:02}" for number in range(12)]


@pytest.mark.parametrize("limit", [1, 5, 100])
def test_pages_hold_every_task_once_newest_first(rig: Rig, limit: int) -> None:
    wanted = _spread(rig)
    assert _pages(rig, limit=limit) == wanted


@pytest.mark.parametrize("limit", [1, 5, 100])
def test_a_folder_of_too_many_is_in_the_order_of_the_ids(rig: Rig, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = _spread(rig)
    monkeypatch.setattr(views, "_TIMED", 0)
    monkeypatch.setattr(views, "_READS", 3)  # of one page
    assert _pages(rig, limit=limit) == wanted[::-1]
    assert _pages(rig, limit=limit, state=State.DELAYED) == ["t09", "t05", "t01"]


def test_a_filter_that_fits_few_goes_on_over_pages_that_hold_none(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    _spread(rig)
    monkeypatch.setattr(views, "_READS", 2)
    assert _pages(rig, words="T07") == ["t07"]
    assert _pages(rig, words="no") == ["t04"], "the message of a failure is looked at, too"
    assert _pages(rig, workload="gpu") == []


def test_what_is_no_task_is_in_no_list(rig: Rig) -> None:
    rig.put("good")
    for name in ("-rf.json", "..json", "a b.json", "good.txt", "x~1.json", ".hidden.json"):
        (rig.path / "pending" / name).write_text("{}")
    (rig.path / "done" / "folder.json").mkdir()
    (rig.path / "done" / "link.json").symlink_to("/etc/passwd")
    os.mkfifo(rig.path / "failed" / "pipe.json")
    assert _pages(rig) == ["good"]
    assert Failures().groups(rig.layout)["groups"] == []


def test_failures_are_read_once_and_the_newest_of_too_many(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        rig.put(f"f{number}", number)
        rig.fail(rig.claim(f"f{number}.json"))
        os.utime(rig.path / "failed" / f"f{number}.json", (number, number))
    seen = Failures()
    monkeypatch.setattr(failures, "MOST", 3)
    [group] = (found := seen.groups(rig.layout))["groups"]
    assert (group["count"], group["example_id"], group["last_at"], found["complete"]) == (3, "f4", 4.0, False)
    monkeypatch.setattr(failures, "_read", lambda *_: pytest.fail("it was read before"))
    assert seen.groups(rig.layout) == found


def test_a_failure_within_the_same_tick_of_the_clock_shows(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, tick = Failures(), 10**18
    monkeypatch.setattr(failures.time, "time_ns", lambda: tick + 1_000_000)
    for number in range(5):
        rig.put(f"f{number}", number)
        rig.fail(rig.claim(f"f{number}.json"))
        os.utime(rig.path / "failed", ns=(tick, tick))
        assert seen.groups(rig.layout)["looked_at"] == number + 1


@pytest.mark.parametrize(
    ("counts", "share", "value"),
    [
        ([0, 0, 0], 0.5, None),
        ([0, 10, 0], 0.5, 1.5),
        ([10, 0, 0], 1.0, 1.0),
        ([5, 5, 0], 0.99, 1.98),
        ([0, 0, 4], 0.5, 3.0),
    ],
)
def test_a_quantile_lies_in_its_bucket(counts: list[int], share: float, value: float | None) -> None:
    assert quantile(counts, [1.0, 2.0], share) == value
