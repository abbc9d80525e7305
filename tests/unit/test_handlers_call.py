"""What a task may call: by the patterns of the configuration, and nothing reached through them."""

import importlib
import sys
import textwrap
from pathlib import Path

import orjson
import pytest
from dspy_supervisor import attempt
from dspy_supervisor.errors import ConfigError
from dspy_supervisor.handlers import call, echo, make
from dspy_supervisor.parts import Task
from dspy_supervisor.task import Cause

MODULES = {
    "callees/__init__.py": "def root(): return 'root'\n",
    "callees/text.py": """
        import asyncio
        import os
        from json import dumps
        CONSTANT = 3
        def count(text, *, sep=" "): return len(text.split(sep))
        def _private(): return "private"
        def fails(): raise ValueError("as asked")
        async def later(): await asyncio.sleep(0); return "later"
        class Shelf:
            def __init__(self): raise AssertionError("made")
            @staticmethod
            def put(book): return book
            @classmethod
            def size(cls): return 0
    """,
    "callees/loud.py": "raise AssertionError('imported')\n",
    "callees/broken.py": "import no_such_thing\n",
    "calleesnot.py": "def root(): return 'not'\n",
}


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    for name, source in MODULES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield
    for name in [name for name in sys.modules if name.split(".")[0] in ("callees", "calleesnot")]:
        del sys.modules[name]


def run(handler, payload):
    raw = orjson.dumps(payload)
    task = Task("a1", "cpu_short", "call", 0, 0, None, raw, None, raw, Path("/nonexistent"), None)
    return attempt.run(handler, task, max_result_bytes=1 << 20)


def ask(name, *allow, **rest):
    return run(call.make(call_allow=allow), {"callable": name, **rest})


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("callees.text:count", "callees.text:count"),
        ("callees.text:count", "callees.text:*"),
        ("callees.text:count", "callees.*"),
        ("callees.text:count", "callees.text.*"),
    ],
)
def test_a_callable_is_called_with_its_arguments(name, pattern):
    assert ask(name, pattern, args=["a b c"]).result == b"3"
    assert ask(name, pattern, args=["a,b"], kwargs={"sep": ","}).result == b"2"
    assert ask(name, "other:*", pattern, args=["a"], kwargs=None).result == b"1"


def test_a_package_pattern_covers_the_package_itself_and_no_longer_name():
    assert ask("callees:root", "callees.*").result == b'"root"'
    assert ask("calleesnot:root", "callees.*").cause is Cause.REFUSED


@pytest.mark.parametrize("name", ["callees.text:Shelf.put", "callees.text:Shelf.size"])
def test_methods_of_classes_can_be_called(name):
    assert ask(name, "callees.text:*", args=[0] if name.endswith("put") else []).result == b"0"


def test_nothing_is_allowed_unless_the_configuration_says_so():
    outcome = ask("callees.loud:run")
    assert outcome.cause is Cause.REFUSED
    assert not outcome.retry
    assert "none of 'callees.loud:run', 'callees.loud:*', 'callees.loud.*', 'callees.*' is in call_allow" in (
        outcome.message
    )
    assert "callees.loud" not in sys.modules


@pytest.mark.parametrize(
    ("name", "patterns", "says"),
    [
        ("callees.text:_private", ["callees.text:*"], "is private"),
        ("callees.text:Shelf.__init__", ["callees.text:*"], "is private"),
        ("callees.text:os.system", ["callees.text:*"], "os is no class"),
        ("callees.text:os.system", ["callees.text:os.system"], "os is no class"),
        ("callees.text:dumps", ["callees.text:*"], "is defined in json"),
        ("callees.text:count.__globals__", ["callees.text:count.__globals__"], "count is no class"),
        ("callees.text:CONSTANT", ["callees.text:*"], "cannot be called"),
        ("callees.text:missing", ["callees.text:*"], "no 'missing' in callees.text"),
        ("callees.text:Shelf.missing", ["callees.*"], "no 'missing' in callees.text.Shelf"),
        ("callees.missing:run", ["callees.*"], "no module 'callees.missing'"),
        ("no_such_package.a:run", ["no_such_package.*"], "no module 'no_such_package'"),
    ],
)
def test_what_a_pattern_does_not_mean_is_refused_in_words(name, patterns, says):
    outcome = ask(name, *patterns)
    assert outcome.cause is Cause.REFUSED
    assert says in outcome.message


def test_the_exact_name_allows_what_a_star_does_not():
    assert ask("callees.text:_private", "callees.text:_private").result == b'"private"'
    assert ask("callees.text:dumps", "callees.text:dumps", args=[[1]]).result == b'"[1]"'


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (None, "not NoneType"),
        ([1], "not list"),
        ({}, "'callable' is 'module:name', not None"),
        ({"callable": 3}, "not 3"),
        ({"callable": "count"}, "not 'count'"),
        ({"callable": "a b:c"}, "not 'a b:c'"),
        ({"callable": "callees.text:count\n"}, "'callable' is"),
        ({"callable": "callees.text:count", "arg": [1]}, "knows no 'arg'"),
        ({"callable": "callees.text:count", "args": {"a": 1}}, "'args' is an array, not dict"),
        ({"callable": "callees.text:count", "kwargs": [1]}, "'kwargs' is an object, not list"),
    ],
)
def test_a_payload_of_another_shape_is_refused(payload, says):
    outcome = run(call.make(call_allow=["callees.*"]), payload)
    assert outcome.cause is Cause.REFUSED
    assert says in outcome.message


def test_what_the_callable_raises_is_raised():
    outcome = ask("callees.text:fails", "callees.*")
    assert (outcome.cause, outcome.message, outcome.type) == (Cause.RAISED, "as asked", "ValueError")
    assert "call.py" in outcome.traceback
    assert ask("callees.text:count", "callees.*").type == "TypeError"


def test_a_module_that_breaks_at_import_is_tried_again_later():
    assert ask("callees.loud:run", "callees.*").message == "imported"
    outcome = ask("callees.broken:run", "callees.*")
    assert (outcome.cause, outcome.retry, outcome.type) == (Cause.RAISED, True, "ModuleNotFoundError")


def test_a_coroutine_function_can_be_called():
    assert ask("callees.text:later", "callees.*").result == b'"later"'


@pytest.mark.parametrize("pattern", ["", "*", "os", "os:", "os*", "*:*", "os.*:*", "os:sys*", "a b:*", ":run"])
def test_a_pattern_that_means_nothing_is_a_config_error(pattern):
    with pytest.raises(ConfigError, match="call_allow"):
        call.make(call_allow=[pattern])


def test_a_handler_is_made_by_its_short_name_with_its_settings_or_loaded():
    assert run(make("echo"), {"n": [None]}).result == b'{"n":[null]}'
    assert run(make("call", call_allow=("callees:root",)), {"callable": "callees:root"}).result == b'"root"'
    assert run(make("callees.text:count"), 1).cause is Cause.RAISED
    assert make("dspy_supervisor.handlers.echo:echo") is echo.echo
    with pytest.raises(ConfigError, match="handler='shout'"):
        make("shout")
