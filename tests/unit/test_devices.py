"""GPUs that are given out: nobody gets what another holds, and everybody's turn comes."""

import contextlib
import random

import orjson
import pytest
from dspy_fastpath.envelope import scan
from dspy_supervisor.devices import (
    Device,
    Ledger,
    Need,
    NeedError,
    environment,
    expand_numbers,
    inherited,
    read_need,
    universe,
)
from hypothesis import given
from hypothesis import strategies as st

GIB = 1 << 30
WHOLE = [Device(f"GPU-{letter * 8}", 24 * GIB) for letter in "abcd"]
#: the second GPU is in MIG mode, with two slices
MIXED = [
    WHOLE[0],
    Device("GPU-bbbbbbbb", 80 * GIB, sliced=True),
    Device("MIG-11111111", 10 * GIB, parent="GPU-bbbbbbbb"),
    Device("MIG-22222222", 20 * GIB, parent="GPU-bbbbbbbb"),
    WHOLE[2],
]
QUARTER = Need(share=0.25)


def names(devices):
    return [device.uuid[:5] for device in devices]


# -- what a task asks for ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resources", "need"),
    [
        ({}, QUARTER),
        ({"cpus": 4}, QUARTER),
        (None, QUARTER),
        ({"gpus": 2}, Need(2)),
        ({"gpus": 0}, Need()),
        ({"gpus": 1.0}, Need(1)),
        ({"gpus": 0.5}, Need(share=0.5)),
        ({"gpu_share": 0.5}, Need(share=0.5)),
        ({"gpu_share": 1}, Need(1)),
        ({"gpus": 1, "gpu_share": 0.5}, Need(share=0.5)),
        ({"gpu_memory": "8G"}, Need(share=0.25, memory_bytes=8 * GIB)),
        ({"gpus": 2, "gpu_memory": 1000}, Need(2, memory_bytes=1000)),
    ],
)
def test_a_task_says_what_it_needs(resources, need):
    assert read_need(orjson.dumps(resources), QUARTER) == need
    assert read_need(None, QUARTER) == QUARTER


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ([], "expected an object"),
        ({"gpus": -1}, "resources.gpus=-1"),
        ({"gpus": 1.5}, "resources.gpus=1.5"),
        ({"gpus": "two"}, "resources.gpus='two'"),
        ({"gpus": True}, "resources.gpus=True"),
        ({"gpus": 1e300}, "resources.gpus=1e+300"),
        ({"gpu_share": 0}, "resources.gpu_share=0"),
        ({"gpu_share": 2}, "resources.gpu_share=2"),
        ({"gpus": 2, "gpu_share": 0.5}, "without 2 gpus"),
        ({"gpu_memory": "lots"}, "resources.gpu_memory='lots'"),
        ({"gpu_memory": [1]}, "resources.gpu_memory=[1]"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(resources, said):
    with pytest.raises(NeedError, match="expected") as refusal:
        read_need(orjson.dumps(resources), QUARTER)
    assert said in str(refusal.value)


odd = st.sampled_from(
    [None, True, -1, 0, 0.5, 1, 1.0, 1.5, 2, 1e300, -1e300, 2**63, "", "1", "8G", "-8G", "1e9", [], {}]
)


@given(st.dictionaries(st.sampled_from(["gpus", "gpu_share", "gpu_memory", "x"]), odd | st.floats(0, 2)))
def test_whatever_is_asked_for_is_a_need_or_a_refusal(resources):
    written = orjson.dumps(resources)
    scan(b'{"resources": %b, "payload": 1}' % written)
    with contextlib.suppress(NeedError):
        need = read_need(written, QUARTER)
        assert need.gpus * need.share == 0 and 0 <= need.share < 1 and need.memory_bytes >= 0


# -- which GPUs are ours ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["GPU-a", "GPU-b", "GPU-c", "GPU-d"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("2,0", ["GPU-c", "GPU-a"]),
        (" 1 , 3 ", ["GPU-b", "GPU-d"]),
        ("GPU-cccccccc", ["GPU-c"]),
        ("GPU-c,GPU-aa", ["GPU-c", "GPU-a"]),
        ("1,7,2", ["GPU-b"]),
        ("1,-1,2", ["GPU-b"]),
        ("GPU-", []),
        ("1,1", []),
    ],
)
def test_the_inherited_set_is_read_as_cuda_reads_it(visible, expected):
    assert names(universe(WHOLE, visible).devices) == expected


