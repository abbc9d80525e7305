"""The schedule that all who send to a model share."""

import asyncio
import os
import time
from itertools import pairwise

import pytest
from dspy_fastpath.counters import Page
from dspy_supervisor import budget, schedule
from dspy_supervisor.budget import BudgetExhausted
from dspy_supervisor.config import load
from dspy_supervisor.config_llm import Rates, parse_rates
from dspy_supervisor.errors import ConfigError, SupervisorError
from dspy_supervisor.limit_headers import pause_told, rates_told
from dspy_supervisor.schedule import SHARE, Budget

S = 1_000_000_000


class Clock:
    """A monotonic clock that goes on when somebody sleeps, and when the test says so."""

    def __init__(self):
        self.ns = 1_000 * S

    def sleep(self, seconds):
        self.ns += int(seconds * S) + 1

    def __getattr__(self, name):
        return {"monotonic_ns": lambda: self.ns}.get(name) or getattr(time, name)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(budget, "time", clock)
    monkeypatch.setattr(schedule, "time", clock)
    return clock


@pytest.fixture
def page(tmp_path):
    with Page.create(tmp_path / "one.page", "q-1", ("cpu_short",), 1) as page:
        yield page
        budget.use(None, {})


def share(page, **rates):
    """Share budgets as a worker does, under these rates, by model."""
    budget.configure(page, rates)
    budget.use(page, rates)


def test_requests_leave_one_after_the_other_at_the_rate(page, clock):
    share(page, m="600rpm")
    began, left = clock.ns, []
    for _ in range(50):
        budget.acquire("m")
        left.append(clock.ns)
    assert left[0] == began  # nobody waits for the first
    assert (left[-1] - began) / S == pytest.approx(49 * 0.1 / SHARE, rel=1e-3)
    assert min(b - a for a, b in pairwise(left)) > 0.1 * S


def test_tokens_bind_where_they_are_less_than_requests(page, clock):
    share(page, m="6000rpm/60000tpm")
    began = clock.ns
    for _ in range(5):
        budget.acquire("m", tokens=1000)
    assert (clock.ns - began) / S == pytest.approx(4 / SHARE, rel=1e-3)


def test_what_a_request_took_in_the_end_is_charged(page, clock):
    share(page, m="60000tpm")
    budget.acquire("m", tokens=1000).settle(3000)
    began = clock.ns
    budget.acquire("m", tokens=1000).settle(0)
    assert (clock.ns - began) / S == pytest.approx(3 / SHARE, rel=1e-3)
    began = clock.ns
    budget.acquire("m", tokens=1000)
    assert clock.ns == began


def test_a_minute_in_which_nobody_asked_is_not_saved_up(page, clock):
    share(page, m="60rpm")
    budget.acquire("m")
    clock.ns += 600 * S
    began = clock.ns
    for _ in range(4):
        budget.acquire("m")
    assert (clock.ns - began) / S == pytest.approx(3 / SHARE, rel=1e-3)


def test_no_two_of_many_processes_get_the_same_moment(page, tmp_path):
    """Each takes moments as fast as it can: together they are one schedule, whoever wrote it."""
    share(page, m="6000rpm")
    processes, rounds, cost = 6, 2000, round(60 * S / (6000 * SHARE))
    gate, key = os.pipe()
    pids = []
    for number in range(processes):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(key)
                os.read(gate, 1)
                moments = [Budget(page, "m").take()[0] for _ in range(rounds)]
                (tmp_path / str(number)).write_text(" ".join(map(str, moments)))
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    os.close(gate)
    os.close(key)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * processes
    moments = sorted(int(one) for number in range(processes) for one in (tmp_path / str(number)).read_text().split())
    assert len(moments) == processes * rounds
    assert min(b - a for a, b in pairwise(moments)) >= cost
    assert Budget(page, "m").read().sent == processes * rounds


def test_a_429_holds_up_also_those_that_wait_already(page, clock):
    share(page, m="60rpm")
    own = budget.of("m")
    moments = [own.take()[0] for _ in range(3)]
    assert [round(own.wait_s(moment), 2) for moment in moments] == [0.0, 1.02, 2.04]
    budget.report("m", 429, {"Retry-After": "30"})
    assert [round(own.wait_s(moment), 2) for moment in moments] == [30.0, 31.02, 32.04]
    budget.report("m", 429, {"Retry-After": "10"})  # of a request that left before: nothing new
    assert round(own.wait_s(own.take()[0]), 1) == 33.1
    clock.ns += 30 * S
    assert [round(own.wait_s(moment), 2) for moment in moments] == [0.0, 1.02, 2.04]
    assert own.read().refused == 2


