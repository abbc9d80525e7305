"""reference/python: what a Python program may import, with signatures and docstrings."""

import inspect
import re
import textwrap
from collections.abc import Iterator

import dspy_supervisor
from dspy_supervisor import client, parts

from .markdown import plain

_OTHERS = {client: ("TaskInfo", "Waited")}


def page() -> str:
    """Return the page."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield from ("# Python", "", "What `dspy_supervisor` gives to a program that puts tasks, and to a handler.", "")
    public = {name: getattr(dspy_supervisor, name) for name in dspy_supervisor.__all__ if name != "__version__"}
    public |= {
        f"{module.__name__}.{name}": getattr(module, name) for module, names in _OTHERS.items() for name in names
    }
    errors = {name for name, thing in public.items() if inspect.isclass(thing) and issubclass(thing, Exception)}
    for title, names in (("Programs and handlers", sorted(public.keys() - errors)), ("Errors", sorted(errors))):
        yield from (f"## {title}", "")
        for name in names:
            yield from _one(name, public[name], 3)
            if inspect.isclass(public[name]) and name not in errors:
                for method, what in _methods(public[name]):
                    yield from _one(f"{name}.{method}".removeprefix("dspy_supervisor."), what, 4)
    yield from (
        "## What runs a task",
        "",
        "A handler is a function of one argument, or a class whose instances are called.",
        "",
    )
    yield from _text(inspect.getdoc(parts) or "")


def _methods(owner: type) -> Iterator[tuple[str, object]]:
    """Yield what a class defines, or inherits from a class of ours."""
    for name in dir(owner):
        ours = any(name in vars(base) for base in owner.__mro__ if base.__module__.startswith("dspy_supervisor"))
        thing = inspect.getattr_static(owner, name)
        documented = inspect.getdoc(thing) if callable(thing) or isinstance(thing, property) else None
        if ours and not name.startswith("_") and documented and not inspect.isclass(thing):
            yield name, thing


def _one(name: str, thing: object, level: int) -> Iterator[str]:
    shown = thing.__init__ if inspect.isclass(thing) else thing  # type: ignore[misc]
    last = name.rpartition(".")[2]
    yield from (f"{'#' * level} `{name}`", "")
    # What a class inherits from C or from an enumeration has no signature to show.
    with_signature = inspect.isfunction(shown) and (not inspect.isclass(thing) or not issubclass(thing, BaseException))
    if with_signature and not hasattr(thing, "_fields"):
        yield from ("```text", f"{last}{_signature(shown)}", "```", "")
    yield from _text(inspect.getdoc(thing) or "")
    if inspect.isclass(thing) and with_signature and "__init__" in vars(thing) and inspect.getdoc(shown):
        yield from _text(inspect.getdoc(shown) or "")
    for field in getattr(thing, "_fields", ()) if inspect.isclass(thing) else ():
        comment = re.search(rf"^    {field}: .*?(?:#: (.*))?$", inspect.getsource(thing), re.MULTILINE)
        yield f"- `{field}`" + (f": {plain(comment[1])}" if comment and comment[1] else "")
    if getattr(thing, "_fields", ()):
        yield ""


def _signature(function: object) -> str:
    """Return a signature as it is written, a parameter a line where it is long."""
    signature = inspect.signature(function)  # type: ignore[arg-type]
    parameters = [_parameter(one) for one in signature.parameters.values() if one.name != "self"]
    kinds = [one.kind for one in signature.parameters.values() if one.name != "self"]
    if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        parameters.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    returns = signature.return_annotation
    end = "" if returns in (signature.empty, "None") else f" -> {returns}"
    line = f"({', '.join(parameters)}){end}"
    return line if len(line) < 80 else "(\n" + "".join(f"    {one},\n" for one in parameters) + f"){end}"


def _parameter(one: inspect.Parameter) -> str:
    stars = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
    default = "" if one.default is one.empty else f" = {one.default!r}"
    return f"{stars}{one.name}" + (f": {one.annotation}" if one.annotation is not one.empty else "") + default


def _text(text: str) -> Iterator[str]:
    """Yield a docstring as Markdown: its paragraphs, its lists, and what stands indented behind two colons."""
    for block in re.split(r"\n{2,}", text):
        if block.startswith("    "):
            yield from ("```text", textwrap.dedent(block), "```", "")
        elif re.match(r"[-*] ", block):
            yield from (*(f"- {plain(item)}" for item in re.split(r"(?m)^[-*] ", block) if item.strip()), "")
        elif block.strip() not in ("", "::"):
            said = plain(re.sub(r":\w+:(?=`)", "", block).replace("``", "`"))
            yield from (said.removesuffix(":") if said.endswith("::") else said, "")
