"""What goes wrong at a server: what is tried again, what is not, and that no vector is ever made up."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from dspy_supervisor.embedding import EmbeddingClient
from dspy_supervisor.errors import EmbeddingInvalid, EmbeddingRefused, EmbeddingUnavailable

from tests.conftest import until
from tests.embed.server import Null, serving

TEXTS = [f"text {n}" for n in range(5)]
TRUE = Null().embed(TEXTS)


@pytest.mark.parametrize(
    "fault",
    [
        *({"do": "status", "status": status} for status in (408, 424, 429, 500, 502, 503, 504)),
        {"do": "status", "status": 429, "headers": {"Retry-After": "0.05"}},
        {"do": "status", "status": 503, "headers": {"Retry-After": "Mon, 23 Nov 2026 20:00:00 GMT"}},
        {"do": "status", "status": 503, "headers": {"Retry-After": "soon"}},
        {"do": "cut"},
        {"do": "cut_body"},
        {"do": "slow", "s": 30},
    ],
    ids=str,
)
def test_what_may_go_better_is_tried_again(serve, client, fault):
    server = serve("infermesh")
    one = client(server, timeout_s=2 if fault["do"] == "slow" else 30)
    server.fault(**fault, times=2 if fault["do"] != "slow" else 1)
    assert np.array_equal(one.embed(TEXTS), TRUE)
    assert one.metrics()["retried"] == one.metrics()["failed"] == (2 if fault["do"] != "slow" else 1)


@pytest.mark.parametrize(
    ("fault", "error", "why"),
    [
        ({"do": "status", "status": 401}, EmbeddingRefused, "INFERMESH_API_KEY"),
        ({"do": "status", "status": 501}, EmbeddingRefused, "answered 501: as told"),
        ({"do": "status", "status": 307, "headers": {"Location": "http://else"}}, EmbeddingRefused, "to http://else"),
        ({"do": "count"}, EmbeddingInvalid, "4 vectors for 5 texts"),
        ({"do": "dimension"}, EmbeddingInvalid, "7 numbers, where there were 8"),
        ({"do": "junk", "said": "<html>"}, EmbeddingInvalid, "no JSON"),
        ({"do": "junk", "said": '{"vectors": []}'}, EmbeddingInvalid, "without 'vectors'"),
        ({"do": "junk", "said": '{"vectors": [[], [], [], [], []]}'}, EmbeddingInvalid, "missing or empty"),
    ],
    ids=str,
)
def test_what_will_not_go_better_is_said_at_once(serve, client, fault, error, why):
    server = serve("infermesh")
    one = client(server)
    one.embed(TEXTS)
    server.fault(**fault)
    with pytest.raises(error, match=why) as raised:
        one.embed(TEXTS)
    assert raised.value.endpoint in ("", server.url)
    assert server.counts["requests"] == 2
    assert np.array_equal(one.embed(TEXTS), TRUE)


def test_no_failure_ends_in_made_up_vectors(serve, client):
    server = serve("infermesh")
    server.fault("status", times=100, status=500)
    with pytest.raises(EmbeddingUnavailable, match="answered 500: as told"):
        client(server, retries=2).embed(TEXTS)
    assert server.counts["requests"] == 3


def test_a_server_that_wants_to_be_let_alone_for_long_is(serve, client):
    server = serve("infermesh")
    server.fault("status", status=429, headers={"Retry-After": "3600"})
    one = client(server)
    with pytest.raises(EmbeddingUnavailable) as raised:
        one.embed(TEXTS)
    assert 3500 < raised.value.retry_after_s <= 3600
    with pytest.raises(EmbeddingUnavailable, match="can be asked for 3"):
        one.embed(TEXTS)
    assert server.counts["requests"] == 1


def test_with_several_servers_another_one_answers_and_the_bad_one_is_left_alone_until_it_is_well(serve, client):
    good, bad = serve("infermesh"), serve("infermesh")
    bad.fault("status", times=1000, status=500)
    one = client(good, bad, breaker_failures=2, batch_size=1)
    for _ in range(10):
        assert np.array_equal(one.embed(TEXTS), TRUE)
    facts = {endpoint["url"]: endpoint for endpoint in one.metrics()["endpoints"]}
    assert facts[bad.url]["opened"] >= 1 and facts[good.url]["opened"] == 0
    assert bad.counts["requests"] < 25
    bad.faults.clear()
    until(lambda: one.embed(TEXTS) is not None and bad.batches, "the server that is well again is asked", 90)


def test_a_server_that_was_not_there_is_found_when_it_comes(client):
    with serving("infermesh") as gone:
        port = int(gone.url.rpartition(":")[2])
    one = client(gone, retries=0, breaker_failures=1000)
    with pytest.raises(EmbeddingUnavailable, match="can't be asked"):
        one.embed(TEXTS)
    with serving("tei", port=port):
        assert np.array_equal(one.embed(TEXTS), TRUE)
    assert one.metrics()["endpoints"][0]["dialect"] == "tei"


def test_servers_with_different_models_are_not_mixed(serve, client):
    one = client(serve("infermesh", model=Null(8)), serve("infermesh", model=Null(9)), retries=0)
    with pytest.raises(EmbeddingInvalid, match="numbers, where there were"):
        for _ in range(50):
            one.embed(TEXTS)


def test_work_is_shared_among_servers(serve, client):
    servers = [serve("infermesh") for _ in range(3)]
    for server in servers:
        server.fault("slow", times=10, s=0.05)
    client(*servers, batch_size=1).embed([f"text {n}" for n in range(30)])
    assert all(server.batches for server in servers)


def test_a_model_that_is_not_there_is_named_beside_those_that_are(serve, client):
    with pytest.raises(EmbeddingRefused, match="it has null, and is asked for other"):
        client(serve("openai"), model="other").embed(TEXTS)


def test_the_key_is_sent_and_never_shown(serve, client, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    server = serve("infermesh", key="k3y-of-ours")
    one = client(server, api_key="k3y-of-ours")
    assert np.array_equal(one.embed(TEXTS), TRUE)
    server.key = "another"  # it says what it got instead
    with pytest.raises(EmbeddingRefused, match=r"not the key: Bearer \(secret\)") as raised:
        one.embed(TEXTS)
    shown = [
        str(raised.value),
        repr(raised.value),
        repr(one.settings),
        str(one.metrics()),
        caplog.text,
        *capfd.readouterr(),
    ]
    assert not any("k3y-of-ours" in text for text in shown)


def test_a_password_in_an_address_is_sent_and_never_shown(serve, caplog):
    caplog.set_level(logging.DEBUG)
    server = serve("infermesh")
    url = server.url.replace("http://", "http://user:pa55word@")
    with EmbeddingClient(url, retries=0) as one:
        assert np.array_equal(one.embed(TEXTS), TRUE)
        server.fault("status", status=500, said="pa55word")
        with pytest.raises(EmbeddingUnavailable) as raised:
            one.embed(TEXTS)
        shown = [str(raised.value), str(one.metrics()), caplog.text]
    assert not any("pa55word" in text for text in shown)


def test_a_key_and_texts_follow_no_redirect_to_another_server(serve, client):
    elsewhere, server = serve("infermesh"), serve("infermesh", key="k3y-of-ours")
    server.fault("status", times=4, status=307, headers={"Location": f"{elsewhere.url}/embed_batch"})
    with pytest.raises(EmbeddingRefused, match="to http"):
        client(server, api_key="k3y-of-ours").embed(TEXTS)
    assert elsewhere.counts["requests"] == 0
