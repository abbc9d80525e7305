"""docs/security.md is held to the source: each threat names tests that are there, and what it says of pickles is true."""

import ast
import re
from pathlib import Path

import dspy_supervisor
import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "security.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the documents are not here")


def functions_of(path):
    return {
        node.name
        for node in ast.parse((ROOT / path).read_text()).body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }


def test_each_threat_names_tests_that_are_there():
    rows = re.findall(r"^\|(.+)\|(.+)\|(.+)\|$", PAGE.read_text().split("## The queue folder")[1], re.MULTILINE)
    threats = [row for row in rows if row[2].strip() not in ("shown by", "---")]
    assert len(threats) > 40
    missing = []
    for threat, _, shown_by in threats:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", shown_by)
        assert named, f"no test shows what stops this: {threat.strip()}"
        missing += [
            f"{path}::{name}" for path, name in named if not (ROOT / path).is_file() or name not in functions_of(path)
        ]
    assert not missing


def test_nothing_in_the_program_unpickles():
    found = []
    for path in Path(dspy_supervisor.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                names = [node.func.id] if node.func.id in ("eval", "exec") else []
            elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                names = [] if ast.unparse(node.value) == "False" else ["allow_pickle"]
            known = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "eval", "exec", "allow_pickle"}
            found += [f"{path}: {name}" for name in names if name.split(".")[0] in known]
    assert not found
