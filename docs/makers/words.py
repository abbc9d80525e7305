"""reference/words: what `explain` and `status` say, read from the functions that say it."""

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
from types import ModuleType

from dspy_supervisor import devices, fleet, gpu_pool, jobbook, limit_terms, loop, pool, requests
from dspy_supervisor.cli import explain

from .markdown import code, plain, table

_SECTIONS: tuple[tuple[str, tuple[tuple[ModuleType, tuple[str, ...]], ...]], ...] = (
    (
        "Where a task is, and why it does not run",
        ((requests, ("explain", "_carried", "_why_waiting", "_why_after", "_last_attempt")), (pool, ("why_waiting",))),
    ),
    ("Where no supervisor of this host runs", ((explain, ("_explained",)),)),
    ("Tasks that nothing here can run", ((loop, ("why_held",)),)),
    ("GPUs", ((gpu_pool, ("_place", "_why_not")), (fleet, ("why_full",)), (devices, ("never",)))),
    ("Slurm jobs", ((jobbook, ("describe",)),)),
)


def page() -> str:
    """Return the page."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield from (
        "# Words of `explain` and `status`",
        "",
        "`dspy-supervisor explain ID` answers in a sentence of these; *slanted* is what it fills in. `status` and the dashboard",
        "give the reasons of limits.",
        "",
    )
    for title, places in _SECTIONS:
        yield from (f"## {title}", "")
        found: dict[str, None] = {}
        for module, names in places:
            found |= dict.fromkeys(_said(module, names))
        yield from (*(f"- {text}" for text in found), "")
    yield from ("## Why a limit is what it is", "")
    yield from table(
        ("reason", "in words"),
        [(code(one.name.lower()), plain(limit_terms.reason_text(one))) for one in limit_terms.Reason],
    )


def _said(module: ModuleType, names: tuple[str, ...]) -> Iterator[str]:
    for function in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(function, ast.FunctionDef) and function.name in names:
            locally = {
                target.id: node.value
                for node in ast.walk(function)
                if isinstance(node, ast.Assign)
                for target in node.targets
                if isinstance(target, ast.Name)
            }
            for node in ast.walk(function):
                kept = isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript)
                if (kept or isinstance(node, ast.Return)) and node.value is not None:
                    found = (text.lstrip(" ,;") for text in _texts(node.value, locally))
                    yield from (text for text in found if re.search(r"[a-z]{2,} [a-z]", re.sub(r"\*.*?\*", "", text)))


def _texts(node: ast.expr, locally: Mapping[str, ast.expr]) -> Iterator[str]:
    """Yield the sentences that an expression may be; names that the function gave to a text stand for it."""
    match node:
        case ast.Constant(value=str() as text):
            yield plain(text)
        case ast.JoinedStr(values=values):
            yield "".join(_piece(part, locally) for part in values)
        case ast.IfExp(body=body, orelse=other):
            yield from (*_texts(body, locally), *_texts(other, locally))
        case ast.BoolOp(values=values) | ast.Tuple(elts=values) | ast.List(elts=values):
            for one in values:
                yield from _texts(one, locally)
        case ast.BinOp(left=left, right=right):
            first = next(_texts(left, locally), "")
            yield first
            yield from (f"{first}{more}" for more in _texts(right, locally) if more and first)
        case ast.Name(id=name) if name in locally and not _within(name, locally[name]):
            yield from _texts(locally[name], locally)


def _piece(part: ast.expr, locally: Mapping[str, ast.expr]) -> str:
    """Return a piece of an f-string; what is filled in is named by the last word of its expression."""
    if isinstance(part, ast.Constant):
        text = str(part.value)
        return " " * text.startswith(" ") + plain(text) + " " * (text.endswith(" ") and bool(text.strip()))
    value = part.value if isinstance(part, ast.FormattedValue) else part
    if isinstance(value, ast.Name) and value.id in locally and not _within(value.id, locally[value.id]):
        text = next(_texts(locally[value.id], locally), "")
        if text:
            return text
    while isinstance(value, ast.Call | ast.Subscript):  # what a function was called with says more than its name
        inside = (
            value.args
            if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id != "_last_attempt"
            else ()
        )
        value = inside[0] if inside else value.func if isinstance(value, ast.Call) else value.value
        if isinstance(value, ast.Attribute) and isinstance(part, ast.FormattedValue) and not inside:
            value = value.value if value.attr in ("removesuffix", "get", "join") else value
    words = [
        one.attr if isinstance(one, ast.Attribute) else one.id
        for one in ast.walk(value)
        if isinstance(one, ast.Attribute | ast.Name)
    ]
    return f"*{words[0].strip('_').replace('_', ' ').lower()}*" if words else "*...*"


def _within(name: str, node: ast.expr) -> bool:
    return any(isinstance(one, ast.Name) and one.id == name for one in ast.walk(node))
