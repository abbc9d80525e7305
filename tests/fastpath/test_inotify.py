"""The watcher says what appeared, what was lost, and when it does not know."""

import pytest
from dspy_fastpath import inotify as compiled
from reference import inotify as reference


@pytest.fixture(params=[compiled, reference], ids=["compiled", "reference"])
def watching(request):
    return request.param


@pytest.fixture
def watcher(watching):
    with watching.Watcher() as watcher:
        yield watcher


def test_a_file_written_in_place_is_one_event_with_both_of_its_bits(watching, watcher, tmp_path):
    watch = watcher.add(tmp_path)
    (tmp_path / "a.json").write_text("{}")
    assert watcher.wait(10)
    assert watcher.take() == ([(watch, b"a.json", watching.IN_CREATE | watching.IN_CLOSE_WRITE)], [], False)
    assert watcher.take() == ([], [], False)
