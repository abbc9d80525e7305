"""The client against a server of each dialect, on real sockets."""

from __future__ import annotations

import asyncio
import os
import signal
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from dspy_supervisor.embedding import AsyncEmbeddingClient, EmbeddingClient
from dspy_supervisor.errors import ConfigError, EmbeddingRefused

from tests.conftest import until
from tests.embed.server import POISON, Null

DIALECTS = ["infermesh", "tei", "openai", "vllm"]
TEXTS = [f"text {n}" for n in range(300)]
TRUE = Null().embed(TEXTS)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("chosen", ["auto", None])
def test_every_text_gets_its_vector_in_every_dialect(serve, client, dialect, chosen):
    server = serve(dialect)
    one = client(server, dialect=chosen or dialect)
    assert np.array_equal(one.embed(TEXTS), TRUE)
    facts = one.metrics()
    assert facts["endpoints"][0]["dialect"] == dialect
    assert (facts["texts"], facts["failed"], facts["dimensions"]) == (300, 0, 8)
    assert facts["bytes_sent"] == server.counts["bytes"]


def test_a_server_gets_no_more_than_it_says_it_takes(serve, client):
    server = serve("tei")
    client(server).embed(TEXTS)
    assert max(server.batches) == 32 and len(server.batches) == 10


@pytest.mark.parametrize("path", ["", "/", "/v1"])
def test_an_address_may_end_as_people_write_it(serve, path):
    server = serve("openai")
    with EmbeddingClient(server.url + path, model="null") as one:
        assert np.array_equal(one.embed(TEXTS[:2]), TRUE[:2])


def test_numbers_travel_packed_where_the_server_can_and_as_text_where_not(serve, client):
    server = serve("openai", model=Null(384))
    one = client(server)
    one.embed(TEXTS)
    packed = one.metrics()["bytes_received"]
    other = serve("openai", model=Null(384))
    other.packs = False
    two = client(other)
    assert np.array_equal(one.embed(TEXTS), two.embed(TEXTS))
    assert packed < two.metrics()["bytes_received"] / 2
    assert other.counts["requests"] == 2  # it was asked for base64 once


def test_what_callers_ask_for_together_travels_together(serve):
    server = serve("infermesh")

    async def main() -> None:
        async with AsyncEmbeddingClient(server.url) as one:
            found = await asyncio.gather(*(one.embed([text]) for text in TEXTS))
        assert np.array_equal(np.concatenate(found), TRUE)

    asyncio.run(main())
    assert server.batches == [300]


def test_threads_share_batches_too(serve, client):
    server = serve("infermesh")
    one = client(server)
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda text: one.embed([text]), TEXTS))
    assert np.array_equal(np.concatenate(found), TRUE)
    assert sum(server.batches) == 300 and len(server.batches) < 300


@pytest.mark.parametrize(
    ("bound", "most"), [({"batch_size": 7}, 7), ({"batch_bytes": 1024}, 3), ({"batch_tokens": 450}, 4)]
)
def test_a_batch_is_full_by_count_bytes_or_tokens(serve, client, bound, most):
    server = serve("infermesh")
    long = [f"{n:03} " + "x" * 300 for n in range(50)]
    assert np.array_equal(client(server, **bound).embed(long), Null().embed(long))
    assert max(server.batches) == most


def test_a_caller_with_many_texts_does_not_stand_before_one_with_few(serve):
    server = serve("tei")

    async def main() -> None:
        async with AsyncEmbeddingClient(server.url, max_requests=1) as one:
            many = asyncio.create_task(one.embed([f"many {n}" for n in range(6400)]))
            while not server.counts["requests"]:
                await asyncio.sleep(0)
            before = server.counts["requests"]
            await one.embed(["few"])
            assert server.counts["requests"] - before <= 5  # of 200
            await many

    asyncio.run(main())


