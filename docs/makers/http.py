"""reference/http: the operations and shapes of /v1/openapi.json."""

from collections.abc import Iterator, Mapping
from typing import Any

from dspy_supervisor.services.gateway.openapi import document

from .markdown import code, plain, table


def page() -> str:
    """Return the page."""
    return "\n".join(_lines(document())) + "\n"


def _lines(api: Mapping[str, Any]) -> Iterator[str]:
    yield from (
        "# HTTP operations",
        "",
        "From the document that the gateway serves as `/v1/openapi.json`; [the API](../api.md) says it in words.",
        "",
    )
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            yield from (f"## {method.upper()} {plain(path)}", "", f"{plain(operation['summary'])}.", "")
            if parameters := operation.get("parameters"):
                rows = [
                    (code(one["name"]), one["in"], _shape(one["schema"]), plain(one.get("description", "")))
                    for one in parameters
                ]
                yield from table(("parameter", "in", "is", ""), rows)
            if body := operation.get("requestBody"):
                yield from (f"Body: {_content(body)}", "")
            rows = [
                (status, plain(one.get("description", "")), _content(one))
                for status, one in operation["responses"].items()
            ]
            yield from table(("status", "means", "holds"), rows)
    yield from ("## Shapes", "")
    for name, shape in api["components"]["schemas"].items():
        yield from (f"### {name}", "", *([plain(shape["description"]) + ".", ""] if "description" in shape else []))
        required = shape.get("required", ())
        rows = [
            (code(key), _shape(one), "yes" if key in required else "", plain(one.get("description", "")))
            for key, one in shape.get("properties", {}).items()
        ]
        yield from table(("member", "is", "always there", ""), rows) if rows else (_shape(shape), "")


def _content(holder: Mapping[str, Any]) -> str:
    return ", ".join(f"{code(kind)} {_shape(one.get('schema', {}))}" for kind, one in holder.get("content", {}).items())


def _shape(schema: Mapping[str, Any]) -> str:
    """Return in a few words what a value is."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for key, joined in (("anyOf", " or "), ("oneOf", " or "), ("allOf", " and ")):
        if key in schema:
            return joined.join(_shape(one) for one in schema[key])
    kind = schema.get("type", "any JSON")
    text = " or ".join(kind) if isinstance(kind, list) else str(kind)
    if "enum" in schema:
        text = "one of " + ", ".join(code(str(one)) for one in schema["enum"] if one is not None)
    if "items" in schema:
        text = f"list of {_shape(schema['items'])}"
    bounds = [f"{word} {schema[key]}" for key, word in (("minimum", "from"), ("maximum", "to")) if key in schema]
    default = [f"(default {code(str(schema['default']))})"] if "default" in schema else []
    return " ".join([text, *bounds, *default])
