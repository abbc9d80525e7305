"""A pause outlives every supervisor, and can be of some classes."""

import pytest
from dspy_supervisor.pause import Pause, Paused

ALL = ("cpu_short", "cpu_long", "gpu", "gpu_slurm")


def test_nothing_is_paused_at_first(rig):
    pause = Pause(rig.layout)
    assert pause.read() is None
    pause.resume(None, ALL)
    assert pause.read() is None and rig.put("a1")


def test_classes_are_paused_beside_each_other_and_resumed_one_by_one(rig):
    pause = Pause(rig.layout)
    pause.pause(["gpu"], "hot")
    pause.pause(["cpu_long"], "busy")
    paused = Pause(rig.layout).read()
    assert paused.classes == {"gpu", "cpu_long"} and paused.includes("gpu") and not paused.includes("cpu_short")
    pause.resume(["gpu"], ALL)
    assert (pause.read().classes, pause.read().reason) == ({"cpu_long"}, "busy")
    pause.resume(["cpu_long"], ALL)
    assert pause.read() is None


def test_all_is_more_than_some(rig):
    pause = Pause(rig.layout)
    pause.pause(["gpu"], "")
    pause.pause(None, "night")
    pause.pause(["gpu"], "still")
    assert pause.read().classes is None and all(map(pause.read().includes, ALL))
    pause.resume(["gpu"], ALL)
    assert pause.read().classes == set(ALL) - {"gpu"}
    pause.resume(None, ALL)
    assert pause.read() is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"classes":null}', Paused(None, "", 0.0)),
        ('{"classes":["gpu"],"reason":"x","since":5}', Paused(frozenset(["gpu"]), "x", 5.0)),
        ('{"classes":"gpu","since":"x"}', Paused(None, "", 0.0)), ("{", None), ("[]", None),
    ],
)  # fmt: skip
def test_what_an_operator_wrote_by_hand_is_taken_as_far_as_it_goes(rig, content, expected):
    (rig.path / "paused.json").write_text(content)
    assert Pause(rig.layout).read() == expected
    Pause(rig.layout).resume(None if expected else ["gpu"], ALL)
    assert not (rig.path / "paused.json").exists()