def test_what_is_left_out_is_said():
    assert "'7' names no GPU here" in universe(WHOLE, "1,7").note
    assert "twice" in universe(WHOLE, "GPU-a,0").note
    assert not universe(WHOLE, "").note and not universe(WHOLE, "0").note


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["GPU-a", "MIG-1", "MIG-2", "GPU-c"]),
        ("1", ["MIG-1", "MIG-2"]),
        ("GPU-bbbbbbbb,2", ["MIG-1", "MIG-2", "GPU-c"]),
        ("MIG-22222222", ["MIG-2"]),
        ("MIG-2,MIG-11111111", ["MIG-2", "MIG-1"]),
        ("MIG-2,1", []),  # the slice twice
    ],
)
def test_slices_stand_for_a_gpu_in_mig_mode(visible, expected):
    assert names(universe(MIXED, visible).devices) == expected


@pytest.mark.parametrize(
    ("environ", "visible"),
    [
        ({}, None),
        ({"CUDA_VISIBLE_DEVICES": ""}, ""),
        ({"CUDA_VISIBLE_DEVICES": "1", "SLURM_JOB_GPUS": "2"}, "1"),
        ({"ROCR_VISIBLE_DEVICES": "0"}, "0"),
        ({"SLURM_JOB_GPUS": "1-2"}, "1,2"),
        ({"SLURM_JOB_GPUS": "0,3", "SLURM_STEP_GPUS": "3"}, "3"),
        ({"SLURM_JOB_GPUS": "4-7"}, None),  # confined to four: these, whatever their numbers on the host
    ],
)
def test_slurms_set_counts_where_no_other_is_inherited(environ, visible):
    assert inherited(environ, WHOLE)[0] == visible
    assert expand_numbers("0,2-4,x") == "0,2,3,4,x"