def test_a_pause_of_an_idle_budget_lets_nothing_through_before_its_end(page, clock):
    share(page, m="600rpm")
    clock.ns += 100 * S
    budget.report("m", 429, retry_after_s=7)
    began = clock.ns
    budget.acquire("m")
    assert (clock.ns - began) / S == pytest.approx(7, rel=1e-3)
    budget.acquire("m")
    assert (clock.ns - began) / S == pytest.approx(7 + 0.1 / SHARE / 0.9, rel=1e-3)  # by less a pace


def test_after_a_429_the_pace_is_less_for_ten_seconds(page, clock):
    share(page, m="60rpm")
    own = budget.of("m")
    budget.report("m", 429, {"Retry-After": "0"})
    budget.report("m", 429, {"Retry-After": "0"})  # the others that were under way
    assert own.pace() == pytest.approx(0.9)
    clock.ns += 5 * S
    assert own.pace() == pytest.approx(0.95)
    clock.ns += 10 * S
    assert own.pace() == 1.0


def test_a_model_without_a_rate_waits_only_where_its_provider_says_so(page, clock):
    share(page)
    for _ in range(1000):
        budget.acquire("other", tokens=10_000)
    assert clock.ns == 1_000 * S
    budget.report("other", 429, {"retry-after-ms": "1500"})
    budget.acquire("other")
    assert clock.ns == pytest.approx(1_001.5 * S)


def test_who_has_no_time_takes_nothing(page, clock):
    share(page, m="6rpm/100tpm")
    budget.acquire("m", tokens=100)
    with pytest.raises(
        BudgetExhausted, match=r"the budget of m is used up: the next turn is in 61\.2 s, not in 5 s"
    ) as e:
        budget.acquire("m", tokens=100, timeout_s=5)
    assert e.value.retry_after_s == pytest.approx(60 / SHARE)
    began = clock.ns
    budget.acquire("m", tokens=100)
    assert (clock.ns - began) / S == pytest.approx(60 / SHARE, rel=1e-3)


def test_models_of_one_pattern_share_its_budget(page, clock):
    rates = {"openai/big": "6rpm", "openai/*": "60rpm"}
    budget.configure(page, rates)
    budget.use(page, rates)
    names = [budget.of(model).name for model in ("openai/big", "openai/a", "openai/b", "local/c")]
    assert names == ["openai/big", "openai/*", "openai/*", "local/c"]


def test_a_provider_that_tells_less_is_believed(page, clock):
    share(page, m="600rpm")
    budget.report("m", 200, {"x-ratelimit-limit-requests": "60", "x-ratelimit-limit-tokens": "40000"})
    assert budget.of("m").rates == Rates(60, 40000)
    budget.report("m", 200, {"x-ratelimit-limit-requests": "900"})  # it gives more than we mean to use
    assert budget.of("m").rates.requests == 600


def test_outside_of_a_worker_nothing_waits(clock):
    budget.use(None, {"m": "1rpm"})
    assert not budget.is_shared()
    for _ in range(5):
        budget.acquire("m", tokens=5).settle(7)
    budget.report("m", 429)
    assert clock.ns == 1_000 * S


def test_an_event_loop_is_not_blocked_by_a_wait(page):
    share(page, m="1200rpm")

    async def both():
        order = []

        async def send(number):
            await budget.acquire_async("m")
            order.append(number)

        waiting = [asyncio.create_task(send(number)) for number in range(3)]
        await asyncio.sleep(0)
        order.append("free")
        await asyncio.gather(*waiting)
        return order

    assert asyncio.run(both()) == [0, "free", 1, 2]


def test_the_next_run_goes_on_where_the_last_one_was(page, tmp_path):
    share(page, m="2rpm")
    for _ in range(3):
        Budget(page, "m").take(0)
    budget.report("m", 429, {"Retry-After": "600"})
    page.close()  # nobody said good-bye
    found = budget.saved(tmp_path / "one.page")
    with Page.create(tmp_path / "one.page", "q-1", ("cpu_short",), 1) as new:
        budget.restore(new, found, ["m"])
        budget.configure(new, {"m": "2rpm"})
        (reading,) = budget.readings(new)
    assert (reading.name, reading.rates) == ("m", Rates(2, 0))
    assert (reading.sent, reading.refused) == (3, 1)
    assert 600 < reading.wait_s < 600 + 3 * 31


