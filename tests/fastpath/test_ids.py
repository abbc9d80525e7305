import os
import subprocess
import sys
import time
import uuid
from typing import Any

import pytest
from dspy_fastpath import ids as compiled

from tests.reference import ids as reference


@pytest.fixture(params=[compiled.uuid7, reference.uuid7], ids=["compiled", "reference"])
def uuid7(request: pytest.FixtureRequest) -> Any:
    return request.param


def milliseconds(text: str) -> int:
    return uuid.UUID(text).int >> 80


def in_children(count: int, make) -> list[list[str]]:
    """Return what make() gives in each of count forked children."""
    outputs = []
    for _ in range(count):
        end, start = os.pipe()
        if (pid := os.fork()) == 0:
            try:
                os.write(start, "\n".join(make()).encode())
                os._exit(0)
            finally:
                os._exit(1)
        os.close(start)
        with os.fdopen(end) as pipe:
            outputs.append(pipe.read().splitlines())
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return outputs


def test_an_id_is_a_canonical_uuid_of_version_7(uuid7):
    for _ in range(1000):
        text = uuid7()
        parsed = uuid.UUID(text)
        assert str(parsed) == text
        assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)


def test_an_id_begins_with_the_time(uuid7):
    [[text, fixed]] = in_children(1, lambda: [uuid7(), uuid7(0x2FF_1234_5678)])
    assert abs(milliseconds(text) - time.time() * 1000) < 10_000
    assert fixed.startswith("02ff1234-5678-7")


def test_ids_of_a_process_only_increase(uuid7):
    made = [uuid7() for _ in range(50_000)]
    assert made == sorted(set(made))


def test_10000_ids_in_one_millisecond_increase_and_keep_it(uuid7):
    [made] = in_children(1, lambda: [uuid7(2_000_000_000_000) for _ in range(10_000)][::7])
    assert made == sorted(set(made))
    assert {milliseconds(text) for text in made} == {2_000_000_000_000}


def test_ids_increase_while_the_clock_steps_back(uuid7):
    def make():
        return [uuid7(ms) for ms in (2_000_000_000_000, 1_900_000_000_000, 0, 2_000_000_000_000, 2_000_000_000_001)]

    [made] = in_children(1, make)
    assert made == sorted(set(made))
    assert milliseconds(made[-1]) == 2_000_000_000_001


def test_children_share_no_counter_and_no_random_bits_with_each_other_or_their_parent(uuid7):
    before = uuid7()
    families = in_children(20, lambda: [uuid7() for _ in range(20)])
    after = [uuid7() for _ in range(20)]
    everyone = [before, *after, *(text for family in families for text in family)]
    assert len(set(everyone)) == len(everyone)
    tails = [text[-8:] for text in everyone]
    assert len(set(tails)) >= len(tails) - 1  # two of 421 are equal by chance once in 50,000 runs
    counters = [uuid.UUID(family[0]).int >> 32 & 0x3FFFFFFF for family in families]
    assert len(set(counters)) == len(counters)
    for family in families:
        assert [before, *family] == sorted([before, *family])


def test_a_grandchild_starts_anew_and_above_what_its_parent_had(uuid7):
    def make():
        first = uuid7(2_000_000_000_000)
        [[grandchild]] = in_children(1, lambda: [uuid7()])
        return [first, grandchild, uuid7()]

    families = in_children(10, make)
    assert len({text[-8:] for family in families for text in family}) == 30
    for first, grandchild, second in families:
        assert first < grandchild
        assert first < second


def test_the_random_bits_are_spread_evenly(uuid7):
    ones = [0] * 32
    for _ in range(4000):
        tail = int(uuid7()[-8:], 16)
        for bit in range(32):
            ones[bit] += tail >> bit & 1
    assert all(1700 < count < 2300 for count in ones)  # 9 standard deviations


@pytest.mark.parametrize("unix_ms", [-1, 1 << 48])
def test_a_time_that_does_not_fit_is_refused(uuid7, unix_ms):
    with pytest.raises(ValueError, match="expected a number from 0 to 281474976710655"):
        uuid7(unix_ms)


def test_the_counter_of_the_reference_runs_over_into_the_next_millisecond():
    generator = reference.Generator()
    generator.last_ms, generator.counter = 5000, reference.COUNTER_END - 2
    made = [generator.next(5000) for _ in range(3)]
    assert made == sorted(set(made))
    assert [milliseconds(text) for text in made] == [5000, 5001, 5001]


def test_making_ids_leaks_no_memory():
    program = """
import os
from dspy_fastpath.ids import uuid7

def rounds(count):
    for _ in range(count):
        uuid7()
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

before = rounds(10_000)
print(rounds(300_000) - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) < 1_500_000
