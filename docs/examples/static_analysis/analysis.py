"""The handler: what one Python file gives to think about, read from its syntax tree."""

import ast
from pathlib import Path

# Each of these is one more way through a function (McCabe, "A Complexity Measure", 1976).
BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.IfExp, ast.comprehension, ast.match_case)
MANY_BRANCHES = 12


def analyse(task):
    """Return lines, functions and findings of the file that the payload names; a file that is no Python is a finding, too."""
    source = Path(task.payload["path"]).read_bytes()
    lines = source.count(b"\n")
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        return {"lines": lines, "functions": 0, "findings": [[getattr(error, "lineno", 1) or 1, f"no Python: {error}"]]}
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    findings = [*unused_imports(tree), *swallowed_errors(tree)]
    for function in functions:
        findings += mutable_defaults(function)
        if (score := complexity(function)) > MANY_BRANCHES:
            findings.append([function.lineno, f"{function.name} has {score} ways through it"])
    return {"lines": lines, "functions": len(functions), "findings": sorted(findings)}


def complexity(function):
    """Return the cyclomatic complexity of a function, with what is nested in it."""
    score = 1
    for node in ast.walk(function):
        score += len(node.values) - 1 if isinstance(node, ast.BoolOp) else isinstance(node, BRANCHES)
    return score


def unused_imports(tree):
    """Yield what a module imports and never names; __init__ files and `import x as x` mean it."""
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom) and getattr(node, "module", "") != "__future__":
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                if name != "*" and alias.asname != alias.name and name not in used:
                    yield [node.lineno, f"{name} is imported and not used"]


def swallowed_errors(tree):
    """Yield handlers that catch everything and do nothing."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ExceptHandler)
            and node.type is None
            and all(isinstance(one, ast.Pass) for one in node.body)
        ):
            yield [node.lineno, "any error is swallowed here, also Ctrl-C"]


def mutable_defaults(function):
    """Yield defaults that all calls share."""
    for default in [*function.args.defaults, *(one for one in function.args.kw_defaults if one)]:
        if isinstance(default, ast.List | ast.Dict | ast.Set):
            yield [default.lineno, f"{function.name} has a default that its calls share"]
