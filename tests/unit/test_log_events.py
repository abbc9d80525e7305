"""docs/logs.md lists every event of the log with its levels and fields, as the source writes them, and no other."""

import ast
from collections import defaultdict
from pathlib import Path

import dspy_supervisor
import pytest

PACKAGE = Path(dspy_supervisor.__file__).parent
TABLE = Path(__file__).parents[2] / "docs" / "logs.md"
LEVELS = ("debug", "info", "warning", "error")


def words(node):
    """Return the texts an expression can be: one, or one of two."""
    if isinstance(node, ast.IfExp):
        return words(node.body) | words(node.orelse)
    assert isinstance(node, ast.Constant) and isinstance(node.value, str), (
        f"an event is a fixed word: {ast.unparse(node)}"
    )
    return {node.value}


def written():
    """Return the levels and the fields of every event in the source."""
    found = defaultdict(lambda: (set(), set()))
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS):
                continue
            if not (isinstance(node.func.value, ast.Name) and node.func.value.id == "log"):
                continue
            fields = [keyword.arg for keyword in node.keywords]
            assert None not in fields, f"{path}, line {node.lineno}: fields are written out, so that they can be listed"
            for event in words(node.args[0]):
                levels, known = found[event]
                levels.add(node.func.attr)
                known |= {"class" if field == "klass" else field for field in fields}
    return {event: (", ".join(sorted(levels, key=LEVELS.index)), known) for event, (levels, known) in found.items()}


def listed():
    """Return the same of the table, and the words that explain each event."""
    rows = [line.strip("| \n").split(" | ") for line in TABLE.read_text().splitlines() if line.startswith("| `")]
    return {
        row[0].strip("`"): (row[1], set(row[2].replace("`", "").replace(",", " ").split()) - {"-"}, row[3])
        for row in rows
        if len(row) == 4
    }


@pytest.mark.skipif(not TABLE.exists(), reason="the documents are not here")
def test_every_event_is_listed_as_it_is_written():
    source, table = written(), listed()
    missing = [
        f"| `{event}` | {levels} | {', '.join(f'`{field}`' for field in sorted(fields)) or '-'} | what it means |"
        for event, (levels, fields) in sorted(source.items())
        if event not in table or table[event][:2] != (levels, fields)
    ]
    assert not missing, "docs/logs.md needs these rows:\n" + "\n".join(missing)
    assert table.keys() - source.keys() - {"message"} == set(), "nothing writes these any more"
    assert all(meaning for *_, meaning in table.values())
