"""Prime Intellect's API as we speak it: what is asked, what each refusal comes to, and that no order is sent twice."""

from __future__ import annotations

import pytest
import stamina
from dspy_supervisor.config import load
from dspy_supervisor.services.cloud.prime import Prime
from dspy_supervisor.services.cloud.provider import Address, CloudError, Stage

from tests.cloud.prime import KEY, OFFER


@pytest.fixture(autouse=True)
def at_once():
    """Let nothing wait between two tries."""
    stamina.set_testing(True, attempts=4)
    yield
    stamina.set_testing(False)


@pytest.fixture
def provider(account, tmp_path):
    made = []

    def make(**settings):
        flags = {"cloud_provider": "prime", "cloud_api": account.url, "cloud_api_key": KEY}
        flags |= {"cloud_max_price": 1.0, "cloud_spend_cap": 5.0, "queue_dir": str(tmp_path / "queue"), **settings}
        made.append(Prime(load(flags, environ={}, cwd=tmp_path).config))
        return made[-1]

    yield make
    for one in made:
        one.close()


def offer(**more):
    return {**OFFER, **more}


def test_offers_are_those_that_fit_with_their_disk_in_the_price_cheapest_first(account, provider):
    price = {**OFFER["prices"], "onDemand": 0.3}
    account.offers = [
        offer(cloudId="dear", prices={**price, "onDemand": 1.2}),
        offer(cloudId="second"),
        offer(cloudId="first", prices=price),
        offer(cloudId="out", stockStatus="Unavailable"),
        offer(cloudId="spot", isSpot=True),
        offer(cloudId="paid before", prepaidTime=720),
        offer(cloudId="others", security="community_cloud"),
        offer(cloudId="euros", prices={**price, "currency": "EUR"}),
        offer(cloudId="imageless", images=["axolotl"]),
        offer(cloudId="unpriced", prices={**price, "onDemand": None}),
        offer(cloudId="larger", gpuCount=2),
    ]
    found = provider().offers()
    assert [one.facts["cloudId"] for one in found] == ["first", "second"]
    assert [one.price_hr for one in found] == pytest.approx([0.31, 0.41])
    assert "spot" in {one.facts["cloudId"] for one in provider(cloud_spot=True).offers()}


def test_an_order_carries_the_bound_on_the_price_and_what_the_offer_said(account, provider):
    one = provider(cloud_team="team1", cloud_disk_gb=200)
    machine = one.create("dspy-12345678-123456789abc", one.offers()[0])
    order = account.orders[0]
    assert order["provider"] == {"type": "hyperstack"} and order["team"] == {"teamId": "team1"}
    expected = {"name": "dspy-12345678-123456789abc", "cloudId": "n3-RTX4090x1", "socket": "PCIe", "gpuCount": 1}
    expected |= {"maxPrice": 1.0, "image": "ubuntu_22_cuda_12", "diskSize": 200, "dataCenterId": "CANADA-1"}
    assert order["pod"].items() >= expected.items()
    assert (machine.stage, machine.price_hr) == (Stage.STARTING, 0.4)


@pytest.mark.parametrize(
    ("status", "definite", "words"),
    [
        (402, True, "no funds"),
        (422, True, "not accepted"),
        (429, True, "too many"),
        (500, False, "500"),
        (503, False, "503"),
    ],
)
def test_a_refused_order_says_why_and_is_not_sent_again(account, provider, status, definite, words):
    one = provider()
    found = one.offers()[0]
    account.fail("POST", "/api/v1/pods", status, headers={"Retry-After": "7"})
    with pytest.raises(CloudError, match=words) as caught:
        one.create("dspy-12345678-123456789abc", found)
    assert caught.value.definite is definite and caught.value.retry_s == 7
    assert len(account.orders) == 1 and not account.pods


def test_an_order_whose_answer_is_lost_is_not_sent_again_and_is_found_by_its_name(account, provider):
    one = provider()
    account.lose_answers = 1
    with pytest.raises(CloudError) as caught:
        one.create("dspy-12345678-123456789abc", one.offers()[0])
    assert not caught.value.definite and len(account.orders) == 1
    assert [machine.name for machine in one.machines()] == ["dspy-12345678-123456789abc"]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_questions_and_deletions_are_asked_again(account, provider, status):
    one = provider()
    machine = one.create("dspy-12345678-123456789abc", one.offers()[0])
    for method, path in (("GET", "/api/v1/availability"), ("GET", "/api/v1/pods"), ("DELETE", "/api/v1/pods")):
        account.fail(method, path, status, headers={"Retry-After": "0"})
    assert one.offers() and one.machines()
    one.delete(machine.id)
    one.delete(machine.id)  # that it is gone is what was wanted
    assert account.live == []


def test_no_stock_is_an_empty_list_and_a_wrong_key_is_told(account, provider):
    account.offers = []
    assert provider().offers() == []
    with pytest.raises(CloudError, match="key is not valid"):
        provider(cloud_api_key="other").offers()


def test_all_pages_are_read_and_status_says_where_a_machine_is(account, provider):
    account.strange = [
        {"id": f"s{n}", "name": f"other{n}", "status": "ACTIVE", "sshConnection": ["root@10.0.0.1 -p 1234"]}
        for n in range(230)
    ]
    found = provider().machines()
    assert len(found) == 230 and found[229].address == Address("root@10.0.0.1", 1234)


@pytest.mark.parametrize(
    "written",
    ["-oProxyCommand=x", "root@-oX", "root@h -p 0", "root@h -p 22 -o X", "root@h; rm", "", "a b", "root@h -p 99999"],
)
def test_no_address_becomes_an_option_or_a_command(written):
    assert Address.parse(written) is None
