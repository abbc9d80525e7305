"""`cloud plan`, `up`, `down`, `status` and `gc`, as commands: what they print, what they end with, what they rent."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys

import pytest
from dspy_supervisor.layout import Layout
from dspy_supervisor.services.cloud.book import Book

from tests.cloud.prime import KEY
from tests.conftest import until

COMMAND = (sys.executable, "-m", "dspy_supervisor", "cloud")


@pytest.fixture
def say(account, tmp_path):
    """A function that runs a command of ``cloud`` with an account, and returns (exit code, stdout, stderr)."""

    def say(command, *options, queue=tmp_path / "queue", runtime=tmp_path / "run", environ=None, **settings):
        given = {
            "cloud_provider": "prime",
            "cloud_api": account.url,
            "cloud_max_price": 1,
            "cloud_spend_cap": 5,
            **settings,
        }
        words = [word for key, value in given.items() if value is not None for word in ("--set", f"{key}={value}")]
        run = subprocess.run(
            [*COMMAND, command, "--queue-dir", queue, "--runtime-dir", runtime, *words, *options],
            env={**os.environ, "PRIME_API_KEY": KEY, **(environ or {})},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return run.returncode, run.stdout, run.stderr

    Layout.open(tmp_path / "queue", create=True).close()
    return say


def test_a_plan_says_what_would_be_rented_and_what_it_costs_and_rents_nothing(account, say):
    code, out, err = say("plan", cloud_pods=2)
    assert (code, err) == (0, "")
    for words in ("RTX4090", "no order goes above 1.00 $/h", "0.82 $/h, 19.68 $ a day", "5.00 $ of 5.00 $"):
        assert words in out, out  # 0.40 $ an hour, and 0.01 $ for its disk
    assert out.endswith("Nothing was rented.\n")
    assert account.orders == [] and account.live == []
    document = json.loads(say("plan", "--json", cloud_pods=2)[1])
    assert document["machines"] == 2 and document["cap"] == document["left"] == 5
    assert document["max_rate_hr"] == 2 and document["rate_hr"] == pytest.approx(2 * document["offers"][0]["price_hr"])
    assert document["hours_left"] == pytest.approx(5 / document["rate_hr"], abs=0.01)


def test_a_plan_of_what_is_not_to_be_had_says_so_and_ends_with_69(account, say):
    account.offers = []
    code, out, _ = say("plan")
    assert code == 69 and "nothing is to be had for 1.00 $/h or less" in out


@pytest.mark.parametrize(
    ("settings", "environ", "words"),
    [
        ({"cloud_provider": None}, {}, "prime, with cloud_api_key, cloud_max_price and cloud_spend_cap, or ssh, with"),
        ({}, {"PRIME_API_KEY": ""}, "cloud_api_key (built-in)=None: expected a key of Prime Intellect's API"),
        ({}, {"PRIME_API_KEY": "wrong"}, "401"),
        ({"cloud_max_price": None}, {}, "cloud_max_price"),
        ({"cloud_spend_cap": None}, {}, "cloud_spend_cap"),
    ],
)
def test_what_keeps_a_plan_from_being_made_is_said_in_words(account, say, settings, environ, words):
    code, out, err = say("plan", environ=environ, **settings)
    assert code != 0 and words in err and "Traceback" not in err + out
    assert account.orders == []


def test_tries_that_fail_are_told_once_and_by_us(account, say):
    account.fail("GET", "/", 503, times=9)
    code, _, err = say("plan")
    assert code == 69
    assert err.count("\n") == 1 and err.startswith("dspy-supervisor: ") and "503" in err


@pytest.mark.parametrize("command", ["plan", "gc"])
def test_a_provider_that_refuses_is_told(account, say, command):
    account.fail("GET", "/", 403, times=9)
    code, out, err = say(command)
    assert code != 0 and "403" in err and "planned" in err and "Traceback" not in err + out


def test_machines_are_only_wished_from_a_supervisor_that_rents(account, say):
    code, _, err = say("up", "--yes")
    assert code != 0 and "no supervisor" in err.lower()
    assert account.orders == []


def test_strays_are_listed_and_deleted_only_when_told_to(account, say, tmp_path):
    with Layout.open(tmp_path / "queue") as layout, contextlib.closing(Book(layout)) as book:
        name = f"{book.prefix}0a1b2c3d4e5f"
    for number, one in enumerate((name, "other-peoples")):
        account.pods[f"p{number}"] = {"id": f"p{number}", "name": one, "status": "ACTIVE", "priceHr": 0.4}
    code, out, err = say("gc")
    assert (code, err) == (0, "")
    assert name in out and "other-peoples" not in out and "1 machines; --yes deletes them" in out
    assert len(account.live) == 2
    assert "1 machines were deleted" in say("gc", "--yes")[1]
    assert [pod["name"] for pod in account.live] == ["other-peoples"]


def test_machines_can_be_had_before_there_is_work_and_given_back(account, cloud, say, tmp_path):
    one = cloud.start(cloud_pods=1, cloud_idle_s=1)
    where = {"queue": one.queue, "runtime": one.runtime, "cloud_pods": 1}
    code, _, err = say("up", "2", "--yes", **where)
    assert code != 0 and "no more than cloud_pods=1" in err
    code, out, err = say("up", "--hours", "2", "--yes", **where)
    assert (code, err) == (0, "") and "1 machines are wanted until" in out
    until(lambda: len(account.live) == 1, f"one is rented; {one.log[-2000:]}", 60)
    (pod,) = account.live
    document = json.loads(say("status", "--json", **where)[1])
    assert [machine["name"] for machine in document["machines"]] == [pod["name"]]
    assert document["running"] and document["cap"] == 5 and 0 <= document["spent"] < 0.1
    code, out, _ = say("status", **where)
    assert code == 0 and pod["name"] in out and "of 5.00 $" in out
    code, out, _ = say("gc", **where)
    assert code == 0 and "0 machines" in out, "what a supervisor looks after is no stray"
    code, out, _ = say("down", **where)
    assert code == 0 and "deleted when their tasks have ended" in out
    until(lambda: not account.live, f"it is deleted; {one.log[-2000:]}", 60)
    document = json.loads(say("status", "--json", **where)[1])
    assert "'cloud down' was said" in document["held"]
    assert [machine["state"] for machine in document["machines"]] == ["deleted"]