def test_requests_at_once_are_bounded(serve, client):
    server = serve("infermesh")
    server.fault("slow", times=20, s=0.02)
    client(server, max_requests=3, batch_size=10).embed(TEXTS)
    assert server.most_at_once <= 3


def test_a_caller_that_goes_away_takes_its_texts_along(serve):
    server = serve("infermesh")
    server.fault("slow", s=0.3)

    async def main() -> None:
        async with AsyncEmbeddingClient(server.url, max_requests=1) as one:
            first = asyncio.create_task(one.embed(["first"]))
            while not one.metrics()["under_way"]:
                await asyncio.sleep(0.001)
            second = asyncio.create_task(one.embed(["second"] * 5))
            await asyncio.sleep(0)
            assert one.metrics()["waiting"] == 5
            second.cancel()
            await asyncio.wait([second])
            assert second.cancelled() and one.metrics()["waiting"] == 0
            await first

    asyncio.run(main())
    assert server.batches == [1]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_bad_text_fails_alone(serve, client, dialect):
    server = serve(dialect)
    one = client(server)
    texts = [*TEXTS[:20], f"some {POISON}", *TEXTS[20:]]
    with pytest.raises(EmbeddingRefused) as refused:
        one.embed(texts)
    assert refused.value.index == 20 and refused.value.status in (400, 422)
    rows = one.embed_each(texts)
    assert isinstance(rows[20], EmbeddingRefused) and rows[20].index == 20
    assert np.array_equal(np.stack(rows[:20] + rows[21:]), TRUE)
    assert one.metrics()["refused"] == 1


def test_many_bad_texts_hide_no_good_one(serve, client):
    texts = [f"{POISON} {n}" if n < 20 or n % 2 else f"text {n}" for n in range(60)]
    rows = client(serve("infermesh")).embed_each(texts)
    assert [isinstance(row, EmbeddingRefused) for row in rows] == [POISON in text for text in texts]


def test_a_bad_text_of_one_caller_is_nothing_to_another(serve):
    server = serve("infermesh")

    async def main() -> None:
        async with AsyncEmbeddingClient(server.url) as one:
            good, bad = await asyncio.gather(one.embed(TEXTS), one.embed([POISON]), return_exceptions=True)
        assert np.array_equal(good, TRUE) and isinstance(bad, EmbeddingRefused)

    asyncio.run(main())
    assert server.counts["requests"] > 1


def test_a_request_that_is_refused_whatever_the_texts_is_not_asked_for_each(serve, client):
    server = serve("infermesh")
    server.fault("status", times=1000, status=422, said="no such model")
    with pytest.raises(EmbeddingRefused, match="no such model"):
        client(server).embed([f"text {n}" for n in range(512)])
    assert server.counts["requests"] < 50


def test_a_body_that_is_too_large_is_halved_and_the_bound_learned(serve, client):
    server = serve("tei")
    one = client(server, batch_bytes="8M", batch_tokens=10**9)
    large = [f"{n} " + "x" * 100_000 for n in range(64)]
    assert np.array_equal(one.embed(large), Null().embed(large))
    refused = one.metrics()["failed"]
    assert refused >= 1
    one.embed(large)
    assert one.metrics()["failed"] == refused  # it knows now


def test_requests_at_once_all_learn_that_a_server_knows_no_base64(serve, client):
    server = serve("openai")
    server.packs = False
    server.fault("slow", times=4, s=0.2)
    rows = client(server, batch_size=1, linger_ms=0).embed_each(TEXTS[:4])
    assert np.array_equal(rows, TRUE[:4])


def test_a_route_that_is_gone_for_one_request_is_nothing_to_another(serve, client):
    server = serve("infermesh")
    one = client(server, batch_size=1, linger_ms=0)
    one.embed(["known"])
    server.fault("slow", s=0.5)
    server.fault("status", status=404)
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(one.embed, TEXTS[:1])
        until(lambda: server.counts["requests"] >= 2, "the slow request")
        with pytest.raises(EmbeddingRefused):
            one.embed(TEXTS[1:2])
        assert np.array_equal(slow.result(), TRUE[:1])


