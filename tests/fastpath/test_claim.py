"""The claim: one mover wins, and nothing that lies in a folder can hurt the reader."""

import os

import pytest
from dspy_fastpath import claim as compiled
from reference import claim as reference

MIB = 1 << 20


@pytest.fixture(params=[compiled, reference], ids=["compiled", "reference"])
def claims(request):
    return request.param


@pytest.fixture
def folders(tmp_path):
    """Descriptors of pending/ and claimed/."""
    descriptors = []
    for name in ("pending", "claimed"):
        (tmp_path / name).mkdir()
        descriptors.append(os.open(tmp_path / name, os.O_RDONLY | os.O_DIRECTORY))
    yield descriptors
    for descriptor in descriptors:
        os.close(descriptor)


def test_a_claim_moves_the_file_and_returns_what_it_holds(claims, folders, tmp_path):
    pending, claimed = folders
    (tmp_path / "pending" / "a.json").write_bytes(b'{"id": "a"}')
    task = claims.claim(pending, b"a.json", claimed, MIB, ())
    assert task.data == b'{"id": "a"}'
    assert task.fields.id == "a"
    assert task.mtime == (tmp_path / "claimed" / "a.json").stat().st_mtime
    assert os.listdir(pending) == []
