"""The demo's handler: what one Python module consists of, read from its syntax tree."""

import ast
from pathlib import Path

# Each of these is one more way through a function (McCabe, "A Complexity Measure", 1976).
BRANCHES = (
    ast.If,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.ExceptHandler,
    ast.IfExp,
    ast.comprehension,
    ast.Assert,
    ast.match_case,
)


def analyse(task):
    """Return lines, classes, functions and cyclomatic complexity of the file that the payload names."""
    path = Path(task.payload["path"])
    source = path.read_bytes()
    tree = ast.parse(source, str(path))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    ranked = sorted(((complexity(node), node.name, node.lineno) for node in functions), reverse=True)
    return {
        "lines": source.count(b"\n"),
        "classes": sum(isinstance(node, ast.ClassDef) for node in ast.walk(tree)),
        "functions": len(functions),
        "complexity": sum(score for score, _, _ in ranked),
        "most_complex": [{"complexity": score, "name": name, "line": line} for score, name, line in ranked[:3]],
    }


def complexity(function):
    """Return the cyclomatic complexity of one function, with what is nested in it."""
    score = 1
    for node in ast.walk(function):
        if isinstance(node, ast.BoolOp):
            score += len(node.values) - 1
        elif isinstance(node, BRANCHES):
            score += 1
    return score