def test_a_process_sees_its_devices_by_name_in_the_order_of_the_bus():
    found = environment(["GPU-a", "MIG-1"])
    assert found["CUDA_VISIBLE_DEVICES"] == "GPU-a,MIG-1" and found["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert environment([])["CUDA_VISIBLE_DEVICES"] == ""


# -- who holds what -------------------------------------------------------------------------------------------------------


def test_shares_go_where_most_is_left_and_whole_gpus_to_nobody_else():
    ledger = Ledger(WHOLE[:2])
    for number in range(3):
        ledger.take(f"t{number}", ledger.place(Need(share=0.5)), Need(share=0.5))
    assert [len(ledger.holders(device.uuid)) for device in WHOLE[:2]] == [2, 1]
    assert ledger.place(Need(1)) is None and ledger.place(Need(share=0.6)) is None
    ledger.release("t1")
    ledger.take("alone", ledger.place(Need(1)), Need(1))
    assert ledger.held_by("alone") == (WHOLE[1].uuid,)
    assert not ledger.fits([WHOLE[1].uuid], QUARTER)
    with pytest.raises(ValueError, match="can't have"):
        ledger.take("late", [WHOLE[1].uuid], QUARTER)
    with pytest.raises(ValueError, match="already"):
        ledger.take("alone", [WHOLE[0].uuid], QUARTER)


def test_thirds_make_a_whole():
    ledger = Ledger(WHOLE[:1])
    for number in range(3):
        ledger.take(str(number), ledger.place(Need(share=1 / 3)), Need(share=1 / 3))
    assert ledger.place(Need(share=0.001)) is None


def test_memory_is_given_out_within_the_budget_and_within_what_is_free():
    ledger = Ledger(WHOLE[:1], memory_limit=20 * GIB)
    large = Need(share=0.25, memory_bytes=12 * GIB)
    ledger.take("one", ledger.place(large), large)
    assert ledger.place(large) is None
    small = Need(share=0.25, memory_bytes=8 * GIB)
    assert ledger.place(small, {WHOLE[0].uuid: 8 * GIB - 1}) is None  # a foreign process has it
    assert ledger.place(small, {}) is None  # nobody knows
    assert ledger.place(small, {WHOLE[0].uuid: 8 * GIB}) == (WHOLE[0].uuid,)


def test_without_a_limit_a_tenth_is_kept_for_contexts_and_desktops():
    assert Ledger(WHOLE[:1]).budget_of(WHOLE[0]) == int(24 * GIB * 0.9)
    assert Ledger(WHOLE[:1], 100 * GIB).budget_of(WHOLE[0]) == int(24 * GIB * 0.9)
    assert Ledger(WHOLE[:1], 20 * GIB).budget_of(WHOLE[0]) == 20 * GIB
    assert Ledger([], 0).budget_of(Device("GPU-x", 0)) > 1000 * GIB  # the driver does not say: no reason to refuse


def test_what_can_never_be_met_is_said():
    ledger = Ledger(MIXED[2:], memory_limit=15 * GIB)
    assert ledger.never(Need(4)) == "it needs 4 GPUs, and there are 1 whole here"
    assert ledger.never(Need(2)) and not ledger.never(Need(1)) and not ledger.never(Need())
    assert "15.0 GiB to give" in ledger.never(Need(1, memory_bytes=16 * GIB))
    assert not ledger.never(Need(1, memory_bytes=15 * GIB))
    assert "there are 0 here" in Ledger([]).never(QUARTER)


def test_a_task_has_one_slice_and_never_two():
    ledger = Ledger(universe(MIXED, "1").devices)
    assert ledger.place(Need(2)) is None
    assert ledger.place(Need(1, memory_bytes=12 * GIB)) == ("MIG-22222222",)
    assert ledger.place(Need(1, memory_bytes=GIB)) == ("MIG-11111111",)  # the smallest that is enough


def test_a_lost_gpu_is_given_to_nobody_until_it_is_back():
    ledger = Ledger(WHOLE[:2])
    ledger.take("one", [WHOLE[0].uuid], QUARTER)
    assert ledger.fence(WHOLE[0].uuid, "it fell off the bus") == ["one"]
    ledger.release("one")
    assert ledger.place(QUARTER) == (WHOLE[1].uuid,) and ledger.place(Need(2)) is None
    assert ledger.fenced == {WHOLE[0].uuid: "it fell off the bus"}
    assert not ledger.never(Need(2))  # it may come back
    assert ledger.soonest(Need(2)) == ()  # so nothing is kept free for it
    ledger.unfence(WHOLE[0].uuid)
    assert ledger.place(Need(2)) is not None
    assert ledger.fence("GPU-unknown", "x") == []


def test_what_is_kept_free_for_a_large_task_is_what_will_be_free_first():
    ledger = Ledger(WHOLE[:3])
    for number in range(4):
        ledger.take(f"a{number}", [WHOLE[0].uuid], QUARTER)
    ledger.take("b", [WHOLE[1].uuid], QUARTER)
    assert set(ledger.soonest(Need(2))) == {WHOLE[1].uuid, WHOLE[2].uuid}
    assert ledger.place(QUARTER, closed=ledger.soonest(Need(2))) is None


def test_devices_come_and_go_while_some_are_held():
    ledger = Ledger(WHOLE[:2])
    ledger.take("one", [WHOLE[0].uuid], Need(1))
    ledger.adopt([WHOLE[1], WHOLE[2]])
    assert ledger.place(Need(3)) is None and "no longer there" in ledger.fenced[WHOLE[0].uuid]
    assert ledger.held_by("one") == (WHOLE[0].uuid,)
    ledger.release("one")
    ledger.adopt([WHOLE[1], WHOLE[2]])
    assert [device.uuid for device in ledger.devices] == [WHOLE[1].uuid, WHOLE[2].uuid]


def test_a_gpu_and_its_own_slices_are_never_given_out_at_once():
    ledger = Ledger([Device("GPU-b", 80 * GIB)])
    ledger.take("old", ["GPU-b"], QUARTER)
    ledger.adopt([Device("MIG-1", 10 * GIB, parent="GPU-b")])  # it was cut meanwhile
    assert ledger.place(QUARTER) is None
    ledger.release("old")
    assert ledger.place(QUARTER) == ("MIG-1",)


# -- every schedule --------------------------------------------------------------------------------------------------------

needs = st.one_of(
    st.builds(Need, gpus=st.integers(0, 4), memory_bytes=st.sampled_from([0, GIB, 20 * GIB, 60 * GIB])),
    st.builds(
        Need, share=st.sampled_from([0.1, 0.25, 1 / 3, 0.5, 0.99]), memory_bytes=st.sampled_from([0, GIB, 8 * GIB])
    ),
)


def check(ledger):
    """No two exclusive holders meet, nobody shares with one, and no device gives more than it has."""
    for device in ledger.devices:
        held = ledger.holders(device.uuid)
        exclusive = [holder for holder, need in held.items() if need.gpus]
        assert len(exclusive) <= 1 and (not exclusive or len(held) == 1), (device, held)
        assert sum(need.share for need in held.values()) <= 1 + 1e-6
        assert sum(need.memory_bytes for need in held.values()) <= ledger.budget_of(device)
        for holder in held:
            assert device.uuid in ledger.held_by(holder)


@given(st.lists(st.tuples(st.sampled_from("trfu"), st.integers(0, 9), needs), max_size=40), st.booleans())
def test_no_schedule_gives_a_device_twice(steps, mixed):
    ledger = Ledger(universe(MIXED if mixed else WHOLE, None).devices, 22 * GIB)
    for step, number, need in steps:
        holder, uuid = f"t{number}", ledger.devices[number % len(ledger.devices)].uuid
        if step == "t" and not ledger.held_by(holder):
            ledger.release(holder)
            if (placed := ledger.place(need)) is not None:
                assert len(set(placed)) == need.count and not set(placed) & ledger.fenced.keys()
                ledger.take(holder, placed, need)
        elif step == "r":
            ledger.release(holder)
        elif step == "f":
            ledger.fence(uuid, "lost")
        elif step == "u":
            ledger.unfence(uuid)
        check(ledger)


def test_in_ten_thousand_random_schedules_two_exclusive_tasks_never_overlap():
    chance = random.Random(11)
    shapes = [
        Need(1),
        Need(2),
        Need(4),
        Need(),
        QUARTER,
        Need(share=0.5, memory_bytes=9 * GIB),
        Need(1, memory_bytes=GIB),
    ]
    placed_at_all = waited = 0
    for number in range(10_000):
        ledger = Ledger(universe(MIXED if number % 3 else WHOLE, None).devices)
        running: dict[str, Need] = {}
        for step in range(8):
            if running and chance.random() < 0.4:
                ledger.release(done := chance.choice(list(running)))
                del running[done]
            need = chance.choice(shapes)
            free = {device.uuid: chance.choice([0, 4 * GIB, 24 * GIB]) for device in ledger.devices}
            placed = ledger.place(need, free)
            waited += placed is None
            if placed is not None:
                placed_at_all += 1
                ledger.take(f"t{step}", placed, need)
                running[f"t{step}"] = need
            owners: dict[str, list[Need]] = {}
            for task, held in running.items():
                for uuid in ledger.held_by(task):
                    owners.setdefault(uuid, []).append(held)
            for held_there in owners.values():
                assert not any(need.gpus for need in held_there) or len(held_there) == 1
    assert placed_at_all > 15_000 and waited > 10_000  # both happened, and often


@given(st.lists(st.sampled_from([QUARTER, Need(1), Need(share=0.5)]), max_size=12))
def test_whoever_waits_at_the_front_is_served_when_all_before_it_have_ended(others):
    """What is kept free for the large task is taken by nobody, so each release brings its turn nearer."""
    ledger = Ledger(WHOLE)
    for number, need in enumerate(others):
        if (placed := ledger.place(need)) is not None:
            ledger.take(f"t{number}", placed, need)
    large = Need(4)
    for number in range(len(others)):
        kept = ledger.soonest(large)
        assert len(kept) == 4
        assert ledger.place(QUARTER, closed=kept) is None
        ledger.release(f"t{number}")
    assert ledger.place(large) is not None