def test_who_waits_while_the_client_is_closed_is_told(serve, client):
    server = serve("infermesh")
    server.fault("slow", s=20)
    one = client(server)
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(one.embed, TEXTS[:1])
        until(lambda: server.counts["requests"], "a request")
        one.close()
        with pytest.raises(RuntimeError, match="closed meanwhile"):
            waits.result(10)


def test_a_child_that_is_forked_while_a_thread_has_the_lock_does_not_wait_for_it(serve, client):
    one = client(serve("infermesh"))
    with one._lock:
        reader, writer = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads beside a fork: that is the point
            child = os.fork()
        if not child:
            try:
                signal.alarm(20)
                os.write(writer, str(one.embed(["child"]).shape).encode())
            finally:
                os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        assert told.read() == "(1, 8)"
    os.waitpid(child, 0)


def test_a_text_that_is_too_long_makes_no_later_batch_smaller(serve, client):
    server = serve("tei")  # it answers 413 there, too
    one = client(server)
    rows = one.embed_each(["short"] * 31 + ["word " * 600])
    assert [isinstance(row, EmbeddingRefused) for row in rows] == [False] * 31 + [True]
    server.batches.clear()
    one.embed([f"text {n}" for n in range(320)])
    assert server.batches == [32] * 10


def test_a_text_that_the_model_cannot_hold_is_refused_or_cut_as_asked(serve, client):
    server = serve("tei")
    long = "word " * 600
    with pytest.raises(EmbeddingRefused, match="must have less than 512 tokens") as refused:
        client(server).embed(["short", long])
    assert refused.value.index == 1
    assert client(server, truncate=True).embed([long]).shape == (1, 8)


def test_a_forked_child_has_a_thread_and_connections_of_its_own(serve, client):
    server = serve("infermesh")
    one = client(server)
    one.embed(["parent"])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads: that is what is tested
        pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if np.array_equal(one.embed(TEXTS), TRUE) else 1)
        finally:
            os._exit(2)
    assert until(lambda: os.waitpid(pid, os.WNOHANG)[0], "the child ends") == pid
    one.embed(["parent again"])


def test_what_is_no_text_is_refused_before_anything_is_sent(serve, client):
    server = serve("infermesh")
    one = client(server)
    with pytest.raises(TypeError, match="a sequence of them"):
        one.embed("one string")
    for bad, why in ((3, "int"), ("\ud800", "surrogate")):
        with pytest.raises(EmbeddingRefused, match=why) as refused:
            one.embed(["good", bad])
        assert refused.value.index == 1
    assert one.embed([]).shape == (0, 0)
    assert not server.batches


def test_a_client_says_what_it_cannot_be_made_of():
    with pytest.raises(ConfigError, match="expected a whole number"):
        EmbeddingClient("http://x", batch_size=0)
    with pytest.raises(ConfigError, match="one of urls"):
        EmbeddingClient("http://x", batches=0)
    with pytest.raises(ConfigError, match="INFERMESH_URL"):
        EmbeddingClient([])
    closed = EmbeddingClient("http://x")
    closed.close()
    with pytest.raises(RuntimeError, match="closed"):
        closed.embed(["x"])


def test_a_real_model_finds_what_is_alike_in_every_dialect(serve, minilm):
    texts = ["A man is eating food.", "Someone has a meal.", "The stock market fell."]
    true = minilm.embed(texts)
    for dialect in DIALECTS:
        server = serve(dialect, model=minilm)
        with EmbeddingClient(server.url, model=minilm.name) as one:
            vectors = one.embed(texts)
        assert vectors.shape == (3, 384)
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        alike = vectors @ vectors.T
        assert alike[0, 1] > 0.5 > alike[0, 2] + 0.2
        assert np.allclose(vectors, true, atol=1e-5)
