"""The cache on disk: nothing is asked for twice, its size is bounded, and it is never the reason that something fails."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest
from dspy_supervisor.errors import EmbeddingInvalid, EmbeddingRefused

from tests.embed.server import POISON, Null

TEXTS = [f"text {n}" for n in range(1200)]
TRUE = Null().embed(TEXTS)


def test_what_was_asked_for_is_not_asked_for_again_by_any_client(serve, client, tmp_path):
    server = serve("infermesh")
    for _ in range(2):
        assert np.array_equal(client(server, cache_dir=tmp_path / "cache").embed(TEXTS), TRUE)
    assert sum(server.batches) == 1200
    one = client(server, cache_dir=tmp_path / "cache")
    assert np.array_equal(one.embed([TEXTS[5], "new", TEXTS[3]]), Null().embed([TEXTS[5], "new", TEXTS[3]]))
    assert (one.metrics()["cache_hits"], one.metrics()["cache_misses"]) == (2, 1)
    assert (tmp_path / "cache" / "vectors.sqlite").stat().st_mode & 0o077 == 0


def test_another_model_has_vectors_of_its_own(serve, client, tmp_path):
    server = serve("infermesh")
    for model in ("a", "b"):
        client(server, cache_dir=tmp_path, model=model).embed(TEXTS[:3])
    assert sum(server.batches) == 6


def test_other_options_have_vectors_of_their_own(serve, client, tmp_path):
    server = serve("infermesh")
    for options in ({"pooling": "cls"}, {"pooling": "mean"}, {"pooling": "cls"}):
        client(server, cache_dir=tmp_path, options=options).embed(TEXTS[:3])
    assert sum(server.batches) == 6


def test_vectors_of_another_length_than_those_in_the_cache_are_an_error_once(serve, client, tmp_path):
    client(serve("infermesh"), cache_dir=tmp_path).embed(TEXTS[:3])
    one = client(serve("infermesh", model=Null(4)), cache_dir=tmp_path)
    with pytest.raises(EmbeddingInvalid, match="another embed_cache_dir"):
        one.embed(TEXTS[:6])
    assert one.embed(TEXTS[:6]).shape == (6, 4)


def test_a_refused_text_keeps_its_place_and_is_not_cached(serve, client, tmp_path):
    server = serve("infermesh")
    one = client(server, cache_dir=tmp_path)
    one.embed(TEXTS[:2])
    for _ in range(2):
        with pytest.raises(EmbeddingRefused) as refused:
            one.embed([*TEXTS[:2], POISON])
        assert refused.value.index == 2


def test_the_oldest_make_room(serve, client, tmp_path):
    server = serve("infermesh", model=Null(512))
    one = client(server, cache_dir=tmp_path, cache_bytes=1 << 20)
    for start in range(0, 1200, 100):
        one.embed([TEXTS[0], *TEXTS[start : start + 100]])
    with sqlite3.connect(tmp_path / "vectors.sqlite") as database:
        (rows,) = database.execute("select count(*) from vectors").fetchone()
    database.close()
    assert 100 < rows < 600  # of 2 kB each
    asked = sum(server.batches)
    one.embed([TEXTS[0], *TEXTS[-50:]])  # used all the time, and the newest
    assert sum(server.batches) == asked


@pytest.mark.parametrize("damage", ["torn", "foreign", "no_folder", "no_file"])
def test_a_cache_that_fails_is_as_if_there_was_none(serve, client, tmp_path, damage, caplog):
    server = serve("infermesh")
    folder = tmp_path / "cache"
    if damage == "no_folder":
        folder.write_bytes(b"")
    elif damage == "no_file":
        (folder / "vectors.sqlite").mkdir(parents=True)
    else:
        folder.mkdir()
        (folder / "vectors.sqlite").write_bytes(
            b"no database at all" * 100 if damage == "foreign" else b"SQLite format 3\0"
        )
    one = client(server, cache_dir=folder)
    for _ in range(2):
        assert np.array_equal(one.embed(TEXTS[:10]), TRUE[:10])
    assert caplog.text.count("embed_cache_off") == 1
