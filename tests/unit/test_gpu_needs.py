"""What a task needs that says little: its class's share, and what its kind was seen to take."""

from types import SimpleNamespace

import orjson
import pytest
from dspy_fastpath.envelope import scan
from dspy_supervisor.devices import Device, Ledger, Need
from dspy_supervisor.gpu_needs import Asked, bound, default_need, with_memory
from dspy_supervisor.record import Claim
from dspy_supervisor.task import TaskName
from dspy_supervisor.vram import Learned

GIB = 1 << 30
LEDGER = Ledger([Device("GPU-a", 20 * GIB), Device("GPU-b", 40 * GIB)])


def asked(resources=None, kind=None):
    document = {"id": "a1", "payload": 1, "resources": resources, "kind": kind}
    envelope = orjson.dumps({key: value for key, value in document.items() if value is not None})
    settings = SimpleNamespace(handler="app:run")
    return Asked.of(Claim(TaskName("a1"), envelope, scan(envelope), 0.0), settings, Need(share=0.5))


@pytest.mark.parametrize(
    ("share", "workers", "devices", "need"),
    [
        (0, 1, 4, Need(1)),
        (0, 4, 4, Need(1)),
        (0, 4, 1, Need(share=0.25)),
        (0, 4, 3, Need(share=0.5)),  # three places would do for three of them only
        (0, 0, 0, Need(1)),
        (0.3, 4, 1, Need(share=0.3)),
        (1, 4, 1, Need(1)),
        (2, 4, 4, Need(2)),
    ],
)
def test_the_class_says_what_a_task_gets_or_all_get_alike(share, workers, devices, need):
    assert default_need(SimpleNamespace(gpu_share=share), workers, devices) == need


def test_tasks_that_name_their_memory_are_a_kind_of_their_own():
    assert asked().kind == "app:run" and asked(kind="embed").kind == "embed"
    named = asked({"gpu_memory": "8G"})
    assert named.declared and named.kind == "app:run 8192 MiB"
    assert asked({"gpus": "nonsense"}).need == Need(share=0.5)


def test_memory_is_what_is_named_or_learned_and_else_a_guess():
    learned = Learned()
    assert with_memory(asked(), LEDGER, learned).memory_bytes == int(0.5 * 0.5 * 18 * GIB)
    assert with_memory(asked({"gpus": 1}), LEDGER, learned).memory_bytes == int(0.5 * 18 * GIB)
    assert with_memory(asked({"gpus": 0}), LEDGER, learned).memory_bytes == 0
    assert with_memory(asked(), Ledger([Device("GPU-x", 0)]), learned).memory_bytes == 0
    learned.measured("app:run", 2 * GIB)
    assert with_memory(asked(), LEDGER, learned).memory_bytes == int(2 * GIB * 1.1)
    assert with_memory(asked({"gpu_memory": "8G"}), LEDGER, learned).memory_bytes == 8 * GIB
    learned.ran_out("app:run 8192 MiB", 8 * GIB, 0, 18 * GIB)
    assert with_memory(asked({"gpu_memory": "8G"}), LEDGER, learned).memory_bytes == 12 * GIB


def test_a_task_is_bounded_by_what_it_named_or_by_what_all_may_have():
    named = asked({"gpu_memory": "8G"})
    named.given = with_memory(named, LEDGER, Learned())
    assert bound(named, ["GPU-a"], LEDGER) == 8 * GIB
    assert bound(asked(), ["GPU-a", "GPU-b"], LEDGER) == 18 * GIB
    assert bound(asked(), [], LEDGER) == 0


def test_what_ran_out_fades_to_what_it_says_and_no_further():
    learned, named = Learned(), asked({"gpu_memory": "8G"})
    named.given = with_memory(named, LEDGER, learned)
    assert not named.is_raised
    learned.ran_out(named.kind, 8 * GIB, 0, 18 * GIB)
    named.given = with_memory(named, LEDGER, learned)
    assert named.is_raised
    guessed = asked()
    guessed.given = with_memory(guessed, LEDGER, learned)
    assert guessed.is_raised
