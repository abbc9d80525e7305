"""The task a handler sees, the errors it may raise, and handlers found by name."""

import subprocess
import sys
import textwrap

import pytest
from dspy_supervisor.errors import ConfigError
from dspy_supervisor.parts import HandlerFailure, Retry, Task, load
from dspy_supervisor.task import Cause


def make_task(folder, raw=b'{"n": 1}'):
    return Task(
        id="a1", task_class="cpu_short", kind=None, attempt=0, crashes=0, timeout_s=None, raw=raw, fields=None,
        envelope=raw, home=folder, deadline=None,
    )  # fmt: skip


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module that can be imported; returns its name."""
    monkeypatch.syspath_prepend(tmp_path)
    names = []

    def write(name, source):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        names.append(name)
        return name

    yield write
    for name in names:
        sys.modules.pop(name, None)


def test_the_payload_is_parsed_once(tmp_path):
    task = make_task(tmp_path)
    assert task.payload == {"n": 1}
    assert task.payload is task.payload


def test_a_payload_of_null_is_a_payload(tmp_path):
    assert make_task(tmp_path, b"null").payload is None


def test_the_output_folder_is_made_with_its_parents_and_may_be_there(tmp_path):
    task = make_task(tmp_path / "logs" / "a1")
    assert task.output_folder().is_dir()
    assert task.output_folder() == tmp_path / "logs" / "a1"


def test_a_link_in_the_place_of_the_output_folder_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotADirectoryError, match="a link or a file"):
        make_task(tmp_path / "a1").output_folder()


@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf"), 1e9])
def test_a_retry_refuses_a_delay_that_is_no_time(delay):
    with pytest.raises(ValueError, match="delay_s="):
        Retry("later", delay)


def test_a_handler_failure_copies_its_details():
    details = {"exit_code": 3}
    failure = HandlerFailure(Cause.EXIT, "it ended with 3", details)
    details["exit_code"] = 4
    assert failure.details == {"exit_code": 3}
    assert str(failure) == "it ended with 3"


def test_a_handler_is_found_by_name(module, tmp_path):
    name = module("words_a", "class Count:\n    @staticmethod\n    def words(task): return task.payload\n")
    assert load(f"{name}:Count.words")(make_task(tmp_path)) == {"n": 1}


@pytest.mark.parametrize(
    ("source", "name", "says"),
    [
        ("", "words_b", "expected module:function"),
        ("", "words_b:", "expected module:function"),
        ("", "words_b:a b", "expected module:function"),
        ("", ":run", "expected module:function"),
        ("", "no_such_module:run", "No module named 'no_such_module'"),
        ("", "words_b:run", "'run' to be defined in words_b"),
        ("class A: pass", "words_b:A.run", "'run' to be defined in words_b.A"),
        ("run = 3", "words_b:run", "something that can be called, not int"),
        ("1 / 0", "words_b:run", "ZeroDivisionError"),
        ("def (", "words_b:run", "SyntaxError"),
        ("raise SystemExit(3)", "words_b:run", "SystemExit: 3"),
    ],
)
def test_a_name_that_leads_nowhere_says_where_it_ends(module, source, name, says):
    module("words_b", source)
    with pytest.raises(ConfigError) as caught:
        load(name)
    assert says in str(caught.value)
    assert repr(name) in str(caught.value)


def test_a_bare_worker_stays_small():
    program = (
        "import sys, dspy_supervisor.attempt, dspy_supervisor.proctree, dspy_supervisor.handlers.command;"
        "heavy = {'asyncio', 'subprocess', 'ssl', 'numba', 'numpy', 'traceback', 'ctypes'};"
        "print(*heavy & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "\n"
