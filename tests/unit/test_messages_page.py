"""docs/messages.md has a row for each message that the program can end with, as the source writes it, and no other."""

import ast
import re
from pathlib import Path

import dspy_supervisor
import pytest
from dspy_supervisor import errors
from dspy_supervisor.task import Cause

PACKAGE = Path(dspy_supervisor.__file__).parent
PAGE = Path(__file__).parents[2] / "docs" / "messages.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the documents are not here")

HOLE = "…"  # stands for what is filled in when the message is made
#: What is caught where it is raised, or can't be raised at all, so that nobody reads it.
UNSEEN = {"_Fenced", "_Void", "Anew", "AssertionError", "AttributeError", "CursorUnknown", "EOFError", "Gone"}
#: Functions that make an exception, and the place of the message among their arguments.
MAKERS = {"_refused": 0, "_failure": -1, "_too_long": None, "_error": None, "unpacked": None}


def texts(node):
    """Return what an expression can read as, each variable part a hole."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else [HOLE]
    if isinstance(node, ast.JoinedStr):
        return ["".join(part.value if isinstance(part, ast.Constant) else HOLE for part in node.values)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [left + right for left in texts(node.left) for right in texts(node.right)]
    if isinstance(node, ast.IfExp):
        return texts(node.body) + texts(node.orelse)
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.JoinedStr):
        return texts(node.args[0])  # a text that something is hidden in
    return [HOLE]


def readable(message):
    """Return the message as it stands in the table, or None where nothing of it is fixed."""
    message = re.sub(rf"{HOLE}(?:\s*{HOLE})+", HOLE, " ".join(message.split()))
    return message if re.search(r"[a-z]{3}", re.sub(r"^\W*expected|: expected", "", message)) else None


def part_of(part, names):
    """Return a fixed part as it is, and of an argument its number."""
    if isinstance(part, ast.Constant):
        return part.value
    name = ast.unparse(part.value)
    return names.index(name) if name in names else HOLE


def made_by_classes(trees):
    """Return of each class that makes its message of its arguments: the parts of it, a number for an argument."""
    found = {}
    for node in (node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        for init in node.body:
            if not (isinstance(init, ast.FunctionDef) and init.name == "__init__"):
                continue
            names = [argument.arg for argument in init.args.args[1:]]
            for call in ast.walk(init):
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "super().__init__" and call.args:
                    text = call.args[0]
                    parts = text.values if isinstance(text, ast.JoinedStr) else []
                    found[node.name] = [part_of(part, names) for part in parts]
    return found


def of_call(call, made):
    """Return the messages of one exception that is made."""
    name = ast.unparse(call.func).split(".")[-1]
    arguments = [texts(argument) for argument in call.args]
    if name in UNSEEN or not arguments or any(isinstance(one, ast.Starred) for one in call.args):
        return []
    if parts := made.get(name):
        return ["".join(part if isinstance(part, str) else arguments[part][0] or HOLE for part in parts)]
    place = MAKERS.get(name, 1 if name in ("Problem", "HandlerFailure", "OSError", "FileNotFoundError") else 0)
    return [] if place is None or place >= len(arguments) else arguments[place]


def written():
    """Return the messages of the source and where each is."""
    trees = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
    made = made_by_classes(trees)
    found = {}
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                for message in of_call(node.exc, made):
                    if key := readable(message):
                        found.setdefault(key, f"{path.relative_to(PACKAGE)}:{node.lineno}")
    return found


def findings():
    """Return what `doctor` and `slurm doctor` look at, where it may not be as it should."""
    found = set()
    for name in ("doctor.py", "trials.py", "services/slurm/doctor.py"):
        for node in ast.walk(ast.parse((PACKAGE / name).read_text())):
            if (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) == "Finding"
                and (ast.unparse(node.args[1]) if len(node.args) > 1 else "") != "Level.OK"
            ):
                found |= set(texts(node.args[0])) - {HOLE}
    return found


def rows(heading=None):
    """Return the first cells of the page's tables, and the second ones."""
    text = PAGE.read_text()
    if heading:
        text = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = re.findall(r"^\| `(.+?)` \| (.+) \|$", text, re.MULTILINE)
    return {message.replace("\\|", "|"): meaning for message, meaning in found}


def test_every_message_is_explained_and_no_other():
    source, table = written(), rows()
    missing = [f"| `{message}` | what it means, and what to do ({where}) |" for message, where in source.items()]
    missing = [row for row, message in zip(missing, source, strict=True) if message not in table]
    assert not missing, "docs/messages.md needs these rows:\n" + "\n".join(missing)
    others = rows("Causes of failures").keys() | rows("What doctor finds").keys() | rows("Exit codes").keys()
    others |= rows("Refused files").keys()
    assert table.keys() - source.keys() - others == set(), "nothing says these any more"


def test_every_exit_code_is_explained():
    codes = {
        error.exit_code for error in vars(errors).values() if isinstance(error, type) and hasattr(error, "exit_code")
    }
    assert rows("Exit codes").keys() == {str(code) for code in codes | {errors.EXIT_OK, errors.EXIT_INTERRUPTED}}


def test_every_cause_of_a_failure_is_explained():
    assert rows("Causes of failures").keys() == {str(cause) for cause in Cause}


def test_whatever_doctor_may_find_wrong_is_explained():
    assert findings() - rows("What doctor finds").keys() == set()