def test_a_page_of_another_boot_or_none_is_no_past(tmp_path, monkeypatch):
    assert budget.saved(tmp_path / "none.page") == {}
    (tmp_path / "junk.page").write_bytes(b"junk")
    assert budget.saved(tmp_path / "junk.page") == {}
    with Page.create(tmp_path / "old.page", "q-1", ("cpu_short",), 1) as page:
        Budget(page, "m").take()
    monkeypatch.setattr(budget.time, "time", lambda: time.monotonic() + 2e9)  # booted after the page was made
    assert budget.saved(tmp_path / "old.page") == {}


def test_a_budget_too_many_is_said(page):
    for number in range(64):
        Budget(page, f"m{number}")
    with pytest.raises(SupervisorError, match="no room for a budget of one-more"):
        Budget(page, "one-more")


def test_a_model_without_a_rate_runs_also_where_there_is_no_room_to_count_it(page, tmp_path):
    share(page)
    for number in range(70):
        budget.acquire(f"m{number}").settle(3)
    budget.report("m69", 429)
    assert budget.of("m63") is not None and budget.of("m69") is None
    found = budget.saved(tmp_path / "one.page")
    with Page.create(tmp_path / "two.page", "q-1", ("cpu_short",), 1) as new:
        budget.restore(new, found, ["n"])
        budget.configure(new, {"n": "2rpm"})
        readings = budget.readings(new)
    assert len(readings) == 64 and readings[0].rates == Rates(2, 0)


@pytest.mark.parametrize(
    ("written", "rates"),
    [
        ("500rpm", (500, 0)),
        ("200ktpm", (0, 200_000)),
        ("500rpm/200000tpm", (500, 200_000)),
        ("1.5k rpm 2M tpm", (1500, 2_000_000)),
        ("2Mtpm/10RPM", (10, 2_000_000)),
    ],
)
def test_rates_are_written_as_people_write_them(written, rates):
    assert parse_rates(written) == rates


@pytest.mark.parametrize("written", ["", "500", "rpm", "0rpm", "1rpm/2rpm", "-1rpm", "5Grpm", "1e3rpm", "1rpm, 2tpm"])
def test_other_rates_are_refused(written):
    with pytest.raises(ValueError):
        parse_rates(written)


def test_rates_are_a_setting(tmp_path):
    config = load({"llm_budgets": "openai/*=500rpm/200ktpm,local/a=3rpm"}, {"HOME": str(tmp_path)}, tmp_path).config
    assert dict(config.llm_budgets) == {"openai/*": "500rpm/200ktpm", "local/a": "3rpm"}
    with pytest.raises(ConfigError, match="MODEL=500rpm/200ktpm"):
        load({"llm_budgets": "openai/a=many"}, {"HOME": str(tmp_path)}, tmp_path)


@pytest.mark.parametrize(
    ("headers", "refused", "pause"),
    [
        ({}, True, None),
        ({"retry-after": "7"}, True, 7.0),
        ({"retry-after": "0.25"}, True, 0.25),
        ({"retry-after": "soon"}, True, None),
        ({"retry-after-ms": "20", "retry-after": "1"}, True, 0.02),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, True, 0.0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0.5s"}, True, 360.5),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "20ms"}, True, 0.02),
        ({"x-ratelimit-remaining-requests": "3", "x-ratelimit-reset-requests": "1s"}, True, None),
        (
            {
                "x-ratelimit-limit-requests": "600",
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "59s",
            },
            False,
            0.1,
        ),
        (
            {
                "anthropic-ratelimit-requests-remaining": "0",
                "anthropic-ratelimit-requests-reset": "1970-01-01T00:00:00Z",
            },
            True,
            0.0,
        ),
    ],
)
def test_headers_say_when_to_go_on(headers, refused, pause):
    assert pause_told(headers, refused=refused) == pause


def test_headers_say_the_limits():
    assert rates_told({"x-ratelimit-limit-requests": "60", "x-ratelimit-limit-tokens": "9e3"}) == (60, 9000)
    assert rates_told({"anthropic-ratelimit-tokens-limit": "50000"}) == (0, 50000)
    assert rates_told({"x-ratelimit-limit-requests": "-1", "x-ratelimit-limit-tokens": "nan"}) == (0, 0)
