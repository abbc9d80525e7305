"""What a file name says, and what it can't."""

import os

import pytest
from dspy_supervisor.task import Cause, TaskName, WorkloadClass, is_task_id
from hypothesis import given
from hypothesis import strategies as st

IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fullmatch=True)


@given(IDS, st.integers(0, 999_999_998), st.integers(0, 999_999_998))
def test_a_name_survives_its_file(task_id, attempt, crashes):
    name = TaskName(task_id, attempt, crashes if attempt else 0)
    assert TaskName.parse(name.file) == name
    assert name.charged(crashed=True).crashes == name.crashes + 1
    assert name.charged(crashed=False) == (task_id, attempt + 1, name.crashes)
    assert len(os.fsencode(f".{name.file}.won")) < 200


@given(st.text(max_size=30))
def test_no_other_text_is_a_name_of_two_files(text):
    name = TaskName.parse(text)
    assert name is None or name.file == text


@pytest.mark.parametrize(
    "file",
    [
        "a1.json",
        "a.b.c.json",
        "A-1_2.json",
        "9.json",
        "x" * 100 + ".json",
        "a1~1x0.json",
        "a1~20x3.json",
        "a.json.json",
    ],
)
def test_these_are_tasks(file):
    assert TaskName.parse(file)


@pytest.mark.parametrize(
    "file",
    [
        "",
        ".json",
        ".a1.json",
        "-rf.json",
        "../../evil.json",
        "a/b.json",
        "a1",
        "a1.json\n",
        "a1.JSON",
        "a 1.json",
        "a1.json.tmp",
        "a1.tmp",
        "a1.lock",
        "ä.json",
        "a1~.json",
        "a1~1.json",
        "a1~01x0.json",
        "a1~0x0.json",
        "a1~1x00.json",
        "a1~-1x0.json",
        "a1~1x0~2x0.json",
        "a1~1234567890x0.json",
        "x" * 101 + ".json",
        "a1~\u0661x0.json",
        "\u0661.json",
        "$(id).json",
        "~1x0.json",
    ],
)
def test_these_are_none(file):
    assert TaskName.parse(file) is None


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (None, "cpu_short"), ("", "cpu_short"), ("nonsense", "cpu_short"), ("GPU", "gpu"), (" Cpu_Long ", "cpu_long"),
        ("gpu_slurm", "gpu_slurm"),
    ],
)  # fmt: skip
def test_a_class_is_what_the_producer_meant(written, meant):
    assert WorkloadClass.parse(written) == meant


def test_an_id_is_no_path():
    assert is_task_id("a1")
    assert not any(map(is_task_id, ["", ".", "..", "a/b", "a\0", "a1\n", "a~1x0"]))


def test_causes_and_classes_are_words_of_the_wire():
    assert f"{Cause.OUT_OF_MEMORY}/{WorkloadClass.GPU}" == "out_of_memory/gpu"
